"""
Useful tokens a second of masked-token pretraining, against what people use today, in one run.

    python tests/benchmarks/pretraining.py --dataset corpus.jsonl.gz [--device cuda] [--rounds 3]

All train on the same documents, cut at `--length` tokens, with a model of the same size and the step of the optimizer
included: ours on packed rows, the peers on batches of documents padded to the longest. Useful tokens are those of the
documents, padding is none. The contestants, each in a process of its own, take turns, so that a slow moment of the
machine hits all of them; printed are medians, and the median of the ratios within a turn.

On an accelerator a data loader's worker makes the batches of each meanwhile, as there one trains.

Then: executed FLOP/s against the rate of a matrix product measured in the same run, the share of a step that the data
pipeline takes, and the peak memory of a step, by steps without a contestant beside them.
"""

import contextlib
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.pool import ThreadPool
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import trange
from transformers import BertConfig, BertForMaskedLM, HfArgumentParser, ModernBertConfig, ModernBertForMaskedLM
from turns import Worker, device_name, print_rates

from chinchilla_hf import ChinchillaConfig, ChinchillaForMaskedLM
from chinchilla_hf.data.corpora import Corpus
from chinchilla_hf.data.objectives import MaskedTokens, MaskingSchedule
from chinchilla_hf.data.packing import PackedRows, SpecialTokens, assemble_row, collate_rows, cut_documents, pack
from chinchilla_hf.data.token_store import TokenStore, tokenizer_of_corpus
from chinchilla_hf.optim import MuonWithAdamW, parameter_groups
from chinchilla_hf.processes import keep_freed_memory
from chinchilla_hf.run_record import peak_memory_bytes
from chinchilla_hf.scaling.flops import pretraining_step
from chinchilla_hf.scaling.machine import matmul_flops_per_second

logging.getLogger("transformers").setLevel(logging.ERROR)

OURS = "ours, bf16"
BERT = "BertForMaskedLM, bf16"  # which others' memory is compared with
# With Transformers' default attention, and with the one that some CPUs are faster with in bfloat16.
PEERS = (
    "BertForMaskedLM, fp32",
    BERT,
    "BertForMaskedLM, bf16, eager",
    "ModernBertForMaskedLM, bf16",
    "ModernBertForMaskedLM, bf16, eager",
)


