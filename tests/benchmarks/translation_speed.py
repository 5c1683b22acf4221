"""
Speed of translation, in training and in use, against `MarianMTModel` of the same shape, in one run.

    python tests/benchmarks/translation_speed.py --dataset multi30k [--parts training beams latency] [--rounds 5]

The model, its options and data are those of training/translate.py with `--recipe`; Marian has the same layers, width,
heads, feed-forward network, activation, vocabulary and dropout, and is given the same pairs as the same token ids.

`training`: useful tokens a second, those of sources and targets without padding. A step counts as a whole: making the
batch, gradient, optimizer. Ours is `TranslationTrainer` as the script sets it up. Marian is in `Seq2SeqTrainer` as it
is by default: random batches of 8 pairs, padded by `DataCollatorForSeq2Seq`, AdamW, float32; then with 64 pairs; then
as a knowing user trains it, in batches that are filled by tokens as ours are, bfloat16 where the machine multiplies it
in hardware, with SDPA, which is its default, and with eager attention. Without label smoothing, which is its default,
and would take it time that it takes ours, too. The contestants, each in a process of its own, take turns (`turns.py`).

`beams`: new tokens a second of beam search, the test texts in batches; `latency`: the time of a greedy translation, one
text at a time. So that both do the same work, whatever their weights, which are random, each text or batch is given as
many new tokens as its longest reference has: no token ends a text. Both have one `GenerationConfig`, and the attention
that is their default. Ours and Marian take turns with each text or batch.

Printed are medians, and the median of the ratios within a turn.
"""

import importlib
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    set_seed,
)
from turns import ENDLESS, Worker, device_name, print_rates, rates_in_turns, train_in_turns

from chinchilla_hf.data.token_batches import IGNORED, PairCollator, TokenBatches, TokenPairs
from chinchilla_hf.processes import keep_freed_memory
from chinchilla_hf.recipes import parse_recipe
from chinchilla_hf.trainer import TranslationTrainer
from chinchilla_hf.training_arguments import bf16_is_fast, choose_attention

logging.getLogger("transformers").setLevel(logging.ERROR)

TRAINING = Path(__file__).parents[2] / "training"
PARTS = ("training", "beams", "latency")
OURS = "ours"


@dataclass(frozen=True)
class Peer:
    """How Marian is trained. The defaults are those of Seq2SeqTrainer."""

    batch_size: int | None = 8  # None: filled by tokens, as ours
    bf16: bool = False  # where the machine multiplies it in hardware
    attention: str = "sdpa"


PEERS = {
    "MarianMTModel, fp32, batch 8": Peer(),
    "MarianMTModel, fp32, batch 64": Peer(64),
    "MarianMTModel, bf16, batches by tokens": Peer(None, bf16=True),
    "MarianMTModel, bf16, by tokens, eager": Peer(None, bf16=True, attention="eager"),
}


@dataclass
class Options:
    dataset: str = field(metadata={"help": "Any pairs of texts that training/translate.py takes."})
    source_language: str = field(default="en", metadata={"help": "As for training/translate.py."})
    target_language: str = field(default="de", metadata={"help": "As for training/translate.py."})
    recipe: str = field(
        default=str(TRAINING / "recipes" / "multi30k.yaml"),
        metadata={"help": "Of training/translate.py. Default: that of Multi30k."},
    )
    max_rows: int | None = field(default=None, metadata={"help": "At most so many pairs a split, for a quick trial."})
    parts: list[str] = field(
        default_factory=lambda: list(PARTS), metadata={"help": "What to measure. Default: all.", "choices": PARTS}
    )
    rounds: int = field(default=5, metadata={"help": "Turns of each contestant."})
    seconds: float = field(default=20.0, metadata={"help": "Seconds of training in a turn; the last step is ended."})
    batch_size: int = field(default=32, metadata={"help": "Texts in a batch of the beam search."})
    num_beams: int = field(default=5, metadata={"help": "Beams."})
    batches: int = field(default=4, metadata={"help": "Batches of the beam search in a turn."})
    sentences: int = field(default=32, metadata={"help": "Texts of the greedy search in a turn."})


@dataclass
class Script:
    """training/translate.py, and its options as the recipe sets them."""

    module: ModuleType
    data: Any
    model: Any
    translating: Any
    arguments: Any

    @classmethod
    def load(cls, options: Options, folder: str) -> "Script":
        if str(TRAINING) not in sys.path:
            sys.path.append(str(TRAINING))
        module = importlib.import_module("translate")
        given: dict[str, Any] = {"dataset": options.dataset, "output_dir": folder, "max_steps": ENDLESS}
        given |= {"source_language": options.source_language, "target_language": options.target_language}
        given |= {"eval_strategy": "no", "save_strategy": "no", "logging_strategy": "no", "report_to": "none"}
        if options.max_rows is not None:
            given["max_rows"] = options.max_rows
        words = [options.recipe, "--disable_tqdm=true", *(f"--{name}={value}" for name, value in given.items())]
        return cls(module, *parse_recipe(module.OPTIONS, module.DEFAULT_RECIPE, __doc__ or "", words))


