"""
Train a translator on your own pairs of texts, and translate files with it.

    python training/translate.py --dataset pairs.tsv --source_language en --target_language de
    python training/translate.py --dataset train.en --target_file train.de --source_language en --target_language de
    python training/translate.py --model runs/translation --translate letter.txt       writes letter.de.txt

Pairs are two aligned files, a table, a folder or a data set on the Hub. A byte-level tokenizer is trained on them, so
that no character is unknown, or one for each language, and an encoder-decoder from scratch. Batches are filled by
tokens. At the end the validation and test texts are translated with beam search and scored by BLEU and chrF
(sacreBLEU); the output folder holds the model, laid out as a Hub repository that `pipeline("translation", folder,
trust_remote_code=True)` loads, its card, `run.json`, and the curves of loss and BLEU. An interrupted run goes on where
it was: repeat the command.
"""

import dataclasses
import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import EvalPrediction, GenerationConfig, PreTrainedTokenizerBase, pipeline

from chinchilla_hf import (
    ChinchillaConfig,
    ChinchillaDecoderConfig,
    ChinchillaForConditionalGeneration,
    ChinchillaSeq2SeqConfig,
    train_tokenizer,
)
from chinchilla_hf.averaging import averaged_weights
from chinchilla_hf.callbacks import SaveOnTermination
from chinchilla_hf.data.parallel import ParallelData, load_parallel
from chinchilla_hf.data.token_batches import PairCollator, TokenBatches, TokenPairs
from chinchilla_hf.metrics import plot_loss_curve, translation_metrics
from chinchilla_hf.model_card import write_model_card
from chinchilla_hf.output_folder import (
    RUN_RECORD,
    TARGET_TOKENIZER,
    NotSavedError,
    claim_output_folder,
    list_checkpoints,
    save_model_folder,
)
from chinchilla_hf.processes import closed_process_group, keep_freed_memory, start_script
from chinchilla_hf.publishing import check_access, push_folder
from chinchilla_hf.recipes import one_line_errors, parse_recipe, resolve_location
from chinchilla_hf.run_record import RunRecord, describe_machine, describe_model, peak_memory_bytes, write_atomically
from chinchilla_hf.trainer import TranslationTrainer
from chinchilla_hf.training_arguments import TranslationArguments, choose_attention, result_neutral_options

logger = logging.getLogger("translate")

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "multi30k.yaml"
BOOTSTRAP = 1000  # samples of the texts, for the intervals of BLEU and chrF
ENDLESS = 1_000_000_000  # steps of a run that ends by time
SAMPLES = 5


