"""
Prune a trained text classifier: a dense model with fewer heads and neurons, which the whole one teaches as it shrinks.

    python training/prune.py --model runs/clinc150 --dataset data_full.json --flop_share 0.5

In some stages, the parts that matter least to the loss on your texts are taken out, and what is left is trained, by the
scores of the whole model and by the labels. The target is a share of the FLOPs of the blocks, a number of parameters
(--max_parameters), or a time on this machine (--max_milliseconds); --layers drops whole blocks first, and
--trim_vocabulary leaves out the tokens that your texts do not need. The output folder is that of
training/classify.py, and `from_pretrained` loads it as any other. A run that was interrupted goes on with the stage
where it was: repeat the command.
"""

import copy
import logging
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerBase, set_seed

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
)
from chinchilla_hf.compression.distillation import (
    DistillationArguments,
    DistillationTrainer,
    label_columns,
    scores_of_teacher,
    taught_splits,
)
from chinchilla_hf.compression.pruning import (
    BlockScores,
    choose_parts,
    first_order_scores,
    keep_layers,
    learned_scores,
    magnitude_scores,
    prune,
)
from chinchilla_hf.compression.targets import milliseconds_of, share_for
from chinchilla_hf.compression.vocabulary import trim_vocabulary
from chinchilla_hf.conversion import load_or_convert
from chinchilla_hf.data.labelled import LabelledData
from chinchilla_hf.metrics import classification_compute_metrics
from chinchilla_hf.output_folder import (
    RUN_RECORD,
    STAGES,
    claim_output_folder,
    last_whole_checkpoint,
    list_checkpoints,
    save_model_folder,
)
from chinchilla_hf.processes import closed_process_group, start_script
from chinchilla_hf.publishing import check_access, push_folder
from chinchilla_hf.recipes import one_line_errors, parse_recipe, resolve_location
from chinchilla_hf.run_record import describe_model, describe_training
from chinchilla_hf.scaling.flops import blocks_forward
from chinchilla_hf.training_arguments import choose_attention, result_neutral_options

logger = logging.getLogger("prune")

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "clinc150_pruned.yaml"
SCORES = ("first_order", "learned", "magnitude")