@dataclass
class Pairs:
    """What all contestants are given: the tokenizer, and the pairs to train on and to translate."""

    tokenizer: PreTrainedTokenizerBase
    train: TokenPairs
    test: TokenPairs

    @classmethod
    def prepare(cls, script: Script) -> "Pairs":
        """As training/translate.py does it."""
        splits, length = script.module.load(script.data).splits, script.data.max_length
        tokenizers = script.module.train_tokenizers(splits["train"], length, script.model, show_progress=False)
        train, test = (
            script.module.encode(splits[name], tokenizers, length, name == "train")[0] for name in ("train", "test")
        )
        return cls(tokenizers.source, train, test)


def our_model(script: Script, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    tokenizers = script.module.Tokenizers(tokenizer, tokenizer)
    return script.module.build_model(tokenizers, script.data, script.model, script.translating.num_beams)


def marian(script: Script, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Of the same shape as ours. It has sinusoidal positions, and LayerNorm after the addition."""
    shape = script.model
    feed_forward = shape.intermediate_size or 4 * shape.hidden_size
    config = MarianConfig(
        vocab_size=len(tokenizer),
        d_model=shape.hidden_size,
        encoder_layers=shape.num_encoder_layers,
        decoder_layers=shape.num_decoder_layers,
        encoder_attention_heads=shape.num_attention_heads,
        decoder_attention_heads=shape.num_attention_heads,
        encoder_ffn_dim=feed_forward,
        decoder_ffn_dim=feed_forward,
        activation_function=shape.hidden_act,
        dropout=shape.dropout,
        max_position_embeddings=2 * script.data.max_length,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.sep_token_id,
        forced_eos_token_id=None,
        decoder_start_token_id=tokenizer.pad_token_id,
        scale_embedding=True,  # as its published checkpoints do
    )
    return MarianMTModel(config)


# ---- Training ----


def useful_tokens(pad_token_id: int, inputs: dict[str, torch.Tensor]) -> int:
    return int(inputs["input_ids"].ne(pad_token_id).sum() + inputs["labels"].ne(IGNORED).sum())


def our_trainer(script: Script, pairs: Pairs) -> Trainer:
    arguments = script.arguments
    if arguments.device.type == "cpu":
        keep_freed_memory()
    model = our_model(script, pairs.tokenizer)
    attention = script.model.attn_implementation or choose_attention(arguments, pairs.train.lengths.mean())
    model.set_attn_implementation(attention)
    return TranslationTrainer(
        model=model,
        args=arguments,
        train_dataset=TokenBatches(pairs.train, arguments.max_tokens, arguments.seed, ENDLESS),
        data_collator=PairCollator(pairs.tokenizer.pad_token_id),
        processing_class=pairs.tokenizer,
    )


def peer_trainer(peer: Peer, script: Script, pairs: Pairs) -> Trainer:
    tokenizer, by_tokens = pairs.tokenizer, peer.batch_size is None
    model = marian(script, tokenizer)
    model.set_attn_implementation(peer.attention)
    arguments = Seq2SeqTrainingArguments(
        output_dir=script.arguments.output_dir,
        max_steps=ENDLESS,
        per_device_train_batch_size=peer.batch_size or 1,  # an item is a whole batch
        remove_unused_columns=not by_tokens,
        train_sampling_strategy="sequential" if by_tokens else "random",
        bf16=peer.bf16 and bf16_is_fast(),
        use_cpu=not torch.accelerator.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    if by_tokens:
        rows: Any = TokenBatches(pairs.train, script.arguments.max_tokens, num_items=ENDLESS)
        collator: Callable = PairCollator(tokenizer.pad_token_id)
    else:
        rows = [{"input_ids": source.tolist(), "labels": target.tolist()} for source, target in pairs.train]
        collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    return Seq2SeqTrainer(model, arguments, train_dataset=rows, data_collator=collator, processing_class=tokenizer)


def serve(connection: Connection, name: str, options: Options, pairs: Pairs) -> None:
    """Be the process of a contestant."""
    set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        script = Script.load(options, folder)
        trainer = our_trainer(script, pairs) if name == OURS else peer_trainer(PEERS[name], script, pairs)
        train_in_turns(connection, trainer, partial(useful_tokens, pairs.tokenizer.pad_token_id))


def compare_training(options: Options, script: Script, pairs: Pairs) -> None:
    workers = {name: Worker(serve, name, options, pairs) for name in (OURS, *PEERS)}
    rates = rates_in_turns(workers, options.rounds, options.seconds)
    print(f"\ntraining, batches by tokens of {script.arguments.max_tokens:,} positions")
    print_rates(rates, OURS)


# ---- Generation ----


def batches_of(pairs: TokenPairs, size: int, pad_token_id: int) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
    """Sources, in the order of the file, and the tokens of the longest of their references; from the first one on."""
    collate = PairCollator(pad_token_id)
    while True:
        for begin in range(0, len(pairs), size):
            batch = collate([pairs[number] for number in range(begin, min(begin + size, len(pairs)))])
            yield {name: batch[name] for name in ("input_ids", "attention_mask")}, batch["labels"].shape[1]


def seconds_of(model: PreTrainedModel, inputs: dict[str, torch.Tensor], new_tokens: int, num_beams: int) -> float:
    """The time in which a `model` writes exactly so many tokens."""
    start = time.perf_counter()
    output = model.generate(**inputs, max_new_tokens=new_tokens, num_beams=num_beams, do_sample=False)
    if model.device.type != "cpu":
        torch.accelerator.synchronize()
    seconds = time.perf_counter() - start
    assert output.shape[1] == 1 + new_tokens, f"{output.shape[1] - 1} tokens in place of {new_tokens}"
    return seconds


def models_to_compare(script: Script, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> list[PreTrainedModel]:
    """Ours and Marian, with random weights and one `GenerationConfig`."""
    models = []
    for build in (our_model, marian):
        set_seed(0)
        models.append(build(script, tokenizer).to(script.arguments.device, dtype).eval())
    for model in models:
        model.generation_config = type(models[0].generation_config)(
            decoder_start_token_id=models[0].config.decoder_start_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model.config.eos_token_id = None
    return models


def compare_generation(
    options: Options, script: Script, pairs: Pairs, dtype: torch.dtype, batch_size: int, num_beams: int, turns: int
) -> None:
    """Time of both for the same texts, one batch after the other, and print the ratio."""
    models = models_to_compare(script, pairs.tokenizer, dtype)
    batches = batches_of(pairs.test, batch_size, pairs.tokenizer.pad_token_id)
    for model in models:
        seconds_of(model, *next(batches), num_beams)
    seconds: list[tuple[float, ...]] = []
    rates: list[tuple[float, ...]] = []
    for _ in range(turns):
        inputs, new_tokens = next(batches)
        inputs = {name: tensor.to(script.arguments.device) for name, tensor in inputs.items()}
        seconds.append(tuple(seconds_of(model, inputs, new_tokens, num_beams) for model in models))
        rates.append(tuple(len(inputs["input_ids"]) * new_tokens / of_one for of_one in seconds[-1]))
    ratio = median(theirs / ours for ours, theirs in seconds)
    for name, *values in zip(
        (OURS, "MarianMTModel"), zip(*seconds, strict=True), zip(*rates, strict=True), strict=True
    ):
        time_of_one, rate = map(median, values)
        print(f"{name}, {str(dtype).removeprefix('torch.')}".ljust(44), end="")
        print(f"{1000 * time_of_one:9.1f} ms {rate:9,.0f} new tokens/s", end="")
        print("" if name == OURS else f"   ours is {ratio:.2f} times as fast")


def main() -> None:
    (options,) = HfArgumentParser(Options, description=__doc__).parse_args_into_dataclasses()
    with tempfile.TemporaryDirectory() as folder:
        script = Script.load(options, folder)
        pairs = Pairs.prepare(script)
        sizes = [build(script, pairs.tokenizer).num_parameters() for build in (our_model, marian)]
        print(f"{len(pairs.train):,} pairs; {sizes[0]:,} parameters, Marian {sizes[1]:,}", end="; ")
        print(device_name(script.arguments.device.type))
        if "training" in options.parts:
            compare_training(options, script, pairs)
        if "beams" in options.parts:
            print(f"\nbeam search, batch {options.batch_size}, {options.num_beams} beams; time of a batch")
            for dtype in (torch.float32, torch.bfloat16):
                turns = options.rounds * options.batches
                compare_generation(options, script, pairs, dtype, options.batch_size, options.num_beams, turns)
        if "latency" in options.parts:
            print("\ngreedy search, one text at a time; time of a text")
            compare_generation(options, script, pairs, torch.float32, 1, 1, options.rounds * options.sentences)


if __name__ == "__main__":
    main()
