"""
Distil a text classifier: a small model learns from a large one, on labelled texts and on more that are made of them.

    python training/distill.py --teacher runs/clinc150 --dataset data_full.json --teacher_layers 1 4
    python training/distill.py --teacher NAME_OR_FOLDER --dataset my.csv --hidden_size 128

The teacher is any text classifier of Transformers that was trained on the same labels. The student begins with some of
the teacher's layers and the part of its vocabulary that the texts need (--teacher_layers), at a checkpoint (--model),
or from scratch with a shape of its own. What the teacher says is computed once and kept. The output folder is that of
training/classify.py, and the record has the teacher's scores beside the student's. An interrupted run goes on where it
was: repeat the command. The same student without distillation: --label_weight 1 --relation_weight 0
--augmented_copies 0.
"""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

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
from chinchilla_hf.compression.student_start import TeacherArguments, start_student
from chinchilla_hf.data.labelled import LabelledData
from chinchilla_hf.metrics import classification_compute_metrics
from chinchilla_hf.model_start import ScratchArguments, StartArguments, choose_max_length
from chinchilla_hf.output_folder import claim_output_folder
from chinchilla_hf.processes import closed_process_group, start_script
from chinchilla_hf.publishing import check_access, push_folder
from chinchilla_hf.recipes import one_line_errors, parse_recipe
from chinchilla_hf.run_record import describe_model, describe_training
from chinchilla_hf.training_arguments import choose_attention, result_neutral_options

logger = logging.getLogger("distill")

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "clinc150_student.yaml"


@dataclass
class ModelArguments(StartArguments):
    """Where the student starts, if not with the teacher's layers, and what its classifier reads."""

    pooling: str | None = field(
        default=None,
        metadata={
            "help": "What the classifier reads: the first token or the mean over all. Default: as the teacher's.",
            "choices": ["cls", "mean"],
        },
    )


OPTIONS = (
    LabelledArguments,
    TeacherArguments,
    DistillationArguments,
    ModelArguments,
    ScratchArguments,
    ClassifierRunArguments,
)


def make_student(
    data: LabelledData,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    columns: list[int],
    options: TeacherArguments,
    model_options: ModelArguments,
    shape: ScratchArguments,
) -> tuple[PreTrainedTokenizerBase, ChinchillaForSequenceClassification, str]:
    """The student before it learns, its tokenizer, and a line that says where they come from."""
    names = dict(enumerate(data.label_names))
    fields = {"id2label": names, "label2id": {name: i for i, name in names.items()}, "problem_type": data.problem_type}
    if model_options.pooling is not None:
        fields["pooling"] = model_options.pooling
    train = data.splits["train"]
    text_columns = [column for column in ("text", "text_pair") if column in train.column_names]

    def put_in_order(student: ChinchillaForSequenceClassification) -> None:
        """The classifier's labels as those of the data."""
        classifier = student.classifier
        classifier.weight.data, classifier.bias.data = classifier.weight.data[columns], classifier.bias.data[columns]

    return start_student(
        ChinchillaForSequenceClassification,
        lambda: (text for column in text_columns for text in train[column]),
        teacher,
        tokenizer,
        options,
        model_options,
        shape,
        change=put_in_order,
        **fields,
    )


@closed_process_group()
def main() -> None:
    data_options, teaching, distillation, model_options, shape, options = parse_recipe(OPTIONS, DEFAULT_RECIPE, __doc__)
    main_process = start_script(options)

    with one_line_errors():
        folder = Path(options.output_dir)
        data = load_data(data_options)
        record = start_record(data, data_options, (teaching, distillation, model_options, shape), options)
        teacher_tokenizer, teacher = teaching.load(
            ChinchillaForSequenceClassification, AutoModelForSequenceClassification
        )
        columns = label_columns(teacher, data.label_names, data.problem_type)
        tokenizer, student, origin = make_student(
            data, teacher, teacher_tokenizer, columns, teaching, model_options, shape
        )
        token_teacher = distillation.token_teacher(teacher, student) if distillation.of_tokens else None
        max_length = choose_max_length(model_options, tokenizer, student.config)
        record.model = describe_model(student, model_options.model)
        record.model["teacher"] = describe_model(teacher, teaching.teacher)
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
            f"{data.summary()}\nteacher: {teacher.num_parameters():,} parameters; student: "
            f"{student.num_parameters():,}, {origin}"
        )

    teacher.to(options.device)
    with options.main_process_first(local=False, desc="asking the teacher"):
        splits, on_test = taught_splits(
            data,
            teacher,
            teacher_tokenizer,
            tokenizer,
            columns,
            distillation,
            max_length=max_length,
            seed=options.seed,
            bf16=options.bf16,
            cache_dir=teaching.teacher_cache_dir,
            show_progress=main_process,
        )
    del teacher
    record.data["augmented"] = len(splits["train"]) - len(data.splits["train"])
    mean_length = sum(splits["train"]["length"]) / len(splits["train"])
    student.set_attn_implementation(model_options.attn_implementation or choose_attention(options, mean_length))
    push_to_hub, options.push_to_hub = options.push_to_hub, False
    trainer = DistillationTrainer(
        student,
        options,
        distillation=distillation,
        token_teacher=token_teacher,
        teacher_tokenizer=teacher_tokenizer,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
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
    record.scores["teacher"] = scores_of_teacher(on_test, test, data)
    if options.baseline:
        logger.info("scoring the linear baseline")
        symbols = tokenizer.tokenize if shape.tokenizer_algorithm == "symbols" else None
        record.scores["baseline"] = baseline_scores(data, options.seed, symbols)
    record.training |= describe_training(
        trainer.state, splits["train"]["length"], result.metrics["train_runtime"], options.seed
    )
    save_classifier(trainer, tokenizer, folder, record, data, test, options)
    print(f"\n{report(record.scores)}\n\nthe model is in {folder}: pipeline('text-classification', '{folder}')")
    if push_to_hub:
        with one_line_errors():
            print(f"pushed to {push_folder(folder, options, 'Upload a distilled text classifier')}")


if __name__ == "__main__":
    main()
