"""Translators' texts become pairs of sentences, and what is held out is not in training."""

import gzip
import itertools
import struct
from pathlib import Path

import pytest
from scripts import run_script

from chinchilla_hf.data.parallel import load_parallel
from chinchilla_hf.data.parallel_texts import (
    Passage,
    clean_pairs,
    hold_out,
    read_catalogue,
    read_descriptions,
    read_manual,
)

ENGLISH = """Package: cat-tool
Description-md5: 1
Description-en: tool for cats
 It feeds cats. It also
 counts them.
 .
 It has:
  - a bowl
  - a bell

Package: dog
Description-md5: 2
Description-en: tool for dogs
 First paragraph.
 .
 Second one.
"""
GERMAN = """Package: cat-tool
Description-md5: 1
Description-de: Werkzeug für Katzen
 Es füttert Katzen. Es zählt sie
 auch.
 .
 Es hat:
  - einen Napf
  - eine Glocke

Package: dog
Description-md5: 2
Description-de: Werkzeug für Hunde
 Alles in einem Absatz.

Package: dog
Description-md5: 3
Description-de: veraltet
"""


def write_catalogue(path: Path, texts: dict[str, str]) -> Path:
    """A compiled catalogue, as `msgfmt` makes it."""
    texts = {"": "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=n != 1;\n"} | texts
    keys = sorted(texts)
    begin = 28 + 16 * len(keys)
    tables, data = [], b""
    for side in (keys, [texts[key] for key in keys]):
        for text in side:
            encoded = text.encode()
            tables.append(struct.pack("<II", len(encoded), begin + len(data)))
            data += encoded + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, len(keys), 28, 28 + 8 * len(keys), 0, 0)
    path.write_bytes(header + b"".join(tables) + data)
    return path


def sides(passages) -> list[tuple[str, str]]:
    return [passage[:2] for passage in passages]


def test_descriptions_are_joined_by_their_checksum(tmp_path):
    (tmp_path / "en").write_text(ENGLISH)
    with gzip.open(tmp_path / "de.gz", "wt") as file:
        file.write(GERMAN)
    passages = list(read_descriptions(tmp_path / "en", tmp_path / "de.gz"))
    assert sides(passages) == [
        ("tool for cats", "Werkzeug für Katzen"),
        ("It feeds cats. It also counts them.", "Es füttert Katzen. Es zählt sie auch."),
        ("It has:", "Es hat:"),
        ("a bowl", "einen Napf"),
        ("a bell", "eine Glocke"),
        ("tool for dogs", "Werkzeug für Hunde"),
        ("First paragraph. Second one.", "Alles in einem Absatz."),
    ]
    assert {passage.document for passage in passages} == {"description/cat", "description/dog"}


def test_a_catalogue_without_contexts_plurals_and_shortcuts(tmp_path):
    texts = {
        "_Open file": "Datei ö_ffnen",
        "menu\x04~Print page": "Seite ~drucken",
        "female^Elvish Archer": "Elfische Schützin",
        "One cat\0%d cats": "Eine Katze\0%d Katzen",
        "call open_file here": "hier open_file rufen",
        "Two parts.\n\nOf one text.": "Zwei Teile.\n\nEin Text.",
    }
    passages = list(read_catalogue(write_catalogue(tmp_path / "editor-3.0.mo", texts)))
    assert set(sides(passages)) == {
        ("Open file", "Datei öffnen"),
        ("Print page", "Seite drucken"),
        ("Elvish Archer", "Elfische Schützin"),
        ("One cat", "Eine Katze"),
        ("call open_file here", "hier open_file rufen"),
        ("Two parts.", "Zwei Teile."),
        ("Of one text.", "Ein Text."),
    }
    assert {passage.document for passage in passages} == {"catalogue/editor"}


def test_a_manual_is_aligned_by_ids_or_by_the_same_elements(tmp_path):
    pages = {
        "en/a.html": "<head>T</head><h1 id='h1'>Cats</h1><p id='p1'>Feed <b>them</b>.</p><p id='p2'>New.</p>",
        "de/a.html": "<head>T</head><p id='p1'>Füttere <b>sie</b>.</p><h1 id='h1'>Katzen</h1><p>Alt.</p>",
        "en/sub/b.page": "<page><info><desc>no</desc></info><title>Dogs</title><p>One.</p><p>Two.</p></page>",
        "de/sub/b.page": "<page><info><desc>no</desc></info><title>Hunde</title><p>Eins.</p><p>Zwei.</p></page>",
        "en/c.html": "<p id='p1'><span hidden='true'>Mac</span><span hidden='true'>PC</span></p><p id='p2'>Both</p>",
        "de/c.html": "<p id='p1'><span hidden='true'>Mac</span><span hidden='true'>PC</span></p><p id='p2'>Beide</p>",
        "en/alone.html": "<p>Nobody translated this.</p>",
    }
    for name, page in pages.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(page)
    passages = list(read_manual(tmp_path / "en", tmp_path / "de"))
    assert sides(passages) == [
        ("Cats", "Katzen"),
        ("Feed them.", "Füttere sie."),
        ("Both", "Beide"),
        ("Dogs", "Hunde"),
        ("One.", "Eins."),
        ("Two.", "Zwei."),
    ]
    assert len({passage.document for passage in passages}) == 3


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("Open the file", "", "are empty"),
        ("3.5 %", "3,5 %", "have little text"),
        ("Open the file", "open the File!", "are not translated"),
        ("a short one", "lange " * 10 + "Texte", "differ in length"),
        ("Open the file %s", "Öffne die Datei", "differ in placeholders"),
        ("since the year 1984", "seit jenem Jahr", "differ in numbers"),
        ("the cat of the house", "the cats of this house", "are in the wrong language"),
        ("word " * 90, "Wort " * 90, "are too long"),
        ("cats, called 猫 there", "Katzen, dort 猫 genannt", "have another script"),
        ("Feed 3 cats", "Füttere 3 Katzen", "repeat another"),
    ],
)
def test_what_is_no_translation_is_counted_and_dropped(source, target, reason):
    good = Passage("Feed 2 cats.", "Füttere 2 Katzen.", "a", "x")
    pairs, dropped = clean_pairs([good, Passage(source, target, "b", "x")])
    assert pairs == [good]
    assert dropped == {reason: 1}


