"""
Distil an encoder on raw text, before there is a task: a small model learns to read as a large one does.

    python training/distill_encoder.py training/recipes/minilm_student.yaml --dataset wiki.jsonl.gz
    python training/distill_encoder.py --teacher NAME_OR_FOLDER --dataset wiki.jsonl.gz --hidden_size 128

The teacher is any encoder or decoder of Transformers. The student begins with some of its layers and tokens
(--teacher_layers), at a checkpoint (--model), or from scratch with a shape and a tokenizer of its own. It learns the
states of tokens (--hidden_weight, --attention_weight), for which the teacher reads along, and the vectors of texts
(--vector_weight, --relation_weight). If vectors are all, as in

    python training/distill_encoder.py training/recipes/mini_en.yaml --dataset texts.jsonl.gz

the teacher is asked once, and kept on disk what it says. The output folder holds the encoder, which loads in
sentence-transformers, too, its card, `run.json`, which says how alike both find the same texts, and the loss curve;
`training/classify.py --model` fine-tunes it. An interrupted run goes on where it was: repeat the command.
"""

import dataclasses
import shutil
import sys
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import (
    AutoModel,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from chinchilla_hf import ChinchillaModel
from chinchilla_hf.compression.encoder_distillation import (
    TEACHER_ROW,
    EncoderDistillationArguments,
    EncoderDistillationTrainer,
    pieces,
    similarity_correlation,
    text_vectors,
)
from chinchilla_hf.compression.student_start import TeacherArguments, start_student
from chinchilla_hf.compression.teacher_vectors import teacher_vectors
from chinchilla_hf.compression.token_states import OWN_POSITIONS, tokens_for_both
from chinchilla_hf.data.corpora import Corpus, CorpusArguments
from chinchilla_hf.data.short_texts import check_words, short_texts
from chinchilla_hf.data.token_store import whole_text_tokenizer
from chinchilla_hf.metrics import plot_loss_curve
from chinchilla_hf.model_card import write_model_card
from chinchilla_hf.model_start import ScratchArguments, StartArguments, choose_max_length
from chinchilla_hf.output_folder import RUN_RECORD, claim_output_folder, list_checkpoints, save_model_folder
from chinchilla_hf.processes import closed_process_group, start_script
from chinchilla_hf.publishing import check_access, push_folder
from chinchilla_hf.recipes import one_line_errors, parse_recipe
from chinchilla_hf.run_record import RunRecord, describe_machine, describe_model, describe_training
from chinchilla_hf.sentence_folder import write_sentence_folder
from chinchilla_hf.training_arguments import FineTuningArguments, choose_attention, result_neutral_options

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "minilm_student.yaml"
COMPARED_TEXTS = 500


@dataclass
class DataArguments(CorpusArguments):
    """Which text, and how documents are cut."""

    cut_by: str = field(
        default="tokens",
        metadata={
            "help": "Cut documents every --max_length tokens; or by words, in sentences and spans of a few of them, "
            "each text once.",
            "choices": ["tokens", "words"],
        },
    )
    min_words: int = field(default=3, metadata={"help": "Words of a span at least."})
    max_words: int = field(default=18, metadata={"help": "Words of a sentence or span at most."})
    cut_seed: int = field(default=42, metadata={"help": "Seed of the spans: one for all runs to be compared."})
    max_texts: int | None = field(
        default=None, metadata={"help": "Only so many of the texts that come of it to train on, chosen at random."}
    )

    def __post_init__(self) -> None:
        if self.max_texts is not None and self.max_texts < 1:
            raise ValueError(f"max_texts is {self.max_texts}, expected at least 1")
        check_words(self.min_words, self.max_words)


@dataclass
class RunArguments(FineTuningArguments):
    """Trainer's options with the defaults of learning from raw text."""

    learning_rate: float = field(default=5e-4, metadata={"help": "Highest learning rate of AdamW."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Texts in a step, on each device."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "How often every text is seen."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate: no, steps or epoch."})
    eval_steps: float = field(default=0.1, metadata={"help": "Evaluate every so many steps; below 1: share of all."})
    save_strategy: str = field(default="steps", metadata={"help": "When to save: no, steps, epoch or best."})
    save_steps: float = field(default=0.1, metadata={"help": "Save every so many steps; below 1: share of all."})
    metric_for_best_model: str | None = field(
        default="loss", metadata={"help": "What makes a checkpoint the best: the loss on the validation texts."}
    )
    early_stopping_patience: int = field(
        default=0, metadata={"help": "Stop after so many evaluations without a better one; 0: never."}
    )


OPTIONS = (
    DataArguments,
    TeacherArguments,
    EncoderDistillationArguments,
    StartArguments,
    ScratchArguments,
    RunArguments,
)


def cut_texts(
    corpus: Corpus, fingerprint: str, data: DataArguments, tokenizer: PreTrainedTokenizerFast, max_length: int
) -> DatasetDict:
    """
    The texts to train on and to validate on, in the column `text`.

    Raises:
        ValueError: there are none of either.
    """

    def by_tokens(fingerprint: str, rules: str, max_length: int, share: float, max_documents: int | None):
        yield from pieces(islice(corpus.documents(), max_documents), tokenizer, max_length, share)

    def by_words(fingerprint: str, words: tuple[int, int], seed: int, share: float, max_documents: int | None):
        yield from short_texts(islice(corpus.documents(), max_documents), *words, seed, share)

    known = {"fingerprint": fingerprint, "share": data.validation_share, "max_documents": data.max_documents}
    if data.cut_by == "tokens":
        known["rules"] = whole_text_tokenizer(tokenizer.backend_tokenizer.to_str()).to_str()
        found = Dataset.from_generator(by_tokens, gen_kwargs=known | {"max_length": max_length})
    else:
        known |= {"words": (data.min_words, data.max_words), "seed": data.cut_seed}
        found = Dataset.from_generator(by_words, gen_kwargs=known)  # kept on disk, by the hash of these
    splits = DatasetDict(
        {
            name: found.filter(
                lambda held_out, wanted=wanted: held_out is wanted, input_columns="held_out", desc=f"Choosing {name}"
            )
            for name, wanted in (("train", False), ("validation", True))
        }
    ).remove_columns("held_out")
    for name, split in splits.items():
        if not len(split):
            raise ValueError(
                f"no text is left for {name}: give more documents, or another --validation_share than "
                f"{data.validation_share}"
            )
    if data.max_texts is not None and data.max_texts < len(splits["train"]):
        chosen = np.random.default_rng(data.cut_seed).permutation(len(splits["train"]))[: data.max_texts]
        splits["train"] = splits["train"].select(np.sort(chosen))
    return splits


def tokenize(
    splits: DatasetDict,
    tokenizer: PreTrainedTokenizerFast,
    teacher_tokenizer: PreTrainedTokenizerFast | None,
    max_length: int,
) -> DatasetDict:
    """
    Token ids of the texts for the student and, if it reads along, for the teacher.

    Raises:
        ValueError: both have no token in common.
    """

    def encode(batch: dict[str, list]) -> dict[str, list]:
        own = tokenizer(batch["text"], truncation=True, max_length=max_length)
        lengths = [len(ids) for ids in own["input_ids"]]
        if teacher_tokenizer is None:
            return {**own, "length": lengths}
        return {
            **own,
            "length": lengths,
            **tokens_for_both(batch["text"], None, tokenizer, teacher_tokenizer, max_length),
        }

    tokenized = splits.map(encode, batched=True, remove_columns=["text"], desc="Tokenizing")
    if teacher_tokenizer is not None and not any(map(any, tokenized["validation"][OWN_POSITIONS])):
        raise ValueError(
            "no token of the student's tokenizer stands for the same characters as one of the teacher's: give the "
            "student another --tokenizer_algorithm"
        )
    return tokenized


def ask_teacher(
    splits: DatasetDict,
    texts: DatasetDict,
    teacher: PreTrainedModel,
    teacher_tokenizer: PreTrainedTokenizerFast,
    teaching: TeacherArguments,
    max_length: int,
    options: RunArguments,
) -> tuple[DatasetDict, np.ndarray]:
    """`splits` with a column that says which of the teacher's vectors is that of the text; and these vectors."""
    vectors = teacher_vectors(
        teacher.to(options.device),
        teacher_tokenizer,
        [text for split in texts.values() for text in split["text"][:]],
        max_length=min(max_length, teacher_tokenizer.model_max_length),
        bf16=options.bf16,
        cache_dir=teaching.teacher_cache_dir,
        show_progress=options.process_index == 0,
    )
    first, rows = 0, {}
    for name, split in splits.items():
        rows[name] = split.add_column(TEACHER_ROW, np.arange(first, first + len(split)))
        first += len(split)
    return DatasetDict(rows), vectors


@closed_process_group()
def main() -> None:
    data, teaching, distillation, start, shape, options = parse_recipe(OPTIONS, DEFAULT_RECIPE, __doc__)
    main_process = start_script(options)
    options.label_names = distillation.label_names
    if distillation.of_vectors:
        pooling = {"pooling": "mean", "pooler_type": "normalized", "add_pooling_layer": True}
    else:
        pooling = {"add_pooling_layer": False}  # the teacher's would not be trained

    with one_line_errors():
        folder = Path(options.output_dir)
        corpus = data.corpus()
        teacher_tokenizer, teacher = teaching.load(ChinchillaModel, AutoModel)
        tokenizer, student, origin = start_student(
            ChinchillaModel,
            lambda: islice(corpus.documents(), data.max_documents),
            teacher,
            teacher_tokenizer,
            teaching,
            start,
            shape,
            trims=False,
            **pooling,
        )
        max_length = choose_max_length(start, tokenizer, student.config)
        token_teacher = distillation.token_teacher(teacher, student) if distillation.of_tokens else None
        fingerprint = corpus.fingerprint()
        with options.main_process_first(local=False, desc="tokenizing"):
            texts = cut_texts(corpus, fingerprint, data, tokenizer, max_length)
            compared = texts["validation"][:COMPARED_TEXTS]["text"]
            splits = tokenize(texts, tokenizer, teacher_tokenizer if distillation.of_tokens else None, max_length)
        record = RunRecord(
            task="feature-extraction",
            arguments={
                name: value
                for part in (data, teaching, distillation, start, shape)
                for name, value in dataclasses.asdict(part).items()
            }
            | options.to_dict(),
            data={
                "name": data.dataset,
                "fingerprint": fingerprint,
                "rows": {name: len(split) for name, split in splits.items()},
            },
            model=describe_model(student, start.model) | {"teacher": describe_model(teacher, teaching.teacher)},
            machine=describe_machine(options.device),
        )
        with options.main_process_first(desc="claiming the output folder"):
            checkpoint = claim_output_folder(
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
            f"{len(splits['train']):,} texts to learn from, {len(splits['validation']):,} to validate on\nteacher: "
            f"{teacher.num_parameters():,} parameters; student: {student.num_parameters():,}, {origin}"
        )

    vectors = None
    if not distillation.of_tokens:
        with one_line_errors(), options.main_process_first(local=False, desc="asking the teacher"):
            splits, vectors = ask_teacher(splits, texts, teacher, teacher_tokenizer, teaching, max_length, options)
    lengths = splits["train"]["length"][:]
    student.set_attn_implementation(start.attn_implementation or choose_attention(options, sum(lengths) / len(lengths)))
    push_to_hub, options.push_to_hub = options.push_to_hub, False
    trainer = EncoderDistillationTrainer(
        student,
        options,
        distillation=distillation,
        token_teacher=token_teacher,
        teacher_tokenizer=teacher_tokenizer,
        vectors=vectors,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        callbacks=[EarlyStoppingCallback(patience)] if (patience := options.early_stopping_patience) else [],
    )
    try:
        result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except KeyboardInterrupt:
        sys.exit(f"interrupted at step {trainer.state.global_step}: the same command goes on from the last checkpoint")
    loss = trainer.evaluate()["eval_loss"]
    if not main_process:
        return
    student = trainer.accelerator.unwrap_model(trainer.model)
    own, theirs = (
        text_vectors(model, rules, compared, max_length)
        for model, rules in ((student, tokenizer), (teacher, teacher_tokenizer))
    )
    alike = similarity_correlation(own, theirs)
    trainer.release()
    record.scores = {"validation": {"loss": loss, "similarity_correlation": alike}}
    if distillation.vector_weight and own.shape == theirs.shape:
        record.scores["validation"]["vector_cosine"] = (own * theirs).sum(dim=-1).mean().item()
    record.training |= describe_training(trainer.state, lengths, result.metrics["train_runtime"], options.seed)
    save_model_folder(student, tokenizer, folder)
    if distillation.of_vectors:
        longest = min(tokenizer.model_max_length, student.config.max_position_embeddings)
        write_sentence_folder(folder, student.config.hidden_size, longest)
    plot_loss_curve(trainer.state.log_history, folder / "loss.png")
    record.status = "finished"
    record.write(folder / RUN_RECORD)
    write_model_card(record, folder / "README.md")
    if not options.keep_checkpoints:
        for path in list_checkpoints(folder):
            shutil.rmtree(path)
    print(
        f"\nvalidation: loss {loss:.4f}; both rank pairs of texts by their likeness with a correlation of {alike:.3f}\n"
        f"the encoder is in {folder}: python training/classify.py --model {folder} --dataset ..."
    )
    if push_to_hub:
        with one_line_errors():
            print(f"pushed to {push_folder(folder, options, 'Upload a distilled encoder')}")


if __name__ == "__main__":
    main()
