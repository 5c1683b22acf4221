"""
Pretrain an encoder or a decoder on raw text, by steps, by epochs, or for as long as you have.

    python training/pretrain.py --dataset wiki.jsonl.gz --max_minutes 60     an encoder, an hour on your text
    python training/pretrain.py training/recipes/decoder.yaml --dataset ...  a decoder, for pipeline("text-generation")
    accelerate launch training/pretrain.py ...                               on several devices

Texts come from local files or the Hub. They are tokenized once, with a tokenizer of yours or one that is trained on
them, kept on disk, and packed into rows without padding, in which documents do not see each other. With `--stream` they
are tokenized while the model trains, and nothing is kept. The output folder holds the model, laid out as a Hub
repository, `run.json`, and the loss curve. An interrupted run goes on where it was: repeat the command. An encoder is
fine-tuned by `training/classify.py --model`, a decoder writes text.
"""

import dataclasses
import logging
import shutil
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from chinchilla_hf import (
    ChinchillaConfig,
    ChinchillaDecoderConfig,
    ChinchillaForCausalLM,
    ChinchillaForMaskedLM,
    ChinchillaForPreTraining,
)
from chinchilla_hf.callbacks import SaveOnTermination
from chinchilla_hf.conversion import load_or_convert
from chinchilla_hf.data.corpora import Corpus, CorpusArguments
from chinchilla_hf.data.objectives import MaskedOrCausal, MaskedTokens, MaskingSchedule, tokens_to_continue
from chinchilla_hf.data.packing import Objective, PackedRows, SpecialTokens, collate_rows, cut_documents, pack
from chinchilla_hf.data.sentence_pairs import SentencePairRows, find_pairs
from chinchilla_hf.data.streaming import WINDOW_CHARACTERS, StreamedRows, StreamError, held_out_rows, stream_facts
from chinchilla_hf.data.token_store import TokenStore, pretraining_tokenizer
from chinchilla_hf.metrics import (
    next_token_predictions,
    plot_loss_curve,
    pretraining_compute_metrics,
    token_predictions,
)
from chinchilla_hf.model_card import write_model_card
from chinchilla_hf.output_folder import (
    RUN_RECORD,
    NotSavedError,
    claim_output_folder,
    list_checkpoints,
    save_model_folder,
)
from chinchilla_hf.processes import closed_process_group, keep_freed_memory, start_script
from chinchilla_hf.recipes import one_line_errors, parse_recipe, resolve_location
from chinchilla_hf.run_record import RunRecord, describe_machine, describe_model, peak_memory_bytes
from chinchilla_hf.scaling.flops import pretraining_step
from chinchilla_hf.scaling.machine import matmul_flops_per_second
from chinchilla_hf.scaling.planner import read_prediction, receipt
from chinchilla_hf.trainer import PretrainingTrainer
from chinchilla_hf.training_arguments import PretrainingArguments, choose_attention, result_neutral_options

logger = logging.getLogger("pretrain")

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "encoder.yaml"
# Trainer wants a number of steps. A run that ends by time takes as many as fit.
ENDLESS = 1_000_000_000


@dataclass
class DataArguments(CorpusArguments):
    """Which text, and how it becomes rows."""

    row_length: int = field(default=128, metadata={"help": "Tokens in a packed row; longer documents are cut."})
    cache_dir: str | None = field(
        default=None, metadata={"help": "Where tokens are kept. Default: Hugging Face's cache."}
    )
    stream: bool = field(
        default=False,
        metadata={
            "help": "Read, tokenize and train at once, and store nothing but the tokenizer. Needs --max_steps or "
            "--max_minutes."
        },
    )
    validation_documents: int = field(
        default=50_000, metadata={"help": "Of a stream, take validation_share of so many first documents."}
    )
    window_characters: int = field(
        default=WINDOW_CHARACTERS, metadata={"help": "Of a stream, so much text is shuffled and packed at a time."}
    )


