"""Streams: rows without a store, the same ones after any number of interruptions, each document with one reader."""

import gzip
import json
import random
import re
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from torch.utils.data import DataLoader

from chinchilla_hf import train_tokenizer
from chinchilla_hf.data.corpora import Corpus
from chinchilla_hf.data.objectives import MaskedOrCausal, MaskedTokens
from chinchilla_hf.data.streaming import POSITION, StreamedRows, StreamError, held_out_rows, stream_facts
from chinchilla_hf.data.token_store import TokenStore, hash_documents, is_held_out

ROW_LENGTH, BATCH = 16, 4
# Every document has a word of its own, so it is known where it went.
NAMES = [f"{a}{b}" for a in "abcdefghijklmnop" for b in "qrstuvwxyz"]
TEXTS = [
    f"{name} " + " ".join(random.Random(i).choices(["one", "two", "three"], k=i % 9 + 1))
    for i, name in enumerate(NAMES)
]


@pytest.fixture(scope="module")
def tokenizer():
    # So large that the name of a document is one token.
    return train_tokenizer(TEXTS * 3, vocab_size=1000, show_progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("streams")


def write(folder: Path, kind: str, texts: list[str] = TEXTS) -> Corpus:
    """`texts` in two files, or as one, of the kind."""
    target = folder / kind
    target.mkdir(exist_ok=True)
    for number, part in enumerate((texts[:70], texts[70:])):
        if kind == "parquet":
            pd.DataFrame({"text": part}).to_parquet(target / f"{number}.parquet", row_group_size=25)
        elif kind == "text":
            (target / f"{number}.txt").write_text("\n\n".join(part))
        else:
            with gzip.open(target / f"{number}.jsonl.gz", "wt") as file:
                file.writelines(json.dumps({"text": text}) + "\n" for text in part)
    return Corpus(str(target))


@pytest.fixture(params=["json", "text", "parquet", "hub"])
def corpus(request, folder, monkeypatch) -> Corpus:
    if request.param != "hub":
        return write(folder, request.param)
    # A stream of `datasets`, of files that happen to be here: what is between is that of the Hub.
    files = [str(path) for path in write(folder, "json").files]
    load = partial(datasets.load_dataset, "json", data_files=files)
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda name, config, split, revision, streaming: load(split=split, streaming=streaming),
    )
    return Corpus("me/texts")


def make_rows(corpus: Corpus, tokenizer, **settings) -> StreamedRows:
    objective = MaskedOrCausal(MaskedTokens(tokenizer), 0.25)
    defaults = {"seed": 3, "window_characters": 800, "num_items": 400}
    return StreamedRows(corpus, tokenizer, ROW_LENGTH, objective, **defaults | settings)


def read(rows: StreamedRows, count: int) -> list[dict]:
    """The next batches, consumed."""
    loader = DataLoader(rows, BATCH, collate_fn=rows.collate, num_workers=rows.workers)
    batches = []
    for batch in islice(loader, count):
        rows.consumed(batch)
        batches.append({name: values.numpy() for name, values in batch.items()})
    return batches


