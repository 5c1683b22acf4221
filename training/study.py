"""
An IsoFLOP study on your text: of each of some budgets, which size of a model gets the lowest loss.

    python training/study.py --dataset wiki.jsonl.gz                           an encoder; budgets of 1e12 to 1e14 FLOPs
    python training/study.py --dataset wiki.jsonl.gz --objective causal --budgets 1e12 4e12 1.6e13

Of every budget some sizes are trained, by `training/pretrain.py`, and the best one once more with another seed; where
the lowest loss is at the end of the sizes, more of them. The output folder holds `study.csv`, one row a run, the fit of
a scaling law to them, and plots. `training/plan.py --study` plans by it. An interrupted study goes on where it was:
repeat the command.
"""

import dataclasses
import hashlib
import logging
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from chinchilla_hf.data.corpora import CorpusArguments
from chinchilla_hf.data.token_store import pretraining_tokenizer
from chinchilla_hf.output_folder import finished_run
from chinchilla_hf.recipes import one_line_errors, parse_options, write_recipe
from chinchilla_hf.run_record import RunRecord
from chinchilla_hf.scaling.flops import count_parameters, paper_flops
from chinchilla_hf.scaling.shapes import (
    LADDER,
    OBJECTIVES,
    Shape,
    pretraining_options,
    training_settings,
)
from chinchilla_hf.scaling.study import StudyRun, best_run, next_shape, shapes_around, write_study
from chinchilla_hf.scaling.study_fit import describe, fit_study, plot_study

logger = logging.getLogger("study")

PRETRAIN = Path(__file__).parent / "pretrain.py"
STUDY, FIT = "study.csv", "fit.json"


@dataclass
class StudyArguments:
    """What to run."""

    _argument_group_name = "Study"

    output_dir: str = field(
        default="runs/study", metadata={"help": "Runs, tokens and results. What is finished there is not run again."}
    )
    objective: str = field(
        default="masked", metadata={"help": "masked: encoders; causal: decoders.", "choices": list(OBJECTIVES)}
    )
    budgets: list[float] = field(
        default_factory=lambda: [1e12, 3e12, 1e13, 3e13, 1e14],
        metadata={"help": "FLOPs of training that are executed."},
    )
    sizes: int = field(default=5, metadata={"help": "Sizes of a budget."})
    most_sizes: int = field(
        default=8, metadata={"help": "Where the best is the smallest or the largest, so many at most."}
    )
    first_width: int = field(
        default=64,
        metadata={"help": "Width in the middle of the sizes of the first budget; others go by the one before."},
    )
    vocab_size: int = field(default=8192, metadata={"help": "Number of tokens, of a tokenizer trained on the text."})
    row_length: int = field(default=128, metadata={"help": "Tokens in a packed row."})
    seed: int = field(default=1, metadata={"help": "Of all runs; the best of a budget are run with the next one, too."})
    processes: int = field(
        default=1, metadata={"help": "Runs at a time. On CPUs, two of a thread each are faster than one of two."}
    )

    def __post_init__(self) -> None:
        if not self.budgets or min(self.budgets) <= 0:
            raise ValueError(f"--budgets are {self.budgets}, expected numbers above 0")
        if not 3 <= self.sizes <= self.most_sizes <= len(LADDER):
            raise ValueError(
                f"--sizes is {self.sizes} and --most_sizes {self.most_sizes}, expected 3 or more, no more sizes than "
                f"that, and no more than there are, {len(LADDER)}"
            )
        if self.processes < 1:
            raise ValueError(f"--processes is {self.processes}, expected at least 1")