@dataclass
class ObjectiveArguments:
    """What is learned from a row."""

    _argument_group_name = "Objective"

    objective: str = field(
        default="masked",
        metadata={
            "help": "masked: fill in masked tokens, which trains an encoder; causal: go on with the text, which trains "
            "a decoder, to which none of the options below applies.",
            "choices": ["masked", "causal"],
        },
    )
    masking_rate: float = field(default=0.3, metadata={"help": "Share of the tokens to predict, at the beginning."})
    final_masking_rate: float | None = field(
        default=None, metadata={"help": "The share at the end, in a line between. Default: as at the beginning."}
    )
    mask_share: float = field(default=0.8, metadata={"help": "Of the tokens to predict, become the mask token."})
    random_share: float = field(default=0.1, metadata={"help": "Of the tokens to predict, become a random token."})
    next_sentence: bool = field(
        default=False, metadata={"help": "Also tell whether the second half of a text belongs to the first."}
    )
    causal_share: float = field(
        default=0.0, metadata={"help": "Share of the rows in which an encoder predicts the next token instead."}
    )

    def __post_init__(self) -> None:
        if self.final_masking_rate is None:
            self.final_masking_rate = self.masking_rate
        if self.causal and (self.next_sentence or self.causal_share):
            raise ValueError(
                "--objective is causal, for a decoder, but --next_sentence and --causal_share are for an encoder: "
                "leave them out, or give --objective masked"
            )
        if self.next_sentence and self.causal_share:
            raise ValueError("--causal_share cannot go with --next_sentence: leave out one of the two")

    @property
    def causal(self) -> bool:
        return self.objective == "causal"


@dataclass
class ModelArguments:
    """The model, from a checkpoint or from scratch."""

    _argument_group_name = "Model"

    model: str | None = field(
        default=None, metadata={"help": "Checkpoint to go on from: Chinchilla, BERT, RoBERTa or DistilBERT."}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Tokenizer: a folder or a Hub name. Default: the model's, or one trained anew."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention to train with. Default: the faster one for rows of this length on this machine.",
            "choices": ["eager", "sdpa", "flex_attention"],
        },
    )


@dataclass
class ScratchArguments:
    """Shape of a model without a checkpoint to start from."""

    _argument_group_name = "Model from scratch"

    tokenizer_algorithm: str | None = field(
        default=None,
        metadata={
            "help": "Kind of tokenizer. Default: wordpiece for an encoder, bpe for a decoder.",
            "choices": ["wordpiece", "bpe", "unigram"],
        },
    )
    tokenizer_documents: int = field(default=200_000, metadata={"help": "Documents to train the tokenizer on."})
    vocab_size: int = field(default=16384, metadata={"help": "Number of tokens."})
    hidden_size: int = field(default=256, metadata={"help": "Width."})
    num_hidden_layers: int = field(default=6, metadata={"help": "Depth."})
    num_attention_heads: int = field(default=4, metadata={"help": "Attention heads."})
    num_key_value_heads: int | None = field(
        default=None, metadata={"help": "Heads of keys and values, which groups of heads share. Default: all heads."}
    )
    max_position_embeddings: int = field(default=512, metadata={"help": "Longest text that the model will take."})
    hidden_act: str = field(default="relu", metadata={"help": "Activation."})
    hidden_dropout: float = field(default=0.0, metadata={"help": "Dropout."})
    norm_placement: str = field(
        default="output", metadata={"help": "Where LayerNorm stands.", "choices": ["output", "post", "pre"]}
    )
    position_embedding_type: str = field(
        default="rope", metadata={"help": "Kind of positions.", "choices": ["rope", "learned"]}
    )


@dataclass
class PlanArguments:
    """What was planned."""

    _argument_group_name = "Plan"

    plan: str | None = field(
        default=None,
        metadata={
            "help": "plan.json of training/plan.py: run.json and the card say what it predicted and what came out."
        },
    )


OPTIONS = (DataArguments, ObjectiveArguments, ModelArguments, ScratchArguments, PlanArguments, PretrainingArguments)


def check_stream(objective: ObjectiveArguments, options: PretrainingArguments) -> None:
    """What a stream cannot do ends the run before anything is read."""
    if options.max_minutes is None and options.max_steps < 0:
        raise ValueError(
            "--stream needs --max_steps or --max_minutes: how many rows a stream has is known at its end only"
        )
    if objective.next_sentence:
        raise ValueError(
            "--next_sentence cannot go with --stream, because it borrows sentences from the whole corpus: leave out "
            "one of the two"
        )