def assert_equal(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def documents_of(rows: StreamedRows, epochs: int = 1) -> list[list[str]]:
    """Names of the documents that were given out, in each of the first epochs."""
    names = [[] for _ in range(epochs)]
    rows.objective = lambda row, rng, progress: {"input_ids": row.input_ids}
    for item in rows:
        _, position = item[POSITION]
        if position.epoch >= epochs:
            return names
        words = rows.tokenizer.decode(item["input_ids"]).split()
        names[position.epoch] += [word for word in words if word in NAMES]
    raise AssertionError("a stream has no end")


# ---- What comes out ----


def test_every_document_comes_once_in_an_epoch_in_another_order(corpus, tokenizer):
    first, second = documents_of(make_rows(corpus, tokenizer), epochs=2)
    assert sorted(first) == sorted(second) == sorted(NAMES)
    assert first != second and first[:40] != NAMES[:40]
    assert set(first[:20]) <= set(NAMES[:60])  # but it is a stream: the first window comes first


def test_rows_are_those_of_the_tokenizer_with_documents_apart(folder, tokenizer):
    rows = make_rows(write(folder, "json"), tokenizer)
    rows.objective = lambda row, rng, progress: vars(row)
    found = []
    for item in rows:
        if item[POSITION][1].epoch:
            break
        for document in range(item["documents"].max() + 1):
            here = item["documents"] == document
            assert item["position_ids"][here].tolist() == list(range(here.sum()))
            found.append(tokenizer.decode(item["input_ids"][here], skip_special_tokens=True))
    assert sorted(found) == sorted(TEXTS)


def test_masks_are_others_in_every_epoch_and_depend_on_the_seed(folder, tokenizer):
    corpus = write(folder, "json", TEXTS[:5])  # one row: the same text in every epoch
    draws = [
        [int(batch["labels"][0].clip(0).sum()) for batch in read(make_rows(corpus, tokenizer, seed=s), 8)]
        for s in (3, 3, 4)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) > 3


def test_the_masking_rate_follows_the_run(folder, tokenizer):
    rows = make_rows(write(folder, "json"), tokenizer, num_items=100)
    rows.objective = lambda row, rng, progress: {"progress": np.array(progress)}
    found = np.concatenate([batch["progress"] for batch in read(rows, 30)])
    assert found[:100].tolist() == [i / 100 for i in range(100)] and (found[100:] == 1).all()
    rows.progress = 0.25  # by the clock
    assert (read(rows, 1)[0]["progress"] == 0.25).all()
    assert len(rows) == 100 and len(make_rows(rows.corpus, tokenizer, num_items=100, processes=2)) == 50


def test_held_out_documents_are_never_given_out_and_validate_alike_each_time(folder, tokenizer, tmp_path):
    corpus = write(folder, "json")
    held_out = {name for name, held in zip(NAMES, is_held_out(hash_documents(TEXTS), 0.2), strict=True) if held}
    assert sorted(documents_of(make_rows(corpus, tokenizer, held_out_share=0.2))[0]) == sorted(set(NAMES) - held_out)
    store = TokenStore.build(corpus, tokenizer, cache_dir=tmp_path, show_progress=False)
    assert store.held_out(0.2).sum() == len(held_out)  # as in a run on stored data

    settings = {"share": 0.2, "max_documents": 100}
    validation = held_out_rows(corpus, tokenizer, ROW_LENGTH, MaskedTokens(tokenizer), **settings)
    words = tokenizer.decode(np.concatenate([validation.row(i).input_ids for i in range(len(validation))])).split()
    assert {word for word in words if word in NAMES} == held_out & set(NAMES[:100])
    again = held_out_rows(corpus, tokenizer, ROW_LENGTH, MaskedTokens(tokenizer), **settings)
    assert_equal([validation[i] for i in range(len(validation))], [again[i] for i in range(len(again))])


def test_padding_is_at_most_two_percent_on_real_text(shared_data):
    corpus = Corpus(str(shared_data / "corpus" / "train.jsonl.gz"))
    tokenizer = train_tokenizer(islice(corpus.documents(), 3000), vocab_size=4000, show_progress=False)
    rows = StreamedRows(corpus, tokenizer, 128, MaskedTokens(tokenizer), max_documents=3000, window_characters=500_000)
    for item in rows:
        reader, position = item[POSITION]
        if position.epoch:  # the last, smaller window is counted in
            break
        rows.consumed({POSITION: (reader, position)})
    facts = stream_facts([rows.state_dict()], 128)
    assert facts["rows"] > 1000 and 0 < facts["padding"] <= 0.02
    assert facts["documents"] == 3000


def test_a_stream_is_read_as_far_as_it_is_needed(tokenizer, monkeypatch):
    given = 0

    def endless():
        nonlocal given
        while True:
            yield {"text": TEXTS[given % len(TEXTS)]}
            given += 1

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(endless))
    rows = make_rows(Corpus("me/endless"), tokenizer)
    window = 0
    for item in islice(rows, 300):
        window = item[POSITION][1].window
        assert given <= (window + 3) * 800 / len(min(TEXTS, key=len))
    assert window > 3


# ---- Resume ----


@pytest.mark.parametrize("workers", [0, 2])
def test_two_resumes_anywhere_change_nothing(corpus, tokenizer, workers):
    """In the middle of a window, at its end and over the end of the stream, each with batches read in advance."""
    total = 60
    rows = make_rows(corpus, tokenizer, workers=workers)
    expected = read(rows, total)
    assert min(position["epoch"] for position in rows.state_dict()["positions"]) >= 1
    for stops in [(1, 2), (7, 20), (30, 59)] if workers == 0 else [(9, 40)]:
        found, state = [], None
        for begin, end in zip((0, *stops), (*stops, total), strict=True):
            rows = make_rows(corpus, tokenizer, workers=workers)
            if state is not None:
                rows.load_state_dict(json.loads(json.dumps(state)))
            loader = iter(DataLoader(rows, BATCH, collate_fn=rows.collate, num_workers=workers))
            batches = [next(loader) for _ in range(end - begin + 3)][: end - begin]
            for batch in batches:
                rows.consumed(batch)
            found += [{name: values.numpy() for name, values in batch.items()} for batch in batches]
            state = rows.state_dict()
        assert_equal(found, expected)


def test_resumes_at_every_row_of_two_epochs(folder, tokenizer):
    """Twice each time: from the state itself, and from the one taken right after that resume."""
    corpus = write(folder, "json", TEXTS[:60])
    rows = make_rows(corpus, tokenizer, window_characters=300)
    items, states = [], []
    for item in rows:
        rows.consumed(item)
        items.append(item)
        states.append(rows.state_dict())
        if states[-1]["positions"][0]["epoch"] == 2:
            break
    windows = {(state["positions"][0]["epoch"], state["positions"][0]["window"]) for state in states}
    assert len(windows) >= 6
    for number in range(len(items) - 2):
        state = states[number]
        for following in (number + 1, number + 2):
            again = make_rows(corpus, tokenizer, window_characters=300)
            again.load_state_dict(state)
            item = next(iter(again))
            again.consumed(item)
            assert_equal([item], [items[following]])
            state = again.state_dict()
            assert state == states[following]


