"""What the README files tell their readers to type: commands that are understood, code that is there."""

import ast
import importlib
import re
import shlex
import sys
from argparse import ArgumentParser

import pytest
from scripts import TRAINING, load_script
from transformers import HfArgumentParser

ROOT = TRAINING.parent
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "training/README.md")}
SCRIPT = re.compile(r"(training|tests/benchmarks)/(\w+)\.py")
# Recipes of the reader's own.
RECIPES = {"my_recipe.yaml": "dataset: reviews.csv\n", "runs/plan/recipe.yaml": "dataset: wiki.jsonl.gz\n"}


def blocks(language: str) -> list[str]:
    return [block for text in TEXTS.values() for block in re.findall(rf"```{language}\n(.*?)```", text, re.S)]


def commands() -> list[list[str]]:
    """Script and options of every command, in blocks and within sentences."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    inline = [
        code for text in TEXTS.values() for code in re.findall(r"`([^`]*)`", re.sub(r"```.*?```", "", text, flags=re.S))
    ]
    found = []
    for line in [*lines, *(code.replace("\n", " ") for code in inline if "python " in code)]:
        for part in line.split("&&"):
            words = [word for word in shlex.split(part, comments=True) if word != "..."]
            place = next((i for i, word in enumerate(words) if SCRIPT.fullmatch(word)), None)
            if place is not None:
                found.append(words[place:])
    return found


def takes_options(script: str) -> bool:
    return (
        re.search("ArgumentParser|parse_options|parse_recipe", (ROOT / script).read_text(encoding="utf-8")) is not None
    )


class Understood(Exception):
    """The options were taken."""


def test_there_are_commands_of_every_script():
    named = {words[0] for words in commands()}
    scripts = {f"training/{path.name}" for path in TRAINING.glob("*.py")}
    assert scripts <= named, scripts - named
    assert {name for name in named if not (ROOT / name).is_file()} == set()


@pytest.mark.parametrize("words", [words for words in commands() if takes_options(words[0])], ids=" ".join)
def test_a_command_is_understood(words, monkeypatch, tmp_path):
    script = words[0]
    for name, text in RECIPES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "training").symlink_to(TRAINING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", words)
    folder, name = SCRIPT.fullmatch(script).groups()
    if folder == "training":
        module = load_script(name, monkeypatch)
        for parse in ("parse_recipe", "parse_options"):
            if hasattr(module, parse):
                monkeypatch.setattr(module, parse, stopping_after(getattr(module, parse)))
    else:
        monkeypatch.syspath_prepend(ROOT / folder)
        module = importlib.import_module(name)
        for parser, parse in ((HfArgumentParser, "parse_args_into_dataclasses"), (ArgumentParser, "parse_args")):
            monkeypatch.setattr(parser, parse, stopping_after(getattr(parser, parse)))
    with pytest.raises(Understood):
        module.main()


def stopping_after(parse):
    def parse_and_stop(*args, **kwargs):
        parse(*args, **kwargs)
        raise Understood

    return parse_and_stop


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.strip().splitlines()[-1][:60])
def test_what_code_imports_is_there(code):
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.ImportFrom):
            module = importlib.import_module(statement.module)
            assert [alias.name for alias in statement.names if not hasattr(module, alias.name)] == []
