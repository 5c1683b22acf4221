import json
import os
import re

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from chinchilla_hf import run_record
from chinchilla_hf.export_card import EXPORT_TEMPLATE, TRANSLATOR_EXPORT_TEMPLATE
from chinchilla_hf.model_card import TASKS, TEMPLATES, add_export, rewrite_model_card, write_model_card
from chinchilla_hf.run_record import RunRecord


def finished_record(**changes):
    fields = {
        "task": "text-classification",
        "arguments": {"learning_rate": 3e-5},
        "data": {
            "name": "tweets.csv",
            "fingerprint": "ab12cd",
            "rows": {"train": 29794, "test": 3725},
            "label_names": ["negative", "neutral", "positive"],
        },
        "model": {"class": "ChinchillaForSequenceClassification", "parameters": 11234567, "base_model": "me/base"},
        "training": {
            "steps": 1200,
            "epochs": 3.0,
            "tokens": 2234567,
            "seconds": 812.2341,
            "flops": 1.2345e15,
            "seed": 42,
        },
        "scores": {
            "test": {"accuracy": 0.8012, "macro_f1": 0.7834},
            "test_interval": {"accuracy": [0.7881, 0.8137]},
            "baseline": {
                "model": "TF-IDF + linear SVM (C=0.3)",
                "test": {"accuracy": 0.7597, "macro_f1": 0.7394},
                "test_interval": {"accuracy": [0.7457, 0.7732]},
            },
        },
        "machine": {"cpu": "AMD EPYC", "threads": 2, "gpu": None},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "command": "python training/classify.py --learning_rate 3e-05",
        "status": "finished",
    }
    return RunRecord(**{**fields, **changes})


def card_text(path, record=None, **options):
    write_model_card(record or finished_record(), path, **options)
    return path.read_text(encoding="utf-8")


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "my-classifier"
    folder.mkdir()
    return folder / "README.md"


def test_metadata_is_what_the_hub_expects(path):
    text = card_text(path, license="mit", language="en")
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata == {
        "language": "en",
        "library_name": "transformers",
        "license": "mit",
        "base_model": "me/base",
        "metrics": ["accuracy", "f1"],
        "pipeline_tag": "text-classification",
        "tags": ["chinchilla", "chinchilla-hf"],
        "model-index": [
            {
                "name": "my-classifier",
                "results": [
                    {
                        "task": {"type": "text-classification"},
                        "dataset": {"name": "tweets.csv", "type": "unknown", "split": "test"},
                        "metrics": [
                            {"type": "accuracy", "name": "Accuracy", "value": 0.8012},
                            {"type": "f1", "name": "Macro F1", "value": 0.7834},
                        ],
                    }
                ],
            }
        ],
    }
    card = ModelCard.load(path)
    assert ModelCardData(**card.data.to_dict()).to_dict() == card.data.to_dict()
    assert [result.metric_value for result in card.data.eval_results] == [0.8012, 0.7834]


def test_nothing_is_claimed_that_nobody_gave(path):
    text = card_text(
        path, finished_record(model={}, scores={}, training={}, machine={}, versions={}, data={"name": "x"})
    )
    metadata = ModelCard.load(path).data.to_dict()
    assert not {"license", "language", "base_model", "datasets", "model-index", "metrics"} & set(metadata)
    assert "No test scores were recorded." in text and "trained from scratch" in text
    assert "None" not in text and "## Labels" not in text


@pytest.mark.parametrize(
    ("name", "on_the_hub"),
    [
        ("stanfordnlp/imdb", True),
        ("tweets", False),
        ("data/tweets.csv", False),
        ("/data/tweets", False),
        ("./tweets", False),
    ],
)
def test_only_names_of_the_hub_become_links(path, name, on_the_hub):
    record = finished_record(data={"name": name}, model={"base_model": name})
    card_text(path, record)
    metadata = ModelCard.load(path).data.to_dict()
    assert metadata.get("datasets") == metadata.get("base_model") == (name if on_the_hub else None)
    assert metadata["model-index"][0]["results"][0]["dataset"]["type"] == (name if on_the_hub else "unknown")


