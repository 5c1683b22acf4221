"""Questions from every place they may lie in, and the windows that are made of them."""

import gzip
import json

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

from chinchilla_hf import train_tokenizer
from chinchilla_hf.answer_windows import WindowCutter
from chinchilla_hf.data.questions import QuestionWindows, WindowCollator, load_questions

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def row(number: int, context: str, answer: str | None, **changes) -> dict:
    """A row of a table; the answer stands where the context has it first."""
    answers = {"text": [], "answer_start": []}
    if answer is not None:
        answers = {"text": [answer], "answer_start": [context.find(answer)]}
    return {
        "id": f"q{number}",
        "question": f"Who is number {number}?",
        "context": context,
        "answers": answers,
    } | changes


ROWS = [
    row(n, f"The dog {n // 2} barks. Käse ist gelb 😀, and number {n // 2} is a cat.", f"number {n // 2}")
    for n in range(40)
]


def squad(rows: list[dict], version: str = "1.1") -> dict:
    """SQuAD's own form: articles, paragraphs, questions."""
    paragraphs: dict[str, list] = {}
    for item in rows:
        answers = [
            dict(zip(("text", "answer_start"), pair, strict=True))
            for pair in zip(*item["answers"].values(), strict=True)
        ]
        question = {"id": item["id"], "question": item["question"], "answers": answers}
        if version == "v2.0":
            question["is_impossible"] = not answers
            question |= {} if answers else {"plausible_answers": [{"text": "dog", "answer_start": 4}]}
        paragraphs.setdefault(item["context"], []).append(question)
    listed = [{"context": context, "qas": questions} for context, questions in paragraphs.items()]
    return {
        "version": version,
        "data": [{"title": "a", "paragraphs": listed[:3]}, {"title": "b", "paragraphs": listed[3:]}],
    }


def same(split: Dataset, rows: list[dict]) -> bool:
    return [{name: item[name] for name in ("id", "question", "context", "answers")} for item in split] == rows


FORMS = {
    "SQuAD": lambda folder, rows: write_json(folder / "train.json", squad(rows)),
    "SQuAD, packed": lambda folder, rows: write_json(folder / "train.json.gz", squad(rows)),
    "JSON Lines": lambda folder, rows: write_lines(folder / "train.jsonl", rows),
    "JSON": lambda folder, rows: write_json(folder / "train.json", rows),
    "answers as a list": lambda folder, rows: write_lines(
        folder / "train.jsonl",
        [
            item
            | {"answers": [{"text": item["answers"]["text"][0], "answer_start": item["answers"]["answer_start"][0]}]}
            for item in rows
        ],
    ),
    "Parquet": lambda folder, rows: write_parquet(folder / "train.parquet", rows),
    "saved by datasets": lambda folder, rows: write_saved(folder / "saved", rows),
}


def write_json(path, value):
    content = json.dumps(value, ensure_ascii=False).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_lines(path, rows):
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))
    return path


def write_parquet(path, rows):
    Dataset.from_list(rows).to_parquet(path)
    return path


def write_saved(path, rows):
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(path)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(form, tmp_path):
    data = load_questions(str(FORMS[form](tmp_path, ROWS)), validation_share=0.2, test_share=0.2)
    joined = sorted((item for split in data.splits.values() for item in split), key=lambda item: int(item["id"][1:]))
    assert same(joined, ROWS)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 24, "validation": 8, "test": 8}
    assert data.num_bad == {"train": 0} and not data.has_unanswerable
    assert data.summary() == "questions: train 24, validation 8, test 8"


def test_no_context_is_on_both_sides_of_a_split(tmp_path):
    path = str(write_lines(tmp_path / "a.jsonl", ROWS))
    data = load_questions(path)
    contexts = [set(split["context"]) for split in data.splits.values()]
    assert not (contexts[0] & contexts[1] or contexts[0] & contexts[2] or contexts[1] & contexts[2])
    again, other = load_questions(path), load_questions(path, seed=1)
    assert data.fingerprint == again.fingerprint != other.fingerprint
    assert len(load_questions(path, max_rows=3).splits["train"]) == 3


def test_a_folder_of_squads_own_files_and_questions_without_an_answer(tmp_path):
    rows = [*ROWS[:10], row(50, "A cat sleeps.", None)]
    write_json(tmp_path / "train-v2.0.json", squad(rows, "v2.0"))
    write_json(tmp_path / "dev-v2.0.json", squad(ROWS[10:20], "v2.0"))
    data = load_questions(str(tmp_path), test_share=0.2)
    assert same(data.splits["validation"], ROWS[10:20])
    assert len(data.splits["train"]) + len(data.splits["test"]) == 11
    whole = load_questions(str(tmp_path), test_file=str(tmp_path / "dev-v2.0.json"))
    assert same(whole.splits["train"], rows) and same(whole.splits["test"], ROWS[10:20])
    assert whole.has_unanswerable and "train 11 (1 without an answer)" in whole.summary()


