"""Tables in: every format, every layout of a folder, files that cannot be read."""

import bz2
import gzip
import json
import logging

import datasets
import pytest
from datasets import Dataset, DatasetDict
from labelled_files import all_rows, lines, reviews, rows_of, table, write_jsonl

from chinchilla_hf.data.labelled import load_labelled

pytestmark = pytest.mark.usefixtures("own_datasets_cache")

# ---- Formats ----

SAVERS = {
    "a.csv": lambda rows: table(rows, ","),
    "a.CSV": lambda rows: table(rows, ","),
    "a.tsv": lambda rows: table(rows, "\t"),
    "a.txt": lambda rows: table(rows, "\t"),
    "a.csv.gz": lambda rows: gzip.compress(table(rows, ",")),
    "a.tsv.bz2": lambda rows: bz2.compress(table(rows, "\t")),
    "a.jsonl": lambda rows: lines(rows),
    "a.ndjson": lambda rows: lines(rows),
    "a.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "lines.json": lambda rows: lines(rows),
    "list.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "list.json.gz": lambda rows: gzip.compress(json.dumps(rows).encode()),
    "columns.json": lambda rows: json.dumps({key: [row[key] for row in rows] for key in rows[0]}).encode(),
    "lists.json": lambda rows: json.dumps([list(row.values()) for row in rows]).encode(),
    "data.json": lambda rows: json.dumps({"version": "1", "data": rows}).encode(),
    "a.parquet": None,
}


@pytest.mark.parametrize("bom", [False, True])
@pytest.mark.parametrize("name", SAVERS)
def test_every_format_gives_the_same_data(tmp_path, name, bom):
    rows = reviews()
    rows[0]["text"] = 'with a comma, a "quotation"\nand two lines'
    rows[1]["text"], rows[2]["text"], rows[3]["text"] = "2020-01-01", "None", "007"
    expected = load_labelled(write_jsonl(tmp_path / "expected.jsonl", rows))
    path = tmp_path / name
    if name == "a.parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        content = SAVERS[name](rows)
        path.write_bytes(b"\xef\xbb\xbf" + content if bom and b"text" in content[:10] else content)
    data = load_labelled(str(path))
    assert data.fingerprint == expected.fingerprint
    assert sorted(all_rows(data)) == sorted((row["text"], row["label"]) for row in rows)


def test_a_label_none_in_a_csv_is_a_class_and_an_empty_cell_is_missing(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"t{i},{('None', 'NA', '')[i % 3]}\n" for i in range(60)))
    data = load_labelled(str(path))
    assert data.label_names == ["NA", "None"]
    assert data.num_missing_removed == 20


def test_encoding_and_delimiter(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text;label\n" + b"".join(f"\xe4rger {i};{i % 2}\n".encode("latin-1") for i in range(20)))
    data = load_labelled(str(path), encoding="latin-1", delimiter=";")
    assert sorted(all_rows(data))[0] == ("ärger 0", "0")
    replaced = load_labelled(str(path), encoding_errors="replace", delimiter=";")
    assert sorted(all_rows(replaced))[0] == ("\ufffdrger 0", "0")
    with pytest.raises(ValueError, match=r"a\.csv is not utf-8 text \(byte 0xe4\).*encoding_errors=\"replace\""):
        load_labelled(str(path), delimiter=";")
    with pytest.raises(ValueError, match=r"cannot tell which column is the label.*delimiter=';'"):
        load_labelled(str(path), encoding="latin-1")


@pytest.mark.parametrize("delimiter", ["\t", "\\t"])
def test_delimiter_of_a_shell(tmp_path, delimiter):
    path = tmp_path / "a.data.txt"
    path.write_bytes(table(reviews(), "\t"))
    assert len(all_rows(load_labelled(str(path), delimiter=delimiter))) == 40


def test_an_unpaired_quotation_mark_in_a_table_with_tabs(tmp_path):
    path = tmp_path / "a.tsv"
    texts = [f'"{i} he said' if i in (3, 9) else f"text {i}" for i in range(20)]
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(texts)))
    with pytest.raises(ValueError, match=r"1 values of column 'text' .* Pass quoting=False"):
        load_labelled(str(path))
    assert sorted(row[0] for row in all_rows(load_labelled(str(path), quoting=False))) == sorted(texts)