def make_tokenizer(
    corpus: Corpus, data: DataArguments, options: ModelArguments, shape: ScratchArguments, causal: bool
) -> PreTrainedTokenizerFast:
    if options.tokenizer or options.model:
        return AutoTokenizer.from_pretrained(resolve_location(options.tokenizer or options.model))
    return pretraining_tokenizer(
        corpus,
        causal=causal,
        vocab_size=shape.vocab_size,
        max_length=shape.max_position_embeddings,
        algorithm=shape.tokenizer_algorithm,
        max_documents=shape.tokenizer_documents,
        cache_dir=data.cache_dir,
        fingerprint=corpus.quick_fingerprint() if data.stream else None,
    )


def load_decoder(name_or_path: str) -> ChinchillaForCausalLM:
    config = AutoConfig.from_pretrained(name_or_path)
    if config.model_type != ChinchillaDecoderConfig.model_type:
        raise ValueError(
            f"--model is a {config.model_type} checkpoint, but --objective causal trains a Chinchilla decoder: name "
            "one, or leave --model out to begin from scratch"
        )
    return ChinchillaForCausalLM.from_pretrained(name_or_path)


def make_model(
    tokenizer: PreTrainedTokenizerFast,
    options: ModelArguments,
    shape: ScratchArguments,
    row_length: int,
    objective: ObjectiveArguments,
) -> PreTrainedModel:
    encoder_class = ChinchillaForPreTraining if objective.next_sentence else ChinchillaForMaskedLM
    if options.model:
        location = resolve_location(options.model)
        model = (load_decoder(location) if objective.causal else load_or_convert(location, encoder_class)).float()
    else:
        fields = dataclasses.asdict(shape)
        fields = {name: value for name, value in fields.items() if not name.startswith("tokenizer_")}
        fields |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        if objective.causal:
            ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            model = ChinchillaForCausalLM(ChinchillaDecoderConfig(**fields, **ends))
        else:
            model = encoder_class(ChinchillaConfig(**fields))
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model only {model.config.vocab_size}: pass the "
            "tokenizer of the checkpoint, or resize the model's embeddings first"
        )
    if row_length > model.config.max_position_embeddings:
        raise ValueError(
            f"--row_length is {row_length}, but the model has {model.config.max_position_embeddings} positions: lower "
            "it, or raise --max_position_embeddings of a model from scratch"
        )
    return model


def make_objectives(tokenizer: PreTrainedTokenizerFast, objective: ObjectiveArguments) -> tuple[Objective, Objective]:
    """What to train on and to validate on, masked tokens of the latter always at the rate of the end."""
    if objective.causal:
        return tokens_to_continue, tokens_to_continue
    shares = objective.mask_share, objective.random_share
    masked = MaskedTokens(tokenizer, MaskingSchedule(objective.masking_rate, objective.final_masking_rate), *shares)
    rate = objective.final_masking_rate
    validation = MaskedTokens(tokenizer, MaskingSchedule(rate, rate), *shares)
    return MaskedOrCausal(masked, objective.causal_share) if objective.causal_share else masked, validation


def make_streamed_rows(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    data: DataArguments,
    objective: ObjectiveArguments,
    options: PretrainingArguments,
) -> tuple[StreamedRows, PackedRows]:
    """As `make_rows`, but the rows to train on are made while training."""
    training, validation = make_objectives(tokenizer, objective)
    train_rows = StreamedRows(
        corpus,
        tokenizer,
        data.row_length,
        training,
        seed=options.seed,
        held_out_share=data.validation_share,
        max_documents=data.max_documents,
        window_characters=data.window_characters,
        process=options.process_index,
        processes=options.world_size,
        workers=options.dataloader_num_workers,
    )
    validation_rows = held_out_rows(
        corpus,
        tokenizer,
        data.row_length,
        validation,
        share=data.validation_share,
        max_documents=min(data.validation_documents, data.max_documents or data.validation_documents),
        seed=options.seed,
    )
    return train_rows, validation_rows


