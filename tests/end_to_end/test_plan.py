"""`training/study.py`, `training/plan.py` and a planned `training/pretrain.py`, one after the other."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from scripts import TRAINING, load_script, read_record, run_script, words
from transformers import pipeline

from chinchilla_hf.scaling import machine
from chinchilla_hf.scaling.study import read_study
from chinchilla_hf.scaling.study_fit import StudyFit

# Budgets of a second of training.
QUICK = {
    "vocab_size": 200,
    "row_length": 32,
    "sizes": 3,
    "most_sizes": 3,
    "first_width": 16,
}
BUDGETS = ["4e8", "8e8", "1.6e9"]
WORDS = ["the", "a", "cat", "dog", "aunt", "sees", "likes", "finds", "tree", "house", "fish", "and"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    with open(path, "w") as file:
        for number in range(600):
            text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(5, 40)))
            file.write(json.dumps({"text": f"{number} {text} ."}) + "\n")
    return path


def run_study(monkeypatch, arguments: list[str]) -> list[Path]:
    """The recipes of the runs that were made, each in this process: a new interpreter takes longer than they do."""
    made = []

    def train(recipe: Path, log: Path, processes: int) -> None:
        made.append(recipe)
        run_script("pretrain", monkeypatch, [str(recipe)])

    script = load_script("study", monkeypatch)
    monkeypatch.setattr(script, "train", train)
    monkeypatch.setattr(sys, "argv", ["study.py", *arguments])
    script.main()
    return made


@pytest.fixture(scope="module")
def study(corpus, tmp_path_factory) -> Path:
    """The folder of a study that was run to its end."""
    folder = tmp_path_factory.mktemp("study") / "study"
    with pytest.MonkeyPatch.context() as monkeypatch:
        options = words({"dataset": corpus, "output_dir": folder, "validation_share": 0.1, **QUICK})
        # The first budgets alone, and then all: what is finished is not run again.
        first = run_study(monkeypatch, [*options, "--budgets", *BUDGETS[:2]])
        rest = run_study(monkeypatch, [*options, "--budgets", *BUDGETS])
    assert len(first) == 8 and len(rest) == 4
    return folder


def test_a_study_has_a_row_for_every_run(study):
    runs = read_study(study / "study.csv")
    assert [run.budget for run in runs] == [4e8] * 4 + [8e8] * 4 + [1.6e9] * 4
    for run in runs:
        assert run.flops == pytest.approx(run.budget, rel=0.05)
        assert run.paper_flops > run.flops and 0 < run.loss < 6 and run.steps > 5
        assert run.parameters > run.parameters_without_embeddings > 0
        record = read_record(study / "runs" / f"{run.budget:.2g}-{run.shape.hidden_size}x2-{run.seed}")
        assert record["scores"]["validation"]["loss"] == run.loss and record["training"]["tokens"] == run.tokens
    seeds = {(run.budget, run.shape): set() for run in runs}
    for run in runs:
        seeds[run.budget, run.shape].add(run.seed)
    assert sorted(map(len, seeds.values())) == [1] * 6 + [2] * 3  # the best of each budget twice
    assert not list(study.rglob("*.safetensors"))  # many, and nobody asked for them
    assert (study / "study.png").stat().st_size > 10_000
    assert StudyFit.read(study / "fit.json").runs == 12


def test_a_study_with_other_options_does_not_go_on(study, corpus, monkeypatch):
    options = words({"dataset": corpus, "output_dir": study, "validation_share": 0.2, **QUICK})
    with pytest.raises(
        SystemExit, match=r"was run with other options \(validation_share: 0.1 -> 0.2\): choose another"
    ):
        run_study(monkeypatch, [*options, "--budgets", *BUDGETS])


def test_a_run_that_fails_ends_the_study_with_its_reason(corpus, tmp_path, monkeypatch):
    """In a process of its own, as a study really trains."""
    script = load_script("study", monkeypatch)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"dataset": str(corpus), "masking_rate": 3, "output_dir": str(tmp_path / "run")}))
    with pytest.raises(SystemExit, match=r"recipe.yaml failed: error: masking rate \(start\) is 3.0, but must be"):
        script.train(recipe, tmp_path / "run.log", 1)


def test_runs_at_a_time_share_the_threads_and_the_file(corpus, tmp_path, monkeypatch):
    """In processes of their own, as a study really trains."""
    threads = []
    original = subprocess.run

    def run(command, **options):
        threads.append(options["env"]["OMP_NUM_THREADS"])
        return original(command, **options)

    script = load_script("study", monkeypatch)
    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setattr(script.torch, "get_num_threads", lambda: 3)
    options = {"dataset": corpus, "output_dir": tmp_path / "study", "validation_share": 0.1, **QUICK, "processes": 3}
    monkeypatch.setattr(sys, "argv", ["study.py", *words(options), "--budgets", "4e8"])
    with pytest.raises(SystemExit, match="the study is too small for a law: there are 4 runs"):
        script.main()
    assert threads == ["1"] * 4
    assert len(read_study(tmp_path / "study" / "study.csv")) == 4


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("budgets", "-1", "--budgets are [-1.0], expected numbers above 0"),
        ("sizes", "2", "--sizes is 2 and --most_sizes 8, expected 3 or more"),
        ("processes", "0", "--processes is 0, expected at least 1"),
    ],
)
def test_studies_that_cannot_be(corpus, tmp_path, monkeypatch, capsys, option, value, message):
    arguments = words({"dataset": corpus, "output_dir": tmp_path, option: value})
    with pytest.raises(SystemExit):
        run_study(monkeypatch, arguments)
    assert message in capsys.readouterr().err


# Plans


@pytest.fixture(scope="module")
def machines(tmp_path_factory) -> Path:
    """Where the profile of this machine is kept, which the first plan measures."""
    return tmp_path_factory.mktemp("machines")


@pytest.fixture
def plan(study, corpus, machines, tmp_path, monkeypatch):
    """`plan(**options)`: run the script by the study; the folder of the plan."""
    monkeypatch.setattr(machine, "DEFAULT_CACHE", machines)
    monkeypatch.setattr(machine, "SECONDS", 1.0)

    def plan(**options) -> Path:
        folder = tmp_path / "plan"
        given = {"dataset": corpus, "study": study / "fit.json", "output_dir": folder, "validation_share": 0.1}
        run_script("plan", monkeypatch, words(given | options))
        return folder

    return plan


def test_a_plan_is_trained_and_compared_with_what_came_out(plan, monkeypatch, capsys):
    folder = plan(flops=1.6e9, cost_per_hour=2.5)
    printed = capsys.readouterr().out
    assert "->" in printed and "loss (90% interval)" in printed and "cost: 0.00" in printed
    assert (folder / "plan.png").stat().st_size > 5_000
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    prediction = json.loads((folder / "plan.json").read_text())
    assert recipe["eval_strategy"] == "no"  # the plan's time is for steps
    assert recipe["max_steps"] == prediction["steps"] and recipe["vocab_size"] == 137  # all that the text gives

    run_script("pretrain", monkeypatch, [str(folder / "recipe.yaml")])
    printed = capsys.readouterr().out
    assert "predicted: loss" in printed and "for the tokens that it saw, predicted was" in printed
    record = read_record(folder / "model")
    assert record["plan"]["predicted"] == prediction
    actual = record["plan"]["actual"]
    assert actual["loss"] == record["scores"]["validation"]["loss"]
    assert actual["flops"] == pytest.approx(1.6e9, rel=0.05) and actual["tokens"] == record["training"]["tokens"]
    assert actual["loss"] == pytest.approx(prediction["loss"], rel=0.2)
    card = (folder / "model" / "README.md").read_text()
    assert "## Planned, and what came out" in card and f"{actual['loss']:.4f}" in card
    fill = pipeline("fill-mask", str(folder / "model"), trust_remote_code=True)
    assert len(fill("the [MASK] sees a tree .")) == 5


def test_a_plan_in_time_ends_in_time(plan, monkeypatch):
    folder = plan(hours=1 / 3600)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["max_minutes"] == pytest.approx(1 / 60) and "max_steps" not in recipe
    run_script("pretrain", monkeypatch, [str(folder / "recipe.yaml")])
    record = read_record(folder / "model")
    assert record["plan"]["predicted"]["budget_seconds"] == pytest.approx(1)
    assert record["training"]["steps"] > 10


def test_several_devices_share_the_batch(plan, capsys):
    folder = plan(hours=1 / 3600, devices=2)
    printed = capsys.readouterr().out
    assert "2 devices are assumed to be 1.8 times as fast" in printed
    batch = int(re.search(r"batches of (\d+) rows", printed)[1])
    rows = yaml.safe_load((folder / "recipe.yaml").read_text())["per_device_train_batch_size"]
    assert 2 * rows == pytest.approx(batch, abs=1)


def test_another_text_is_named(plan, tmp_path, capsys):
    plan(flops=1.6e9)
    assert "The study is of another text" not in capsys.readouterr().out
    (tmp_path / "other.txt").write_text("another text\n\n" * 4000)
    plan(flops=1.6e9, dataset=tmp_path / "other.txt")
    assert "The study is of another text" in capsys.readouterr().out


def test_of_much_text_a_part_is_counted(corpus, monkeypatch, study):
    script = load_script("plan", monkeypatch)
    data, fit = script.CorpusArguments(dataset=str(corpus)), StudyFit.read(study / "fit.json")
    whole = script.count_tokens(data.corpus(), data, fit)
    assert whole == pytest.approx(0.99 * sum(map(len, data.corpus().documents())) / fit.characters_per_token)
    monkeypatch.setattr(script, "COUNTED_CHARACTERS", 20_000)
    assert script.count_tokens(data.corpus(), data, fit) == pytest.approx(whole, rel=0.5)  # files are read in blocks
    data.max_documents = 60
    assert script.count_tokens(data.corpus(), data, fit) == pytest.approx(whole / 10, rel=0.2)


def test_the_runs_of_a_study_are_as_good_as_its_fit(plan, study, capsys):
    tables = []
    for name in ("fit.json", "study.csv"):
        plan(study=study / name, flops=1.6e9)
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] and "->" in tables[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flops": 1e3}, "the budget is too small"),
        ({"flops": 1e16}, "times the largest budget of the study"),
        ({"flops": 1.6e9, "objective": "causal"}, "--study is of masked runs, but --objective is causal: change one"),
        ({"flops": 1.6e9, "dataset": "nothing.jsonl"}, "nothing.jsonl"),
        (
            {"flops": 1.6e9, "max_parameters": 1000},
            "no shape meets the limits: the smallest, 8 x 2, has 3,097 parameters",
        ),
        ({"flops": 1.6e9, "max_milliseconds": 1e-6}, "no shape meets the limits"),
        ({"flops": 1.6e9, "max_milliseconds": 0}, "the limit is 0.0 s, expected a number above 0"),
    ],
)
def test_plans_that_cannot_be(plan, options, message):
    with pytest.raises(SystemExit) as end:
        plan(**options)
    assert str(end.value).startswith("error: ") and message in str(end.value)


def test_a_profile_of_another_machine_is_refused(plan, machines, tmp_path):
    plan(flops=1.6e9)
    kept = next(machines.iterdir())
    profile = json.loads(kept.read_text())
    profile["hardware"]["cpu"] = "another one"
    (tmp_path / "other.json").write_text(json.dumps(profile))
    with pytest.raises(SystemExit, match=r"cpu another one, here .* measure this machine"):
        plan(flops=1.6e9, machine_profile=tmp_path / "other.json")
    plan(flops=1.6e9, machine_profile=kept)


def test_a_plan_that_is_none_ends_pretraining_at_once(corpus, tmp_path, monkeypatch):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"plan\.json is no plan .* make one with training/plan\.py"):
        run_script("pretrain", monkeypatch, words({"dataset": corpus, "plan": tmp_path / "plan.json"}))


@pytest.mark.parametrize("script", ["plan", "study"])
def test_help_explains(script):
    text = subprocess.run(
        [sys.executable, str(TRAINING / f"{script}.py"), "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "budget" in text and "--output_dir" in text and "(default: " in text
