"""Labelled words: from files, tables and splits to token ids with a label at the first token of every word."""

import json
import logging
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from seqeval.metrics.sequence_labeling import get_entities
from transformers import AutoTokenizer

from chinchilla_hf import train_tokenizer
from chinchilla_hf.data.tagged import (
    IGNORED,
    check_word_tokenizer,
    continuation_labels,
    load_tagged,
    load_word_tokenizer,
    tokenize_tagged,
)

pytestmark = pytest.mark.usefixtures("own_datasets_cache")

# Words, a column of their own, and IOB2 labels.
SENTENCES = [
    [("Anna", "N", "B-PER"), ("Müller", "N", "I-PER"), ("wohnt", "V", "O"), ("in", "P", "O"), ("Köln", "N", "B-LOC")],
    [("Paul", "N", "B-PER"), ("schläft", "V", "O")],
    [("Köln", "N", "B-LOC"), ("Bonn", "N", "B-LOC"), ("!", "M", "O")],
]


def many(count: int = 40) -> list:
    """Different sentences."""
    return [[(f"wort{i}", "X", "O"), *SENTENCES[i % 3]] for i in range(count)]


def columns(sentences: list, separator: str = " ") -> str:
    return "\n".join("".join(separator.join(word) + "\n" for word in sentence) for sentence in sentences)


def write_columns(path: Path, sentences: list, separator: str = " ") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(columns(sentences, separator), encoding="utf-8")
    return str(path)


def lists(sentences: list, place: int = 2) -> list[dict]:
    return [{"tokens": [w[0] for w in sentence], "ner_tags": [w[place] for w in sentence]} for sentence in sentences]


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def named(data, split: str) -> list[list[tuple]]:
    """Words with names of labels."""
    names = dict(enumerate(data.label_names)) | {IGNORED: None}
    return [
        [(token, names[label]) for token, label in zip(row["tokens"], row["labels"], strict=True)]
        for row in data.splits[split]
    ]


def pairs(sentences: list) -> list[list[tuple]]:
    return [[(word[0], word[2]) for word in sentence] for sentence in sentences]


# ---- Where they come from ----


@pytest.mark.parametrize("separator", [" ", "\t", "   "])
def test_files_of_columns_by_split(tmp_path, separator):
    parts = {"train": many(30), "dev": many(10)[3:], "test": many(5)}
    for name, sentences in parts.items():
        write_columns(tmp_path / f"{name}.txt", sentences, separator)
    (tmp_path / "README.md").write_text("from somewhere")
    data = load_tagged(str(tmp_path))
    assert data.label_names == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert (data.token_column, data.label_column) == ("column_0", "column_2")
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        assert named(data, split) == pairs(parts[name])
    assert data.num_seen_in_train == {"validation": 7, "test": 5}
    assert "train             30 sentences        130 words" in data.summary()


@pytest.mark.parametrize(("column", "label"), [("-2", "N"), ("1", "N"), ("column_1", "N")])
def test_another_column(tmp_path, column, label):
    data = load_tagged(write_columns(tmp_path / "data.conll", many()), label_column=column)
    assert data.label_names == ["M", "N", "P", "V", "X"]
    assert named(data, "train")[0][1][1] == label


def test_what_files_of_columns_may_hold_beside_sentences(tmp_path):
    text = "\ufeff-DOCSTART- -X- O\r\n\r\n\r\n" + columns(many()).replace("\n", "\r\n") + "\r\n \r\n\r\n# N O\r\n"
    (tmp_path / "data.conll").write_bytes(text.encode())
    data = load_tagged(str(tmp_path / "data.conll"))
    rows = [row for split in data.splits for row in named(data, split)]
    assert sorted(rows, key=str) == sorted([*pairs(many()), [("#", "O")]], key=str)