def test_a_hub_data_set(monkeypatch):
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "title": datasets.Value("string"),
            "context": datasets.Value("string"),
            "question": datasets.Value("string"),
            "answers": datasets.Sequence({"text": datasets.Value("string"), "answer_start": datasets.Value("int32")}),
        }
    )
    splits = {"train": ROWS[:30], "validation": ROWS[30:]}
    on_hub = {
        name: Dataset.from_list([item | {"title": "a"} for item in rows], features=features)
        for name, rows in splits.items()
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: on_hub if name == "rajpurkar/squad" else None)
    data = load_questions("rajpurkar/squad")
    assert same(data.splits["validation"], ROWS[30:])
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 26, "validation": 10, "test": 4}


def test_rows_without_ids_are_numbered(tmp_path):
    rows = [{name: value for name, value in item.items() if name != "id"} for item in ROWS]
    data = load_questions(str(write_lines(tmp_path / "a.jsonl", rows)))
    ids = [name for split in data.splits.values() for name in split["id"]]
    assert sorted(ids, key=int) == [str(number) for number in range(1, 41)]


CONTEXT = "Käse 😀 und Brot."
BAD_ROWS = {
    "no question": (
        row(7, CONTEXT, "Brot", question=" "),
        r"the question of row 2 of the train split \(id 'q7'\) is empty",
    ),
    "no context": (row(7, CONTEXT, "Brot") | {"context": None}, r"the context of row 2 .* is empty"),
    "an offset in bytes": (
        row(7, CONTEXT, None, answers={"text": ["Brot"], "answer_start": [15]}),
        r"the answer 'Brot' of row 2 .*\(id 'q7'\) should begin at character 15 .* where '\.' stands; it stands at 11",
    ),
    "an answer from elsewhere": (
        row(7, CONTEXT, None, answers={"text": ["Wein"], "answer_start": [11]}),
        r"'Wein' .* where 'Brot' stands; it stands nowhere in the context",
    ),
    "a place before the text": (
        row(7, CONTEXT, None, answers={"text": ["."], "answer_start": [-1]}),
        r"begins at -1, which is no place",
    ),
    "no place": (row(7, CONTEXT, None, answers={"text": ["Brot"], "answer_start": [None]}), r"begins at None"),
    "an empty answer": (
        row(7, CONTEXT, None, answers={"text": [""], "answer_start": [0]}),
        r"an answer of row 2 .* is ''",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_or_counted(case, tmp_path):
    bad, message = BAD_ROWS[case]
    path = str(write_lines(tmp_path / "a.jsonl", [ROWS[0], bad, *ROWS[1:]]))
    with pytest.raises(ValueError, match=rf"{message}.*\(1 of 41 rows is bad\): .*on_bad_row='skip'"):
        load_questions(path)
    data = load_questions(path, on_bad_row="skip")
    assert data.num_bad == {"train": 1} and sum(map(len, data.splits.values())) == 40
    assert "(left out: 1 of train)" in data.summary()


BAD_DATA = {
    "a table of something else": (
        [{"text": "a", "label": "b"}] * 9,
        {},
        "lacks 'question', 'context', 'answers'; its columns are text",
    ),
    "answers as texts": (
        [item | {"answers": "cat"} for item in ROWS],
        {},
        r"the answers of row 1 .*\(id 'q0'\) are 'cat'",
    ),
    "lists of different lengths": (
        [item | {"answers": {"text": ["cat"], "answer_start": []}} for item in ROWS],
        {},
        "the answers of row 1 ",
    ),
    "one id twice": ([*ROWS, ROWS[3]], {}, r"row 41 .*\(id 'q3'\) has the id of row 4 "),
    "nothing left": ([item | {"question": ""} for item in ROWS], {"on_bad_row": "skip"}, "none is left"),
    "no answers": (
        [item | {"answers": {"text": [], "answer_start": []}} for item in ROWS],
        {},
        "no training question has an answer",
    ),
    "one context": (
        [row(n, CONTEXT, "Brot") for n in range(20)],
        {},
        "about 1 contexts, too few to take validation and test",
    ),
    "an unknown choice": (ROWS, {"on_bad_row": "repair"}, "on_bad_row is 'repair'"),
    "a share above one": (ROWS, {"test_share": 1.5}, "test_share is 1.5"),
    "shares above one": (ROWS, {"test_share": 0.5, "validation_share": 0.6}, "leave no rows"),
    "no rows": (ROWS, {"max_rows": 0}, "max_rows is 0"),
    "no such encoding": (ROWS, {"encoding": "utf-9"}, "unknown encoding: utf-9"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(case, tmp_path):
    rows, options, message = BAD_DATA[case]
    with pytest.raises(ValueError, match=message):
        load_questions(str(write_lines(tmp_path / "a.jsonl", rows)), **options)


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder 'nothing\.json'"):
        load_questions("nothing.json")


def test_real_data(shared_data):
    data = load_questions(str(shared_data / "policyqa"))
    assert len(data.splits["test"]) == 4152 and sum(map(len, data.splits.values())) == 4152 + 3809


# ---- Windows ----

LONG = "Intro words before. " * 6 + "The answer is 狗在跑 😀 here. " + "More words after it. " * 6


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(
        [LONG, "Who? Was? 谁?", *(item["context"] for item in ROWS)] * 2, vocab_size=300, show_progress=False
    )


def windows(tokenizer, rows: list[dict], max_length: int = 32, stride: int = 8, **options) -> QuestionWindows:
    return QuestionWindows(Dataset.from_list(rows), WindowCutter(tokenizer, max_length, stride), **options)


def perfect(split: QuestionWindows) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a model that knows the labels, with padding as a Trainer puts it."""
    logits = np.full((2, len(split), 64), -100.0, dtype=np.float32)
    for number in range(len(split)):
        item = split[number]
        logits[:, number, : len(item["input_ids"])] = 0
        for side, name in enumerate(("start_positions", "end_positions")):
            logits[side, number, item[name]] = 10
    return logits[0], logits[1]


@pytest.mark.parametrize("sort", [False, True])
def test_labels_lead_back_to_the_answers(tokenizer, sort):
    rows = [
        row(0, LONG, "狗在跑 😀"),
        row(1, "Who barks? The dog.", "The dog"),
        row(2, LONG, None),
        row(3, LONG, "Intro"),
    ]
    split = windows(tokenizer, rows, sort=sort)
    assert len(split) > 10 and split.num_bad == split.num_cut == 0
    ranked = split.rank(*perfect(split), max_answer_length=10, with_null=True)
    texts = split.texts(ranked)
    assert texts[:2] == ["狗在跑 😀", "The dog"] and texts[3] == "Intro"
    assert [spans.no_answer_score > 0 for spans in ranked] == [False, False, True, False]
    assert [reference["id"] for reference in split.references] == ["q0", "q1", "q2", "q3"]
    assert split.asked[1] == "Who is number 1?" and split.references[1]["answers"] == rows[1]["answers"]
    lengths = [len(split[number]["input_ids"]) for number in range(len(split))]
    assert lengths == split.lengths and max(lengths) == 32
    assert lengths == (sorted(lengths, reverse=True) if sort else lengths)


def test_a_window_without_all_of_the_answer_says_that_there_is_none(tokenizer):
    split = windows(tokenizer, [row(0, LONG, "狗在跑")])
    labels = [(split[number]["start_positions"], split[number]["end_positions"]) for number in range(len(split))]
    assert (0, 0) in labels and any(start > 0 for start, _ in labels)
    for number, (start, end) in enumerate(labels):
        ids = split[number]["input_ids"][start : end + 1]
        assert tokenizer.decode(ids) == tokenizer.cls_token if start == 0 else tokenizer.decode(ids).startswith("狗")


def test_an_answer_that_is_longer_than_the_overlap_is_counted(tokenizer):
    split = windows(tokenizer, [row(0, LONG, LONG[40:160])])
    assert split.num_cut == 1 and split.answer_lengths[0] > 20
    assert all(split[number]["start_positions"] == 0 for number in range(len(split)))


def test_a_question_without_room_is_named_or_left_out(tokenizer):
    rows = [row(0, LONG, "Intro", question="Who " * 30), row(1, LONG, "Intro")]
    with pytest.raises(ValueError, match=r"at the question with the id 'q0': the question 'Who .* has 30 tokens"):
        windows(tokenizer, rows)
    split = windows(tokenizer, rows, on_bad_row="skip")
    assert split.num_bad == 1 and [reference["id"] for reference in split.references] == ["q1"]
    assert split.texts(split.rank(*perfect(split), 10, False)) == ["Intro"]
    with pytest.raises(ValueError, match="no question fits into a window"):
        windows(tokenizer, rows[:1], on_bad_row="skip")


def test_an_answer_without_a_token_is_named(tokenizer):
    bad = row(0, "a \u200d b", None, answers={"text": ["\u200d"], "answer_start": [2]})
    with pytest.raises(ValueError, match=r"id 'q0': the answer .* has no token of its own"):
        windows(tokenizer, [bad])


def test_logits_of_other_windows_are_refused(tokenizer):
    split = windows(tokenizer, [row(0, LONG, "Intro")])
    with pytest.raises(ValueError, match=r"logits of 1 windows, but \d+ windows"):
        split.rank(np.zeros((1, 32)), np.zeros((1, 32)), 10, False)


def test_batches(tokenizer):
    split = windows(tokenizer, [row(0, LONG, "狗在跑"), row(1, "The dog.", "dog")])
    batch = WindowCollator(tokenizer.pad_token_id)([split[0], split[len(split) - 1]])
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "start_positions", "end_positions"}
    assert batch["input_ids"].shape == (2, 32) and batch["attention_mask"][1].sum() < 32
    assert batch["start_positions"].dtype == torch.int64
