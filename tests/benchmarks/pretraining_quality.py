"""
What the same minutes of pretraining are worth: our recipe against `BertForMaskedLM`, on one machine.

    python tests/benchmarks/pretraining_quality.py --dataset train.jsonl.gz [--validation_dataset validation.jsonl.gz] \
        [--classification_dataset data_full.json] [--minutes 20] [--seeds 1 2]

Both have the same text, cut into the same pieces, the same tokenizer, shape and time, which counts training only. Ours
is `training/pretrain.py` with `training/recipes/encoder.yaml`. BERT is trained as people do (`bert_peer.py`), and not
crippled: it gets several learning rates, each with the full time, and the best of them counts.

Compared are the loss and the accuracy at the same masked tokens of documents that none was trained on and, with
`--classification_dataset`, the test accuracy after `training/classify.py` with the same options, those of BERT's
fine-tuning, at the learning rate that is best on the validation split, for each. Every finished stage is in
`results.json` in the output folder: the same command goes on with the next. Leave the machine alone meanwhile;
`machine_flops_per_second` tells whether it was.
"""

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from bert_peer import BertOptions, Pieces, pretrain_bert
from masked_validation import (
    TRAINING,
    BenchmarkOptions,
    MaskedPieces,
    masked_scores,
    prepare,
    pretraining_command,
)
from transformers import HfArgumentParser

from chinchilla_hf.data.packing import SpecialTokens
from chinchilla_hf.output_folder import finished_run
from chinchilla_hf.run_record import RunRecord, write_atomically
from chinchilla_hf.scaling.machine import matmul_flops_per_second

logger = logging.getLogger("pretraining_quality")

OURS = "ours"


@dataclass
class Options(BertOptions, BenchmarkOptions):
    output_dir: str = field(
        default="runs/pretraining_quality",
        metadata={"help": "Tokens, models and results. What is finished there is not run again."},
    )
    minutes: float = field(default=20.0, metadata={"help": "Minutes of training, of each model."})
    seeds: list[int] = field(default_factory=lambda: [1], metadata={"help": "Each is a run of every model."})
    fine_tuning_learning_rates: list[float] = field(
        default_factory=lambda: [1e-4, 2e-4, 5e-4], metadata={"help": "The best on the validation split counts."}
    )
    fine_tuning_epochs: float = field(default=5.0, metadata={"help": "Epochs of fine-tuning."})
    fine_tuning_max_rows: int | None = field(default=None, metadata={"help": "Texts a split, for a quick trial."})


