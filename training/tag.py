"""
Train a model that labels the words of a text on your own sentences: names, chunks, parts of speech.

    python training/tag.py --dataset conll2000                             a folder with train.txt and test.txt
    python training/tag.py --dataset my.conll --label_column 3 --model NAME_OR_FOLDER
    python training/tag.py training/recipes/conll2000.yaml --dataset conll2000

Sentences come from files of columns (CoNLL), from JSON or Parquet with lists of words and of labels, or from the Hub.
The model starts from a Chinchilla or BERT checkpoint, or from scratch with a tokenizer of its own. The output folder
holds the best model by F1 of entities, laid out as a Hub repository, its card, and `run.json`. An interrupted run goes
on where it was: repeat the command.
"""

import dataclasses
import logging
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import (
    DataCollatorForTokenClassification,
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
)

from chinchilla_hf import ChinchillaForTokenClassification
from chinchilla_hf.averaging import averaged_weights
from chinchilla_hf.baselines import word_baseline
from chinchilla_hf.data.tagged import (
    TaggedData,
    check_word_tokenizer,
    continuation_labels,
    load_tagged,
    load_word_tokenizer,
    tokenize_tagged,
)
from chinchilla_hf.metrics import tag_sequences, tagging_compute_metrics, tagging_metrics, token_predictions
from chinchilla_hf.model_card import write_model_card
from chinchilla_hf.model_start import ScratchArguments, StartArguments, choose_max_length, start_model
from chinchilla_hf.output_folder import RUN_RECORD, claim_output_folder, list_checkpoints, save_model_folder
from chinchilla_hf.processes import closed_process_group, start_script
from chinchilla_hf.publishing import check_access, push_folder
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

logger = logging.getLogger("tag")

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "conll2000.yaml"


