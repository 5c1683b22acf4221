"""Options from the command line, a recipe and the defaults; locations in packages; errors in one line."""

import dataclasses
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from scripts import TRAINING, load_script

from chinchilla_hf import ChinchillaConfig
from chinchilla_hf.recipes import one_line_errors, parse_options, parse_recipe, resolve_location
from chinchilla_hf.training_arguments import FineTuningArguments


@dataclass
class Data:
    dataset: str = field(metadata={"help": "Required."})
    label_column: list[str] | None = field(default=None, metadata={"help": "A list."})
    text_column: str | None = field(default=None, metadata={"help": "A text."})
    validation_share: float = field(default=0.1, metadata={"help": "A share."})
    max_rows: int | None = field(default=None, metadata={"help": "A number."})
    drop_duplicates: bool = field(default=True, metadata={"help": "On unless switched off."})
    quoting: bool = field(default=False, metadata={"help": "Off unless switched on."})


@dataclass
class Training:
    learning_rate: float = field(default=0.5, metadata={"help": "A number."})
    bf16: bool | None = field(default=None, metadata={"help": "Three ways. Default: found out."})
    pooling: str | None = field(default=None, metadata={"help": "A choice.", "choices": ["cls", "mean"]})
    save_total_limit: int | None = field(default=1, metadata={"help": "A number or none."})


@pytest.fixture
def default_recipe(tmp_path) -> Path:
    path = tmp_path / "default.yaml"
    path.write_text("dataset: default.csv\nlearning_rate: 0.25\n")
    return path


@pytest.fixture
def parse(tmp_path, default_recipe):
    """`parse(recipe_text, *options)`: as if `recipe_text` stood in a file; `None` for no recipe."""

    def parse(recipe: str | None, *options: str) -> tuple[Data, Training]:
        arguments = list(options)
        if recipe is not None:
            (tmp_path / "my.yaml").write_text(recipe, encoding="utf-8")
            arguments.insert(0, str(tmp_path / "my.yaml"))
        return parse_recipe((Data, Training), default_recipe, "A test.", arguments)

    return parse


@pytest.fixture
def error(parse, capsys):
    """The message with which `parse` ends the script."""

    def error(recipe: str | None, *options: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            parse(recipe, *options)
        assert exit_.value.code == 2  # argparse's own, for a wrong command line
        return capsys.readouterr().err

    return error


# Who beats whom


def test_options_beat_the_recipe_and_the_recipe_beats_the_defaults(parse):
    data, training = parse("dataset: my.csv\nmax_rows: 7\nlearning_rate: 0.1\n", "--learning_rate", "0.2")
    assert data == Data(dataset="my.csv", max_rows=7)
    assert training == Training(learning_rate=0.2)


def test_an_option_given_as_its_default_beats_the_recipe(parse):
    data, training = parse("dataset: a\nlearning_rate: 0.1\nquoting: true\n", "--learning_rate=0.5", "--quoting=false")
    assert training.learning_rate == 0.5 and data.quoting is False


def test_what_a_recipe_says_does_not_stay_for_the_next_one(parse):
    parse("dataset: a\nlearning_rate: 0.1\nlabel_column: [x]\n")
    assert parse("dataset: a\n") == (Data(dataset="a"), Training())


def test_one_instance_of_each_dataclass_comes_back_in_their_order(parse):
    assert [type(instance) for instance in parse("dataset: a\n")] == [Data, Training]


def test_the_command_line_of_the_process_is_read_by_default(default_recipe, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--dataset", "x.csv", "--max_rows", "3"])
    data, training = parse_recipe((Data, Training), default_recipe, "A test.")
    assert data == Data(dataset="x.csv", max_rows=3) and training == Training()
    assert sys.argv == ["train.py", "--dataset", "x.csv", "--max_rows", "3"]


@pytest.mark.parametrize("options", [[], ["--max_rows", "3"], ["--learning-rate", "0.25"]])
def test_the_default_recipe_stands_in_for_a_recipe_and_a_data_set(parse, options):
    data, training = parse(None, *options)
    assert data.dataset == "default.csv" and training.learning_rate == 0.25


@pytest.mark.parametrize(
    ("recipe", "options"),
    [(None, ["--dataset", "my.csv"]), (None, ["--max_rows=3", "--dataset=my.csv"]), ("dataset: my.csv", [])],
)
def test_the_default_recipe_is_left_out_beside_a_recipe_or_a_data_set(parse, default_recipe, recipe, options):
    default_recipe.unlink()  # not even read
    data, training = parse(recipe, *options)
    assert data.dataset == "my.csv" and training.learning_rate == 0.5


# Types


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("2", 2.0), ("0.1", 0.1), ("'3e-5'", 3e-5), ("1_000", 1000.0), ("-.5", -0.5)]
)
def test_numbers_of_every_spelling_become_floats(parse, text, value):
    _, training = parse(f"dataset: a\nlearning_rate: {text}\n")
    assert training.learning_rate == value and type(training.learning_rate) is float