@dataclass
class DataArguments:
    """Which pairs of texts: arguments of `chinchilla_hf.data.parallel.load_parallel`."""

    _argument_group_name = "Data"

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "A text file with one text a line (with --target_file), a folder with train.SOURCE, train.TARGET, "
            "..., a table (TSV, CSV, JSON, JSON Lines, Parquet; also .gz), or the name of a Hub data set."
        },
    )
    source_language: str = field(
        default="en", metadata={"help": "Code of the language to translate from: a column, key or ending of files."}
    )
    target_language: str = field(default="de", metadata={"help": "Code of the language to translate to."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    target_file: str | None = field(default=None, metadata={"help": "Translations of --dataset, line by line."})
    validation_files: list[str] | None = field(
        default=None, metadata={"help": "Two aligned files of their own for validation: sources, then targets."}
    )
    test_files: list[str] | None = field(
        default=None, metadata={"help": "Two aligned files of their own for the test: sources, then targets."}
    )
    train_split: str = field(default="train", metadata={"help": "Name of the split to train on."})
    validation_split: str | None = field(default=None, metadata={"help": "Name of the validation split, if unusual."})
    test_split: str | None = field(default=None, metadata={"help": "Name of the test split, if unusual."})
    split_seed: int = field(default=42, metadata={"help": "Seed of the splits: one for all runs to be compared."})
    on_empty: str = field(
        default="stop",
        metadata={"help": "At a pair with one empty side: stop, or skip and count it.", "choices": ["stop", "skip"]},
    )
    max_rows: int | None = field(default=None, metadata={"help": "At most so many pairs a split, for a quick trial."})
    max_length: int = field(
        default=128, metadata={"help": "Tokens of a text; longer training pairs are left out, other texts cut."}
    )
    delimiter: str | None = field(default=None, metadata={"help": "Of tables. Default: a comma in .csv, else a tab."})
    quoting: bool = field(default=True, metadata={"help": "Quotation marks in tables enclose texts."})
    encoding: str = field(default="utf-8", metadata={"help": "Encoding of text files."})
    encoding_errors: str = field(
        default="strict", metadata={"help": "Undecodable bytes: strict stops at them, replace reads past them."}
    )

    def __post_init__(self) -> None:
        for name in ("validation_files", "test_files"):
            files = getattr(self, name)
            if files is not None and len(files) != 2:
                raise ValueError(f"{name} are {len(files)}, but must be two: sources, then targets")


@dataclass
class ModelArguments:
    """The model, from scratch."""

    _argument_group_name = "Model"

    vocab_size: int = field(default=8000, metadata={"help": "Tokens that both languages share, or that each has."})
    separate_tokenizers: bool = field(
        default=False,
        metadata={"help": "Give each language a tokenizer and embeddings of its own, as for two scripts."},
    )
    hidden_size: int = field(default=256, metadata={"help": "Width."})
    intermediate_size: int | None = field(
        default=None, metadata={"help": "Width of the feed-forward networks. Default: four times hidden_size."}
    )
    num_encoder_layers: int = field(default=4, metadata={"help": "Depth of the encoder."})
    num_decoder_layers: int = field(default=4, metadata={"help": "Depth of the decoder."})
    num_attention_heads: int = field(default=4, metadata={"help": "Attention heads."})
    hidden_act: str = field(default="relu", metadata={"help": "Activation."})
    norm_placement: str = field(
        default="output", metadata={"help": "Where LayerNorm stands.", "choices": ["output", "post", "pre"]}
    )
    position_embedding_type: str = field(
        default="rope", metadata={"help": "Kind of positions.", "choices": ["rope", "learned"]}
    )
    dropout: float = field(default=0.1, metadata={"help": "Dropout: much for few pairs."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Share of the target spread over the vocabulary."})
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention to train with. Default: the faster one on this machine.",
            "choices": ["eager", "sdpa"],
        },
    )


@dataclass
class TranslatingArguments:
    """Beam search, and translating a file in place of training."""

    _argument_group_name = "Translating"

    num_beams: int = field(default=5, metadata={"help": "Beams of the search, at the end and in --translate."})
    translate: str | None = field(
        default=None, metadata={"help": "Translate this text file, line by line, and do not train. Needs --model."}
    )
    model: str | None = field(default=None, metadata={"help": "For --translate: folder or Hub name of a translator."})
    output_file: str | None = field(
        default=None, metadata={"help": "For --translate: where to write. Default: beside the file."}
    )
    batch_size: int = field(default=32, metadata={"help": "For --translate: segments at a time."})


OPTIONS = (DataArguments, ModelArguments, TranslatingArguments, TranslationArguments)


def translate_file(options: TranslatingArguments) -> None:
    """Write the translation of a text file beside it: as many lines, with a progress bar."""
    with one_line_errors():
        if options.model is None:
            raise ValueError("--translate needs --model: the folder or Hub name of a translator")
        source = Path(options.translate or "")
        if not source.is_file():
            raise FileNotFoundError(f"there is no file {str(source)!r} (the current folder is {Path.cwd()})")
        lines = source.read_text("utf-8").split("\n")
        translator = pipeline("chinchilla-translation", resolve_location(options.model))
    language = getattr(translator.model.config, "target_language", None) or "translated"
    target = Path(options.output_file or source.with_suffix(f".{language}{source.suffix}"))
    results = translator((line for line in lines), batch_size=options.batch_size, num_beams=options.num_beams)
    translated = [result["translation_text"] for result in tqdm(results, total=len(lines), unit="line")]
    write_atomically(target, "\n".join(translated).encode())
    print(f"the translation is in {target}")


def load(options: DataArguments) -> ParallelData:
    if options.dataset is None:
        raise ValueError("--dataset is missing: give pairs of texts, or --translate and --model")
    arguments = dataclasses.asdict(options)
    for name in ("validation_files", "test_files"):
        arguments[name] = arguments[name] and tuple(arguments[name])
    del arguments["max_length"]
    source, target = arguments.pop("source_language"), arguments.pop("target_language")
    seed = arguments.pop("split_seed")
    return load_parallel(resolve_location(arguments.pop("dataset")), source, target, seed=seed, **arguments)


class Tokenizers(NamedTuple):
    """One for both languages, or one for each, in which special tokens have the same ids."""

    source: PreTrainedTokenizerBase
    target: PreTrainedTokenizerBase

    @property
    def are_separate(self) -> bool:
        return self.source is not self.target


def train_tokenizers(train: Dataset, max_length: int, options: ModelArguments, show_progress: bool) -> Tokenizers:
    def trained(*columns: str) -> PreTrainedTokenizerBase:
        return train_tokenizer(
            (text for column in columns for text in train[column]),
            algorithm="bpe",
            vocab_size=options.vocab_size,
            model_max_length=max_length,
            token_types=False,
            show_progress=show_progress,
        )

    if options.separate_tokenizers:
        return Tokenizers(trained("source"), trained("target"))
    return Tokenizers(*[trained("source", "target")] * 2)


def build_model(
    tokenizers: Tokenizers, data: DataArguments, options: ModelArguments, num_beams: int
) -> ChinchillaForConditionalGeneration:
    shape = {
        "hidden_size": options.hidden_size,
        "intermediate_size": options.intermediate_size,
        "num_attention_heads": options.num_attention_heads,
        "hidden_act": options.hidden_act,
        "norm_placement": options.norm_placement,
        "position_embedding_type": options.position_embedding_type,
        "hidden_dropout": options.dropout,
        "max_position_embeddings": 2 * data.max_length,  # a translation may be longer than its source
        "pad_token_id": tokenizers.target.pad_token_id,
        "bos_token_id": tokenizers.target.cls_token_id,
        "eos_token_id": tokenizers.target.sep_token_id,
    }
    encoder = {"vocab_size": len(tokenizers.source), "num_hidden_layers": options.num_encoder_layers}
    decoder = {"vocab_size": len(tokenizers.target), "num_hidden_layers": options.num_decoder_layers}
    config = ChinchillaSeq2SeqConfig(
        encoder=ChinchillaConfig(**shape, **encoder, type_vocab_size=0),
        decoder=ChinchillaDecoderConfig(**shape, **decoder),
        label_smoothing=options.label_smoothing,
        share_embeddings=not tokenizers.are_separate,
        target_tokenizer=TARGET_TOKENIZER if tokenizers.are_separate else None,
    )
    config.source_language, config.target_language = data.source_language, data.target_language
    model = ChinchillaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        max_length=2 * data.max_length,
        num_beams=num_beams,
    )
    return model


def encode(split: Dataset, tokenizers: Tokenizers, max_length: int, drop_long: bool) -> tuple[TokenPairs, int]:
    """Token ids of the pairs, and how many were too long."""
    sources = tokenizers.source(split["source"][:], verbose=False)["input_ids"]
    # The start token is not predicted.
    targets = [ids[1:] for ids in tokenizers.target(split["target"][:], verbose=False)["input_ids"]]
    pairs = list(zip(sources, targets, strict=True))
    too_long = [max(map(len, pair)) > max_length for pair in pairs]
    if drop_long:
        pairs = [pair for pair, long in zip(pairs, too_long, strict=True) if not long]
        if not pairs:
            raise ValueError(f"all {len(too_long)} pairs are longer than --max_length {max_length}: raise it")
    else:
        end = tokenizers.target.sep_token_id
        pairs = [
            tuple(ids if len(ids) <= max_length else [*ids[: max_length - 1], end] for ids in pair) for pair in pairs
        ]
    return TokenPairs(*zip(*pairs, strict=True)), sum(too_long)


class SortedSplit(torch.utils.data.Dataset):
    """Pairs of a split by the length of their sources, so that little of a batch is padding."""

    def __init__(self, pairs: TokenPairs, split: Dataset):
        self.pairs = pairs
        self.order = np.argsort(pairs.lengths[0], kind="stable").tolist()
        self.sources = [split["source"][number] for number in self.order]
        self.references = [split["target"][number] for number in self.order]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.pairs[self.order[index]]


def decode(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> list[str]:
    ids = np.where(ids < 0, tokenizer.pad_token_id, ids)
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def bleu_of(
    tokenizer: PreTrainedTokenizerBase, references: list[str], language: str
) -> Callable[[EvalPrediction], dict]:
    def compute(prediction: EvalPrediction) -> dict[str, float]:
        scores = translation_metrics(decode(tokenizer, prediction.predictions), references, language)
        return {"bleu": scores["bleu"], "chrf": scores["chrf"]}

    return compute


def use_better_average(trainer: TranslationTrainer, checkpoints: list[Path]) -> bool:
    """Give the model the mean weights of `checkpoints`, if their loss on the validation texts is lower."""
    if len(checkpoints) < 2:
        return False
    model = trainer.accelerator.unwrap_model(trainer.model)
    last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = trainer.evaluate(metric_key_prefix="last")["last_loss"]
    model.load_state_dict(averaged_weights(checkpoints), strict=False)  # of tied weights, a file has one name
    model.tie_weights()
    after = trainer.evaluate(metric_key_prefix="averaged")["averaged_loss"]
    logger.info("validation loss of the last weights %.4f, of %d averaged %.4f", before, len(checkpoints), after)
    if after >= before:
        model.load_state_dict(last)
    return after < before


@closed_process_group()
def main() -> None:
    data_options, model_options, translating, options = parse_recipe(OPTIONS, DEFAULT_RECIPE, __doc__)
    main_process = start_script(options)
    if translating.translate is not None:
        translate_file(translating)
        return
    if options.device.type == "cpu":
        keep_freed_memory()

    # Everything that can be wrong with the input shows here, before any long work.
    with one_line_errors(), options.main_process_first(desc="preparing the data"):
        folder = Path(options.output_dir)
        data = load(data_options)
        arguments = {
            name: value
            for part in (data_options, model_options, translating)
            for name, value in dataclasses.asdict(part).items()
        } | options.to_dict()
        tokenizers = train_tokenizers(data.splits["train"], data_options.max_length, model_options, main_process)
        model = build_model(tokenizers, data_options, model_options, translating.num_beams)
        pairs, too_long = {}, {}
        for name, split in data.splits.items():
            pairs[name], too_long[name] = encode(split, tokenizers, data_options.max_length, name == "train")
        batches = TokenBatches(pairs["train"], options.max_tokens, options.seed)
        record = RunRecord(
            task="translation",
            arguments=arguments,
            data={
                "name": data_options.dataset,
                "fingerprint": data.fingerprint,
                "rows": {name: len(split) for name, split in data.splits.items()},
                "languages": [data_options.source_language, data_options.target_language],
                "too_long": too_long,
            },
            model=describe_model(model),
            machine=describe_machine(options.device),
        )
        checkpoint = claim_output_folder(
            folder,
            record,
            ignore=result_neutral_options(list(arguments)) | {"batch_size", "model", "output_file"},
            overwrite=options.overwrite and main_process,
            write=main_process,
        )
        if options.push_to_hub:
            check_access(options)
    # Trainer would push every checkpoint; the finished folder is pushed once, at the end.
    push_to_hub, options.push_to_hub = options.push_to_hub, False
    tokens = int(pairs["train"].lengths.sum())
    mean_length = pairs["train"].lengths.mean()
    model.set_attn_implementation(model_options.attn_implementation or choose_attention(options, mean_length))
    if main_process:
        print(
            f"{data.summary()}; {tokens:,} tokens in about {batches.batches_per_epoch:,} batches; "
            f"{model.num_parameters():,} parameters"
        )
        for name, count in too_long.items():
            if count:
                what = "left out" if name == "train" else "cut"
                length = data_options.max_length
                logger.warning("%d pairs of %s are longer than %d tokens, and %s", count, name, length, what)

    clock = options.clock()
    items_per_step = options.gradient_accumulation_steps * options.world_size
    if clock is not None:
        options.max_steps = ENDLESS
    elif options.max_steps < 0:
        options.max_steps = max(1, round(options.num_train_epochs * batches.batches_per_epoch / items_per_step))
    batches.num_items = options.max_steps * items_per_step
    validation, test = (SortedSplit(pairs[name], data.splits[name]) for name in ("validation", "test"))
    language = data_options.target_language
    termination = SaveOnTermination()
    options.generation_num_beams = 1  # while training, only a curve is wanted
    # A model that has learned little does not stop, and few translations are twice as long as the longest source.
    longest = max(int(split.pairs.lengths[0].max()) for split in (validation, test))
    options.generation_max_length = min(2 * data_options.max_length, 2 * longest + 20)
    trainer = TranslationTrainer(
        model=model,
        args=options,
        train_dataset=batches,
        eval_dataset=validation,
        data_collator=PairCollator(tokenizers.source.pad_token_id),
        processing_class=tokenizers.source,
        compute_metrics=bleu_of(tokenizers.target, validation.references, language),
        callbacks=[termination],
        clock=clock,
    )
    try:
        result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except KeyboardInterrupt:
        sys.exit(f"interrupted at step {trainer.state.global_step}: the same command goes on from the last checkpoint")
    except (FloatingPointError, NotSavedError) as error:
        sys.exit(f"error: {error}")
    if termination.stopped:
        sys.exit(f"stopped at step {trainer.state.global_step}: the same command goes on from there")

    averaged = use_better_average(trainer, list_checkpoints(folder)[-options.average_checkpoints :])
    beams = {"num_beams": translating.num_beams}
    scores: dict[str, dict[str, Any]] = {}
    translations: list[str] = []
    for name, split in (("validation", validation), ("test", test)):
        trainer.compute_metrics = None
        prediction = trainer.predict(split, metric_key_prefix=name, **beams)
        translations = decode(tokenizers.target, prediction.predictions[: len(split)])
        scores[name] = {"loss": prediction.metrics[f"{name}_loss"]}
        scores[name] |= translation_metrics(translations, split.references, language, n_bootstrap=BOOTSTRAP)
    if not main_process:
        return
    steps = trainer.state.global_step
    epochs = steps * items_per_step / batches.batches_per_epoch
    scores["baseline"] = {
        "model": "the source texts, as they are",
        "test": translation_metrics(test.sources, test.references, language, n_bootstrap=BOOTSTRAP),
    }
    record.scores = scores
    record.training |= {
        "steps": steps,
        "epochs": epochs,
        "examples": round(epochs * len(pairs["train"])),
        "tokens": round(epochs * tokens),
        "seconds": result.metrics["train_runtime"],
        "averaged": averaged,
        "skipped_steps": trainer.skipped_steps,
        "seed": options.seed,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    try:
        others = {TARGET_TOKENIZER: tokenizers.target} if tokenizers.are_separate else None
        model = trainer.accelerator.unwrap_model(trainer.model)
        save_model_folder(model, tokenizers.source, folder, tokenizers=others)
    except NotSavedError as error:
        sys.exit(f"error: {error}")
    plot_loss_curve(trainer.state.log_history, folder / "loss.png")
    samples = list(zip(test.sources, test.references, translations, strict=True))
    samples = samples[:: max(1, len(samples) // SAMPLES)][:SAMPLES]
    record.samples = samples
    record.status = "finished"
    record.write(folder / RUN_RECORD)
    write_model_card(record, folder / "README.md")
    if not options.keep_checkpoints:
        for path in list_checkpoints(folder):
            shutil.rmtree(path)
    for source, reference, translation in samples:
        print(f"\n  source       {source}\n  reference    {reference}\n  translation  {translation}")
    for name in ("validation", "test"):
        values = scores[name]
        print(f"\n{name}: BLEU {values['bleu']:.2f}, chrF {values['chrf']:.2f}, loss {values['loss']:.4f}")
    copied = scores["baseline"]["test"]
    print(f"test, {scores['baseline']['model']}: BLEU {copied['bleu']:.2f}, chrF {copied['chrf']:.2f}")
    print(f"{scores['test']['bleu_signature']}\n{scores['test']['chrf_signature']}")
    print(f"the model is in {folder}: pipeline('chinchilla-translation', '{folder}')")
    if push_to_hub:
        with one_line_errors():
            print(f"pushed to {push_folder(folder, options, 'Upload a translator')}")


if __name__ == "__main__":
    main()