def test_mixed_types_in_json_become_strings(tmp_path):
    rows = [{"text": f"t {i}", "label": [1, "one"][i % 2], "meta": [{}, "x"][i % 2]} for i in range(20)]
    assert load_labelled(write_jsonl(tmp_path / "a.jsonl", rows)).label_names == ["1", "one"]


# ---- Folders ----


@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "validation.csv", "test.csv"),
        ("my_train.csv", "my-dev.csv", "MyTest.test.csv"),
        ("training/a.csv", "val/a.csv", "eval/a.csv"),
        ("data/train-00000-of-00001.csv", "data/valid-00000-of-00001.csv", "data/test-00000-of-00001.csv"),
    ],
)
def test_folder_of_tables(tmp_path, names):
    parts = [reviews(20), reviews(40)[20:30], reviews(50)[40:]]
    for name, part in zip(names, parts, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(table(part, ","))
    (tmp_path / "extra.csv").write_text("a,b\n1,2\n")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "train.csv").write_text("a,b\n1,2\n")
    data = load_labelled(str(tmp_path))
    for split, part in zip(("train", "validation", "test"), parts, strict=True):
        assert rows_of(data, split) == [(row["text"], row["label"]) for row in part]


def test_shards_are_put_together(tmp_path):
    (tmp_path / "train-0.csv").write_bytes(table(reviews(20), ","))
    write_jsonl(tmp_path / "train-1.jsonl", reviews(40)[20:])
    assert len(all_rows(load_labelled(str(tmp_path)))) == 40