@dataclass
class DataArguments:
    """Which sentences: arguments of `chinchilla_hf.data.tagged.load_tagged`."""

    _argument_group_name = "Data"

    dataset: str = field(
        metadata={
            "help": "A file with a word and its labels on a line and an empty line between sentences (CoNLL, CoNLL-U), "
            "a file with lists of words and labels (JSON, JSON Lines, Parquet, also .gz), a folder of files named by "
            "split, or the name of a Hub data set."
        }
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    validation_file: str | None = field(default=None, metadata={"help": "A file of its own for validation."})
    test_file: str | None = field(default=None, metadata={"help": "A file of its own for the test."})
    train_split: str = field(default="train", metadata={"help": "Name of the split to train on."})
    validation_split: str | None = field(default=None, metadata={"help": "Name of the validation split, if unusual."})
    test_split: str | None = field(default=None, metadata={"help": "Name of the test split, if unusual."})
    token_column: str | None = field(
        default=None,
        metadata={"help": "Column of the words: its name, or its number from 0. Default: found; in a file the first."},
    )
    label_column: str | None = field(
        default=None,
        metadata={"help": "Column of the labels: its name, or its number, -1 the last. Default: found; or the last."},
    )
    class_names: list[str] | None = field(
        default=None, metadata={"help": "What labels that are numbers mean, in the order of their ids."}
    )
    validation_share: float = field(default=0.1, metadata={"help": "Share of a validation split that has to be made."})
    test_share: float = field(default=0.1, metadata={"help": "Share of a test split that has to be made."})
    split_seed: int = field(default=42, metadata={"help": "Seed of the splits: one for all runs to be compared."})
    max_rows: int | None = field(
        default=None, metadata={"help": "At most so many sentences a split, for a quick trial."}
    )
    encoding: str = field(default="utf-8", metadata={"help": "Encoding of text files."})
    encoding_errors: str = field(
        default="strict", metadata={"help": "Undecodable bytes: strict stops at them, replace reads past them."}
    )


@dataclass
class ModelArguments(StartArguments):
    """Where the model starts, and what it learns of a word."""

    max_length: int | None = field(
        default=None,
        metadata={"help": "Longest sentence in tokens, longer ones are split. Default: the model's positions."},
    )
    label_all_subwords: bool = field(
        default=False,
        metadata={
            "help": "Train on all tokens of a word, not the first alone: for the pipeline's aggregation 'simple', "
            "which asks all of them."
        },
    )


@dataclass
class RunArguments(FineTuningArguments):
    """Trainer's options with our defaults, and what comes after the training."""

    output_dir: str | None = field(
        default="runs/tagger", metadata={"help": "Folder of the run: checkpoints, then the model, its card, run.json."}
    )
    metric_for_best_model: str | None = field(default="f1", metadata={"help": "What makes a checkpoint the best."})
    baseline: bool = field(
        default=True, metadata={"help": "Score a linear model on the words around each, for comparison."}
    )
    average_checkpoints: int = field(
        default=1,
        metadata={
            "help": "Average the weights of so many last checkpoints at the end, if that is better on the validation "
            "sentences than the best one; 1: do not."
        },
    )

    def __post_init__(self) -> None:
        if self.average_checkpoints < 1:
            raise ValueError(f"average_checkpoints is {self.average_checkpoints}, expected at least 1")
        # With one to keep, Trainer keeps the last and the best; with more, the best takes the place of one of them.
        if self.average_checkpoints > 1 and self.save_total_limit is not None:
            self.save_total_limit = max(self.save_total_limit, self.average_checkpoints + 1)
        super().__post_init__()


OPTIONS = (DataArguments, ModelArguments, ScratchArguments, TransferArguments, RunArguments)


def load(options: DataArguments) -> TaggedData:
    arguments = dataclasses.asdict(options)
    dataset, seed = resolve_location(arguments.pop("dataset")), arguments.pop("split_seed")
    return load_tagged(dataset, seed=seed, **arguments)


def build_tokenizer_and_model(
    data: TaggedData, options: ModelArguments, shape: ScratchArguments, transfer: TransferArguments
) -> tuple[PreTrainedTokenizerBase, ChinchillaForTokenClassification, str]:
    """From the checkpoint, or from scratch on the training sentences; and a line that says which."""
    tokenizer, model, origin = start_model(
        ChinchillaForTokenClassification,
        lambda: (" ".join(tokens) for tokens in data.splits["train"]["tokens"]),
        options,
        shape,
        transfer,
        load_tokenizer=load_word_tokenizer,
        id2label=dict(enumerate(data.label_names)),
        label2id={name: i for i, name in enumerate(data.label_names)},
        problem_type=None,
    )
    check_word_tokenizer(tokenizer, options.model or "this run")
    return tokenizer, model, origin


def use_better_average(trainer: FineTuningTrainer, checkpoints: list[Path], metric: str) -> bool:
    """Give the model the mean weights of `checkpoints`, if `metric` is no worse on the validation sentences then."""
    metric = metric.removeprefix("eval_")
    if len(checkpoints) < 2:
        return False
    model = trainer.accelerator.unwrap_model(trainer.model)
    one = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = trainer.evaluate(metric_key_prefix="one")[f"one_{metric}"]
    model.load_state_dict(averaged_weights(checkpoints))
    after = trainer.evaluate(metric_key_prefix="averaged")[f"averaged_{metric}"]
    logger.info("validation %s of one %.4f, of %d averaged %.4f", metric, before, len(checkpoints), after)
    no_worse = after <= before if metric == "loss" else after >= before
    if not no_worse:
        model.load_state_dict(one)
    return no_worse


def baseline_scores(data: TaggedData, seed: int) -> dict[str, Any]:
    """The same split, scored by a linear model on the words around each."""
    sides = [
        (
            [[token for token, label in zip(*row, strict=True) if label >= 0] for row in rows],
            [[data.label_names[label] for label in labels if label >= 0] for _, labels in rows],
        )
        for rows in (
            list(zip(data.splits[name]["tokens"][:], data.splits[name]["labels"][:], strict=True))
            for name in ("train", "test")
        )
    ]
    baseline = word_baseline(*sides[0], *sides[1], seed=seed)
    test = {name: baseline.metrics[f"overall_{name}"] for name in ("f1", "precision", "recall", "accuracy")}
    return {"model": baseline.model, "test": test, "seconds": baseline.seconds}


def report(scores: dict[str, Any]) -> str:
    """Test scores of the model and of the baseline, and those of every kind of entity, as a small table."""
    baseline = scores.get("baseline", {}).get("test", {})
    lines = [f"{'test':<18}{'model':>10}{'linear SVM':>18}"]
    for name, value in scores["test"].items():
        lines.append(f"{name:<18}{value:>10.4f}" + (f"{baseline[name]:>18.4f}" if name in baseline else ""))
    lines += [
        f"  {kind:<16}{values['f1']:>10.4f}  of {values['number']:,}"
        for kind, values in scores["kinds"].items()
        if values["number"]
    ]
    return "\n".join(lines)


@closed_process_group()
def main() -> None:
    data_options, model_options, shape, transfer, options = parse_recipe(OPTIONS, DEFAULT_RECIPE, __doc__)
    main_process = start_script(options)

    # Everything that can be wrong with the input shows here, before any long work.
    with one_line_errors():
        if transfer.lora_rank and options.average_checkpoints > 1:
            raise ValueError(
                f"average_checkpoints is {options.average_checkpoints}, but checkpoints of LoRA hold its updates "
                "alone: leave out one of the two"
            )
        folder = Path(options.output_dir)
        data = load(data_options)
        arguments = {
            name: value
            for part in (data_options, model_options, shape, transfer)
            for name, value in dataclasses.asdict(part).items()
        } | options.to_dict()
        tokenizer, model, origin = build_tokenizer_and_model(data, model_options, shape, transfer)
        max_length = choose_max_length(model_options, tokenizer, model.config)
        record = RunRecord(
            task="token-classification",
            arguments=arguments,
            data={
                "name": data_options.dataset,
                "fingerprint": data.fingerprint,
                "rows": {name: len(split) for name, split in data.splits.items()},
                "label_names": data.label_names,
            },
            model=describe_model(model, model_options.model),
            machine=describe_machine(options.device),
        )
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

    model = prepare_transfer(model, transfer)
    record.model["trained_parameters"] = count_trained(model)
    if main_process:
        print(f"{data.summary()}\n{origin}\n{describe_trained(model, transfer)}")
    continuations = continuation_labels(data.label_names) if model_options.label_all_subwords else None
    with options.main_process_first(desc="tokenizing"):
        splits = tokenize_tagged(data.splits, tokenizer, max_length, continuations)
    lengths = splits["train"]["length"][:]
    model.set_attn_implementation(
        model_options.attn_implementation or choose_attention(options, sum(lengths) / len(lengths))
    )
    # Trainer would push every checkpoint; the finished folder is pushed once, at the end.
    push_to_hub, options.push_to_hub = options.push_to_hub, False
    stops_early = options.early_stopping_patience and options.eval_strategy != "no"
    early_stopping = [EarlyStoppingCallback(options.early_stopping_patience)] if stops_early else []
    trainer = FineTuningTrainer(
        model,
        options,
        layer_decay=transfer.layer_decay,
        token_dropout=transfer.token_dropout,
        adversarial_epsilon=transfer.adversarial_epsilon,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
        compute_metrics=tagging_compute_metrics(data.label_names),
        preprocess_logits_for_metrics=token_predictions,
        callbacks=early_stopping,
    )
    try:
        result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except KeyboardInterrupt:
        sys.exit(f"interrupted at step {trainer.state.global_step}: the same command goes on from the last checkpoint")

    averaged = False
    if options.average_checkpoints > 1:
        checkpoints = list_checkpoints(folder)[-options.average_checkpoints :]
        averaged = use_better_average(trainer, checkpoints, options.metric_for_best_model or "f1")
    validation = trainer.evaluate()
    test = trainer.predict(splits["test"], metric_key_prefix="test")
    if not main_process:
        return
    scores = tagging_metrics(*tag_sequences(test.predictions, test.label_ids, data.label_names))
    record.scores = {
        "validation": scores_of(validation, "eval"),
        "test": scores_of(test.metrics, "test"),
        "kinds": {name: values for name, values in scores.items() if not name.startswith("overall_")},
    }
    if options.baseline:
        logger.info("scoring the baseline")
        record.scores["baseline"] = baseline_scores(data, options.seed)
    record.training |= describe_training(trainer.state, lengths, result.metrics["train_runtime"], options.seed)
    record.training["averaged"] = averaged

    save_model_folder(plain_model(trainer.accelerator.unwrap_model(trainer.model)), tokenizer, folder)
    record.status = "finished"
    record.write(folder / RUN_RECORD)
    write_model_card(record, folder / "README.md")
    if not options.keep_checkpoints:
        for path in list_checkpoints(folder):
            shutil.rmtree(path)
    call = f"pipeline('token-classification', '{folder}', aggregation_strategy='first')"
    print(f"\n{report(record.scores)}\n\nthe model is in {folder}: {call}")
    if push_to_hub:
        with one_line_errors():
            print(f"pushed to {push_folder(folder, options, 'Upload a model that labels words')}")


if __name__ == "__main__":
    main()
