"""
How long a text classifier takes for one text, and how many texts it classifies in a second: torch, and its export.

    python training/export.py --model runs/student --dataset data_full.json ...
    python tests/benchmarks/latency.py --model runs/student --dataset data_full.json ... [--against runs/clinc150]

Latency: one text of so many tokens, without the tokenizer, by torch in float32 and in bfloat16, and by ONNX Runtime in
float32 and in int8, each on one thread and on two; with `--against`, that checkpoint by torch, and by ONNX Runtime if
it has an export, in float32, too. The contestants, each in a process of its own, take turns.

Documents a second: the test texts, tokenizer included. The peer is `pipeline("text-classification")` as one gets it,
on a `BertForSequenceClassification` of the same sizes and with the same tokenizer. Ours is the same pipeline with the
texts sorted by length, in batches, and in bfloat16 where the processor multiplies it in hardware; and the export.
"""

import json
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification
from transformers import pipeline as make_pipeline
from turns import Worker

from chinchilla_hf import ChinchillaForSequenceClassification
from chinchilla_hf.classification import LabelledArguments, load_data
from chinchilla_hf.conversion import load_or_convert
from chinchilla_hf.recipes import parse_options
from chinchilla_hf.run_record import describe_machine
from chinchilla_hf.runtime import FULL, OnnxTextClassifier
from chinchilla_hf.training_arguments import bf16_is_fast

CALLS = 20  # of a turn


@dataclass
class LatencyArguments:
    """What to measure."""

    _argument_group_name = "Latency"

    model: str = field(metadata={"help": "A text classifier that training/export.py has exported."})
    export: str | None = field(default=None, metadata={"help": "Its export. Default: export in --model."})
    against: str | None = field(default=None, metadata={"help": "Another classifier, such as the teacher."})
    lengths: list[int] = field(default_factory=lambda: [16, 64, 256], metadata={"help": "Tokens of a text."})
    threads: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Threads of each contestant."})
    rounds: int = field(default=15, metadata={"help": f"Turns of {CALLS} texts, and a third of them of documents."})
    texts: int = field(default=1000, metadata={"help": "Test texts for documents a second, at most."})
    batch_size: int = field(default=32, metadata={"help": "Of ours, for documents a second."})
    parts: list[str] = field(
        default_factory=lambda: ["latency", "documents"], metadata={"help": "latency, documents, or both."}
    )
    output: str | None = field(default=None, metadata={"help": "Where to write the figures as JSON, too."})


def quiet(threads: int) -> None:
    """Settings of a contestant's process."""
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def serve_torch(connection: Connection, location: str, dtype: torch.dtype, threads: int) -> None:
    quiet(threads)
    model = load_or_convert(location, ChinchillaForSequenceClassification).to(dtype).eval()
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        while True:
            length = int(connection.recv())
            times = []
            for _ in range(CALLS):
                ids = torch.from_numpy(rng.integers(5, model.config.vocab_size, (1, length)))
                mask = torch.ones_like(ids)
                start = time.perf_counter()
                model(ids, attention_mask=mask).logits.float().numpy()
                times.append(1e3 * (time.perf_counter() - start))
            connection.send(times)


def serve_onnx(connection: Connection, folder: str, quantized: bool, threads: int) -> None:
    classifier = OnnxTextClassifier(folder, quantized=quantized, num_threads=threads)
    rng = np.random.default_rng(0)
    vocab_size = classifier.tokenizer.get_vocab_size()
    while True:
        length = int(connection.recv())
        times = []
        for _ in range(CALLS):
            ids = rng.integers(5, vocab_size, (1, length))
            values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            given = {name: values[name] for name in classifier.inputs}
            start = time.perf_counter()
            classifier.session.run(None, given)
            times.append(1e3 * (time.perf_counter() - start))
        connection.send(times)


def compare_latency(options: LatencyArguments, export: str) -> list[dict[str, Any]]:
    contestants: dict[str, Any] = {
        "torch float32": partial(Worker, serve_torch, options.model, torch.float32),
        "torch bfloat16": partial(Worker, serve_torch, options.model, torch.bfloat16),
        "ONNX float32": partial(Worker, serve_onnx, export, False),
        "ONNX int8": partial(Worker, serve_onnx, export, True),
    }
    if options.against is not None:
        contestants["--against, torch float32"] = partial(Worker, serve_torch, options.against, torch.float32)
        if (Path(options.against) / "export" / FULL).is_file():
            of_other = str(Path(options.against) / "export")
            contestants["--against, ONNX float32"] = partial(Worker, serve_onnx, of_other, False)
    rows = []
    for threads in options.threads:
        workers = {name: make(threads) for name, make in contestants.items()}
        for length in options.lengths:
            times: dict[str, list[list[float]]] = {name: [] for name in workers}
            for worker in workers.values():
                worker.turn(length)
            for _ in range(options.rounds):
                for name, worker in workers.items():
                    times[name].append(worker.turn(length))
            slowest = "--against, torch float32" if options.against else "torch float32"
            for name, turns in times.items():
                p50, p95, p99 = np.percentile(np.concatenate(turns), [50, 95, 99])
                ratio = median(median(a) / median(b) for a, b in zip(times[slowest], turns, strict=True))
                rows.append(
                    {"threads": threads, "tokens": length, "contestant": name}
                    | {"p50": p50, "p95": p95, "p99": p99, "times_as_fast": ratio, "as": slowest}
                )
        for worker in workers.values():
            worker.end()
    return rows