def make_rows(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, data: DataArguments, objective: ObjectiveArguments, seed: int
) -> tuple[PackedRows, PackedRows]:
    """Rows to train on, and rows of documents that are held out, masked alike in every evaluation."""
    special_tokens = SpecialTokens.of(tokenizer)
    held_out = store.held_out(data.validation_share)
    if not 0 < held_out.sum() < len(store):
        raise ValueError(
            f"--validation_share is {data.validation_share}, which leaves {held_out.sum()} of {len(store)} documents "
            "for validation and the others for training (equal texts stay together): change it, or give more documents"
        )
    training, validation = make_objectives(tokenizer, objective)
    if objective.next_sentence:
        max_length = data.row_length - len(special_tokens) - len(special_tokens.after)
        train_rows, validation_rows = (
            SentencePairRows(
                store.tokens, find_pairs(store, max_length, chosen), data.row_length, special_tokens, learned, seed
            )
            for chosen, learned in ((~held_out, training), (held_out, validation))
        )
        return train_rows, validation_rows
    packings = []
    for chosen in (~held_out, held_out):
        starts, lengths = cut_documents(store.document_starts, data.row_length - len(special_tokens), documents=chosen)
        packings.append(pack(starts, lengths, data.row_length, len(special_tokens), seed))
    return (
        PackedRows(store.tokens, packings[0], special_tokens, training, seed),
        PackedRows(store.tokens, packings[1], special_tokens, validation, seed),
    )


def labelled_share(objective: ObjectiveArguments, rows: PackedRows) -> float:
    """The share of the positions that is predicted, in the mean over a run; `rows` are like those of the run."""
    if objective.causal:  # all but padding and the first token of every document
        positions = len(rows.packing) * rows.packing.row_length
        return 1 - rows.packing.padding - len(rows.packing.starts) / positions
    mean_rate = (objective.masking_rate + objective.final_masking_rate) / 2
    return (1 - objective.causal_share) * mean_rate + objective.causal_share


