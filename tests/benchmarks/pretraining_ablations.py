"""
What the defaults of pretraining are worth: one factor of the recipe changed at a time, at equal time.

    python tests/benchmarks/pretraining_ablations.py --dataset train.jsonl.gz [--validation_dataset val.jsonl.gz] \
        [--classification_dataset data_full.json] [--factors optimizer masking_rate] [--minutes 10] [--jobs 2]

Every setting is trained by `training/pretrain.py` with every seed, and compared by the loss at the same masked tokens
(`masked_validation.py`) and, on request, by a linear probe of its hidden states. A finished run is a line of
`results.jsonl` in the output folder: the same command goes on with the others, and `--factors` adds to them.

`--jobs` runs stand side by side, each on its share of the cores: on small models, two of one thread do more than one of
two. Equal time is that of the CPU's work for a run (`--time_budget cpu`), so that it does not matter what else the
machine does, and on an accelerator that of the clock. For what still does, as shared caches, runs come seed by seed, so
that a slow hour hits all settings, and in another order with every seed, so that none always has the same neighbour.
The steps in the table tell what a setting costs, and their spread whether the runs were disturbed.
"""

import asyncio
import json
import logging
import os
import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import masked_validation
import torch
from masked_validation import BenchmarkOptions, prepare, pretraining_command
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import HfArgumentParser

from chinchilla_hf.output_folder import finished_run

logger = logging.getLogger("pretraining_ablations")

RECIPE = "recipe"  # the setting in which nothing is changed
# Factor -> setting -> what it changes in the recipe. Learning rates are for all parameters; Muon's updates are as large
# as AdamW's, but AdamW is given several, so that it does not lose by a rate that was chosen for Muon.
FACTORS: dict[str, dict[str, dict[str, Any]]] = {
    "norm_placement": {
        "output": {},
        "post": {"norm_placement": "post"},
        "pre": {"norm_placement": "pre"},
    },
    "activation": {
        "relu": {},
        "gelu": {"hidden_act": "gelu"},
        "squared relu": {"hidden_act": "relu2"},
    },
    "optimizer": {
        "Muon, 2e-3": {},
        "Muon, 1e-3": {"learning_rate": 1e-3},
        "AdamW, 5e-4": {"optimizer": "adamw", "learning_rate": 5e-4},
        "AdamW, 1e-3": {"optimizer": "adamw", "learning_rate": 1e-3},
        "AdamW, 2e-3": {"optimizer": "adamw", "learning_rate": 2e-3},
    },
    "masking_rate": {
        "0.30": {},
        "0.15": {"masking_rate": 0.15},
        "0.30 to 0.15": {"final_masking_rate": 0.15},
        "0.40 to 0.15": {"masking_rate": 0.4, "final_masking_rate": 0.15},
    },
    "next_sentence": {
        "off": {},
        "on": {"next_sentence": True},
    },
    "causal_share": {
        "0": {},
        "0.25": {"causal_share": 0.25},
        "0.5": {"causal_share": 0.5},
    },
    "row_length": {
        "128": {},
        "64": {"row_length": 64},
        "256": {"row_length": 256},
    },
}


@dataclass
class Options(BenchmarkOptions):
    output_dir: str = field(
        default="runs/pretraining_ablations",
        metadata={"help": "Tokens, models and results. What is finished there is not run again."},
    )
    factors: list[str] = field(
        default_factory=lambda: list(FACTORS), metadata={"help": f"Some of {', '.join(FACTORS)}. Default: all."}
    )
    minutes: float = field(default=10.0, metadata={"help": "Minutes of training, of every run."})
    tokens_per_step: int = field(
        default=4096, metadata={"help": "Positions of a step, whatever the row length: few for a short run."}
    )
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3], metadata={"help": "Every setting runs with each."})
    jobs: int = field(default=2, metadata={"help": "Runs side by side."})

    def __post_init__(self) -> None:
        unknown = set(self.factors) - set(FACTORS)
        if unknown:
            raise ValueError(f"factors are {', '.join(sorted(unknown))}, but there are {', '.join(FACTORS)}")

    @property
    def results_path(self) -> Path:
        return self.folder / "results.jsonl"


@dataclass(frozen=True)
class Run:
    """One setting of one factor, with one seed. The recipe itself is run once for all factors."""

    factor: str
    setting: str
    seed: int

    @property
    def changes(self) -> dict[str, Any]:
        return {} if self.factor == RECIPE else FACTORS[self.factor][self.setting]

    @property
    def name(self) -> str:
        return (
            self.factor
            if self.factor == RECIPE
            else f"{self.factor}-{self.setting}".replace(", ", "-").replace(" ", "-")
        )


def planned_runs(options: Options) -> Iterator[Run]:
    """Seed by seed, each time in another order."""
    for seed in options.seeds:
        settings = [(RECIPE, "")]
        settings += [
            (factor, name) for factor in options.factors for name, changes in FACTORS[factor].items() if changes
        ]
        random.Random(seed).shuffle(settings)
        yield from (Run(*setting, seed) for setting in settings)