@pytest.mark.parametrize("has_splits", [True, False])
def test_folder_of_texts(tmp_path, has_splits, caplog):
    expected = []
    for split in ("train", "test") if has_splits else ("",):
        for label in ("neg", "pos"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(10):
                expected.append((f"{split} {label}\n{i}", label))
                (tmp_path / split / label / f"{i}.txt").write_text(expected[-1][0])
    (tmp_path / "train" / "unsup").mkdir(parents=True)  # as in aclImdb
    if has_splits:
        (tmp_path / "train" / "unsup" / "0.txt").write_text("no label")
        (tmp_path / "train" / "urls_pos.txt").write_text("https://")
    (tmp_path / "README.txt").write_text("read me")
    with caplog.at_level(logging.INFO):
        data = load_labelled(str(tmp_path))
    assert sorted(all_rows(data)) == sorted(expected)
    if has_splits:
        assert {row[0].split()[0] for row in rows_of(data, "test")} == {"test"}
        assert "leaving out 3 text files" in caplog.text


def test_folder_of_one_text_file_a_class(tmp_path):
    for label in ("neg", "pos"):
        (tmp_path / f"{label}.txt").write_text("".join(f"{label} line {i}\n" for i in range(20)))
    data = load_labelled(str(tmp_path))
    assert sorted(all_rows(data)) == sorted((f"{label} line {i}", label) for label in ("neg", "pos") for i in range(20))
    assert data.num_missing_removed == 0


@pytest.mark.parametrize("kind", ["dataset_dict", "dataset"])
def test_folder_of_save_to_disk(tmp_path, kind):
    table = Dataset.from_list(reviews())
    saved = (
        DatasetDict({"train": table, "test": Dataset.from_list(reviews(50)[40:])}) if kind == "dataset_dict" else table
    )
    saved.save_to_disk(tmp_path / "saved")
    data = load_labelled(str(tmp_path / "saved"))
    assert len(all_rows(data)) == (50 if kind == "dataset_dict" else 40)
    assert len(data.splits["test"]) == (10 if kind == "dataset_dict" else 4)


def test_folder_laid_out_as_a_hub_repository(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files:\n  - split: train\n    path: x/a.csv\n"
        "- config_name: two\n  data_files:\n  - split: train\n    path: x/b.csv\n---\n# Reviews\n"
    )
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.csv").write_bytes(table(reviews(30), ","))
    (tmp_path / "x" / "b.csv").write_bytes(table(reviews(50), ","))
    assert len(all_rows(load_labelled(str(tmp_path), dataset_config="one"))) == 30
    assert len(all_rows(load_labelled(str(tmp_path), dataset_config="two"))) == 50
    with pytest.raises(ValueError, match=r"cannot be loaded: Config name is missing(.|\n)*'one', 'two'"):
        load_labelled(str(tmp_path))


@pytest.mark.network
def test_hub_data_set(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    data = load_labelled("cornell-movie-review-data/rotten_tomatoes")
    assert data.label_names == ["neg", "pos"]
    assert [len(split) for split in data.splits.values()] == [8530, 1066, 1066]


# ---- Bad input ----


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", r"a\.csv is empty"),
        ("a.csv", b"text,label\n", r"a\.csv has no rows"),
        ("a.csv", b"text,label\na,b\na,b,c\n", "Expected 2 fields in line 3, saw 3. Pass another delimiter"),
        ("a.csv", b"text,label\na,b,c\nd,e,f\n", "more columns than its header row"),
        ("a.csv", b'text,label\n"a,b\n', "EOF inside string.* quoting=False"),
        ("a.csv.gz", b"text,label\na,b\n", r"a\.csv\.gz cannot be read: Not a gzipped file"),
        # The time in the header would make the name of the test another one in each process of pytest-xdist.
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "a"}\n' * 9999, mtime=0)[:60],
            r"a\.jsonl\.gz cannot be read.*end-of-stream",
        ),
        ("a.jsonl", b"", r"a\.jsonl has no rows"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"line 2 of .*a\.jsonl is not JSON: .* in '\{\"text\": '"),
        ("a.jsonl", b'{"text": "a"}\n3\n', r"row 2 of .*a\.jsonl is 3: expected dicts"),
        ("a.jsonl", b'{"text": "\xe4"}\n', r"a\.jsonl is not utf-8 text \(byte 0xe4\)"),
        ("a.json", b"[]", r"a\.json has no rows"),
        ("a.json", b"[1, 2]", r"row 1 of .*a\.json is 1"),
        ("a.json", b"{", r"a\.json is not JSON: Expecting property name"),
        ("a.json", b'{"a": 1}', r"a\.json is a JSON dict without rows: expected a list of rows"),
        ("a.json", b'{"text": ["a", "b"], "label": [1]}', r"a\.json is a JSON dict without rows.* same length"),
        ("a.json", b'{"test": [["a", "b"]], "x": [["a", "b"]]}', "the splits test, x, none of them for training"),
        ("a.parquet", b"PAR1", r"a\.parquet cannot be read"),
        ("a.xlsx", b"PK", r"cannot tell how to read .*a\.xlsx: pass a \.csv, \.tsv"),
        ("a.txt", b"only text\n", r"cannot tell how to read .*a\.txt.*<label>/<name>\.txt"),
        ("a.csv", b"text,label\na,x\nb,y\n", "too few rows to make the split 'validation': it needs 1 of 2"),
        ("a.csv", b"text,label\na,x\na,y\n", "too few rows to make the split"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_labelled(str(tmp_path / name))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no data: expected train.csv"),
        ({"README.txt": "read me"}, "holds no data"),
        ({"a.csv": "text,label\na,b\n", "b.csv": "text,label\na,b\n"}, r"none of the 2 files .* its split \(a\.csv\)"),
        ({"test.csv": "text,label\na,b\n"}, "has the splits test, none of them for training: pass train_split"),
        ({"train/a/b/0.txt": "a"}, "no text file of .* is <label>/<name>.txt"),
        (
            {"train.csv": "text,label\na,0\nb,1\n", "test.csv": "content,label\na,0\n"},
            "'test' lacks the text column 'text'",
        ),
    ],
)
def test_folders_that_cannot_be_read(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_labelled(str(tmp_path))


@pytest.mark.parametrize("name", ["nowhere.csv", "/nowhere/at/all", "./nowhere", "a/b/c", "nowhere.jsonl.gz"])
def test_a_file_that_is_not_there(name):
    with pytest.raises(FileNotFoundError, match=f"there is no file or folder '{name}'"):
        load_labelled(name)


def test_a_name_that_is_neither_here_nor_on_the_hub():
    with pytest.raises(FileNotFoundError, match=r"'no-such-owner/none' is no file or folder in .*the Hub"):
        load_labelled("no-such-owner/none")