def test_a_number_for_a_text_option_becomes_a_text(parse):
    data, _ = parse("dataset: a\ntext_column: 0\n")
    assert data.text_column == "0"


def test_a_word_that_yaml_takes_for_a_boolean_stays_a_text(parse):
    # Norwegian, for one: `language: no`.
    data, _ = parse("dataset: a\ntext_column: no\nlabel_column: [yes, no]\n")
    assert data.text_column == "no" and data.label_column == ["yes", "no"]


@pytest.mark.parametrize("text", ["[anger, joy]", "\n- anger\n- joy"])
def test_lists_come_from_the_recipe(parse, text):
    data, _ = parse(f"dataset: a\nlabel_column: {text}\n")
    assert data.label_column == ["anger", "joy"]


def test_a_list_of_numbers_becomes_one_of_texts_where_texts_are_wanted(parse):
    data, _ = parse("dataset: a\nlabel_column: [0, 1]\n")
    assert data.label_column == ["0", "1"]


def test_a_single_value_for_a_list_option_becomes_a_list(parse):
    data, _ = parse("dataset: a\nlabel_column: sentiment\n")
    assert data.label_column == ["sentiment"]


def test_lists_on_the_command_line_replace_those_of_the_recipe(parse):
    data, _ = parse("dataset: a\nlabel_column: [anger, joy]\n", "--label_column", "fear", "--max_rows", "1")
    assert data.label_column == ["fear"]


@pytest.mark.parametrize("text", ["false", "'false'", "no"])
def test_booleans_of_the_recipe_switch_off(parse, text):
    data, training = parse(f"dataset: a\ndrop_duplicates: {text}\nbf16: {text}\n")
    assert data.drop_duplicates is False and training.bf16 is False


@pytest.mark.parametrize("text", ["true", "'true'", "yes"])
def test_booleans_of_the_recipe_switch_on(parse, text):
    data, training = parse(f"dataset: a\nquoting: {text}\nbf16: {text}\n")
    assert data.quoting is True and training.bf16 is True


@pytest.mark.parametrize(
    ("recipe", "options", "expected"),
    [
        ("drop_duplicates: true", ["--no_drop_duplicates"], False),
        ("drop_duplicates: true", ["--no-drop-duplicates"], False),
        ("drop_duplicates: true", ["--drop_duplicates", "false"], False),
        ("drop_duplicates: false", ["--drop_duplicates"], True),
        ("drop_duplicates: false", ["--drop_duplicates", "true"], True),
    ],
)
def test_booleans_on_the_command_line_beat_those_of_the_recipe(parse, recipe, options, expected):
    data, _ = parse(f"dataset: a\n{recipe}\n", *options)
    assert data.drop_duplicates is expected


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_null_beats_a_default(parse, text):
    _, training = parse(f"dataset: a\nsave_total_limit: {text}\n")
    assert training.save_total_limit is None


def test_null_and_comments_and_other_languages_are_read(parse):
    data, _ = parse("# Überschrift\ndataset: größe.csv\ntext_column: 文本\nmax_rows: null\n")
    assert data == Data(dataset="größe.csv", text_column="文本")


# What is refused


def test_a_required_option_may_come_from_the_recipe(parse):
    assert parse("dataset: a\n")[0].dataset == "a"


@pytest.mark.parametrize("recipe", ["", "max_rows: 3\n", "dataset: null\n"])
def test_a_required_option_that_nobody_gives_is_named(error, recipe):
    assert "--dataset" in error(recipe)


def test_an_option_beside_a_recipe_may_be_the_required_one(parse):
    assert parse("max_rows: 3\n", "--dataset", "b")[0] == Data(dataset="b", max_rows=3)


def test_an_unknown_option_in_the_recipe_is_named(error, tmp_path):
    message = error("dataset: a\nlearning_rat: 0.1\n")
    assert "'learning_rat'" in message and str(tmp_path / "my.yaml") in message


