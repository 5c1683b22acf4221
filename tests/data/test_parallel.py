import gzip
import json

import pytest

from chinchilla_hf.data.parallel import load_parallel

ENGLISH = [f"a dog number {i}" for i in range(60)]
GERMAN = [f"ein Hund Nummer {i}" for i in range(60)]


def write_lines(path, lines):
    text = "".join(line + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def pairs_of(split) -> list[tuple[str, str]]:
    return list(zip(split["source"], split["target"], strict=True))


EXPECTED = list(zip(ENGLISH, GERMAN, strict=True))


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_folder_of_aligned_files(tmp_path, ending):
    for name, rows in (("train", slice(0, 40)), ("val", slice(40, 50)), ("test_2016_flickr", slice(50, 60))):
        write_lines(tmp_path / f"{name}.en{ending}", ENGLISH[rows])
        write_lines(tmp_path / f"{name}.de{ending}", GERMAN[rows])
    (tmp_path / "README.md").write_text("about")
    data = load_parallel(str(tmp_path), "en", "de")
    found = [pairs_of(data.splits[name]) for name in ("train", "validation", "test")]
    assert found == [EXPECTED[:40], EXPECTED[40:50], EXPECTED[50:]]
    assert data.summary() == "pairs: train 40, validation 10, test 10"
    backwards = load_parallel(str(tmp_path), "de", "en")
    assert pairs_of(backwards.splits["train"]) == [pair[::-1] for pair in EXPECTED[:40]]
    assert backwards.fingerprint != data.fingerprint


def test_two_files_and_splits_made_of_them(tmp_path):
    source, target = write_lines(tmp_path / "a.txt", ENGLISH * 2), write_lines(tmp_path / "b.txt", GERMAN * 2)
    data = load_parallel(source, "en", "de", target_file=target)
    sizes = {name: len(split) for name, split in data.splits.items()}
    assert sizes == {"train": 54, "validation": 3, "test": 3} and data.num_duplicates == 60
    together = [pair for split in data.splits.values() for pair in pairs_of(split)]
    assert sorted(together) == sorted(EXPECTED)  # none on two sides
    again, other = (load_parallel(source, "en", "de", target_file=target, seed=seed) for seed in (42, 1))
    assert again.fingerprint == data.fingerprint != other.fingerprint


@pytest.mark.parametrize("form", ["tsv", "jsonl", "translation", "splits"])
def test_tables(tmp_path, form):
    if form == "tsv":
        path = tmp_path / "pairs.tsv"
        path.write_text("en\tde\n" + "".join(f"{a}\t{b}\n" for a, b in EXPECTED))
    else:
        path = tmp_path / ("pairs.json" if form == "splits" else "pairs.jsonl")
        rows = [{"en": a, "de": b} for a, b in EXPECTED]
        if form == "translation":
            rows = [{"id": i, "translation": row} for i, row in enumerate(rows)]
        path.write_text(
            json.dumps({"train": rows[:50], "validation": rows[50:]})
            if form == "splits"
            else "".join(json.dumps(row) + "\n" for row in rows)
        )
    data = load_parallel(str(path), "en", "de")
    assert sum(map(len, data.splits.values())) == 60
    if form == "splits":
        assert pairs_of(data.splits["validation"]) == EXPECTED[50:]


def test_own_files_for_validation_and_test(tmp_path):
    files = [
        (write_lines(tmp_path / f"{n}.en", ENGLISH[rows]), write_lines(tmp_path / f"{n}.de", GERMAN[rows]))
        for n, rows in enumerate((slice(0, 40), slice(40, 50), slice(50, 60)))
    ]
    data = load_parallel(
        files[0][0], "en", "de", target_file=files[0][1], validation_files=files[1], test_files=files[2]
    )
    assert pairs_of(data.splits["validation"]) == EXPECTED[40:50]
    assert pairs_of(data.splits["test"]) == EXPECTED[50:]


def test_only_a_line_feed_ends_a_line(tmp_path):
    odd = ["one\u2028two", "three\x85four", "five\rsix", *ENGLISH]
    source = tmp_path / "a.en"
    source.write_bytes("\r\n".join(odd).encode())  # without a line feed at the end
    target = write_lines(tmp_path / "a.de", ["eins", "zwei", "drei", *GERMAN])
    data = load_parallel(str(source), "en", "de", target_file=target)
    together = [pair for split in data.splits.values() for pair in pairs_of(split)]
    assert sorted(together) == sorted(zip(odd, ["eins", "zwei", "drei", *GERMAN], strict=True))


def test_different_numbers_of_lines(tmp_path):
    source, target = write_lines(tmp_path / "a.en", ENGLISH), write_lines(tmp_path / "a.de", GERMAN[1:])
    with pytest.raises(ValueError, match=r"a\.en has 60 lines, but .*a\.de has 59"):
        load_parallel(source, "en", "de", target_file=target)


def test_empty_sides(tmp_path):
    source = write_lines(tmp_path / "a.en", [*ENGLISH, "", "  ", "left"])
    target = write_lines(tmp_path / "a.de", [*GERMAN, "", "rechts", ""])
    with pytest.raises(ValueError, match=r"source of pair 62 of the train split is empty.*on_empty='skip'"):
        load_parallel(source, "en", "de", target_file=target)
    data = load_parallel(source, "en", "de", target_file=target, on_empty="skip")
    assert data.num_empty == 3 and "3 with an empty side" in data.summary()
    assert sum(map(len, data.splits.values())) == 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "fr"}, "has the columns en, de, but 'fr' and 'de' are wanted"),
        ({"target": "en"}, "source and target are both 'en'"),
        ({"on_empty": "drop"}, "on_empty is 'drop'"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    (tmp_path / "pairs.tsv").write_text("en\tde\na dog\tein Hund\n")
    with pytest.raises(ValueError, match=message):
        load_parallel(str(tmp_path / "pairs.tsv"), **{"source": "en", "target": "de", **options})


def test_too_little_to_hold_out(tmp_path):
    (tmp_path / "pairs.tsv").write_text("en\tde\na dog\tein Hund\n")
    with pytest.raises(ValueError, match="1 different training pairs, too few"):
        load_parallel(str(tmp_path / "pairs.tsv"), "en", "de")


def test_no_such_file(tmp_path):
    source = write_lines(tmp_path / "a.en", ENGLISH)
    with pytest.raises(FileNotFoundError, match=r"there is no file 'b\.de'"):
        load_parallel(source, "en", "de", target_file="b.de")


def test_multi30k(shared_data):
    data = load_parallel(str(shared_data / "multi30k"), "en", "de")
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 29000,
        "validation": 1014,
        "test": 1000,
    }
    assert data.splits["test"][0]["target"].startswith("Ein Mann mit einem orangefarbenen Hut")
