"""
A budget in, the right model out: which size, on how many tokens, for the time or the FLOPs that you have.

    python training/plan.py --dataset wiki.jsonl.gz --hours 1                 an encoder; --objective causal: a decoder
    python training/pretrain.py runs/plan/recipe.yaml                         trains what was planned

This machine is measured, once, for less than a minute, in which it is not to do anything else; the loss comes from a
law that was fitted to the runs of a study: the one that is shipped, or, for your own text, that of `training/study.py`
(--study). The output folder holds the plan, a recipe for `training/pretrain.py`, whose run.json then says what was
predicted and what came out, and a picture of all sizes.
"""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from chinchilla_hf.data.corpora import Corpus, CorpusArguments
from chinchilla_hf.recipes import one_line_errors, parse_options, write_recipe
from chinchilla_hf.run_record import command_line
from chinchilla_hf.scaling.machine import LatencyLimit, MachineProfile, machine_profile
from chinchilla_hf.scaling.planner import Plan, make_plan
from chinchilla_hf.scaling.shapes import OBJECTIVES
from chinchilla_hf.scaling.study import read_study
from chinchilla_hf.scaling.study_fit import StudyFit, fit_study, plot_candidates, shipped_fit

logger = logging.getLogger("plan")

COUNTED_CHARACTERS = 500_000_000


@dataclass
class PlanArguments:
    """The budget, and what the model may be."""

    _argument_group_name = "Plan"

    hours: float | None = field(default=None, metadata={"help": "The budget: hours of training."})
    flops: float | None = field(
        default=None, metadata={"help": "The budget: FLOPs of training, as they are executed. One of the two."}
    )
    objective: str = field(
        default="masked", metadata={"help": "masked: an encoder; causal: a decoder.", "choices": list(OBJECTIVES)}
    )
    output_dir: str = field(default="runs/plan", metadata={"help": "Folder for recipe.yaml, plan.json and plan.png."})
    study: list[str] | None = field(
        default=None,
        metadata={
            "help": "fit.json of training/study.py, or study.csv, one or several. Default: the study that is shipped."
        },
    )
    max_parameters: float | None = field(default=None, metadata={"help": "The largest model to choose."})
    max_milliseconds: float | None = field(
        default=None, metadata={"help": "The longest time for a text of 32 tokens, on this machine, one thread, torch."}
    )
    devices: int = field(default=1, metadata={"help": "Devices like this one that train together."})
    scaling_factor: float | None = field(
        default=None, metadata={"help": "Share of its speed that each of several devices adds. Default: 0.9, assumed."}
    )
    cost_per_hour: float | None = field(default=None, metadata={"help": "What an hour of a device costs."})
    machine_profile: str | None = field(
        default=None, metadata={"help": "A profile of this machine that was kept. Default: the cache, or measured now."}
    )
    measure_anew: bool = field(default=False, metadata={"help": "Measure even where the cache has this machine."})
    extrapolate: bool = field(default=False, metadata={"help": "Also more than 10 times beyond the runs of the study."})

    def __post_init__(self) -> None:
        if (self.hours is None) == (self.flops is None):
            raise ValueError(f"--hours is {self.hours} and --flops {self.flops}: give one of them")


def count_tokens(corpus: Corpus, data: CorpusArguments, fit: StudyFit) -> float:
    """
    Tokens to train on, by the characters of the text and those of a token in the study. Of very much text, a part is
    counted, and the rest of the files estimated by their bytes.
    """
    characters = count = 0
    documents = corpus.documents()
    for text in documents:
        if count == data.max_documents or characters >= COUNTED_CHARACTERS:
            break
        characters, count = characters + len(text), count + 1
    whole = 1.0
    if characters >= COUNTED_CHARACTERS and data.max_documents is None:
        whole = corpus.size / documents.bytes_read if corpus.size and documents.bytes_read else 1.0
    tokens = whole * characters / fit.characters_per_token * (1 - data.validation_share)
    logger.info(
        "%s documents with %s characters%s: about %.3g tokens to train on",
        f"{count:,}",
        f"{characters:,}",
        "" if whole == 1 else f", 1/{whole:.1f} of all",
        tokens,
    )
    return tokens


