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
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from chinchilla_hf import ChinchillaForSequenceClassification
from chinchilla_hf.classification import (
    ClassifierRunArguments,
    LabelledArguments,
    baseline_scores,
    load_data,
    report,
    save_classifier,
    score_classifier,
    select_best,
    start_record,
    tokenize,
)
from chinchilla_hf.data.labelled import LabelledData
from chinchilla_hf.head_fitting import fit_head, scale_regression_head
from chinchilla_hf.metrics import (
    classification_compute_metrics,
)
from chinchilla_hf.model_start import ScratchArguments, StartArguments, choose_max_length, start_model
from chinchilla_hf.output_folder import RUN_RECORD, claim_output_folder
from chinchilla_hf.processes import closed_process_group, start_script
from chinchilla_hf.publishing import check_access, push_folder
from chinchilla_hf.recipes import one_line_errors, parse_recipe
from chinchilla_hf.run_record import describe_model, describe_training
from chinchilla_hf.trainer import FineTuningTrainer
from chinchilla_hf.training_arguments import choose_attention, result_neutral_options
from chinchilla_hf.transfer import (
    TransferArguments,
    count_trained,
    describe_trained,
    prepare_transfer,
)

logger = logging.getLogger("classify")

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "tweet_sentiment.yaml"


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


OPTIONS = (LabelledArguments, ModelArguments, ScratchArguments, TransferArguments, ClassifierRunArguments)


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


@closed_process_group()
def main() -> None:
    data_options, model_options, shape, transfer, options = parse_recipe(OPTIONS, DEFAULT_RECIPE, __doc__)
    main_process = start_script(options)

    # Everything that can be wrong with the input shows here, before any long work.
    with one_line_errors():
        folder = Path(options.output_dir)
        data = load_data(data_options)
        record = start_record(data, data_options, (model_options, shape, transfer), options)
        tokenizer, model, origin = build_tokenizer_and_model(data, model_options, shape, transfer)
        max_length = choose_max_length(model_options, tokenizer, model.config)
        record.model = describe_model(model, model_options.model)
        with options.main_process_first(desc="claiming the output folder"):
            checkpoint = claim_output_folder(
                folder,
                record,
                ignore=result_neutral_options(list(record.arguments)),
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
    collate = DataCollatorWithPadding(tokenizer)
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
        token_dropout=transfer.token_dropout,
        adversarial_epsilon=transfer.adversarial_epsilon,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=collate,
        processing_class=tokenizer,
        compute_metrics=classification_compute_metrics(data.problem_type),
        callbacks=select_best(options, data.problem_type),
    )
    try:
        result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except KeyboardInterrupt:
        sys.exit(f"interrupted at step {trainer.state.global_step}: the same command goes on from the last checkpoint")

    test = score_classifier(trainer, splits, record)
    if not main_process:
        return
    if options.baseline:
        logger.info("scoring the linear baseline")
        symbols = tokenizer.tokenize if shape.tokenizer_algorithm == "symbols" else None
        record.scores["baseline"] = baseline_scores(data, options.seed, symbols)
    seconds = result.metrics["train_runtime"] + record.training.get("head", {}).get("seconds", 0.0)
    record.training |= describe_training(trainer.state, splits["train"]["length"], seconds, options.seed)
    save_classifier(trainer, tokenizer, folder, record, data, test, options)
    print(f"\n{report(record.scores)}\n\nthe model is in {folder}: pipeline('text-classification', '{folder}')")
    if push_to_hub:
        with one_line_errors():
            print(f"pushed to {push_folder(folder, options, 'Upload a text classifier')}")


if __name__ == "__main__":
    main()