class Runner:
    """Trains the models of a study, each in a folder of its own, and reads what came out."""

    def __init__(self, corpus: CorpusArguments, study: StudyArguments):
        self.corpus = corpus
        self.study = study
        self.folder = Path(study.output_dir)
        self.done: dict[str, StudyRun] = {}
        self._lock = threading.Lock()  # of `done` and its file, where several runs end at a time
        tokenizer = pretraining_tokenizer(
            corpus.corpus(),
            causal=study.objective == "causal",
            vocab_size=study.vocab_size,
            cache_dir=self.folder / "tokens",
        )
        self.vocab_size = len(tokenizer)  # fewer than asked for, where the text does not give so many

        for folder in sorted(self.folder.glob("runs/*/")):
            if (record := finished_run(folder)) is not None:
                names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
                shape = Shape(*(record.arguments[name] for name in names))
                self._keep(record, folder, float(folder.name.rsplit("-", 2)[0]), shape)

    def of_budget(self, budget: float) -> list[StudyRun]:
        """The runs of a budget that are finished, with the first seed."""
        return [run for run in self.done.values() if run.budget == budget and run.seed == self.study.seed]

    def run(self, budget: float, shape: Shape, seed: int) -> None:
        """The run of a shape for a budget: a finished one, or one that is made now."""
        folder = self.folder / "runs" / f"{budget:g}-{shape.hidden_size}x{shape.num_hidden_layers}-{seed}"
        if folder.name in self.done:
            return
        began = time.monotonic()
        recipe = self.folder / "recipes" / f"{folder.name}.yaml"
        options = self._options(budget, shape, seed) | {"output_dir": str(folder)}
        write_recipe(recipe, options, f"A run of {budget:g} FLOPs.")
        train(recipe, folder.with_suffix(".log"), self.study.processes)
        record = finished_run(folder)
        if record is None:
            raise SystemExit(f"error: {folder} holds no finished run: see {folder.with_suffix('.log')}")
        self._keep(record, folder, budget, shape)
        loss, seconds = record.scores["validation"]["loss"], time.monotonic() - began
        logger.info("%g FLOPs, %s, seed %d: loss %.4f (%d s)", budget, shape, seed, loss, seconds)

    def _options(self, budget: float, shape: Shape, seed: int) -> dict[str, Any]:
        study = self.study
        flops_per_token = shape.flops_per_token(study.objective, self.vocab_size, study.row_length)
        settings = training_settings(shape, budget / flops_per_token, study.row_length)
        steps = round(budget / flops_per_token / study.row_length / settings.rows)
        options = dataclasses.asdict(self.corpus)
        options |= pretraining_options(study.objective, shape, settings, study.vocab_size, study.row_length)
        options |= {"max_steps": steps, "seed": seed, "cache_dir": str(self.folder / "tokens")}
        return options | {"eval_strategy": "no", "save_strategy": "no"}

    def _keep(self, record: RunRecord, folder: Path, budget: float, shape: Shape) -> None:
        """A finished run, in the file of the study."""
        options = self._options(budget, shape, record.training["seed"])
        changed = record.differences({**record.arguments, **options}, ignore={"cache_dir"})
        if changed:
            raise SystemExit(
                f"error: {folder} was run with other options ({'; '.join(changed)}): choose another --output_dir"
            )
        for weights in folder.glob("*.safetensors"):  # which nobody asked for
            weights.unlink()
        with self._lock:
            self.done[folder.name] = row(record, folder, self.study, budget, shape)
            write_study(self.folder / STUDY, self.done.values())


def train(recipe: Path, log: Path, processes: int) -> None:
    """Run `training/pretrain.py` as one of so many; what it prints goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // processes))} if processes > 1 else {}
    command = [sys.executable, str(PRETRAIN), str(recipe)]
    with open(log, "ab") as file:
        code = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **threads}, check=False
        ).returncode
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise SystemExit(f"error: training/pretrain.py {recipe} failed: {lines[-1] if lines else 'see above'} ({log})")


def row(record: RunRecord, folder: Path, study: StudyArguments, budget: float, shape: Shape) -> StudyRun:
    """A run as a row of the study."""
    config = AutoConfig.from_pretrained(folder)
    parameters = count_parameters(config)
    training, validation = record.training, record.scores["validation"]
    accuracy: Any = next(value for name, value in validation.items() if name.endswith("_accuracy"))
    unique = record.data["rows"]["train"] * study.row_length * (1 - record.data["padding"])
    return StudyRun(
        objective=study.objective,
        tokenizer=hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()[:16],
        data=record.data["fingerprint"][:16],
        row_length=study.row_length,
        vocab_size=config.vocab_size,
        budget=budget,
        seed=training["seed"],
        **dataclasses.asdict(shape),
        parameters=parameters.total,
        parameters_without_embeddings=parameters.without_embeddings,
        parameters_with_head=parameters.with_head,
        learning_rate=record.arguments["learning_rate"],
        rows=record.arguments["rows_per_step"],
        steps=training["steps"],
        tokens=training["tokens"],
        unique_tokens=round(unique),
        characters_per_token=record.data["characters"] / record.data["tokens"],
        flops=training["flops"],
        paper_flops=training["examples"] * paper_flops(config, study.row_length).training,
        loss=validation["loss"],
        accuracy=accuracy,
        seconds=training["seconds"],
    )


def run_budget(runner: Runner, budget: float, centre: Shape) -> Shape:
    """All runs of a budget; the best shape."""
    study = runner.study
    shapes = shapes_around(centre, study.sizes)
    while shapes:
        with ThreadPoolExecutor(study.processes) as pool:
            for _ in pool.map(lambda shape: runner.run(budget, shape, study.seed), shapes):
                pass  # raises what a run has raised
        further = next_shape(runner.of_budget(budget), study.most_sizes)
        shapes = [] if further is None else [further]
    best = best_run(runner.of_budget(budget)).shape
    runner.run(budget, best, study.seed + 1)
    return best


def main() -> None:
    corpus, study = parse_options((CorpusArguments, StudyArguments), __doc__)
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    with one_line_errors():
        runner = Runner(corpus, study)
    centre = Shape.of_width(study.first_width)
    before = None
    for budget in sorted(study.budgets):
        if before is not None and budget >= 2 * before:  # the best size grows about as the root of the budget
            centre = LADDER[min(LADDER.index(centre) + 1, len(LADDER) - 1)] if centre in LADDER else centre
        centre, before = run_budget(runner, budget, centre), budget
    runs = list(runner.done.values())
    print(f"{len(runs)} runs are in {runner.folder / STUDY}")
    with one_line_errors():
        fit = fit_study(runs)
    fit.write(runner.folder / FIT)
    plot_study(runs, fit, runner.folder / "study.png")
    print(describe(fit))
    print(f"\nplan by it: python training/plan.py --study {runner.folder / FIT} --dataset {corpus.dataset} --hours 1")


if __name__ == "__main__":
    main()