def test_a_folder_that_looks_like_the_hub_is_a_folder(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    os.makedirs("runs/base")
    card_text(path, finished_record(model={"base_model": "runs/base"}))
    assert "base_model" not in ModelCard.load(path).data.to_dict()


def test_a_card_that_is_written_anew_elsewhere_links_to_what_it_did(path, monkeypatch):
    record = finished_record(data={"name": "runs/texts"}, model={"base_model": "me/base"})
    monkeypatch.chdir(path.parent)
    os.makedirs("runs/texts")
    card_text(path, record, license="mit")
    monkeypatch.chdir("/")  # where there is no runs/texts, which may be somebody's on the Hub
    rewrite_model_card(record, path)
    data = ModelCard.load(path).data
    assert (data.base_model, data.datasets, data.license) == ("me/base", None, "mit")


def test_body_says_what_a_reader_needs(path):
    text = card_text(path)
    assert "not DeepMind's 70B Chinchilla" in text
    assert "A text classifier with 3 classes, fine-tuned from `me/base` on `tweets.csv`." in text
    assert "| | this model | TF-IDF + linear SVM (C=0.3) |" in text
    assert "| Accuracy | 0.8012 (0.7881 to 0.8137) | 0.7597 (0.7457 to 0.7732) |" in text
    assert "| Macro F1 | 0.7834 | 0.7394 |" in text
    assert "`negative`, `neutral`, `positive`" in text
    assert "```bash\npython training/classify.py --learning_rate 3e-05\n```" in text
    assert 'pipeline("text-classification", "my-classifier", trust_remote_code=True)' in text
    assert "train 29,794 rows, test 3,725 rows" in text
    assert "as good or better" not in text
    assert not re.search(r"\n{3,}|[{][{%]", text)


def test_a_student_names_its_teacher_and_what_that_has(path):
    record = finished_record()
    record.model["teacher"] = {"base_model": "runs/teacher", "parameters": 22714371}
    record.scores["teacher"] = {"test": {"accuracy": 0.8061, "macro_f1": 0.7924}, "agreement": 0.9}
    text = card_text(path, record)
    assert "on `tweets.csv`. It was taught by `runs/teacher`, which has 22,714,371 parameters." in text
    assert "| | this model | its teacher | TF-IDF + linear SVM (C=0.3) |\n|---|---:|---:|---:|\n" in text
    assert "| Macro F1 | 0.7834 | 0.7924 | 0.7394 |" in text


def test_every_number_of_the_body_is_in_the_record(path):
    text = card_text(path)
    body = text.split("---\n", 2)[2]
    expected = {
        *("70", "3", "95"),  # Chinchilla's size, classes by name, level of the interval
        *("0.3", "1", "0.8012", "0.7881", "0.8137", "0.7597", "0.7457", "0.7732", "0.7834", "0.7394"),
        *("29794", "3725", "12", "11234567", "1200", "3.00", "2234567", "812.23", "1.23e+15", "42", "2"),
        *("3.11.7", "2.13.0", "3e-05"),
    }
    found = {number.replace(",", "").rstrip(".") for number in re.findall(r"\d[\d.,]*(?:e[+-]\d+)?", body)}
    assert found <= expected, found - expected


def test_says_so_where_the_baseline_is_better(path):
    scores = {"test": {"accuracy": 0.7}, "baseline": {"model": "TF-IDF + linear SVM (C=1)", "test": {"accuracy": 0.8}}}
    assert "The baseline is as good or better here" in card_text(path, finished_record(scores=scores))


def test_an_undefined_score_is_a_dash_and_no_metadata(path):
    scores = {"test": {"r2": 0.5, "pearson": float("nan")}, "baseline": None}
    text = card_text(path, finished_record(scores=scores, model={"config": {"problem_type": "regression"}}))
    assert "| Pearson correlation | – |" in text and "| | this model |\n" in text
    assert [result.metric_type for result in ModelCard.load(path).data.eval_results] == ["r_squared"]
    assert 'function_to_apply="none"' in text and "gives a text a number" in text


def test_how_to_use_pairs_and_many_labels(path):
    data = {"name": "x", "text_pairs": True, "label_names": ["a", "b"]}
    model = {"config": {"problem_type": "multi_label_classification"}}
    text = card_text(path, finished_record(data=data, model=model), model_name="me/pairs")
    assert 'classify({"text": "the first text", "text_pair": "the second text"}, top_k=None)' in text
    assert 'pipeline("text-classification", "me/pairs"' in text and text.split("---\n", 2)[2].startswith(
        "\n# me/pairs\n"
    )
    assert "with 2 labels, any number of which" in text


def test_pictures_are_shown_only_if_they_are_there(path):
    assert "![" not in card_text(path)
    (path.parent / "confusion_matrix.png").write_bytes(b"png")
    assert "](confusion_matrix.png)" in card_text(path) and "](loss.png)" not in card_text(path)
    (path.parent / "loss.png").write_bytes(b"png")
    assert "![Losses while training](loss.png)" in card_text(path)


def test_names_cannot_break_the_page(path):
    data = {"name": "my | data: `x`\n---", "label_names": ["a`b", "two\nlines", "{{ card_data }}", "<b>"]}
    text = card_text(path, finished_record(data=data), model_name='say "hi": now')
    assert "`` a`b ``, `two lines`, `{{ card_data }}`, `<b>`" in text
    assert ModelCard.load(path).data.to_dict()["model-index"][0]["name"] == 'say "hi": now'


def test_a_run_that_has_not_finished_gets_no_card(path):
    with pytest.raises(ValueError, match="'running', but a card is written of a 'finished' run"):
        card_text(path, finished_record(status="running"))
    assert not path.exists()


def test_a_failed_write_leaves_the_old_card(path, monkeypatch):
    path.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(run_record.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        card_text(path)
    assert path.read_text() == "old" and os.listdir(path.parent) == ["README.md"]


def test_templates_are_part_of_the_package():
    assert all((TEMPLATES / task.template).is_file() for task in TASKS.values())
    assert EXPORT_TEMPLATE.is_file() and TRANSLATOR_EXPORT_TEMPLATE.is_file()


@pytest.mark.parametrize("threshold", [None, -1.25])
def test_the_card_of_a_model_that_answers_questions(path, threshold):
    scores = {"exact_match": 41.5, "f1": 58.25} if threshold is None else {"exact": 41.5, "f1": 58.25, "NoAns_f1": 70.0}
    record = finished_record(
        task="question-answering",
        data={"name": "rajpurkar/squad", "fingerprint": "ab12cd", "rows": {"train": 80, "test": 10}},
        scores={"validation": scores, "test": scores | {"best_f1": 60.0, "total": 10}},
        training={
            "steps": 5,
            "question_answering": {
                "max_length": 384,
                "stride": 64,
                "max_answer_length": 30,
                "no_answer_threshold": threshold,
            },
        },
    )
    record.samples = [("Who `barks`?", "the dog", ""), ("Wer?", "", "der Hund")]
    write_model_card(record, path, license="mit", language="en")
    text = path.read_text(encoding="utf-8")
    metadata = ModelCard.load(path).data.to_dict()
    assert (metadata["pipeline_tag"], metadata["base_model"], metadata["datasets"]) == (
        "question-answering",
        "me/base",
        "rajpurkar/squad",
    )
    values = {
        metric["name"]: metric["value"]
        for result in metadata["model-index"][0]["results"]
        for metric in result["metrics"]
    }
    assert values["F1"] == 58.25 and values["Exact match"] == 41.5 and 60.0 not in values.values()
    assert 'pipeline("question-answering", "my-classifier", trust_remote_code=True)' in text
    assert "windows of 384 tokens that overlap by 64" in text and "| F1 | 58.25 | 58.25 |" in text
    assert ("the threshold for that, -1.250," in text) is (threshold is not None)
    assert "- `` Who `barks`? ``\n  - answer: (no answer)\n  - reference: `the dog`" in text


# ---- Labels of words ----


def tagging_record(**changes):
    test = {"f1": 0.9567, "precision": 0.9512, "recall": 0.9623, "accuracy": 0.9731}
    kinds = {
        "NP": {"precision": 0.9632, "recall": 0.9671, "f1": 0.9651, "number": 12422},
        "INTJ": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "number": 0},
    }
    baseline = {"model": "Linear SVM on words (C=0.1)", "test": dict.fromkeys(test, 0.9111), "seconds": 30.0}
    fields = {
        "task": "token-classification",
        "data": {"name": "conll2000", "rows": {"train": 8489, "test": 2012}, "label_names": ["O", "B-NP", "I-NP"]},
        "model": {
            "class": "ChinchillaForTokenClassification",
            "parameters": 22574231,
            "trained_parameters": 230039,
            "base_model": "me/base",
        },
        "scores": {"validation": dict.fromkeys(test, 0.9444), "test": test, "kinds": kinds, "baseline": baseline},
    }
    return finished_record(**fields | changes)


def test_card_of_labels_of_words(path):
    write_model_card(tagging_record(), path, license="mit", language="en")
    text = path.read_text(encoding="utf-8")
    metadata = ModelCard.load(path).data
    assert (metadata.pipeline_tag, metadata.base_model, metadata.license) == ("token-classification", "me/base", "mit")
    assert {result.metric_type: result.metric_value for result in metadata.eval_results}["f1"] == 0.9567
    assert "| F1 | 0.9444 | 0.9567 | 0.9111 |" in text and "| `NP` | 0.9632 | 0.9671 | 0.9651 | 12,422 |" in text
    assert "INTJ" not in text  # there are none to find
    assert 'pipeline("token-classification", "my-classifier", aggregation_strategy="first"' in text
    assert "22,574,231 parameters, 230,039 trained" in text and "fine-tuned from `me/base` on `conll2000`" in text
    assert "train 8,489 sentences, test 2,012 sentences" in text and "`O`, `B-NP`, `I-NP`" in text


def test_card_of_labels_of_words_without_baseline_and_from_scratch(path):
    record = tagging_record(model={"class": "C", "parameters": 5, "base_model": None})
    del record.scores["baseline"]
    write_model_card(record, path)
    text = path.read_text(encoding="utf-8")
    assert "| F1 | 0.9444 | 0.9567 |\n" in text and "trained from scratch" in text and "baseline" not in text
    assert "C, 5 parameters |" in text
    with pytest.raises(ValueError, match="status of the run record is 'running'"):
        write_model_card(tagging_record(status="running"), path)


def test_a_card_says_how_else_to_load_and_what_it_took(path):
    record = finished_record(machine={"cpu": "AMD EPYC", "threads": 2, "gpu": None, "device": "cpu"})
    record.write(path.parent / "run.json")
    text = card_text(path, record)
    assert 'AutoModelForSequenceClassification.from_pretrained("my-classifier", trust_remote_code=True)' in text
    assert "import chinchilla_hf" in text and 'OnnxTextClassifier("exported")' in text
    energy = RunRecord.read(path.parent / "run.json").training["energy"]
    assert energy == {"watt_hours": pytest.approx(812.2341 * 20 / 3600), "assumed_watts": 20.0}
    assert f"| Energy, estimated | {energy['watt_hours']:.1f} Wh, if the machine takes 20 W |" in text
    assert "@software{chinchilla_hf," in text and "\n\n\n" not in text


# Pretraining


def pretraining_record(task="fill-mask", **changes):
    accuracy = "masked_accuracy" if task == "fill-mask" else "next_token_accuracy"
    fields = {
        "task": task,
        "data": {"name": "wiki.jsonl", "rows": {"train": 5000, "validation": 50}, "fingerprint": "ab12"},
        "model": {"class": "ChinchillaForMaskedLM", "parameters": 1234567, "base_model": None},
        "scores": {"validation": {"loss": 3.21987, accuracy: 0.41234}},
        "plan": {},
    }
    return finished_record(**{**fields, **changes})


PLAN = {
    "predicted": {"loss": 3.3, "loss_interval": [3.1, 3.5], "seconds": None, "tokens": 1000000, "flops": 1.5e13},
    "actual": {"loss": 3.21987, "inside": True, "seconds": 61.5, "tokens": 1100000, "flops": 1.62e13},
}


@pytest.mark.parametrize(
    ("task", "shown"),
    [
        ("fill-mask", ['pipeline("fill-mask"', "masked tokens"]),
        ("text-generation", ["goes on with a text", "may be false"]),
    ],
)
def test_a_pretrained_model_has_a_card(tmp_path, task, shown):
    path = tmp_path / "my-model" / "README.md"
    path.parent.mkdir()
    (path.parent / "loss.png").write_bytes(b"")
    write_model_card(pretraining_record(task), path, license="mit")
    card = ModelCard.load(path)
    assert card.data.pipeline_tag == task and card.data.license == "mit" and not card.data.eval_results
    text = path.read_text()
    for part in [*shown, "3.2199", "0.4123", "5,000 rows", "![Losses while training](loss.png)", "not DeepMind's 70B"]:
        assert part in text
    assert "Planned" not in text


def test_a_card_says_what_was_planned_and_what_came_out(tmp_path):
    write_model_card(pretraining_record(plan=PLAN), tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text()
    assert "| Loss | 3.3000 (3.1000 to 3.5000) | 3.2199 |" in text
    assert "| Tokens seen | 1,000,000 | 1,100,000 |" in text and "| FLOPs | 1.5e+13 | 1.62e+13 |" in text
    assert "| Seconds | " not in text.split("## Data")[0]  # nothing was predicted of it
    PLAN_IN_TIME = {**PLAN, "predicted": {**PLAN["predicted"], "seconds": 60.0}}
    write_model_card(pretraining_record(plan=PLAN_IN_TIME), tmp_path / "README.md")
    assert "| Seconds | 60.00 | 61.50 |" in (tmp_path / "README.md").read_text()
    seen = {"predicted_loss": 3.25, "predicted_loss_interval": [3.05, 3.45]}
    plan = {**PLAN, "actual": PLAN["actual"] | seen}
    write_model_card(pretraining_record(plan=plan), tmp_path / "README.md")
    row = "| Loss, for the tokens that it saw | 3.2500 (3.0500 to 3.4500) | 3.2199 |"
    assert row in (tmp_path / "README.md").read_text()


def test_no_card_of_a_pretraining_that_did_not_end(tmp_path):
    with pytest.raises(ValueError, match="a card is written of a 'finished' run"):
        write_model_card(pretraining_record(status="running"), tmp_path / "README.md")
    assert not (tmp_path / "README.md").exists()


# Encoders


def encoder_record(**changes):
    fields = {
        "task": "feature-extraction",
        "arguments": {"max_length": 40, "license": "mit", "language": "en"},
        "data": {"name": "texts.jsonl", "rows": {"train": 90000, "validation": 500}, "fingerprint": "ab12"},
        "model": {
            "class": "ChinchillaModel",
            "parameters": 5820160,
            "base_model": None,
            "config": {"hidden_size": 384},
            "teacher": {"base_model": "package://minilm/model", "parameters": 22713216},
        },
        "scores": {"validation": {"loss": 0.1234, "similarity_correlation": 0.9567, "vector_cosine": 0.9432}},
    }
    return finished_record(**{**fields, **changes})


def test_the_card_of_an_encoder_that_compares_texts(path):
    (path.parent / "modules.json").write_text("[]")
    text = card_text(path, encoder_record())
    data = ModelCard.load(path).data
    assert (data.library_name, data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert (data.license, data.language, data.eval_results) == ("mit", "en", None)
    for part in (
        "as `package://minilm/model` does, on `texts.jsonl`",
        "a vector of 384 numbers",
        "It has 5,820,160 parameters, and its teacher 22,713,216.",
        'SentenceTransformer("my-classifier", trust_remote_code=True)',
        'AutoModel.from_pretrained("my-classifier", trust_remote_code=True)',
        'OnnxTextEncoder("exported")',
        "train 90,000 texts, validation 500 texts",
        "the teacher, of how alike two texts are | 0.9567 |",
        "the mean | 0.9432 |",
        "texts of up to 40 tokens",
    ):
        assert part in text, part
    assert "pipeline(" not in text and not re.search(r"\n{3,}|[{][{%]", text)
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        compile(code, "card", "exec")


def test_the_card_of_an_encoder_without_vectors(path):
    text = card_text(path, encoder_record(scores={"validation": {"loss": 0.5}}, arguments={}))
    data = ModelCard.load(path).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "feature-extraction")
    assert "sentence_transformers" not in text and "It is a beginning: fine-tune it" in text and "None" not in text


# Options of the run, and exports


def test_a_card_takes_from_the_run_what_it_is_not_told(path):
    record = finished_record(arguments={"license": "mit", "language": "de", "hub_model_id": "me/tweets"})
    text = card_text(path, record)
    data = ModelCard.load(path).data
    assert (data.license, data.language, data.model_name) == ("mit", "de", "me/tweets")
    assert 'pipeline("text-classification", "me/tweets"' in text
    text = card_text(path, record, license="other", license_name="mine", language=["de", "en"], model_name="you/it")
    data = ModelCard.load(path).data
    assert (data.license, data.license_name, data.language, data.model_name) == (
        "other",
        "mine",
        ["de", "en"],
        "you/it",
    )


def test_a_task_without_a_card_is_named(path):
    with pytest.raises(ValueError, match="'image-classification', but there are cards of text-classification"):
        card_text(path, finished_record(task="image-classification"))


def test_the_card_of_a_translator(path):
    test = {"bleu": 38.21, "chrf": 61.94, "loss": 1.5, "bleu_signature": "nrefs:1", "chrf_signature": "nc:6"}
    record = finished_record(
        task="translation",
        arguments={"num_beams": 5},
        data={"name": "pairs.tsv", "rows": {"train": 29000}, "languages": ["en", "de"]},
        scores={"validation": {**test, "bleu": 39.5}, "test": test},
        samples=[("A dog.", "Ein Hund.", "Ein `Hund`.")],
    )
    text = card_text(path, record)
    data = ModelCard.load(path).data
    assert data.language == ["en", "de"] and {result.metric_type for result in data.eval_results} == {"bleu", "chrf"}
    assert "| validation | 39.50 | 61.94 |" in text and "with 5 beams" in text and "train 29,000 pairs" in text
    assert "in brackets" not in text and "untranslated" not in text
    assert "- `A dog.`\n  - translation: `` Ein `Hund`. ``\n  - reference: `Ein Hund.`" in text
    assert "Speed and size" not in text


def test_the_card_of_a_translator_has_intervals_and_a_baseline(path):
    test = {"bleu": 38.21, "chrf": 61.94, "bleu_signature": "nrefs:1", "chrf_signature": "nc:6"}
    test |= {"bleu_interval": [37.1, 39.3], "chrf_interval": [60.5, 63.4]}
    copied = {**test, "bleu": 4.5, "chrf": 20.25, "bleu_interval": [4.0, 5.0]}
    record = finished_record(
        task="translation",
        arguments={"num_beams": 5},
        data={"name": "pairs.tsv", "languages": ["en", "de"]},
        scores={"test": test, "baseline": {"model": "the sources", "test": copied}},
    )
    text = card_text(path, record)
    assert "| test | 38.21 (37.10 to 39.30) | 61.94 (60.50 to 63.40) |" in text and "in brackets the 95%" in text
    assert "| test, the sources | 4.50 (4.00 to 5.00) | 20.25 (60.50 to 63.40) |" in text


def test_figures_of_an_export_come_into_record_and_card(path):
    export = path.parent / "export"
    export.mkdir()
    figures = {
        "texts": 100,
        "milliseconds": {"torch": 3.21, "float32": 1.55, "int8": 0.71},
        "megabytes": {"float32": 18.4, "int8": 4.7},
        "others": {"openvino float32": {"milliseconds": 1.44, "megabytes": 9.3, "difference": 1e-6, "agreement": 1.0}},
    }
    (export / "export.json").write_text(json.dumps({"figures": figures, "machine": {"cpu": "AMD EPYC"}}))
    assert not add_export(path.parent, export)  # of no run
    record = finished_record()
    record.status = "running"
    record.write(path.parent / "run.json")
    assert not add_export(path.parent, export) and not path.exists()
    record.status = "finished"
    record.write(path.parent / "run.json")
    card_text(path, record, license="other", license_name="mine", language=["en", "de"])
    (path.parent / "model.safetensors").write_bytes(b"x" * 18_000_000)
    assert add_export(path.parent, export)
    text, data = path.read_text(), ModelCard.load(path).data
    assert (data.license, data.license_name, data.language) == ("other", "mine", ["en", "de"])  # as somebody gave them
    assert "one of 100 texts, on one thread of AMD EPYC" in text
    rows = ["| PyTorch, float32 | 3.21 | 18.0 |", "| ONNX Runtime, float32 | 1.55 | 18.4 |"]
    rows += ["| openvino float32 | 1.44 | 9.3 |", "| ONNX Runtime, int8 | 0.71 | 4.7 |"]
    assert "\n".join(rows) in text  # the slowest first
    exported = RunRecord.read(path.parent / "run.json").exported
    assert exported["megabytes"] == {"torch": 18.0, "float32": 18.4, "int8": 4.7} and exported["texts"] == 100
    assert add_export(path.parent, export) and path.read_text() == text  # once more, nothing new