def test_sentences_are_cut_where_both_sides_have_as_many():
    source, target = "Feed the cats, e.g. Tom. Then count them.", "Füttere die Katzen, z. B. Tom. Dann zähle sie."
    pairs, _ = clean_pairs([Passage(source, target, "a", "x")])
    assert sides(pairs) == [
        ("Feed the cats, e.g. Tom.", "Füttere die Katzen, z. B. Tom."),
        ("Then count them.", "Dann zähle sie."),
    ]
    source, target = "Feed the cats. Then count them.", "Füttere die Katzen und zähle sie dann."
    pairs, _ = clean_pairs([Passage(source, target, "a", "x")])
    assert sides(pairs) == [(source, target)]


def some_pairs(number: int = 400) -> list[Passage]:
    """Pairs of two a document, without words in common."""
    words = ["".join(letters) for letters in itertools.product("abcdefgh", repeat=5)]
    return [
        Passage(" ".join(words[8 * i : 8 * i + 8]), "zu " + words[8 * i], f"document {i // 2}", "x")
        for i in range(number)
    ]


def test_documents_are_held_out_whole_and_always_the_same():
    pairs = some_pairs()
    splits, dropped = hold_out(pairs, held_out=20)
    assert {name: len(split) for name, split in splits.items()} == {"train": 320, "validation": 20, "test": 20}
    assert dropped["would be held out beyond the number wanted"] == 40
    documents = [{pair.document for pair in split} for split in splits.values()]
    assert not documents[0] & documents[1] and not documents[0] & documents[2] and not documents[1] & documents[2]
    again, _ = hold_out(pairs[::-1], held_out=20)
    assert all(set(again[name]) <= set(pairs) - set(splits["train"]) for name in ("validation", "test"))


def test_a_large_document_stays_in_training():
    large = [pair._replace(document="large") for pair in some_pairs(200)]
    splits, _ = hold_out([*large, *some_pairs(600)[200:]], held_out=20)
    assert set(large) <= set(splits["train"])


@pytest.mark.parametrize("part", ["source", "target", "most of the source"])
def test_held_out_pairs_that_are_nearly_in_training_are_dropped(part):
    pairs = some_pairs()
    splits, _ = hold_out(pairs, held_out=20)
    known = splits["test"][0]
    words = known.source.split()
    copies = {
        "source": known._replace(target="etwas anderes"),
        "target": known._replace(source="something else"),
        "most of the source": known._replace(source=" ".join([*words[:7], "else", "there"]), target="etwas anderes"),
    }
    # In a document that is trained on.
    copy = copies[part]._replace(document=splits["train"][0].document)
    others, dropped = hold_out([*pairs, copy], held_out=20)
    assert copy in others["train"] and known not in others["test"]
    assert dropped["are held out, but nearly in training"] == 1


def test_too_few_documents_are_an_error():
    with pytest.raises(ValueError, match="10 pairs of 5 documents are too few"):
        hold_out(some_pairs(10))


def test_the_script_writes_what_the_translator_reads(tmp_path, monkeypatch, capsys):
    (tmp_path / "en").write_text(ENGLISH)
    (tmp_path / "de").write_text(GERMAN)
    (tmp_path / "mo").mkdir()
    for number, pair in enumerate(some_pairs(100)):
        name = f"{chr(97 + number // 26)}{chr(97 + number % 26)}.mo"
        write_catalogue(
            tmp_path / "mo" / name, {pair.source: pair.target + " und mehr davon, viel mehr davon als hier"}
        )
    arguments = ["--descriptions", str(tmp_path / "en"), str(tmp_path / "de"), "--catalogues", str(tmp_path / "mo")]
    run_script("parallel_texts", monkeypatch, [*arguments, "--output_dir", str(tmp_path / "out")])
    assert "train: " in capsys.readouterr().out
    data = load_parallel(str(tmp_path / "out"), "en", "de")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 88, "validation": 5, "test": 5}
    with pytest.raises(SystemExit):
        run_script("parallel_texts", monkeypatch, ["--descriptions", "en", "--output_dir", str(tmp_path / "out")])