class Stages:
    """Results of the stages that are finished, in a JSON file, each with the settings that it depends on."""

    def __init__(self, path: Path):
        self.path = path
        self.finished: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    def run(self, name: str, settings: dict[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `work` returns, or has returned in an earlier run."""
        settings = json.loads(json.dumps(settings))
        if name not in self.finished:
            logger.info("%s", name)
            self.finished[name] = {"settings": settings, "result": work()}
            write_atomically(self.path, json.dumps(self.finished, indent=2).encode())
        stage = self.finished[name]
        if stage["settings"] != settings:
            changed = {key: (stage["settings"].get(key), value) for key, value in settings.items()}
            changed = {key: pair for key, pair in changed.items() if pair[0] != pair[1]}
            raise SystemExit(f"error: {name} was run with other options {changed}: choose another --output_dir")
        return stage["result"]


def run_script(command: list[str], folder: Path) -> RunRecord:
    """The record of the run of a training script in `folder`, which is begun or goes on if it is not finished."""
    if finished_run(folder) is None:
        subprocess.run(command, check=True)
    record = finished_run(folder)
    assert record is not None, f"{folder} holds no finished run"
    return record


def pretrain_ours(options: Options, seed: int, folder: Path) -> dict[str, Any]:
    command = pretraining_command(options, folder, options.minutes, row_length=options.length, seed=seed)
    record = run_script(command, folder)
    return {name: record.training[name] for name in ("steps", "tokens", "seconds")}


def fine_tune(options: Options, seed: int, learning_rate: float, checkpoint: Path, folder: Path) -> dict[str, float]:
    arguments = {
        "dataset": options.classification_dataset,
        "text_column": options.text_column,
        "label_column": options.label_column,
        "max_rows": options.fine_tuning_max_rows,
        "model": checkpoint,
        "output_dir": folder,
        "learning_rate": learning_rate,
        "num_train_epochs": options.fine_tuning_epochs,
        # Of both as BERT is fine-tuned, and not as the recipe has it for the vectors of a MiniLM.
        "pooling": "cls",
        "pooler_type": "dense",
        "freeze_embeddings": False,
        "fit_head_first": False,
        "hidden_dropout": 0.1,
        "classifier_dropout": 0.1,
        "seed": seed,
        "report_to": "none",
    }
    pairs = [(f"--{name}", str(value)) for name, value in arguments.items() if value is not None]
    recipe = TRAINING / "recipes" / "clinc150.yaml"
    command = [sys.executable, str(TRAINING / "classify.py"), str(recipe), *(part for pair in pairs for part in pair)]
    scores = run_script([*command, "--no_baseline"], folder).scores
    return {f"{split}_accuracy": scores[split]["accuracy"] for split in ("validation", "test")}


def compare(options: Options, seed: int, stages: Stages) -> dict[str, dict[str, Any]]:
    """Results of ours, and of BERT at each learning rate."""
    store, tokenizer = prepare(options)
    masked = MaskedPieces.load(options.masked_pieces_path)
    pieces = Pieces(store, SpecialTokens.of(tokenizer), options.length, options.validation_share)

    def pretrain(learning_rate: float | None, folder: Path) -> dict[str, Any]:
        machine = {"machine_flops_per_second": matmul_flops_per_second("cpu", torch.bfloat16, seconds=2.0)}
        if learning_rate is None:
            return machine | pretrain_ours(options, seed, folder)
        common = (pieces, tokenizer, options.shape, options.minutes, seed, folder)
        return machine | pretrain_bert(options, learning_rate, *common)

    shared = ("dataset", "validation_share", "max_documents", "length", "vocab_size", "minutes")
    settings: dict[str, Any] = {name: getattr(options, name) for name in shared} | options.shape
    of_bert = {f.name: getattr(options, f.name) for f in fields(BertOptions) if f.name != "bert_learning_rates"}
    results: dict[str, dict[str, Any]] = {}
    folders: dict[str, Path] = {}
    for rate in (None, *options.bert_learning_rates):
        name = OURS if rate is None else f"BERT, {rate:g}"
        folder = folders[name] = options.folder / f"seed-{seed}" / name.lower().replace(", ", "-")
        results[name] = stages.run(
            f"seed {seed}: pretraining {name}",
            settings if rate is None else settings | of_bert,
            partial(pretrain, rate, folder),
        ) | stages.run(
            f"seed {seed}: validation of {name}",
            {"validation_dataset": options.validation_dataset},
            partial(masked_scores, folder, masked),
        )
    if options.classification_dataset:
        for name in (OURS, best_bert(results)):
            results[name]["test_accuracy"] = accuracy(options, name, seed, folders[name], stages)
    return results


def accuracy(options: Options, name: str, seed: int, checkpoint: Path, stages: Stages) -> float:
    """Of the test split, at the learning rate with the best accuracy of the validation split."""
    settings = {
        f: getattr(options, f) for f in ("classification_dataset", "fine_tuning_epochs", "fine_tuning_max_rows")
    }
    runs = []
    for rate in options.fine_tuning_learning_rates:
        work = partial(fine_tune, options, seed, rate, checkpoint, Path(f"{checkpoint}-classifier-{rate:g}"))
        runs.append(stages.run(f"seed {seed}: fine-tuning {name}, {rate:g}", settings, work))
    return max(runs, key=lambda run: run["validation_accuracy"])["test_accuracy"]


def best_bert(results: dict[str, dict[str, Any]]) -> str:
    return min((name for name in results if name != OURS), key=lambda name: results[name]["validation_loss"])


def report(by_seed: dict[int, dict[str, dict[str, Any]]]) -> str:
    """Means over the seeds as a table, and what ours is ahead of the best BERT."""
    columns = {
        "steps": ("steps", ",.0f"),
        "tokens": ("tokens", ",.0f"),
        "validation loss": ("validation_loss", ".3f"),
        "masked accuracy": ("masked_accuracy", ".3f"),
        "test accuracy": ("test_accuracy", ".3f"),
    }
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name in next(iter(by_seed.values())):
        cells = []
        for key, form in columns.values():
            values = [results[name][key] for results in by_seed.values() if key in results[name]]
            cells.append(format(mean(values), form) if values else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for seed, results in by_seed.items():
        bert = results[best_bert(results)]
        line = f"seed {seed}: ours is {bert['validation_loss'] - results[OURS]['validation_loss']:.3f} nats lower"
        if "test_accuracy" in bert:
            line += f", and {100 * (results[OURS]['test_accuracy'] - bert['test_accuracy']):+.1f} points of accuracy"
        lines.append(f"\n{line}")
    return "\n".join(lines)


def main() -> None:
    (options,) = HfArgumentParser(Options, description=__doc__).parse_args_into_dataclasses()
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end: the same command goes on"))  # ends scripts, too
    options.folder.mkdir(parents=True, exist_ok=True)
    stages = Stages(options.folder / "results.json")
    by_seed = {seed: compare(options, seed, stages) for seed in options.seeds}
    text = report(by_seed)
    (options.folder / "table.md").write_text(text + "\n")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