@dataclass
class Options:
    dataset: str = field(metadata={"help": "Any text that training/pretrain.py takes."})
    max_documents: int = field(default=20_000, metadata={"help": "Documents, from the first one."})
    length: int = field(default=128, metadata={"help": "Documents are cut at so many tokens; also the row length."})
    tokens_per_step: int = field(default=16_384, metadata={"help": "Positions of a step, padding included."})
    vocab_size: int = field(default=16_384, metadata={"help": "Vocabulary."})
    hidden_size: int = field(default=256, metadata={"help": "Width."})
    num_hidden_layers: int = field(default=6, metadata={"help": "Depth."})
    num_attention_heads: int = field(default=4, metadata={"help": "Heads."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention of ours. Default: eager on a CPU, else sdpa, as training chooses."}
    )
    masking_rate: float = field(default=0.15, metadata={"help": "Share of the tokens to predict, the same for all."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    rounds: int = field(default=5, metadata={"help": "Turns."})
    steps: int = field(default=2, metadata={"help": "Steps of each contestant in a turn."})
    memory_vocab_size: int = field(default=32_768, metadata={"help": "Vocabulary, where memory is measured."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where tokens are kept. Default: nowhere."})
    memory_of: str | None = field(default=None, metadata={"help": "Only the peak memory of this contestant."})


@dataclass
class Contestant:
    """A model with its optimizer, its batches, and the useful tokens of each."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    batches: Iterator[tuple[dict[str, torch.Tensor], int]]
    dtype: torch.dtype
    device: str
    data_seconds: float = 0.0

    def step(self) -> int:
        """Train one step; the number of useful tokens in it."""
        start = time.perf_counter()
        batch, useful = next(self.batches)
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        self.data_seconds += time.perf_counter() - start
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device != "cpu":
            torch.accelerator.synchronize()
        return useful


def padded_batches(
    store: TokenStore, special: SpecialTokens, masked: Any, options: Options
) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
    """Documents in random order, padded to the longest of their batch, masked alike."""
    starts, lengths = cut_documents(store.document_starts, options.length - len(special))
    rng = np.random.default_rng(0)
    size = max(1, round(options.tokens_per_step / options.length))
    while True:
        order = rng.permutation(len(starts))
        for begin in range(0, len(order) - size, size):
            chosen = order[begin : begin + size]
            longest = int(lengths[chosen].max()) + len(special)
            rows = [assemble_row(store.tokens, starts[[i]], lengths[[i]], special, longest) for i in chosen]
            batch = collate_rows([masked(row, rng, 0.0) for row in rows])
            mask = torch.from_numpy(np.stack([row.documents >= 0 for row in rows])).long()
            batch = {"input_ids": batch["input_ids"], "labels": batch["labels"], "attention_mask": mask}
            yield batch, int(mask.sum())


def packed_batches(
    store: TokenStore, special: SpecialTokens, masked: Any, options: Options
) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
    pieces = cut_documents(store.document_starts, options.length - len(special))
    packing = pack(*pieces, options.length, len(special), 0)
    rows = PackedRows(store.tokens, packing, special, masked, num_items=1 << 40)
    size = options.tokens_per_step // options.length
    begin = 0
    while True:
        batch = collate_rows([rows[i] for i in range(begin, begin + size)])
        yield batch, round(size * options.length * (1 - packing.padding))
        begin += size


class Batches(IterableDataset):
    """Batches for the worker of a data loader to make."""

    def __init__(self, batches: Iterator[tuple[dict[str, torch.Tensor], int]]):
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
        return self.batches


def common_shape(options: Options, tokenizer: Any) -> dict[str, int]:
    return {
        "vocab_size": max(options.vocab_size, len(tokenizer)),
        "hidden_size": options.hidden_size,
        "num_hidden_layers": options.num_hidden_layers,
        "num_attention_heads": options.num_attention_heads,
        "intermediate_size": 4 * options.hidden_size,
        "max_position_embeddings": 512,
    }


def our_config(options: Options, tokenizer: Any) -> ChinchillaConfig:
    config = ChinchillaConfig(
        **common_shape(options, tokenizer), hidden_dropout=0.0, pad_token_id=tokenizer.pad_token_id
    )
    config._attn_implementation = options.attn_implementation or ("eager" if options.device == "cpu" else "sdpa")
    return config


def make(name: str, options: Options, store: TokenStore, tokenizer: Any) -> Contestant:
    torch.manual_seed(0)
    special = SpecialTokens.of(tokenizer)
    masked = MaskedTokens(tokenizer, MaskingSchedule(options.masking_rate, options.masking_rate))
    if name == OURS:
        if options.device == "cpu":
            keep_freed_memory()  # as training/pretrain.py does
        model: torch.nn.Module = ChinchillaForMaskedLM(our_config(options, tokenizer))
        optimizer: torch.optim.Optimizer = MuonWithAdamW(parameter_groups(model, 0.1, muon=True))
        batches = packed_batches(store, special, masked, options)
    else:
        # Their own defaults, dropout included; the optimizer is Trainer's default.
        shape = common_shape(options, tokenizer)
        if name.startswith("Modern"):
            modern = {"sparse_prediction": True, "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
            modern |= {"bos_token_id": 2, "eos_token_id": 3}
            model = ModernBertForMaskedLM(ModernBertConfig(**shape, **modern))
        else:
            model = BertForMaskedLM(BertConfig(**shape))
        if name.endswith("eager"):
            model.set_attn_implementation("eager")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        batches = padded_batches(store, special, masked, options)
    if options.device != "cpu":
        options_of_loader = {"num_workers": 1, "prefetch_factor": 4, "multiprocessing_context": "fork"}
        batches = iter(DataLoader(Batches(batches), batch_size=None, pin_memory=True, **options_of_loader))
    dtype = torch.float32 if "fp32" in name else torch.bfloat16
    return Contestant(model.to(options.device).train(), optimizer, batches, dtype, options.device)


def report_memory(options: Options) -> None:
    """Peak memory of steps of each, in processes of their own."""

    def measure(name: str) -> int:
        command = [sys.executable, *sys.argv, "--memory_of", name, "--vocab_size", str(options.memory_vocab_size)]
        command += ["--cache_dir", str(options.cache_dir)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    names = (OURS, *PEERS)
    with ThreadPool(1 if options.device == "cpu" else len(names)) as pool:  # of a GPU, each has its own count
        peaks = dict(zip(names, pool.map(measure, names), strict=True))
    print(f"\npeak memory of a step beyond the model, vocabulary {options.memory_vocab_size}")
    for name, peak in peaks.items():
        print(f"{name:<36} {peak / 2**20:8.0f} MiB   {peak / peaks[BERT]:.2f} of {BERT}")


def memory_of_steps(contestant: Contestant) -> int:
    """Bytes at the peak of two steps, beyond what is there before them: model, data and libraries."""
    if contestant.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5): the peak is now what is in use
        before = peak_memory_bytes()
    contestant.step(), contestant.step()
    return (peak_memory_bytes() if contestant.device == "cpu" else torch.cuda.max_memory_allocated()) - before


def main() -> None:
    (options,) = HfArgumentParser(Options, description=__doc__).parse_args_into_dataclasses()
    corpus = Corpus(options.dataset)
    with contextlib.nullcontext(options.cache_dir) if options.cache_dir else tempfile.TemporaryDirectory() as cache:
        options.cache_dir = cache
        # Of a larger vocabulary only the model's tables grow.
        settings = {"vocab_size": min(options.vocab_size, 16_384), "model_max_length": 512, "show_progress": False}
        tokenizer = tokenizer_of_corpus(corpus, cache_dir=cache, max_documents=options.max_documents, **settings)
        store = TokenStore.build(
            corpus, tokenizer, cache_dir=cache, max_documents=options.max_documents, show_progress=False
        )
        if options.memory_of:
            print(memory_of_steps(make(options.memory_of, options, store, tokenizer)))
            return
        compare(options, store, tokenizer)
        report_memory(options)


def serve(connection: Connection, name: str, options: Options, store: TokenStore, tokenizer: Any) -> None:
    """Be the process of a contestant: at every number received, train so many steps, and send what came of it."""
    contestant = make(name, options, store, tokenizer)
    while True:
        steps = connection.recv()
        contestant.data_seconds = 0.0
        start = time.perf_counter()
        useful = sum(contestant.step() for _ in range(steps))
        connection.send((useful, time.perf_counter() - start, contestant.data_seconds))


def compare(options: Options, store: TokenStore, tokenizer: Any) -> None:
    contestants = {name: Worker(serve, name, options, store, tokenizer) for name in (OURS, *PEERS)}
    for contestant in contestants.values():
        contestant.turn(2)
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    peaks, data_shares = [], []
    for _ in trange(options.rounds, desc="Turns"):
        peaks.append(matmul_flops_per_second(options.device, torch.bfloat16, seconds=0.5))
        for name, contestant in contestants.items():
            useful, seconds, data_seconds = contestant.turn(options.steps)
            rates[name].append(useful / seconds)
            if name == OURS:
                data_shares.append(data_seconds / seconds)
    for contestant in contestants.values():
        contestant.end()
    on = device_name(options.device)
    print(f"{options.tokens_per_step} tokens a step, documents of at most {options.length}, {on}")
    print_rates(rates, OURS)
    rows = options.tokens_per_step // options.length
    flops = pretraining_step(our_config(options, tokenizer), rows, options.length, options.masking_rate)
    steps_per_second = median(rates[OURS]) / options.tokens_per_step
    print(
        f"executed: {flops * steps_per_second / 1e9:,.0f} GFLOP/s, {flops * steps_per_second / median(peaks):.1%} of a "
        f"bf16 matrix product ({median(peaks) / 1e9:,.0f} GFLOP/s)"
    )
    print(f"data pipeline: {median(data_shares):.2%} of the time of a step")


if __name__ == "__main__":
    main()