@closed_process_group()
def main() -> None:
    data, objective, model_options, shape, planned, options = parse_recipe(OPTIONS, DEFAULT_RECIPE, __doc__)
    main_process = start_script(options)
    if options.device.type == "cpu":
        keep_freed_memory()

    with one_line_errors(), options.main_process_first(desc="preparing the data"):
        if data.stream:
            check_stream(objective, options)
        folder = Path(options.output_dir)
        prediction = None if planned.plan is None else read_prediction(planned.plan)
        corpus = data.corpus()
        arguments = {
            name: value
            for part in (data, objective, model_options, shape)
            for name, value in dataclasses.asdict(part).items()
        } | options.to_dict()
        # What matters is the number of rows in a step, not how they are spread over devices and batches.
        rows_per_step = options.train_batch_size * options.gradient_accumulation_steps * options.world_size
        arguments["rows_per_step"] = rows_per_step
        tokenizer = make_tokenizer(corpus, data, model_options, shape, objective.causal)
        model = make_model(tokenizer, model_options, shape, data.row_length, objective)
        model.set_attn_implementation(model_options.attn_implementation or choose_attention(options, data.row_length))
        if data.stream:
            train_rows, validation_rows = make_streamed_rows(corpus, tokenizer, data, objective, options)
            # What is read is counted as it comes.
            facts = {"fingerprint": corpus.quick_fingerprint(), "rows": {"validation": len(validation_rows)}}
            read = "a stream"
        else:
            store = TokenStore.build(
                corpus,
                tokenizer,
                sentences=objective.next_sentence,
                cache_dir=data.cache_dir,
                max_documents=data.max_documents,
                show_progress=main_process,
            )
            train_rows, validation_rows = make_rows(store, tokenizer, data, objective, options.seed)
            counted = ("fingerprint", "documents", "characters", "tokens", "skipped")
            facts = {name: store.facts[name] for name in counted} | {
                "rows": {"train": len(train_rows), "validation": len(validation_rows)},
                "padding": train_rows.packing.padding,
            }
            read = (
                f"{facts['documents']:,} documents, {facts['tokens']:,} tokens, {len(train_rows):,} rows of "
                f"{data.row_length} ({facts['padding']:.2%} padding)"
            )
        record = RunRecord(
            task="text-generation" if objective.causal else "fill-mask",
            arguments=arguments,
            data={"name": data.dataset} | facts,
            model=describe_model(model, model_options.model),
            machine=describe_machine(options.device),
        )
        checkpoint = claim_output_folder(
            folder,
            record,
            ignore=result_neutral_options(list(arguments))
            | {"per_device_train_batch_size", "gradient_accumulation_steps", "cache_dir"}
            # A stream is stopped by bad text after much work, which is not to be done again to leave it out.
            | ({"on_bad_text"} if data.stream else set()),
            overwrite=options.overwrite and main_process,
            write=main_process,
        )

    clock = options.clock()
    if clock is not None:
        options.max_steps = ENDLESS
    elif options.max_steps < 0:
        options.max_steps = max(1, round(options.num_train_epochs * len(train_rows) / rows_per_step))
    train_rows.num_items = options.max_steps * rows_per_step
    labelled = labelled_share(objective, validation_rows)
    flops_per_step = pretraining_step(model.config, rows_per_step, data.row_length, labelled)
    dtype = torch.bfloat16 if options.bf16 else torch.float16 if options.fp16 else torch.float32
    accuracies = ("next_token_accuracy",) if objective.causal else ("masked_accuracy", "next_sentence_accuracy")
    termination = SaveOnTermination()
    trainer = PretrainingTrainer(
        model=model,
        args=options,
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        data_collator=collate_rows,
        processing_class=tokenizer,
        compute_metrics=partial(pretraining_compute_metrics, names=accuracies),
        preprocess_logits_for_metrics=next_token_predictions if objective.causal else token_predictions,
        callbacks=[termination],
        clock=clock,
        flops_per_step=flops_per_step,
        tokens_per_step=rows_per_step * data.row_length,
        padding=facts.get("padding", 0.0),
        peak_flops=options.world_size * matmul_flops_per_second(options.device, dtype),
    )
    if main_process:
        print(f"{read}; {model.num_parameters():,} parameters")
    try:
        result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except KeyboardInterrupt:
        sys.exit(f"interrupted at step {trainer.state.global_step}: the same command goes on from the last checkpoint")
    except (FloatingPointError, NotSavedError, StreamError) as error:
        sys.exit(f"error: {error}")
    if trainer.stream is not None:
        counts = stream_facts(trainer.stream.states, data.row_length)
        record.data |= counts | {"rows": {"train": counts["rows"], "validation": len(validation_rows)}}
        if main_process:
            record.write(folder / RUN_RECORD)
    if termination.stopped:
        sys.exit(f"stopped at step {trainer.state.global_step}: the same command goes on from there")

    validation = trainer.evaluate()
    steps = trainer.state.global_step
    tokens = steps * rows_per_step * data.row_length
    names = ("loss", *accuracies)
    scores = {name: validation[f"eval_{name}"] for name in names if f"eval_{name}" in validation}
    record.scores = {"validation": scores}
    record.training |= {
        "steps": steps,
        "epochs": record.data["epochs"] if data.stream else steps * rows_per_step / len(train_rows),
        "examples": steps * rows_per_step,
        "tokens": round(tokens * (1 - record.data["padding"])),
        "seconds": result.metrics["train_runtime"],
        "flops": steps * flops_per_step,
        "skipped_steps": trainer.skipped_steps,
        "seed": options.seed,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    if prediction is not None:
        record.plan = receipt(prediction, scores["loss"], record.training)
    state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # all processes have a part in it
    if not main_process:
        return
    try:
        save_model_folder(trainer.accelerator.unwrap_model(trainer.model), tokenizer, folder, state_dict)
    except NotSavedError as error:
        sys.exit(f"error: {error}")
    plot_loss_curve(trainer.state.log_history, folder / "loss.png")
    record.status = "finished"
    record.write(folder / RUN_RECORD)
    write_model_card(record, folder / "README.md")
    if not options.keep_checkpoints:
        for path in list_checkpoints(folder):
            shutil.rmtree(path)
    use = (
        f"pipeline('text-generation', '{folder}')"
        if objective.causal
        else f"python training/classify.py --model {folder} --dataset ..."
    )
    if prediction is not None:
        low, high = prediction["loss_interval"]
        print(
            f"\npredicted: loss {prediction['loss']:.4f} ({low:.4f} to {high:.4f}), {prediction['tokens']:,} tokens; "
            f"came out: {scores['loss']:.4f}, {record.training['tokens']:,} tokens"
        )
        if (expected := record.plan["actual"].get("predicted_loss")) is not None:
            low, high = record.plan["actual"]["predicted_loss_interval"]
            print(f"for the tokens that it saw, predicted was {expected:.4f} ({low:.4f} to {high:.4f})")
    print(
        f"\nvalidation: {', '.join(f'{name} {value:.4f}' for name, value in scores.items())}\n"
        f"the model is in {folder}: {use}"
    )


if __name__ == "__main__":
    main()
