"""Corpora: every kind of file gives its documents, and what cannot be read is named with its place."""

import bz2
import gzip
import json
import lzma

import datasets
import pandas as pd
import pytest

from chinchilla_hf.data import corpora
from chinchilla_hf.data.corpora import Corpus, Place

TEXTS = ["One. Two lines\nhere.", "Zwei Wörter", "三个字"]


def documents(*arguments, **settings) -> list[str]:
    return list(Corpus(*map(str, arguments), **settings).documents())


def write_jsonl(path, texts=TEXTS, column="text", opener=open):
    with opener(path, "wt", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({column: text, "source": "x"}, ensure_ascii=False) + "\n")
    return path


@pytest.mark.parametrize(("suffix", "opener"), [("", open), (".gz", gzip.open), (".bz2", bz2.open), (".xz", lzma.open)])
def test_json_lines(tmp_path, suffix, opener):
    assert documents(write_jsonl(tmp_path / f"a.jsonl{suffix}", opener=opener)) == TEXTS


def test_another_column(tmp_path):
    assert documents(write_jsonl(tmp_path / "a.jsonl", column="body"), text_column="body") == TEXTS


def test_parquet(tmp_path):
    pd.DataFrame({"text": [*TEXTS, None], "n": 1}).to_parquet(tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet") == TEXTS


@pytest.mark.parametrize(
    ("separator", "expected"),
    [("blank_line", ["a\nb", "c"]), ("line", ["a", "b", "c"]), ("file", ["a\nb\n\n \nc"])],
)
def test_plain_text(tmp_path, separator, expected):
    (tmp_path / "a.txt").write_bytes("\ufeffa\nb\n\n \nc\n".encode())
    assert documents(tmp_path / "a.txt", document_separator=separator) == expected


def test_a_folder_is_read_in_order_without_hidden_files(tmp_path):
    for name, text in {"b/2.txt": "second", "a/1.txt": "first", ".git/x.txt": "hidden", "c.png": "picture"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert documents(tmp_path) == ["first", "second"]


def test_a_stream_from_the_hub(monkeypatch):
    def load_dataset(name, config, split, revision, streaming):
        assert (name, config, split, streaming) == ("me/texts", "de", "train", True)
        return datasets.IterableDataset.from_generator(lambda: ({"text": text} for text in [*TEXTS, " "]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert documents("me/texts", "de") == TEXTS


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    first, copy = write_jsonl(tmp_path / "a.jsonl"), write_jsonl(tmp_path / "b.jsonl")
    other = write_jsonl(tmp_path / "c.jsonl", TEXTS[:2])
    fingerprints = [Corpus(str(path)).fingerprint() for path in (first, copy, other)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert Corpus(str(first), text_column="body").fingerprint() != fingerprints[0]


def test_the_quick_fingerprint_is_that_of_size_beginning_and_end(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "QUICK_BYTES", 4)
    path = tmp_path / "a.txt"

    def fingerprint(text: str, **settings: str) -> str:
        path.write_text(text)
        return Corpus(str(path), **settings).quick_fingerprint()

    original = fingerprint("begin middle end")
    assert fingerprint("begin middle end", on_bad_text="skip") == original
    others = [fingerprint(text) for text in ("Begin middle end", "begin middle End", "begin a middle end")]
    others.append(fingerprint("begin middle end", document_separator="line"))
    assert len({original, *others}) == 5
    assert fingerprint("x") != fingerprint("y")  # shorter than what is read


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.bz2", "jsonl.xz", "parquet", "txt"])
@pytest.mark.parametrize("separator", ["blank_line", "line", "file"])
def test_reading_goes_on_behind_any_document(tmp_path, kind, separator):
    texts = ["", *TEXTS, " ", *(f"text {i}" for i in range(7)), ""]
    for name in ("a", "b"):
        path = tmp_path / f"{name}.{kind}"
        if kind == "txt":
            path.write_text("\ufeff" + "\n\n".join(texts))
        elif kind == "parquet":
            pd.DataFrame({"text": texts}).to_parquet(path, row_group_size=3)
        else:
            openers = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
            write_jsonl(path, texts, opener=openers.get(kind[6:], open))
    corpus = Corpus(str(tmp_path), document_separator=separator)
    reader, places = corpus.documents(), [Place()]
    expected = [(text, places.append(reader.place))[0] for text in reader]
    assert len(expected) >= 2
    for number, place in enumerate(places):
        again = corpus.documents(Place(*json.loads(json.dumps(place))))
        assert list(again) == expected[number:]
        assert again.bytes_read == corpus.size


def test_places_in_lines_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n{bad\n')
    reader = Corpus(str(path)).documents()
    next(reader)
    with pytest.raises(ValueError, match=f"line 3 of {path} is not JSON"):
        list(Corpus(str(path)).documents(reader.place))


def test_progress_reaches_the_size_of_the_files(tmp_path):
    write_jsonl(tmp_path / "a.jsonl.gz", opener=gzip.open)
    pd.DataFrame({"text": TEXTS}).to_parquet(tmp_path / "b.parquet")
    corpus = Corpus(str(tmp_path))
    reader = corpus.documents()
    assert len(list(reader)) == 6 and reader.bytes_read == corpus.size


# What cannot be read


def test_bytes_that_are_no_utf8_are_named_with_file_and_offset_or_skipped_and_counted(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("grün\nbl".encode() + b"\xff\xfe\nrot\n")
    with pytest.raises(ValueError, match=rf"{path} is not UTF-8 at byte 8 \(line 2\).*on_bad_text=\"skip\""):
        documents(path, document_separator="line")
    reader = Corpus(str(path), document_separator="line", on_bad_text="skip").documents()
    assert list(reader) == ["grün", "rot"] and reader.num_skipped == 1


def test_lines_that_are_no_json_are_named_or_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n{"text": "b"}\n')
    with pytest.raises(ValueError, match=f"line 2 of {path} is not JSON"):
        documents(path)
    assert documents(path, on_bad_text="skip") == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"body": "a"}', "line 1 of .* has body"), ('["a"]', "is \\['a'\\]"), ('{"text": 3}', "is 3")],
)
def test_rows_without_text_are_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=rf"{message}.*text_column"):
        documents(tmp_path / "a.jsonl")


def test_a_parquet_file_without_the_column_names_its_columns(tmp_path):
    pd.DataFrame({"body": TEXTS}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="has the columns body"):
        documents(tmp_path / "a.parquet")


def test_a_file_cut_short_is_named(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl.gz", TEXTS * 100, opener=gzip.open)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=f"{path} cannot be read.*Is the file whole"):
        documents(path)


@pytest.mark.parametrize(
    ("source", "settings", "error", "message"),
    [
        ("/no/such/file.txt", {}, FileNotFoundError, "no file or folder"),
        ("missing.jsonl", {}, FileNotFoundError, "no file or folder"),
        (".", {}, FileNotFoundError, "holds no text"),
        ("a.png", {}, ValueError, "cannot tell how to read"),
        ("a.txt", {"document_separator": "page"}, ValueError, "document_separator is 'page'"),
        ("a.txt", {"on_bad_text": "ignore"}, ValueError, "on_bad_text is 'ignore'"),
    ],
)
def test_what_is_no_corpus_raises(tmp_path, monkeypatch, source, settings, error, message):
    monkeypatch.chdir(tmp_path)
    if source == "a.png":
        (tmp_path / source).write_bytes(b"\x89PNG")
    with pytest.raises(error, match=message):
        Corpus(source, **settings)