def read_results(options: Options) -> dict[tuple[str, int], dict[str, Any]]:
    """What is finished, by the name of the setting and the seed."""
    lines = options.results_path.read_text().splitlines() if options.results_path.is_file() else []
    results = {}
    for line in map(json.loads, lines):
        for name in ("minutes", "tokens_per_step"):
            if line[name] != getattr(options, name):
                raise SystemExit(
                    f"error: --{name} is {getattr(options, name)}, but {options.results_path} holds runs with "
                    f"{line[name]}: choose another --output_dir"
                )
        results[line["setting"], line["seed"]] = line  # a later line has more scores
    return results


async def output_of(command: list[str], options: Options, log: Path) -> str:
    """
    What `command` prints, which has its share of the cores. If we are told to end, so is the command, and awaited.

    Raises:
        RuntimeError: it failed; the message names the file with what it said.
    """
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    printed = log.with_suffix(".out")
    with open(printed, "wb") as output, open(log, "ab") as errors:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=output, stderr=errors)
        try:
            await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
    if process.returncode:
        raise RuntimeError(f"see the end of {log}")
    return printed.read_text()


async def perform(run: Run, options: Options) -> dict[str, Any]:
    """Pretrain, unless that is done, and score the model."""
    folder = options.folder / f"seed-{run.seed}" / run.name
    log = options.folder / "logs" / f"{run.name}-{run.seed}.txt"
    budget = "wall" if torch.accelerator.is_available() else "cpu"
    recipe = {"row_length": options.length, "time_budget": budget, **run.changes}
    recipe["per_device_train_batch_size"] = options.tokens_per_step // recipe["row_length"]
    if finished_run(folder) is None:
        await output_of(pretraining_command(options, folder, options.minutes, seed=run.seed, **recipe), options, log)
    record = finished_run(folder)
    assert record is not None, f"{folder} holds no finished run"
    scoring = {"model": folder, "masked_pieces": options.masked_pieces_path}
    if options.classification_dataset:
        columns = ("classification_dataset", "text_column", "label_column")
        scoring |= {name: getattr(options, name) for name in columns}
    arguments = [part for name, value in scoring.items() for part in (f"--{name}", str(value))]
    printed = await output_of([sys.executable, masked_validation.__file__, *arguments], options, log)
    return {
        "setting": run.name,
        "seed": run.seed,
        "minutes": options.minutes,
        "tokens_per_step": options.tokens_per_step,
        "changes": run.changes,
        "steps": record.training["steps"],
        "tokens": record.training["tokens"],
        **json.loads(printed.splitlines()[-1]),
    }


async def perform_all(runs: list[Run], options: Options) -> None:
    """All of `runs`, `options.jobs` at a time, each a line of the results when it is finished."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    waiting = iter(runs)
    bar = tqdm(total=len(runs), unit="run", desc="Ablations")

    async def work() -> None:
        for run in waiting:
            try:
                result = await perform(run, options)
            except RuntimeError as error:
                logger.warning("%s with seed %d failed: %s", run.name, run.seed, error)
            else:
                with open(options.results_path, "a") as file:
                    file.write(json.dumps(result) + "\n")
                bar.set_postfix_str(f"{run.name}: {result['validation_loss']:.3f}")
            bar.update()

    with logging_redirect_tqdm(), bar:
        await asyncio.gather(*(work() for _ in range(options.jobs)))


def spread(values: list[float], form: str) -> str:
    """The mean and, of several, the smallest and the largest."""
    if not values:
        return ""
    several = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{mean(values):{form}}{several}"


def report(options: Options) -> str:
    """A table: means over the seeds, the smallest and the largest; the difference is that of runs with one seed."""
    results = read_results(options)
    lines = [
        "| factor | setting | masked loss | against the recipe | probe accuracy | steps |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for factor in options.factors:
        for setting, changes in FACTORS[factor].items():
            name = Run(factor if changes else RECIPE, setting, 0).name
            of_seed = {seed: results[name, seed] for seed in options.seeds if (name, seed) in results}
            losses = {seed: result["validation_loss"] for seed, result in of_seed.items()}
            against = [
                loss - results[RECIPE, seed]["validation_loss"]
                for seed, loss in losses.items()
                if changes and (RECIPE, seed) in results
            ]
            probes = [result["probe_accuracy"] for result in of_seed.values() if "probe_accuracy" in result]
            steps = [result["steps"] for result in of_seed.values()]
            cells = [
                spread(list(losses.values()), ".3f"),
                spread(against, "+.3f"),
                spread(probes, ".3f"),
                spread(steps, ".0f"),
            ]
            label = setting if changes else f"**{setting}**"
            lines.append(f"| {factor} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    (options,) = HfArgumentParser(Options, description=__doc__).parse_args_into_dataclasses()
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    (options.folder / "logs").mkdir(parents=True, exist_ok=True)
    wanted = {"validation_loss"} | ({"probe_accuracy"} if options.classification_dataset else set())
    results = read_results(options)
    runs = [run for run in planned_runs(options) if not wanted <= set(results.get((run.name, run.seed), {}))]
    if runs:
        prepare(options, sentences="next_sentence" in options.factors)
        try:
            asyncio.run(perform_all(runs, options))
        except (asyncio.CancelledError, KeyboardInterrupt):
            sys.exit("told to end: the same command goes on")
    text = report(options)
    (options.folder / "table.md").write_text(text + "\n")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