@pytest.mark.parametrize("option", ["--learning_rat", "--learning_rat=0.1", "--max-row", "stray"])  # nor abbreviations
def test_an_unknown_option_on_the_command_line_is_named(error, option):
    assert option.split("=")[0] in error("dataset: a\nlabel_column: [x]\n", option)


def test_a_recipe_that_does_not_stand_first_is_named(error, tmp_path):
    (tmp_path / "other.yaml").write_text("dataset: a\n")
    assert "other.yaml" in error(None, "--max_rows", "3", str(tmp_path / "other.yaml"))


@pytest.mark.parametrize("name", ["missing.yaml", "missing.yml", "folder.yaml"])
def test_a_recipe_that_is_no_file_is_named(default_recipe, tmp_path, capsys, name):
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(SystemExit):
        parse_recipe((Data, Training), default_recipe, "A test.", [str(tmp_path / name)])
    assert f"there is no recipe {tmp_path / name}" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["dataset: [a", "a: b: c", "- dataset\n- a", "just words", "- a: 1\n- b: 2"])
def test_a_recipe_that_is_no_table_of_options_is_named(error, tmp_path, recipe):
    assert f"{tmp_path / 'my.yaml'}" in error(recipe)


def test_a_value_of_the_wrong_type_in_the_recipe_is_refused(error):
    assert "max_rows" in error("dataset: a\nmax_rows: many\n")


def test_a_value_that_is_not_among_the_choices_is_refused(error):
    assert "max" in error("dataset: a\n", "--pooling", "max")
    assert "pooling" in error("dataset: a\npooling: max\n")


# Scripts without recipes


def test_options_of_a_script_without_recipes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export.py", "--dataset", "a", "--max_rows", "3"])
    data, training = parse_options((Data, Training), "What it does.")
    assert (data.dataset, data.max_rows, training.learning_rate) == ("a", 3, 0.5)
    monkeypatch.setattr(sys, "argv", ["export.py", "--dataset", "a", "--max_row", "3", "--help_al"])
    with pytest.raises(SystemExit) as exit_:
        parse_options((Data, Training), "What it does.")
    message = "error: unknown: --max_row 3 --help_al. --help lists the options"
    assert exit_.value.code == 2
    assert capsys.readouterr().err == f"usage: export.py [--option value ...]\nexport.py: {message}\n"


# Help


@pytest.mark.parametrize("options", [["-h"], ["--help"], ["--dataset", "a", "--help"]])
def test_help_tells_our_options_with_their_defaults(default_recipe, capsys, options):
    default_recipe.unlink()  # a broken recipe must not keep anybody from reading the help
    with pytest.raises(SystemExit) as exit_:
        parse_recipe((Data, FineTuningArguments), default_recipe, "What it does.", options)
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    assert "What it does." in text and "[recipe.yaml] [--option value ...]" in text
    assert "--dataset VALUE" in text and "--learning_rate VALUE" in text and "(default: 0.0001)" in text
    assert "--no_drop_duplicates" in text and "Switches --drop_duplicates off." in text
    assert "--adam_beta1" not in text  # Trainer's own


