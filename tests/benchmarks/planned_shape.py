"""
Is what training/plan.py chooses the best choice? The planned shape against four neighbours, at equal time.

    python tests/benchmarks/planned_shape.py --dataset corpus.jsonl.gz --study runs/study/fit.json --minutes 10

The neighbours are half and double the size, and the same width with half and with double the layers; each is trained as
the planner would train it if it had no choice, by `training/pretrain.py`, for the same time of the CPU's work, with
every seed. Printed is the loss on the same held-out documents, and what was predicted of it. A finished run is not run
again: the same command goes on.
"""

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from masked_validation import TRAINING
from transformers import HfArgumentParser

from chinchilla_hf.data.corpora import Corpus
from chinchilla_hf.output_folder import finished_run
from chinchilla_hf.recipes import write_recipe
from chinchilla_hf.scaling.machine import machine_profile
from chinchilla_hf.scaling.planner import Plan, make_plan
from chinchilla_hf.scaling.shapes import LADDER, Shape
from chinchilla_hf.scaling.study_fit import StudyFit


@dataclass
class Options:
    dataset: str = field(metadata={"help": "The text of the study."})
    study: str = field(metadata={"help": "fit.json of training/study.py."})
    minutes: float = field(default=10.0, metadata={"help": "Minutes of the CPU's work for each run."})
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3], metadata={"help": "Each is a run of every shape."})
    output_dir: str = field(
        default="runs/planned_shape", metadata={"help": "Runs. What is finished there is not run again."}
    )


def neighbours(shape: Shape, objective: str, vocab_size: int) -> dict[str, Shape]:
    """The shape and the four beside it, by what they are."""

    def of_size(factor: float) -> Shape:
        wanted = factor * shape.parameters(objective, vocab_size).total
        return min(LADDER, key=lambda other: abs(other.parameters(objective, vocab_size).total / wanted - 1))

    return {
        "planned": shape,
        "half the size": of_size(0.5),
        "double the size": of_size(2),
        "half the layers": dataclasses.replace(shape, num_hidden_layers=max(1, shape.num_hidden_layers // 2)),
        "double the layers": dataclasses.replace(shape, num_hidden_layers=2 * shape.num_hidden_layers),
    }


def run(plan: Plan, options: Options, name: str, seed: int) -> float:
    """The loss of a run, which is made if it is not there."""
    folder = Path(options.output_dir) / f"{name.replace(' ', '-')}-{seed}"
    if finished_run(folder) is None:
        recipe = folder.with_suffix(".yaml")
        given = {"dataset": options.dataset, "cache_dir": f"{options.output_dir}/tokens", "output_dir": str(folder)}
        given |= plan.options() | {"seed": seed, "time_budget": "cpu", "eval_strategy": "no", "save_strategy": "no"}
        write_recipe(recipe, given)
        subprocess.run([sys.executable, str(TRAINING / "pretrain.py"), str(recipe)], check=True)
    record = finished_run(folder)
    assert record is not None, f"{folder} holds no finished run"
    return record.scores["validation"]["loss"]


def main() -> None:
    (options,) = HfArgumentParser((Options,), description=__doc__).parse_args_into_dataclasses()
    fit = StudyFit.read(options.study)
    machine = machine_profile(fit.objective, fit.vocab_size, fit.row_length)
    unique = sum(map(len, Corpus(options.dataset).documents())) / fit.characters_per_token
    budget = {"seconds": 60 * options.minutes, "machine": machine}
    chosen = make_plan(fit, unique, **budget).chosen.shape
    results = {}
    for name, shape in neighbours(chosen, fit.objective, fit.vocab_size).items():
        plan = make_plan(fit, unique, **budget, shapes=(shape,))
        losses = [run(plan, options, name, seed) for seed in options.seeds]
        results[name] = {"shape": str(shape), "predicted": plan.chosen.loss.value, "losses": losses}
        print(f"{name}, {shape}: {', '.join(f'{loss:.4f}' for loss in losses)}", flush=True)
    print(
        f"\n| | shape | loss, mean of {len(options.seeds)} | smallest, largest | predicted |\n|---|---|---:|---:|---:|"
    )
    for name, result in results.items():
        losses = result["losses"]
        print(
            f"| {name} | {result['shape']} | {mean(losses):.3f} | {min(losses):.3f}, {max(losses):.3f} "
            f"| {result['predicted']:.3f} |"
        )
    Path(options.output_dir, "results.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
