"""`training/answer.py` as its users run it, on texts in which one word after another tells the answer."""

import json
import random
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scripts import read_record, run_forked, run_script, words
from test_classify import RESULT_FILES
from transformers import AutoModelForQuestionAnswering, BertConfig, BertForMaskedLM, pipeline

from chinchilla_hf import ChinchillaConfig, ChinchillaForMaskedLM, ChinchillaForQuestionAnswering, train_tokenizer

NAMES = ["Ada", "Zoë", "Jürgen", "李雷", "Олег", "Amélie", "Noor", "Kai"]
PLACES = ["Rome", "Köln", "Zürich", "Łódź", "Kyiv", "Paris", "Oslo", "Lima"]
FILLERS = ["it rained", "the sun shone", "all slept", "birds sang", "time passed", "nobody knew"]
FAST = {
    "learning_rate": 3e-3,
    "num_train_epochs": 8,
    "per_device_train_batch_size": 8,
    "max_length": 32,
    "disable_tqdm": True,
    "report_to": "none",
}


def questions(count: int, unanswerable: bool = False, seed: int = 0) -> list[dict]:
    """Who was where: the answer stands behind "in"; some texts do not say, and some are longer than a window."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        name, place = rng.choice(NAMES), rng.choice(PLACES)
        before, after = (", ".join(rng.choices(FILLERS, k=rng.randint(1, 5))) for _ in range(2))
        says = not (unanswerable and number % 3 == 0)
        context = f"{before}. {name} lives {f'in {place}' if says else 'there'}, {number}. {after}."
        answers = (
            {"text": [place], "answer_start": [context.index(f"in {place}") + 3]}
            if says
            else {"text": [], "answer_start": []}
        )
        rows.append({"id": str(number), "question": f"Where does {name} live?", "context": context, "answers": answers})
    return rows


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


@pytest.fixture
def answer(monkeypatch, capsys):
    """Run the script in this process; what it printed."""

    def run(**options: object) -> str:
        run_script("answer", monkeypatch, words(options))
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A BERT and a Chinchilla of one tokenizer, 48 positions."""
    folder = tmp_path_factory.mktemp("checkpoints")
    texts = [text for row in questions(100) for text in (row["question"], row["context"])]
    tokenizer = train_tokenizer(texts, vocab_size=400, model_max_length=48, show_progress=False)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    models = {
        "bert": BertForMaskedLM(BertConfig(**shape, intermediate_size=64, max_position_embeddings=48)),
        "chinchilla": ChinchillaForMaskedLM(ChinchillaConfig(**shape, max_position_embeddings=48, hidden_dropout=0.0)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def test_learns_where_people_live(answer, tmp_path, checkpoints):
    data, out = write(tmp_path / "data.jsonl", questions(240)), tmp_path / "out"
    printed = answer(dataset=data, model=checkpoints / "chinchilla", output_dir=out, **FAST)
    record = read_record(out)
    assert record["status"] == "finished" and record["task"] == "question-answering"
    assert {path.name for path in out.iterdir() if path.is_file()} == RESULT_FILES and not list(
        out.glob("checkpoint-*")
    )
    assert record["data"]["rows"] == {"train": 192, "validation": 24, "test": 24}
    assert record["data"]["windows"]["train"] > 192 and record["data"]["left_out"] == {
        "train": 0,
        "validation": 0,
        "test": 0,
    }
    test = record["scores"]["test"]
    assert test["f1"] > 80 and test["exact_match"] > 80
    settings = record["training"]["question_answering"]
    assert settings == {
        "max_length": 32,
        "stride": 8,
        "max_answer_length": settings["max_answer_length"],
        "no_answer_threshold": None,
    }
    assert f"{test['f1']:.2f}" in printed and "answer     " in printed
    card = (out / "README.md").read_text()
    assert (
        "pipeline_tag: question-answering" in card
        and f"| F1 | {record['scores']['validation']['f1']:.2f} | {test['f1']:.2f} |" in card
    )
    assert "None" not in card.split("## Training")[0]

    # The folder is what the scores say, with the settings of the training.
    assert type(AutoModelForQuestionAnswering.from_pretrained(out)) is ChinchillaForQuestionAnswering
    rows = questions(40, seed=1)
    pipe = pipeline("chinchilla-question-answering", str(out))
    assert pipe.model.config.question_answering == settings
    results = pipe(rows)
    right = 0
    for result, row in zip(results, rows, strict=True):
        assert result["answer"] == row["context"][result["start"] : result["end"]]
        right += result["answer"] == row["answers"]["text"][0] and result["start"] == row["answers"]["answer_start"][0]
    assert right > 32

    with pytest.raises(SystemExit, match=r"holds this very run, finished.*--overwrite"):
        answer(dataset=data, model=checkpoints / "chinchilla", output_dir=out, **FAST)


def test_learns_by_updates_of_low_rank(answer, tmp_path, checkpoints):
    data, out = write(tmp_path / "data.jsonl", questions(300)), tmp_path / "out"
    options = FAST | {"learning_rate": 2e-2, "lora_rank": 8, "layer_decay": 0.9, "token_dropout": 0.05}
    printed = answer(dataset=data, model=checkpoints / "chinchilla", output_dir=out, **options)
    assert f"from {checkpoints / 'chinchilla'}: the body; fresh: qa_outputs (66 parameters)" in printed
    assert "LoRA of rank 8; rates 0.9 times those of the next layer; 0.05 of the tokens hidden" in printed
    record, weights = read_record(out), load_file(out / "model.safetensors")
    assert record["model"]["trained_parameters"] < record["model"]["parameters"] and record["scores"]["test"]["f1"] > 60
    assert set(weights) == set(ChinchillaForQuestionAnswering.from_pretrained(out).state_dict())
    body = load_file(checkpoints / "chinchilla" / "model.safetensors")
    name = "model.embeddings.embed_tokens.weight"
    assert torch.equal(weights[name], body[name])  # frozen
    assert not torch.equal(weights["model.layers.0.mlp.up_proj.weight"], body["model.layers.0.mlp.up_proj.weight"])
    question = questions(1, seed=9)[0]
    pipe = pipeline("chinchilla-question-answering", str(out))
    assert pipe(question=question["question"], context=question["context"])["answer"]


def test_learns_when_there_is_no_answer(answer, tmp_path, checkpoints):
    """From a BERT, on files in the form of SQuAD 2."""
    for split, rows in (
        ("train", questions(240, True)),
        ("dev", questions(60, True, 1)),
        ("test", questions(60, True, 2)),
    ):
        paragraphs = [
            {
                "context": row["context"],
                "qas": [
                    {
                        "id": row["id"],
                        "question": row["question"],
                        "is_impossible": not row["answers"]["text"],
                        "answers": [
                            {"text": text, "answer_start": start}
                            for text, start in zip(*row["answers"].values(), strict=True)
                        ],
                    }
                ],
            }
            for row in rows
        ]
        (tmp_path / f"{split}.json").write_text(json.dumps({"version": "v2.0", "data": [{"paragraphs": paragraphs}]}))
    out = tmp_path / "out"
    printed = answer(dataset=tmp_path, model=checkpoints / "bert", output_dir=out, **FAST)
    record = read_record(out)
    validation, test = record["scores"]["validation"], record["scores"]["test"]
    assert record["data"]["rows"] == {"train": 240, "validation": 60, "test": 60} and record["data"]["has_unanswerable"]
    assert validation["f1"] == validation["best_f1"] and test["f1"] <= test["best_f1"]
    threshold = record["training"]["question_answering"]["no_answer_threshold"]
    assert test["no_answer_threshold"] == validation["no_answer_threshold"] == threshold
    assert test["f1"] > 75 and test["NoAns_f1"] > 75 and "NoAns_f1" in printed
    assert "best_f1" not in printed.rpartition("answer     ")[2]
    assert "Right, questions without an answer" in (out / "README.md").read_text()

    results = pipeline("chinchilla-question-answering", str(out), bf16=False)(questions(60, True, 2))
    expected = sum(
        result["answer"] in (row["answers"]["text"] or [""])
        for result, row in zip(results, questions(60, True, 2), strict=True)
    )
    assert abs(100 * expected / 60 - test["exact"]) < 5  # the training may have rounded to bfloat16


def test_an_interrupted_run_ends_as_if_it_had_not_been(answer, tmp_path, checkpoints):
    options = {"dataset": write(tmp_path / "data.jsonl", questions(160)), "model": checkpoints / "bert"}
    options |= FAST | {"num_train_epochs": 4, "early_stopping_patience": 0, "save_total_limit": 3}
    out, straight = tmp_path / "out", tmp_path / "straight"
    steps = -(-read_windows(options, tmp_path) // 8)
    assert run_forked("answer", options | {"output_dir": out}, signal_at=(steps + 3, signal.SIGKILL)).code == -9
    ended = run_forked("answer", options | {"output_dir": out}, signal_at=(2 * steps + 3, signal.SIGINT))
    assert ended.code == 1 and "the same command goes on from the last checkpoint" in ended.errors
    answer(**options, output_dir=out)
    answer(**options, output_dir=straight)
    weights = [load_file(folder / "model.safetensors") for folder in (out, straight)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    resumed, whole = read_record(out), read_record(straight)
    assert resumed["training"]["resumed"] == 2 and resumed["scores"] == whole["scores"]


def read_windows(options: dict, folder: Path) -> int:
    """How many windows there are to train on."""
    from transformers import AutoTokenizer

    from chinchilla_hf.answer_windows import WindowCutter
    from chinchilla_hf.data.questions import QuestionWindows, load_questions

    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    train = load_questions(str(options["dataset"])).splits["train"]
    return len(QuestionWindows(train, WindowCutter(tokenizer, options["max_length"], options["max_length"] // 4)))


def test_two_processes_score_as_one(answer, tmp_path, checkpoints):
    """Predictions of both come back in the order of the windows."""
    options = {"dataset": write(tmp_path / "data.jsonl", questions(150)), **FAST, "bf16": False}
    answer(**options, model=checkpoints / "bert", output_dir=tmp_path / "trained")
    options |= {"model": tmp_path / "trained", "learning_rate": 0, "max_steps": 1}
    records = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        ended = run_forked("answer", options | {"output_dir": folder, "per_device_eval_batch_size": 8}, processes)
        assert ended.code == 0, ended.errors
        records.append(read_record(folder))
    for name in ("validation", "test"):
        one, two = (record["scores"][name] for record in records)
        del one["loss"], two["loss"]  # Trainer's mean over batches, of which the last one is smaller
        assert one == pytest.approx(two) and one["f1"] > 50


ROWS = questions(60)
BAD_ROWS = {
    "an offset that does not match": (
        ROWS[7] | {"answers": {"text": ROWS[7]["answers"]["text"], "answer_start": [0]}},
        r"row 8 of the train split \(id '7'\) should begin at character 0 .*1 of 60 rows is bad",
    ),
    "an empty question": (ROWS[7] | {"question": "  "}, "the question of row 8"),
    "an empty context": (ROWS[7] | {"context": ""}, "the context of row 8"),
    "a question longer than the window": (
        ROWS[7] | {"question": "Where does Ada live? " * 9},
        "question with the id '7': the question .* leaves 0 of a window of 32",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_stop_or_are_left_out(answer, tmp_path, checkpoints, case):
    bad, message = BAD_ROWS[case]
    data = write(tmp_path / "data.jsonl", [*ROWS[:7], bad, *ROWS[8:]])
    options = {"dataset": data, "model": checkpoints / "bert", "output_dir": tmp_path / "out", **FAST}
    with pytest.raises(SystemExit, match=rf"(?s)^error: .*{message}"):
        answer(**options)
    assert not (tmp_path / "out").exists()
    answer(**options, on_bad_row="skip", max_steps=1)
    assert sum(read_record(tmp_path / "out")["data"]["left_out"].values()) == 1


BAD_OPTIONS = {
    "no such file": ({"dataset": "nothing.json"}, r"there is no file or folder 'nothing\.json'"),
    "more tokens than positions": ({"max_length": 64}, "--max_length is 64, but the model has 48 positions"),
    "no room": ({"stride": 30}, "max_length is 32 and stride 30"),
    "no answer": ({"max_answer_length": 0}, "--max_answer_length is 0"),
    "no such layer": ({"lora_rank": 2, "lora_targets": ["query"]}, "lora_targets has 'query'"),
    "no such model": ({"model": "/no/such/folder"}, "/no/such/folder"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(answer, tmp_path, checkpoints, case):
    options, message = BAD_OPTIONS[case]
    given = {"dataset": write(tmp_path / "data.jsonl", ROWS), "model": checkpoints / "bert", **FAST}
    with pytest.raises(SystemExit, match=rf"(?s)^error: .*{message}"):
        answer(**given | options, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()