@dataclass
class PruningArguments:
    """What is taken out, and how."""

    _argument_group_name = "Pruning"

    model: str = field(
        metadata={"help": "The classifier to prune, of the same labels: a folder, a Hub name or package://NAME/PATH."}
    )
    flop_share: float = field(default=0.5, metadata={"help": "Share of the FLOPs of the blocks that is left."})
    max_parameters: int | None = field(
        default=None, metadata={"help": "Instead of a share, so many parameters at most, those of the tokens included."}
    )
    max_milliseconds: float | None = field(
        default=None,
        metadata={"help": "Instead of a share, so long at most for a text of mean length, on one thread of this CPU."},
    )
    layers: list[int] | None = field(default=None, metadata={"help": "Blocks that stay, from 0. Default: all."})
    trim_vocabulary: bool = field(
        default=False, metadata={"help": "Leave out the tokens that no training or validation text has."}
    )
    stages: int = field(default=3, metadata={"help": "Prune in so many stages, each of --num_train_epochs."})
    importance: str = field(
        default="first_order",
        metadata={
            "help": "What a part is chosen by: how the loss would change, a gate that is learned, or the size of its "
            "weights.",
            "choices": SCORES,
        },
    )
    importance_texts: int = field(
        default=1024, metadata={"help": "Training texts that the change is measured on, or gates are learned on."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Longest text in tokens. Default: the model's positions."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention to train with. Default: the faster one for these texts on this machine.",
            "choices": ["eager", "sdpa", "flex_attention"],
        },
    )
    teacher_cache_dir: str | None = field(
        default=None, metadata={"help": "Where the outputs of the whole model are kept. Default: Hugging Face's cache."}
    )

    def __post_init__(self) -> None:
        if not 0 < self.flop_share <= 1:
            raise ValueError(f"flop_share is {self.flop_share}, expected a share above 0 and up to 1")
        for name in ("stages", "importance_texts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.max_parameters is not None and self.max_milliseconds is not None:
            raise ValueError("max_parameters and max_milliseconds both say how much is left: give one of them")
        for name in ("max_parameters", "max_milliseconds"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")

    @property
    def by_share(self) -> bool:
        """Whether the target is a share of the FLOPs."""
        return self.max_parameters is None and self.max_milliseconds is None


OPTIONS = (LabelledArguments, PruningArguments, DistillationArguments, ClassifierRunArguments)
FINISHED_STAGE = "model"  # in the folder of a stage, beside Trainer's checkpoints
ADDED_UP = ("steps", "epochs", "examples", "tokens", "seconds", "flops")


def labelled_batches(
    rows: Dataset, collate: DataCollatorWithPadding, count: int, seed: int, device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Some of the rows that have a label, without what a teacher says, in small batches."""
    rows = rows.shuffle(seed).select(range(min(count, len(rows))))
    kept = ("input_ids", "token_type_ids", "attention_mask", "labels")
    rows = rows.select_columns([name for name in rows.column_names if name in kept])
    for begin in range(0, len(rows), 32):
        batch = collate([rows[i] for i in range(begin, min(begin + 32, len(rows)))])
        yield {name: tensor.to(device) for name, tensor in batch.items()}


def score_parts(
    model: ChinchillaForSequenceClassification,
    options: PruningArguments,
    length: int,
    batches: Iterator[dict[str, torch.Tensor]],
) -> list[BlockScores]:
    """How much each part of `model` matters."""
    if options.importance == "first_order":
        return first_order_scores(model, batches)
    if options.importance == "learned":
        return learned_scores(model, list(batches), length)
    return magnitude_scores(model)


def target_share(
    model: ChinchillaForSequenceClassification, options: PruningArguments, length: int, scores: list[BlockScores]
) -> float:
    """The share of the FLOPs of `model` that meets a target of parameters or of time."""
    if options.max_parameters is not None:
        return share_for(
            model, scores, length, lambda pruned: pruned.num_parameters(), options.max_parameters, "parameters"
        )
    on_cpu = copy.deepcopy(model).cpu().float()
    on_cpu.set_attn_implementation("sdpa")
    cost = partial(milliseconds_of, length=length)
    return share_for(on_cpu, scores, length, cost, options.max_milliseconds, "milliseconds")


def texts_of(data: LabelledData) -> list[str]:
    """The training and the validation texts."""
    splits = [data.splits[name] for name in ("train", "validation")]
    columns = [split[name][:] for split in splits for name in ("text", "text_pair") if name in split.column_names]
    return [text for column in columns for text in column]


def mean_length(data: LabelledData, tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """Tokens of a training text, in the mean over a thousand."""
    train = data.splits["train"].shuffle(0).select(range(min(1000, len(data.splits["train"]))))
    pairs = train["text_pair"][:] if "text_pair" in train.column_names else None
    encoded = tokenizer(train["text"][:], pairs, truncation=True, max_length=max_length).input_ids
    return max(1, round(sum(map(len, encoded)) / len(encoded)))


@closed_process_group()
def main() -> None:
    data_options, pruning, distillation, options = parse_recipe(OPTIONS, DEFAULT_RECIPE, __doc__)
    main_process = start_script(options)

    with one_line_errors():
        folder = Path(options.output_dir)
        if pruning.max_milliseconds is not None and options.world_size > 1:
            raise ValueError(
                f"--max_milliseconds is {pruning.max_milliseconds}, but {options.world_size} processes would each "
                "measure something else: run one process, or give --flop_share"
            )
        data = load_data(data_options)
        record = start_record(data, data_options, (pruning, distillation), options)
        location = resolve_location(pruning.model)
        try:
            whole_tokenizer = AutoTokenizer.from_pretrained(location)
            whole = load_or_convert(location, ChinchillaForSequenceClassification).float()
        except (OSError, ValueError) as error:  # no such place, or no whole checkpoint there
            raise OSError(f"--model {pruning.model} cannot be loaded: {error}") from error
        columns = label_columns(whole, data.label_names, data.problem_type)
        if columns != list(range(len(columns))):
            raise ValueError(
                f"the labels of --model are in the order {', '.join(list(whole.config.label2id)[:5])}, ..., those of "
                f"the data {', '.join(data.label_names[:5])}, ...: give --class_names in the order of the model"
            )
        model, tokenizer = copy.deepcopy(whole), whole_tokenizer
        if pruning.layers is not None:
            keep_layers(model, pruning.layers)
        if pruning.trim_vocabulary:
            tokenizer = trim_vocabulary(model, whole_tokenizer, texts_of(data))
        max_length = pruning.max_length or min(whole_tokenizer.model_max_length, model.config.max_position_embeddings)
        length = mean_length(data, tokenizer, max_length)
        flops = blocks_forward(whole.config, length)
        begin = blocks_forward(model.config, length) / flops
        if pruning.by_share:
            target = pruning.flop_share
        else:  # about as much: which parts go is not known yet
            target = begin * target_share(model, pruning, length, magnitude_scores(model))
        if begin > target:  # whether the target can be met
            choose_parts(model.config, magnitude_scores(model), target / begin, length)
        record.training["target_share"] = target
        if distillation.of_tokens:  # whether it can be made; every stage has its own
            distillation.token_teacher(whole, model).release()
        record.model = describe_model(model, pruning.model)
        record.model["teacher"] = describe_model(whole, pruning.model)
        with options.main_process_first(desc="claiming the output folder"):
            claim_output_folder(
                folder,
                record,
                ignore=result_neutral_options(list(record.arguments)) | {"teacher_cache_dir"},
                overwrite=options.overwrite and main_process,
                write=main_process,
            )
        if options.push_to_hub:
            check_access(options)
    if main_process:
        print(
            f"{data.summary()}\n{model.num_parameters():,} of {whole.num_parameters():,} parameters to begin with, "
            f"{begin:.1%} of the FLOPs of the blocks at {length} tokens; the target is {target:.1%}"
        )

    whole.to(options.device)
    with options.main_process_first(local=False, desc="asking the whole model"):
        splits, of_whole = taught_splits(
            data,
            whole,
            whole_tokenizer,
            tokenizer,
            columns,
            distillation,
            max_length=max_length,
            seed=options.seed,
            bf16=options.bf16,
            cache_dir=pruning.teacher_cache_dir,
            show_progress=main_process,
        )
    record.data["augmented"] = len(splits["train"]) - len(data.splits["train"])
    labelled = splits["train"].select(range(len(data.splits["train"])))  # the others come behind them
    push_to_hub, options.push_to_hub = options.push_to_hub, False
    collate = DataCollatorWithPadding(tokenizer)
    stages: list[dict] = record.training.setdefault("stages", [])
    target = record.training["target_share"]  # of an interrupted run, what was measured then
    attention = pruning.attn_implementation or choose_attention(options, length)
    for number in range(len(stages) + 1, pruning.stages + 1):
        if number > 1:
            # Every stage begins with what the one before has saved, as that of an interrupted run does: a model that
            # was trained computes under autocast from then on, and its scores would differ.
            finished = folder / STAGES / str(number - 1) / FINISHED_STAGE
            model = ChinchillaForSequenceClassification.from_pretrained(finished)
        model.to(options.device).set_attn_implementation(attention)
        now = blocks_forward(model.config, length) / flops
        share = begin * min(1.0, target / begin) ** (number / pruning.stages)
        measures = number == pruning.stages and not pruning.by_share  # which parts are left is known now
        if now > share or measures:
            batches = labelled_batches(
                labelled, collate, pruning.importance_texts, options.seed + number, options.device
            )
            scores = score_parts(model, pruning, length, batches)
            if measures:
                share = now * target_share(model, pruning, length, scores)
            prune(model, choose_parts(model.config, scores, share / now, length))
        share = blocks_forward(model.config, length) / flops
        if main_process:
            size = f"{share:.1%} of the FLOPs, {model.num_parameters():,} parameters"
            print(f"stage {number} of {pruning.stages}: {size}")
        of_stage = copy.copy(options)
        of_stage.output_dir = str(folder / STAGES / str(number))
        trainer = DistillationTrainer(
            model,
            of_stage,
            distillation=distillation,
            token_teacher=distillation.token_teacher(whole, model) if distillation.of_tokens else None,
            teacher_tokenizer=whole_tokenizer,
            train_dataset=splits["train"],
            eval_dataset=splits["validation"],
            data_collator=collate,
            processing_class=tokenizer,
            compute_metrics=classification_compute_metrics(data.problem_type),
            callbacks=select_best(of_stage, data.problem_type),
        )
        checkpoint = last_whole_checkpoint(of_stage.output_dir)
        set_seed(options.seed + number)  # so that it does not matter what the process has done before
        try:
            result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except KeyboardInterrupt:
            sys.exit(
                f"interrupted at step {trainer.state.global_step} of stage {number}: the same command goes on from the "
                "last checkpoint"
            )
        facts = {"flop_share": share, "parameters": model.num_parameters()}
        facts |= describe_training(
            trainer.state, splits["train"]["length"], result.metrics["train_runtime"], options.seed
        )
        stages.append(facts)
        if main_process and number < pruning.stages:
            save_model_folder(model, tokenizer, folder / STAGES / str(number) / FINISHED_STAGE)
            record.write(folder / RUN_RECORD)  # from here on, an interrupted run begins with the next stage
            for path in list_checkpoints(of_stage.output_dir):
                shutil.rmtree(path)
        trainer.accelerator.wait_for_everyone()

    test = score_classifier(trainer, splits, record)
    if not main_process:
        return
    record.scores["teacher"] = scores_of_teacher(of_whole, test, data)
    if options.baseline:
        logger.info("scoring the linear baseline")
        record.scores["baseline"] = baseline_scores(data, options.seed)
    record.model = describe_model(model, pruning.model) | {"teacher": record.model["teacher"]}
    record.training |= stages[-1] | {name: sum(stage[name] for stage in stages) for name in ADDED_UP}
    save_classifier(trainer, tokenizer, folder, record, data, test, options)
    if not options.keep_checkpoints:
        shutil.rmtree(folder / STAGES)
    print(f"\n{report(record.scores)}\n\nthe model is in {folder}: pipeline('text-classification', '{folder}')")
    if push_to_hub:
        with one_line_errors():
            print(f"pushed to {push_folder(folder, options, 'Upload a pruned text classifier')}")


if __name__ == "__main__":
    main()