def table(plan: Plan, cost_per_hour: float | None) -> str:
    """All shapes, a line each, the chosen one marked."""
    lines = ["    shape      parameters   tokens  epochs    FLOPs    time  memory  loss (90% interval)"]
    for candidate in plan.candidates:
        seconds, memory = candidate.seconds, candidate.memory_bytes
        lines.append(
            f"{'->' if candidate == plan.chosen else '  '} {candidate.shape!s:>9}  {candidate.parameters.total:12,}"
            f"  {candidate.tokens:7.2g}  {candidate.epochs:6.2f}  {candidate.flops:7.1e}"
            f"  {'' if seconds is None else time_text(seconds):>6}"
            f"  {'' if memory is None else f'{memory / 2**30:.1f} GB':>6}"
            f"  {candidate.loss.value:.3f} ({candidate.loss.low:.3f} to {candidate.loss.high:.3f})"
        )
    chosen = plan.chosen
    lines.append("")
    lines.append(
        f"{chosen.shape}, vocabulary {plan.vocab_size:,}, batches of {chosen.settings.rows} rows of {plan.row_length} "
        f"tokens, learning rate {chosen.settings.learning_rate:g}, {chosen.steps:,} steps"
    )
    if cost_per_hour is not None and chosen.seconds is not None:
        lines.append(f"cost: {chosen.seconds / 3600 * plan.devices * cost_per_hour:.2f}")
    return "\n".join([*lines, *plan.reasons])


def time_text(seconds: float) -> str:
    """`"75 s"`, `"12 min"`, `"3.4 h"`."""
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def law_of(options: PlanArguments) -> StudyFit:
    """That of the study that the options name."""
    if options.study is None:
        return shipped_fit(options.objective)
    if len(options.study) == 1 and options.study[0].endswith(".json"):
        return StudyFit.read(options.study[0])
    logger.info("fitting a law to the runs of %s", " and ".join(options.study))
    return fit_study(read_study(*options.study))


def profile_of(options: PlanArguments, fit: StudyFit) -> MachineProfile:
    """The machine: from a file, the cache, or measured."""
    if options.machine_profile is not None:
        profile = MachineProfile.read(options.machine_profile)
        device = "cpu" if not torch.accelerator.is_available() else torch.accelerator.current_accelerator()
        profile.check(fit.objective, fit.vocab_size, fit.row_length, device or "cpu")
        return profile
    return machine_profile(fit.objective, fit.vocab_size, fit.row_length, anew=options.measure_anew)


def write_files(plan: Plan, data: CorpusArguments, options: PlanArguments) -> Path:
    """The plan, its picture, and the recipe; the path of the latter."""
    folder = Path(options.output_dir)
    plan.write(folder / "plan.json")
    plot_candidates(
        [candidate.parameters.total for candidate in plan.candidates],
        [candidate.loss for candidate in plan.candidates],
        plan.candidates.index(plan.chosen),
        f"{plan.objective}, {f'{options.hours:g} h' if options.hours else f'{options.flops:.2g} FLOPs'}",
        folder / "plan.png",
    )
    recipe = folder / "recipe.yaml"
    chosen = {name: value for name, value in vars(data).items() if value is not None}
    files = {"plan": str(folder / "plan.json"), "output_dir": str(folder / "model")}
    comment = f"{command_line()}\n" + "\n".join(plan.reasons)
    write_recipe(recipe, chosen | plan.options() | files, comment)
    return recipe


def main() -> None:
    data, options = parse_options((CorpusArguments, PlanArguments), __doc__)
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    with one_line_errors():
        corpus = data.corpus()
        fit = law_of(options)
        if fit.objective != options.objective:
            raise ValueError(f"--study is of {fit.objective} runs, but --objective is {options.objective}: change one")
        tokens = count_tokens(corpus, data, fit)
        profile = profile_of(options, fit)
        began = time.perf_counter()
        allowed = None
        if options.max_milliseconds is not None:
            allowed = LatencyLimit(options.max_milliseconds / 1000, fit.objective, fit.vocab_size)
        plan = make_plan(
            fit,
            tokens,
            seconds=None if options.hours is None else 3600 * options.hours,
            flops=options.flops,
            machine=profile,
            devices=options.devices,
            scaling_factor=options.scaling_factor,
            max_parameters=options.max_parameters,
            allowed=allowed,
            extrapolate=options.extrapolate,
            same_text=corpus.fingerprint().startswith(fit.data),
        )
        logger.info("planned in %.2f s", time.perf_counter() - began)
    print(table(plan, options.cost_per_hour))
    recipe = write_files(plan, data, options)
    print(f"\ntrain it: python training/pretrain.py {recipe}")


if __name__ == "__main__":
    main()