def test_a_changed_stream_and_other_readers_are_refused(tmp_path, tokenizer):
    corpus = write(tmp_path, "json")
    rows = make_rows(corpus, tokenizer)
    read(rows, 8)
    state = rows.state_dict()
    assert state["positions"][0]["document"] > 0
    for others in ({"processes": 2}, {"workers": 2}):
        message = r"read by 1 process.* with 0 .*, but now there are \d with \d: start as many.*stored data"
        with pytest.raises(StreamError, match=message):
            make_rows(corpus, tokenizer, **others).load_state_dict(state)
    again = make_rows(write(tmp_path, "json", TEXTS[1:]), tokenizer)
    again.load_state_dict(state)
    with pytest.raises(StreamError, match=r"document \d+ of .* is not what it was.*start anew"):
        read(again, 1)


# ---- Several readers ----


@pytest.mark.parametrize(("processes", "workers"), [(2, 0), (1, 2), (2, 2)])
def test_readers_share_the_documents_and_none_is_lost(corpus, tokenizer, processes, workers):
    found: list[Counter[str]] = [Counter(), Counter()]
    shares = []
    for process in range(processes):
        rows = make_rows(corpus, tokenizer, process=process, processes=processes, workers=workers)
        rows.objective = lambda row, rng, progress: {"input_ids": row.input_ids}
        loader = DataLoader(rows, 1, collate_fn=rows.collate, num_workers=workers)
        mine: dict[int, set[str]] = {}
        finished: set[int] = set()
        for batch in loader:
            reader, position = batch[POSITION]
            if position.epoch == 2:
                finished.add(reader)
            if len(finished) == max(1, workers):
                break
            if position.epoch < 2:
                names = [word for word in tokenizer.decode(batch["input_ids"][0]).split() if word in NAMES]
                found[position.epoch].update(names)
                mine.setdefault(reader, set()).update(names)
        shares += mine.values()
    assert found[0] == found[1] == Counter(NAMES)  # all of them, once in an epoch
    assert len(shares) == processes * max(1, workers) and sum(map(len, shares)) == len(NAMES)


def test_workers_that_the_data_loader_does_not_have_raise(folder, tokenizer):
    with pytest.raises(ValueError, match="the data loader has 0 workers, but these rows were made for 2"):
        next(iter(make_rows(write(folder, "json"), tokenizer, workers=2)))


# ---- What cannot be read ----


def test_a_stream_ends_behind_max_documents_and_begins_anew(folder, tokenizer):
    rows = make_rows(write(folder, "json"), tokenizer, max_documents=20)
    assert [sorted(names) for names in documents_of(rows, epochs=2)] == [sorted(NAMES[:20])] * 2


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("", {}, "has 0 documents, but none of two or more tokens"),
        ("one\n\ntwo", {}, "has 2 documents, but none of two or more tokens to train on for reader 1 of 1"),
        ("one two three", {"process": 1, "processes": 2}, "has 1 documents, but none .* for reader 2 of 2"),
        (b"one two three\n\n\xff\xfe", {}, r"is not UTF-8 at byte 15 .*correct the file, or pass on_bad_text"),
    ],
)
def test_streams_without_text_and_with_bad_text(tmp_path, tokenizer, content, settings, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StreamError, match=message):
        read(make_rows(Corpus(str(path)), tokenizer, **settings), 100)


def test_bad_text_stops_a_stream_only_where_it_is_or_is_skipped_and_counted(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:100]) + "{bad\n" + '{"text": "one two"}\n'
    )
    rows = make_rows(Corpus(str(path)), tokenizer)
    with pytest.raises(StreamError, match=r"line 101 of .* is not JSON"):
        read(rows, 100)
    state = rows.state_dict()
    assert state["positions"][0]["rows"] > 20
    lenient = make_rows(Corpus(str(path), on_bad_text="skip"), tokenizer)
    lenient.load_state_dict(state)
    read(lenient, 30)
    facts = stream_facts([lenient.state_dict()], ROW_LENGTH)
    assert facts["skipped"] >= 1 and facts["epochs"] >= 1 and facts["documents"] > 101


def test_a_connection_that_breaks_is_told(tokenizer, monkeypatch):
    def broken():
        yield from ({"text": text} for text in TEXTS[:150])
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(broken))
    with pytest.raises(
        StreamError, match=r"me/texts could not be read any further \(reset by peer\): the same command"
    ):
        read(make_rows(Corpus("me/texts"), tokenizer), 100)


def test_validation_needs_documents_on_both_sides(tmp_path, tokenizer):
    arguments = tokenizer, ROW_LENGTH, MaskedTokens(tokenizer)
    corpus = write(tmp_path, "json")
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=rf"validation_share is {share}, which leaves (0|50) of the first 50 doc"):
            held_out_rows(corpus, *arguments, share=share, max_documents=50)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'empty.txt'} holds no documents with text")):
        held_out_rows(Corpus(str(tmp_path / "empty.txt")), *arguments, share=0.5, max_documents=50)
    with pytest.raises(ValueError, match="window_characters is 0"):
        make_rows(corpus, tokenizer, window_characters=0)