def test_universal_dependencies(tmp_path):
    lines = ["# text = zum Haus", "1-2\tzum\t_\t_" + "\t_" * 6, "1\tzu\tzu\tADP" + "\t_" * 6]
    lines += ["2\tdem\tder\tDET" + "\t_" * 6, "3\tHaus\tHaus\tNOUN" + "\t_" * 6, "3.1\tx\tx\tVERB" + "\t_" * 6, ""]
    lines = [line.replace("\tHaus", f"\tHaus{i}", 1) for i in range(20) for line in lines]
    (tmp_path / "de.conllu").write_text("\n".join(lines))
    data = load_tagged(str(tmp_path / "de.conllu"))
    assert data.label_names == ["ADP", "DET", "NOUN"]
    assert [word for word, _ in named(data, "train")[0]][:2] == ["zu", "dem"]
    assert load_tagged(str(tmp_path / "de.conllu"), label_column="column_2").label_column == "column_2"


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_tables_with_lists(tmp_path, kind):
    rows = lists(many())
    if kind == "jsonl":
        source = write_jsonl(tmp_path / "data.jsonl", rows)
    else:
        names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]  # as on the Hub: ids, in an order of their own
        features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=names))})
        table = Dataset.from_list(rows, features=features)
        source = str(tmp_path / "data.parquet") if kind == "parquet" else str(tmp_path / "data")
        table.to_parquet(source) if kind == "parquet" else DatasetDict(train=table).save_to_disk(source)
    data = load_tagged(source)
    assert data.label_names[1:3] == (["B-LOC", "I-LOC"] if kind == "jsonl" else ["B-PER", "I-PER"])
    rows = [row for split in data.splits for row in named(data, split)]
    assert sorted(rows, key=str) == sorted(pairs(many()), key=str)


def test_a_file_for_every_split(tmp_path):
    files = [write_columns(tmp_path / f"{name}.conll", many(12)) for name in "abc"]
    data = load_tagged(files[0], validation_file=files[1], test_file=files[2])
    assert [len(split) for split in data.splits.values()] == [12, 12, 12]


def test_ids_without_names_get_them(tmp_path):
    rows = [{"tokens": [f"a{i}", "b"], "labels": [0, 1]} for i in range(20)]
    source = write_jsonl(tmp_path / "data.jsonl", rows)
    assert load_tagged(source, class_names=["O", "B-X"]).label_names == ["O", "B-X", "I-X"]
    assert load_tagged(source).label_names == ["0", "1"]


# ---- Labels ----

