"""The package registers itself, and checkpoints load where the package is not installed."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import transformers
from conftest import make_tiny_config, make_tiny_decoder_config, make_tiny_seq2seq_config
from transformers import AutoConfig, pipeline

import chinchilla_hf
from chinchilla_hf import modeling_chinchilla, modeling_chinchilla_decoder, modeling_chinchilla_seq2seq, registration

SHARED_FILES = {
    "configuration_chinchilla.py",
    "modeling_chinchilla_block.py",
    "modeling_chinchilla_loss.py",
    "modeling_chinchilla_pretrained.py",
}
ENCODER_FILES = SHARED_FILES | {"modeling_chinchilla.py", "pipeline_chinchilla_answering.py", "answer_windows.py"}
# Model type -> (the module of its models, a tiny configuration, the code that its checkpoints carry).
FAMILIES = {
    "chinchilla": (modeling_chinchilla, make_tiny_config, ENCODER_FILES),
    "chinchilla_decoder": (
        modeling_chinchilla_decoder,
        make_tiny_decoder_config,
        SHARED_FILES | {"modeling_chinchilla_decoder.py"},
    ),
    "chinchilla_seq2seq": (
        modeling_chinchilla_seq2seq,
        make_tiny_seq2seq_config,
        ENCODER_FILES
        | {"modeling_chinchilla_decoder.py", "modeling_chinchilla_seq2seq.py"}
        | {"pipeline_chinchilla.py", "text_segments.py"},
    ),
}
AUTO_CLASSES = [
    (model_type, auto_name, class_name)
    for model_type, (_, classes) in registration.FAMILIES.items()
    for auto_name, class_name in classes.items()
]
every_auto_class = pytest.mark.parametrize(
    ("model_type", "auto_name", "class_name"), AUTO_CLASSES, ids=[f"{auto}-{name}" for _, auto, name in AUTO_CLASSES]
)


def run_python(script: str, cwd: Path) -> str:
    """Run `script` in a fresh process from another folder; its standard output."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["a good film", "a bad film", "the cast is good", "the plot is bad", "what a waste of time"] * 4
    return chinchilla_hf.train_tokenizer(texts, vocab_size=90, model_max_length=32, show_progress=False)


def test_both_tables_of_auto_classes_agree():
    assert set(FAMILIES) == set(registration.FAMILIES)
    for model_type, (module, _, _) in FAMILIES.items():
        assert registration.FAMILIES[model_type][1] == module.AUTO_CLASSES


@every_auto_class
def test_auto_classes_build_our_models(model_type, auto_name, class_name):
    model = getattr(transformers, auto_name).from_config(FAMILIES[model_type][1]())
    assert type(model) is getattr(chinchilla_hf, class_name)


@pytest.mark.parametrize(
    ("model_type", "auto_name"),
    [
        ("chinchilla", "AutoModelForCausalLM"),
        ("chinchilla", "AutoModelForSeq2SeqLM"),
        ("chinchilla_decoder", "AutoModelForMaskedLM"),
        ("chinchilla_decoder", "AutoModelForSeq2SeqLM"),
        ("chinchilla_seq2seq", "AutoModelForMaskedLM"),
    ],
)
def test_wrong_auto_class_raises(model_type, auto_name, tmp_path):
    config = FAMILIES[model_type][1]()
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=type(config).__name__):
        getattr(transformers, auto_name).from_pretrained(tmp_path)


def test_an_encoder_does_not_generate(tiny_config):
    model = chinchilla_hf.ChinchillaForMaskedLM(tiny_config)
    assert not model.can_generate()


ORDERS = {
    "package first": "import chinchilla_hf; from transformers import AutoModelForMaskedLM, AutoConfig",
    "auto classes first": "from transformers import AutoModelForMaskedLM, AutoConfig; import chinchilla_hf",
    "another model first": "import chinchilla_hf; from transformers import BertModel, AutoModelForMaskedLM, AutoConfig",
}


@pytest.mark.parametrize("imports", ORDERS.values(), ids=ORDERS)
def test_import_order_does_not_matter(imports, tmp_path):
    script = f"""
    {imports}
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model("chinchilla", hidden_size=16, num_hidden_layers=1))
    print(type(model).__module__)
    """
    assert run_python(script, tmp_path).strip() == "chinchilla_hf.modeling_chinchilla"


def test_importing_the_package_imports_neither_torch_nor_the_models(tmp_path):
    script = """
    import sys, chinchilla_hf
    print([name for name in ("torch", "datasets", "sklearn", "matplotlib") if name in sys.modules])
    dir(chinchilla_hf)
    """
    assert run_python(script, tmp_path).strip() == "[]"


def test_unknown_attribute_raises():
    with pytest.raises(AttributeError, match="ChinchilaModel"):
        chinchilla_hf.ChinchilaModel  # noqa: B018


def test_public_names_all_exist():
    for name in chinchilla_hf.__all__:
        assert getattr(chinchilla_hf, name) is not None