def serve_pipeline(
    connection: Connection, model: Any, tokenizer: Any, arguments: dict[str, Any], texts: list[str]
) -> None:
    """Texts a second of a pipeline, at every turn."""
    quiet(torch.get_num_threads())
    classify = make_pipeline("text-classification", model=model(), tokenizer=tokenizer, **arguments)
    by_length = "batch_size" in arguments
    while True:
        connection.recv()
        start = time.perf_counter()
        classify(sorted(texts, key=len) if by_length else texts)
        connection.send(len(texts) / (time.perf_counter() - start))


def serve_export(connection: Connection, folder: str, quantized: bool, batch_size: int, texts: list[str]) -> None:
    classify = OnnxTextClassifier(folder, quantized=quantized, num_threads=torch.get_num_threads())
    while True:
        connection.recv()
        start = time.perf_counter()
        classify(texts, batch_size=batch_size)
        connection.send(len(texts) / (time.perf_counter() - start))


def bert_of_equal_shape(location: str) -> BertForSequenceClassification:
    """With random weights: only its speed counts."""
    config = AutoModelForSequenceClassification.from_pretrained(location).config
    sizes = {size for size in (config.intermediate_size_by_layer or [config.intermediate_size])}
    heads = {heads for heads in (config.attention_heads_by_layer or [config.num_attention_heads])}
    if len(sizes) > 1 or heads != {config.num_attention_heads}:
        raise SystemExit("error: a BERT has the same sizes in all layers, --model has not: give --parts latency")
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    shape = {name: getattr(config, name) for name in (*names, "type_vocab_size", "id2label", "label2id")}
    return BertForSequenceClassification(BertConfig(**shape, intermediate_size=sizes.pop()))


def own_model(location: str) -> ChinchillaForSequenceClassification:
    dtype = torch.bfloat16 if bf16_is_fast() else torch.float32
    return load_or_convert(location, ChinchillaForSequenceClassification).to(dtype).eval()


def compare_documents(options: LatencyArguments, export: str, texts: list[str]) -> list[dict[str, Any]]:
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    peer = "pipeline on BertForSequenceClassification"
    ours = partial(own_model, options.model)
    own = {"batch_size": options.batch_size}
    workers = {
        peer: Worker(serve_pipeline, partial(bert_of_equal_shape, options.model), tokenizer, {}, texts),
        "pipeline, sorted, in batches": Worker(serve_pipeline, ours, tokenizer, own, texts),
        "ONNX float32": Worker(serve_export, export, False, options.batch_size, texts),
        "ONNX int8": Worker(serve_export, export, True, options.batch_size, texts),
    }
    rates: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(1 + max(1, options.rounds // 3)):
        for name, worker in workers.items():
            rate = worker.turn(1)
            if turn:  # the first is to warm up
                rates[name].append(rate)
    for worker in workers.values():
        worker.end()
    return [
        {
            "contestant": name,
            "documents_per_second": median(values),
            "times_as_fast": median(a / b for a, b in zip(values, rates[peer], strict=True)),
        }
        for name, values in rates.items()
    ]


def main() -> None:
    data_options, options = parse_options((LabelledArguments, LatencyArguments), __doc__)
    logging.basicConfig(level=logging.WARNING)
    export = options.export or str(Path(options.model) / "export")
    figures: dict[str, Any] = {"machine": describe_machine("cpu"), "model": options.model, "against": options.against}
    if "latency" in options.parts:
        figures["latency"] = compare_latency(options, export)
        print(f"{'threads':>7}{'tokens':>8}  {'':<26}{'p50 ms':>9}{'p95':>9}{'p99':>9}   times as fast")
        for row in figures["latency"]:
            print(
                f"{row['threads']:>7}{row['tokens']:>8}  {row['contestant']:<26}{row['p50']:>9.2f}{row['p95']:>9.2f}"
                f"{row['p99']:>9.2f}   {row['times_as_fast']:.2f}"
            )
    if "documents" in options.parts:
        rows = load_data(data_options).splits["test"]
        texts = rows["text"][: options.texts]
        figures["documents"] = compare_documents(options, export, texts)
        lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(options.model)(texts).input_ids]
        figures["tokens"] = {"mean": float(np.mean(lengths)), "longest": max(lengths)}
        print(f"\n{len(texts)} documents of {np.mean(lengths):.1f} tokens on average, {max(lengths)} at most")
        for row in figures["documents"]:
            print(
                f"{row['contestant']:<46}{row['documents_per_second']:>10,.0f} documents/s   "
                f"{row['times_as_fast']:.2f} times as fast"
            )
    if options.output:
        Path(options.output).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