def test_help_all_tells_trainers_own_options_as_well(default_recipe, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_recipe((Data, FineTuningArguments), default_recipe, "What it does.", ["--help_all"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    assert "--learning_rate VALUE" in text and "--adam_beta1 VALUE" in text


# The recipes of this repository


RECIPES = {
    "answer": ["policyqa"],
    "classify": ["tweet_sentiment", "clinc150", "sick", "smiles", "price_moves"],
    "distill": ["clinc150_student", "tweet_sentiment_student"],
    "distill_encoder": ["minilm_student", "mini_en"],
    "pretrain": ["encoder", "decoder"],
    "prune": ["clinc150_pruned"],
    "tag": ["conll2000"],
    "translate": ["multi30k", "software_en_de"],
}


def test_every_recipe_here_is_of_a_script():
    names = [name for recipes in RECIPES.values() for name in recipes]
    assert sorted(names) == sorted(path.stem for path in TRAINING.glob("recipes/*.yaml"))


@pytest.mark.parametrize(("script", "recipe"), [(script, name) for script in RECIPES for name in RECIPES[script]])
def test_every_recipe_here_fills_the_options_of_its_script(monkeypatch, script, recipe):
    module, path = load_script(script, monkeypatch), TRAINING / "recipes" / f"{recipe}.yaml"
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    # What a recipe leaves open is named on the command line: data that may not be in a package, the model to shrink.
    needed = {"dataset": "my.json"} | {"distill": {"teacher": "runs/large"}, "prune": {"model": "runs/large"}}.get(
        script, {}
    )
    options = [word for name in needed.keys() - written.keys() for word in (f"--{name}", needed[name])]
    instances = parse_recipe(module.OPTIONS, module.DEFAULT_RECIPE, module.__doc__, [str(path), *options])
    values = {name: value for instance in instances for name, value in dataclasses.asdict(instance).items()}
    for name, value in written.items():
        # YAML reads 1e-4 as text.
        assert values[name] == (float(value) if isinstance(values[name], float) else value), name


@pytest.mark.parametrize("script", RECIPES)
def test_the_default_recipe_of_a_script_is_one_of_its_own(monkeypatch, script):
    assert load_script(script, monkeypatch).DEFAULT_RECIPE.stem in RECIPES[script]


# Locations in packages


@pytest.fixture
def packages(tmp_path, monkeypatch) -> Path:
    """A folder on Python's path, with a package that cannot be imported, one without `__init__.py`, and a module."""
    (tmp_path / "unimportable" / "corpora").mkdir(parents=True)
    (tmp_path / "unimportable" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "unimportable" / "corpora" / "tweets.csv").write_text("text,label")
    (tmp_path / "only_data").mkdir()
    (tmp_path / "only_data" / "tweets.csv").write_text("text,label")
    (tmp_path / "module.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("location", ["data/my.csv", "./my.csv", "/my.csv", "cardiffnlp/tweet_eval", "https://x/y"])
def test_a_location_outside_packages_comes_back_as_it_is(location):
    assert resolve_location(location) == location


@pytest.mark.parametrize(
    "inner", ["unimportable/corpora/tweets.csv", "unimportable/corpora", "unimportable", "only_data/tweets.csv"]
)
def test_a_location_in_a_package_is_its_path_and_the_package_is_not_imported(packages, inner):
    assert resolve_location(f"package://{inner}") == str(packages / inner)
    assert inner.split("/")[0] not in sys.modules


@pytest.mark.parametrize("package", ["not_installed_at_all", "module"])
def test_a_package_that_is_not_installed_is_named_with_what_to_install(packages, package):
    with pytest.raises(FileNotFoundError, match=rf"'{package}', which is not installed: pip install") as raised:
        resolve_location(f"package://{package}/my.csv")
    assert f"package://{package}/my.csv" in str(raised.value)
    assert package not in sys.modules


def test_a_path_that_the_package_does_not_hold_is_named(packages):
    with pytest.raises(FileNotFoundError, match=r"'unimportable' is installed, but holds no 'corpora/none\.csv'"):
        resolve_location("package://unimportable/corpora/none.csv")
    assert "unimportable" not in sys.modules


# Errors in one line


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ValueError("no column 'label'"), "error: no column 'label'"),
        (FileExistsError("runs/latest holds another run"), "error: runs/latest holds another run"),
        (FileNotFoundError(2, "No such file", "my.csv"), "error: [Errno 2] No such file: 'my.csv'"),
    ],
)
def test_what_is_wrong_with_the_input_ends_the_script_with_one_line(raised, message, caplog):
    with caplog.at_level(logging.DEBUG), pytest.raises(SystemExit) as exit_, one_line_errors():
        raise raised
    # Python prints a code that is text, and exits with 1.
    assert exit_.value.code == message
    assert exit_.value.__cause__ is raised
    assert "Traceback" in caplog.text  # for whoever asks for it with --log_level debug


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm_placement": "above"}, "error: norm_placement is 'above', expected one of"),
        ({"hidden_size": "wide"}, "error: Field 'hidden_size' expected int, got str"),
    ],
)
def test_what_a_config_refuses_ends_the_script_with_one_line(settings, message):
    with pytest.raises(SystemExit) as exit_, one_line_errors():
        ChinchillaConfig(**settings)
    assert exit_.value.code.startswith(message) and "\n" not in exit_.value.code


@pytest.mark.parametrize("kind", [TypeError, KeyError, RuntimeError, KeyboardInterrupt])
def test_an_error_of_the_program_keeps_its_traceback(kind):
    with pytest.raises(kind), one_line_errors():
        raise kind("ours")


def test_nothing_happens_where_nothing_is_wrong():
    with one_line_errors():
        value = 1
    assert value == 1