def test_pipelines_run_without_complaint(tokenizer, tmp_path, capfd):
    heads = {
        "text-classification": chinchilla_hf.ChinchillaForSequenceClassification,
        "token-classification": chinchilla_hf.ChinchillaForTokenClassification,
        "fill-mask": chinchilla_hf.ChinchillaForMaskedLM,
        "feature-extraction": chinchilla_hf.ChinchillaModel,
        "zero-shot-classification": chinchilla_hf.ChinchillaForSequenceClassification,
    }
    config = make_tiny_config(vocab_size=len(tokenizer), id2label={0: "contradiction", 1: "entailment"})
    config.label2id = {"contradiction": 0, "entailment": 1}
    for task, head in heads.items():
        folder = tmp_path / task
        head(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        pipe = pipeline(task, model=str(folder))
        text = "a good [MASK]" if task == "fill-mask" else "a good film"
        arguments = {"candidate_labels": ["good", "bad"]} if task == "zero-shot-classification" else {}
        result = pipe(text, **arguments)
        if task == "text-classification":
            assert result[0]["label"] in config.label2id
        elif task == "fill-mask":
            assert {"score", "token_str"} <= set(result[0])
        elif task == "feature-extraction":
            assert len(result[0][0]) == config.hidden_size
        elif task == "zero-shot-classification":
            assert sorted(result["labels"]) == ["bad", "good"]
    printed = capfd.readouterr()
    for complaint in ("not supported", "custom code", "UNEXPECTED", "MISSING", "Traceback"):
        assert complaint not in printed.out + printed.err


WITHOUT_PACKAGE = """
import sys
sys.modules["chinchilla_hf"] = None  # any import of it raises, as where it is not installed
import torch, transformers
inputs = torch.load({inputs!r})
results = {{}}
for folder, names in {checkpoints!r}.items():
    for name in names:
        model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True).eval()
        assert "chinchilla_hf." not in type(model).__module__, type(model).__module__
        assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
        given = inputs | ({{"decoder_input_ids": inputs["input_ids"]}} if model.config.is_encoder_decoder else {{}})
        with torch.no_grad():
            results[folder, name] = next(iter(model(**given).values()))
        if model.can_generate():
            results[folder, "generated"] = model.generate(**inputs, do_sample=False, max_new_tokens=8)
    if "AutoModelForSequenceClassification" == names[0]:
        pipe = transformers.pipeline("text-classification", folder, trust_remote_code=True)
        results[folder, "pipeline"] = pipe("a good film")[0]
        model.save_pretrained(folder + "-again")  # the remote copy saves whole checkpoints, too
        transformers.AutoModelForMaskedLM.from_pretrained(folder + "-again", trust_remote_code=True)
torch.save(results, {outputs!r})
"""


def test_checkpoints_load_without_the_package(tokenizer, tmp_path):
    """From a folder saved by any head: as that head bit for bit, and as the bare model; and generate the same."""
    texts = ["a good film", "what a waste"]
    inputs = dict(tokenizer(texts, padding=True, padding_side="left", return_tensors="pt"))
    del inputs["token_type_ids"]
    checkpoints, expected = {}, {}
    for model_type, auto_name, class_name in AUTO_CLASSES:
        if auto_name in ("AutoModelForTextEncoding", "AutoModelForMultipleChoice"):
            continue
        _, make_config, code_files = FAMILIES[model_type]
        folder = tmp_path / class_name
        config = make_config()
        config.id2label, config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
        model = getattr(chinchilla_hf, class_name)(config).eval()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        assert {path.name for path in folder.glob("*.py")} == code_files
        auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
        assert set(auto_map) == {"AutoConfig", *registration.FAMILIES[model_type][1]}
        checkpoints[str(folder)] = [auto_name] if auto_name == "AutoModel" else [auto_name, "AutoModel"]
        given = inputs | ({"decoder_input_ids": inputs["input_ids"]} if config.is_encoder_decoder else {})
        with torch.no_grad():
            expected[str(folder), auto_name] = next(iter(model(**given).values()))
            expected[str(folder), "AutoModel"] = model.base_model(**given).last_hidden_state
        if model.can_generate():
            expected[str(folder), "generated"] = model.generate(**inputs, do_sample=False, max_new_tokens=8)
        if auto_name == "AutoModelForSequenceClassification":
            expected[str(folder), "pipeline"] = pipeline("text-classification", str(folder))("a good film")[0]

    torch.save(inputs, tmp_path / "inputs.pt")
    script = WITHOUT_PACKAGE.format(
        inputs=str(tmp_path / "inputs.pt"), outputs=str(tmp_path / "outputs.pt"), checkpoints=checkpoints
    )
    run_python(script, tmp_path)
    actual = torch.load(tmp_path / "outputs.pt")
    assert set(actual) == set(expected)
    for key, value in expected.items():
        assert torch.equal(actual[key], value) if isinstance(value, torch.Tensor) else actual[key] == value, key


def test_saved_files_import_nothing_but_transformers_and_torch():
    for name in set().union(*(code_files for _, _, code_files in FAMILIES.values())):
        source = (Path(chinchilla_hf.__file__).parent / name).read_text()
        imports = [line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))]
        packages = {module.split(".")[0] for module in imports if not module.startswith(".")}
        of_transformers = {"huggingface_hub", "numpy", "safetensors"}  # which does not install without them
        assert packages - sys.stdlib_module_names <= {"torch", "transformers"} | of_transformers


def test_config_of_a_checkpoint_is_ours(tiny_config, tmp_path):
    chinchilla_hf.ChinchillaModel(tiny_config).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is chinchilla_hf.ChinchillaConfig