SCHEMES = {
    "IOB2": ["B-PER", "I-PER", "B-PER", "O", "B-LOC", "I-LOC", "O"],
    "IOB1": ["I-PER", "I-PER", "B-PER", "O", "I-LOC", "I-LOC", "O"],
    "BIOES": ["B-PER", "E-PER", "S-PER", "O", "B-LOC", "E-LOC", "O"],
    "BILOU": ["B-PER", "L-PER", "U-PER", "O", "B-LOC", "L-LOC", "O"],
    "BMES": ["B-PER", "E-PER", "S-PER", "O", "B-LOC", "E-LOC", "O"],
    "underscores": ["B_PER", "I_PER", "B_PER", "O", "B_LOC", "I_LOC", "O"],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_labels_that_mark_entities_become_iob2(tmp_path, scheme):
    tokens = ["Anna", "Müller", "Paul", "in", "New", "York", "."]
    rows = [{"tokens": [f"{i}", *tokens], "tags": ["O", *SCHEMES[scheme]]} for i in range(20)]
    data = load_tagged(write_jsonl(tmp_path / "data.jsonl", rows))
    assert [label for _, label in named(data, "train")[0]][1:] == SCHEMES["IOB2"]
    assert data.label_names == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def test_three_words_of_bmes_and_labels_that_are_a_prefix_alone(tmp_path):
    rows = [{"tokens": [f"x{i}", "北", "京", "市"], "tags": ["S", "B", "M", "E"]} for i in range(20)]
    data = load_tagged(write_jsonl(tmp_path / "data.jsonl", rows))
    assert [label for _, label in named(data, "train")[0]] == ["B-entity", "B-entity", "I-entity", "I-entity"]


def test_entities_are_those_of_seqeval(tmp_path):
    """Also where labels follow no scheme."""
    labels = ["I-PER", "E-PER", "I-LOC", "B-LOC", "I-PER", "O", "S-LOC", "I-LOC", "B-PER", "B-PER", "E-LOC"]
    rows = [{"tokens": [f"w{i}{j}" for j in range(11)], "tags": labels} for i in range(20)]
    data = load_tagged(write_jsonl(tmp_path / "data.jsonl", rows))
    assert get_entities([label for _, label in named(data, "train")[0]]) == get_entities(labels)


def test_plain_labels_stay(tmp_path):
    rows = [{"tokens": [f"w{i}", "New", "York"], "tags": ["O", "LOC", "LOC"]} for i in range(20)]
    assert load_tagged(write_jsonl(tmp_path / "data.jsonl", rows)).label_names == ["LOC", "O"]


def test_ignored_words_have_no_label_and_end_an_entity(tmp_path):
    rows = [{"tokens": [f"w{i}", "a", "b", "c"], "tags": [0, 1, -100, 1]} for i in range(20)]
    data = load_tagged(write_jsonl(tmp_path / "data.jsonl", rows), class_names=["O", "I-X"])
    assert [label for _, label in named(data, "train")[0]] == ["O", "B-X", None, "B-X"]


def test_sentences_without_words_or_labels_are_left_out(tmp_path, caplog):
    rows = [*lists(many()), {"tokens": [], "ner_tags": []}, {"tokens": ["a"], "ner_tags": None}]
    with caplog.at_level(logging.WARNING):
        data = load_tagged(write_jsonl(tmp_path / "data.jsonl", rows))
    assert data.num_missing_removed == 2 and "dropping 2 of the 42 sentences" in caplog.text


def test_a_split_with_hidden_labels_is_replaced(tmp_path, caplog):
    rows = {"train": lists(many()), "test": [{"tokens": ["a"], "ner_tags": [-1]}]}
    names = {"O": 0, "B-PER": 1, "I-PER": 2, "B-LOC": 3}
    for row in rows["train"]:
        row["ner_tags"] = [names[tag] for tag in row["ner_tags"]]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    data = load_tagged(str(tmp_path / "data.json"), class_names=list(names))
    assert len(data.splits["test"]) == 4 and "the split test has no labels" in caplog.text
    with pytest.raises(ValueError, match="no sentence of split 'test' has words"):
        load_tagged(str(tmp_path / "data.json"), class_names=list(names), test_split="test")


# ---- Splits ----


def test_splits_are_made_by_the_seed_and_keep_equal_sentences_together(tmp_path):
    source = write_columns(tmp_path / "data.conll", many(40) + many(40))
    first, again, other = (load_tagged(source, seed=seed) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert sum(map(len, first.splits.values())) == 80 and len(first.splits["test"]) in (8, 9)
    assert first.num_seen_in_train == {"validation": 0, "test": 0}
    assert len(load_tagged(source, max_rows=5).splits["train"]) == 5


def test_the_only_sentence_with_a_label_stays_in_train(tmp_path):
    for seed in range(10):
        sentences = [*many(10), [("x", "X", "B-RARE")]]
        data = load_tagged(write_columns(tmp_path / "data.conll", sentences), seed=seed, test_share=0.3)
        assert [("x", "B-RARE")] in named(data, "train")


# ---- Bad input ----

MORE = [[("x", "X", "B-MISC")]]
BAD_FILES = {
    "empty": ("", "has no words"),
    "no labels": ("Anna\nschläft\n", "has one column .*'Anna'.*, and so no labels"),
    "a line too short": ("Anna N O\nschläft\n", r"line 2 of .* has 1 columns \('schläft'\), but line 1 has 3"),
    "no empty lines": ("a O\nb B-X\n" * 3000, "all 6,000 words of .* are one sentence"),
    "the same label everywhere": (columns([[(f"w{i}", "X", "O")] for i in range(20)]), "says 'O' of every word"),
    "words for labels": (columns([[("a", f"w{i}")] for i in range(300)]), "holds 300 different values for 300 words"),
    "labels half with prefixes": (columns([[("a", "B-X")], [("b", "PER")]] * 5), "holds 'PER', but its other labels"),
    "too few": (columns(SENTENCES[:1]), "too few sentences to make the split 'validation'"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_of_columns(tmp_path, case):
    text, message = BAD_FILES[case]
    (tmp_path / "data.conll").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_tagged(str(tmp_path / "data.conll"))


BAD_ROWS = {
    "fewer labels": (
        [{"tokens": ["a", "b"], "tags": ["O", "O"]}, {"tokens": ["c", "d", "e"], "tags": ["O", "B-X"]}],
        {},
        r"row 2 of split 'train' \(c d e \.\.\.\) has 3 words in 'tokens', but 2 labels in 'tags'",
    ),
    "a word without a label": ([{"tokens": ["a", "b"], "tags": ["O", None]}], {}, "word 2 of row 1 .* has no label"),
    "a label without a word": ([{"tokens": ["a", None], "tags": ["O", "O"]}], {}, "word 2 of row 1 .* has no text"),
    "an id without a name": (
        [{"tokens": ["a"], "tags": [5]}],
        {"class_names": ["O", "B-X"]},
        "row 1 .* has the label 5, but ids go from 0 to 1",
    ),
    "a negative id": (
        [{"tokens": ["a", "b"], "tags": [0, -2]}],
        {},
        "has the label -2, .* -100 is for words to",
    ),
    "no column of words": ([{"text1": ["a"], "tags": ["O"]}], {}, "cannot tell which column holds the words"),
    "two columns of labels": (
        [{"tokens": ["a"], "ner_tags": ["O"], "ner": ["O"]}],
        {},
        "cannot tell which column holds the labels of the words; the columns are tokens",
    ),
    "no such column": (
        [{"tokens": ["a"], "tags": ["O"]}],
        {"label_column": "ner"},
        "label_column is 'ner', but the",
    ),
    "texts": ([{"text": "a b", "tags": ["O", "O"]}], {}, "'text' of split 'train' holds no lists of words"),
    "one label a row": ([{"tokens": ["a"], "label": "O"}], {}, "'label' of split 'train' holds no lists of labels"),
    "numbers for words": (
        [{"tokens": [1, 2], "tags": ["O", "O"]}],
        {},
        "'tokens' of split 'train' holds no lists of",
    ),
    "the same column": ([{"tokens": ["a"], "tags": ["O"]}], {"label_column": "tokens"}, "are both column 'tokens'"),
    "all empty": ([{"tokens": ["a"], "tags": None}], {}, "holds no lists of labels"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_tables(tmp_path, case):
    rows, options, message = BAD_ROWS[case]
    with pytest.raises(ValueError, match=message):
        load_tagged(write_jsonl(tmp_path / "data.jsonl", rows), **options)


def test_a_class_that_only_the_test_split_has(tmp_path):
    files = {"train": many(20), "test": [*many(5), *MORE]}
    for name, sentences in files.items():
        write_columns(tmp_path / f"{name}.txt", sentences)
    message = "1 of the 6 sentences of split 'test' have labels that training never saw: 'MISC'"
    with pytest.raises(ValueError, match=message):
        load_tagged(str(tmp_path))


def test_a_first_word_that_only_has_the_inner_label_in_the_test_split_is_no_other_class(tmp_path):
    """In CoNLL-2000, I-LST is in the test sentences alone."""
    write_columns(tmp_path / "train.txt", [*many(20), *MORE])
    write_columns(tmp_path / "test.txt", [[("x", "X", "B-MISC"), ("y", "X", "I-MISC")]])
    assert "I-MISC" in load_tagged(str(tmp_path)).label_names


def test_a_number_of_a_column_that_is_not_there_lists_them(tmp_path):
    source = write_columns(tmp_path / "data.conll", many())
    with pytest.raises(ValueError, match=r"label_column is '7', but the columns are 0 \(wort0\), 1 \(X\), 2 \(O\)"):
        load_tagged(source, label_column="7")


def test_a_missing_file_and_two_files_of_a_split(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_tagged(str(tmp_path / "none.conll"))
    for name in ("train.txt", "train.conll"):
        write_columns(tmp_path / name, many())
    with pytest.raises(ValueError, match="two files for the split 'train'"):
        load_tagged(str(tmp_path))


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "data.conll").write_bytes("Köln B-LOC\n\n".encode("latin-1") * 20)
    with pytest.raises(ValueError, match="is not utf-8 text"):
        load_tagged(str(tmp_path / "data.conll"))


# ---- Sub-words ----


@pytest.fixture(scope="module")
def tokenizer():
    texts = [" ".join(word[0] for word in sentence) for sentence in many()] + ["北 京", "Donaudampfschiff"]
    return train_tokenizer(texts, vocab_size=90, model_max_length=64, show_progress=False)


def one_split(tokens: list, labels: list) -> DatasetDict:
    return DatasetDict(train=Dataset.from_dict({"tokens": tokens, "labels": labels}))


def test_the_first_token_of_a_word_has_its_label(tokenizer):
    words, labels = ["Anna", "Müller", "in", "Köln"], [1, 2, 0, 3]
    row = tokenize_tagged(one_split([words], [labels]), tokenizer, 64)["train"][0]
    ids = tokenizer(words, is_split_into_words=True).word_ids()
    assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == "Anna Müller in Köln"
    assert len(ids) > len(words) + 2  # some have several
    assert row["labels"][0] == row["labels"][-1] == IGNORED and row["length"] == len(ids)
    for i, word in enumerate(ids):
        first = word is not None and ids[i - 1] != word
        assert row["labels"][i] == (labels[word] if first else IGNORED)


def test_other_tokens_of_a_word_go_on_with_its_entity(tokenizer):
    names = ["O", "B-PER", "I-PER"]
    others = continuation_labels(names)
    assert others == {0: 0, 1: 2, 2: 2} and continuation_labels(["N", "V"]) == {0: 0, 1: 1}
    splits = one_split([["Donaudampfschiff"]], [[1]])
    splits["test"] = splits["train"]
    tokenized = tokenize_tagged(splits, tokenizer, 64, others)
    train, test = (tokenized[name][0]["labels"][1:-1] for name in ("train", "test"))
    assert train == [1] + [2] * (len(train) - 1) and len(train) > 3
    assert test == [1] + [IGNORED] * (len(train) - 1)  # scores are of words


def test_long_sentences_are_split_between_words_and_no_word_is_lost(tokenizer):
    words = [f"wort{i}" for i in range(40)] + ["Donaudampfschiff" * 3]
    tokenized = tokenize_tagged(one_split([words, ["Köln"]], [list(range(41)), [7]]), tokenizer, 12)["train"]
    assert all(3 <= length <= 12 for length in tokenized["length"])
    assert [label for row in tokenized["labels"] for label in row if label != IGNORED] == [*range(41), 7]
    for row in tokenized:
        assert row["input_ids"][0] == tokenizer.cls_token_id and row["input_ids"][-1] == tokenizer.sep_token_id
        assert row["labels"][1] != IGNORED  # begins with the first token of a word


def test_a_word_of_which_nothing_is_left_is_unknown(minilm):
    tokenizer = load_word_tokenizer(str(minilm))
    row = tokenize_tagged(one_split([["a", "\u00ad", "b"]], [[1, 2, 3]]), tokenizer, 16)["train"][0]
    assert row["labels"] == [IGNORED, 1, 2, 3, IGNORED]
    assert row["input_ids"][2] == tokenizer.unk_token_id


def test_byte_level_tokenizers_get_the_space_before_a_word(tmp_path):
    texts = ["a of b", "of all the words"] * 20
    bpe = train_tokenizer(texts, algorithm="bpe", vocab_size=300, show_progress=False)
    with pytest.raises(ValueError, match=r"the tokenizer of here makes other tokens.*wordpiece or unigram"):
        check_word_tokenizer(bpe, "here")
    for algorithm in ("wordpiece", "unigram"):
        check_word_tokenizer(train_tokenizer(texts, algorithm=algorithm, vocab_size=60, show_progress=False), "here")


def test_the_tokenizer_of_a_roberta(tmp_path):
    from transformers import RobertaTokenizer

    vocab = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "o", "f", "b", "Ġ"])}
    vocab |= {"Ġa": 10, "of": 11, "Ġof": 12, "Ġb": 13}
    merges = [("Ġ", "a"), ("o", "f"), ("Ġ", "of"), ("Ġ", "b")]
    RobertaTokenizer(vocab=vocab, merges=merges).save_pretrained(tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError):
        check_word_tokenizer(plain, "it")
    tokenizer = load_word_tokenizer(str(tmp_path))
    assert tokenizer(["a", "of"], is_split_into_words=True)["input_ids"] == [0, 10, 12, 2]
