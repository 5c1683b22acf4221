"""Tokenizers trained on English, German and Chinese text, with each algorithm."""

import gzip
import logging
from pathlib import Path

import pandas
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from chinchilla_hf.tokenization import train_tokenizer

MULTI30K = Path(__file__).parents[1].parent / "shared" / "data" / "multi30k"

ENGLISH = [
    "The dog sleeps in the garden, and the cat sleeps in the house.",
    "A small model learns from a small text; a larger model needs more of it.",
    "Don't wake the dog: it is tired (and hungry)!",
    "She reads a book about the history of the city.",
    "The children play in the garden with the dog.",
]
GERMAN = [
    "Der Hund schläft im Garten, und die Katze schläft im Haus.",
    "Ein kleines Modell lernt aus wenig Text; für ein größeres braucht man mehr.",
    "Wecke den Hund nicht: Er ist müde (und hungrig)!",
    "Sie sagte: „Übung macht den Meister“, und las weiter.",
    "Die Kinder spielen mit dem Hund im Garten.",
]
CHINESE = [
    "狗在花园里睡觉，猫在家里睡觉。",
    "我们去公园散步吧！公园里有很多花。",
    "你喜欢这个公园吗？我喜欢，公园很漂亮。",
    "机器学习是一门有趣的学问；学习需要时间。",
    "她说：“孩子们在花园里玩。”",
]
TEXTS = [*ENGLISH, *GERMAN, *CHINESE]
# Neither in TEXTS nor in three languages; line breaks, runs of spaces, a zero-width joiner, a combining mark.
FOREIGN = [
    "Привет, мир!",
    "  two  spaces\n\n\tand a tab ",
    "שלום",
    "🐕\u200d🦺 café cafe\u0301 ﬁ Ａ，",
    "print('x')  # ¬ß\x00\x7f",
]

ALGORITHMS = ["wordpiece", "bpe", "unigram"]


def train(texts=TEXTS, **options) -> PreTrainedTokenizerFast:
    return train_tokenizer(texts, **{"vocab_size": 700, "show_progress": False, **options})


@pytest.fixture(scope="module", params=ALGORITHMS)
def algorithm(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(algorithm):
    return train(algorithm=algorithm)


@pytest.fixture(scope="module")
def multi30k():
    if not MULTI30K.is_dir():
        pytest.skip(f"no multi30k data in {MULTI30K}")

    def lines(part, number):
        files = [MULTI30K / f"{part}.{language}.gz" for language in ("en", "de")]
        texts = [gzip.decompress(file.read_bytes()).decode("utf-8").splitlines() for file in files]
        return [line for text in texts for line in text[:number]]

    return lines("train", 3000), lines("val", 500)


def plain_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def decode(tokenizer, text):
    return tokenizer.decode(plain_ids(tokenizer, text))


def without_spaces(text):
    return "".join(text.split())


# Special tokens and the template


def test_special_tokens_are_the_first_ids_and_are_named(tokenizer):
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id) == (0, 1, 2)
    assert (tokenizer.sep_token_id, tokenizer.mask_token_id) == (3, 4)
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]
    assert tokenizer.bos_token is None and tokenizer.eos_token is None
    assert set(tokenizer.added_tokens_decoder) == {0, 1, 2, 3, 4}
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_template_of_a_text_and_of_a_pair(tokenizer):
    first, second = plain_ids(tokenizer, GERMAN[0]), plain_ids(tokenizer, CHINESE[0])
    single, pair = tokenizer(GERMAN[0]), tokenizer(GERMAN[0], CHINESE[0])
    assert list(single) == ["input_ids", "token_type_ids", "attention_mask"]
    assert single["input_ids"] == [2, *first, 3]
    assert single["token_type_ids"] == [0] * (len(first) + 2)
    assert pair["input_ids"] == [2, *first, 3, *second, 3]
    assert pair["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)


def test_without_token_types(algorithm):
    tokenizer = train(algorithm=algorithm, token_types=False)
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]


def test_for_a_decoder_a_text_stays_open(algorithm, tmp_path):
    train(algorithm=algorithm, for_decoder=True).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    encoded = tokenizer("a dog", return_tensors="pt")
    assert encoded["input_ids"][0, 0] == tokenizer.bos_token_id == tokenizer.cls_token_id
    assert tokenizer.eos_token == tokenizer.sep_token and tokenizer.eos_token_id not in encoded["input_ids"]
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert list(tokenizer("ein Hund", "a dog")) == ["input_ids", "attention_mask"]


def test_truncation_and_padding_to_model_max_length(algorithm):
    tokenizer = train(algorithm=algorithm, model_max_length=12)
    ids = plain_ids(tokenizer, GERMAN[1])
    assert len(ids) > 12 and len(plain_ids(tokenizer, "dog")) < 10
    batch = tokenizer([GERMAN[1], "dog"], truncation=True, padding="max_length")
    assert batch["input_ids"][0] == [2, *ids[:10], 3]
    short = tokenizer("dog")["input_ids"]
    assert batch["input_ids"][1] == short + [0] * (12 - len(short))
    assert batch["attention_mask"][1] == [1] * len(short) + [0] * (12 - len(short))


def test_overflowing_windows_cover_the_text(tokenizer):
    # Some releases of transformers returned the last window only; question answering needs them all.
    ids = plain_ids(tokenizer, GERMAN[1])
    windows = tokenizer(GERMAN[1], truncation=True, max_length=8, return_overflowing_tokens=True)["input_ids"]
    assert [token for window in windows for token in window[1:-1]] == ids


@pytest.mark.parametrize(
    ("text", "word"),
    [("The dog sleeps in the garden.", "dog"), ("The dog sleeps in the garden.", "garden"), (GERMAN[0], "Garten")],
)
def test_masking_a_token_equals_writing_mask_in_the_text(tokenizer, text, word, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for candidate in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        encoding = candidate(text)
        first, last = (encoding.char_to_token(text.index(word) + i) for i in (0, len(word) - 1))
        assert first == last, "the word has to be one token for this test"
        masked = list(encoding["input_ids"])
        masked[first] = candidate.mask_token_id
        assert candidate(text.replace(word, "[MASK]"))["input_ids"] == masked


# Text: what is kept, what is split, what comes back


def test_no_unknown_token_on_the_training_text(tokenizer):
    for text in TEXTS:
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text


@pytest.mark.parametrize("algorithm", ["wordpiece", "unigram"])
def test_an_unseen_character_is_unknown(algorithm):
    tokenizer = train(algorithm=algorithm)
    assert plain_ids(tokenizer, "der Ж Hund").count(tokenizer.unk_token_id) == 1


@pytest.mark.parametrize("algorithm", ["wordpiece", "unigram"])
def test_every_chinese_character_is_kept(algorithm):
    # 3,000 characters, each seen once, is past the limit of 1,000 that BERT's trainers put on an alphabet.
    texts = ["".join(chr(0x4E00 + start + i) for i in range(20)) for start in range(0, 3000, 20)]
    tokenizer = train(texts, algorithm=algorithm, vocab_size=3300)
    assert {character for text in texts for character in text} <= set(tokenizer.get_vocab())
    assert all(tokenizer.unk_token_id not in ids for ids in tokenizer(texts)["input_ids"])


@pytest.mark.parametrize("text", [*TEXTS, *FOREIGN])
def test_bpe_round_trip_is_exact_for_any_text(text):
    tokenizer = train(algorithm="bpe")
    assert decode(tokenizer, text) == text
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def test_unigram_round_trip_is_exact_up_to_white_space():
    tokenizer = train(algorithm="unigram")
    assert [decode(tokenizer, text) for text in TEXTS] == TEXTS
    assert decode(tokenizer, "Der Hund , die Katze .") == "Der Hund , die Katze ."  # no "clean up"
    assert decode(tokenizer, " \tthe dog\n\nsleeps  \u3000in the house \n") == "the dog sleeps in the house"


def test_wordpiece_round_trip():
    tokenizer = train(algorithm="wordpiece")
    assert decode(tokenizer, ENGLISH[0]) == ENGLISH[0]
    assert decode(tokenizer, GERMAN[0]) == GERMAN[0]
    for text in TEXTS:
        assert without_spaces(decode(tokenizer, text)) == without_spaces(text)


def test_lowercase_keeps_umlauts_and_accents(algorithm):
    tokenizer = train([*TEXTS, "Das Café in Århus"], algorithm=algorithm, lowercase=True)
    assert decode(tokenizer, "DER HUND SCHLÄFT MÜDE IM CAFÉ") == "der hund schläft müde im café"
    assert plain_ids(tokenizer, "Übung ÜBUNG übung") == plain_ids(tokenizer, "übung übung übung")
    assert not any(token != token.lower() for token in tokenizer.get_vocab() if algorithm != "bpe" and token[0] != "[")


def test_case_is_kept_by_default(tokenizer):
    assert plain_ids(tokenizer, "Garten") != plain_ids(tokenizer, "garten")


@pytest.mark.parametrize("algorithm", ["wordpiece", "unigram"])
def test_full_width_punctuation_is_not_made_ascii(algorithm):
    tokens = train(algorithm=algorithm).tokenize("公园，你喜欢吗？")
    assert "，" in tokens and "？" in tokens


@pytest.mark.parametrize("algorithm", ["wordpiece", "unigram"])
def test_a_combining_mark_is_the_same_as_the_composed_letter(algorithm):
    tokenizer = train(algorithm=algorithm)
    assert plain_ids(tokenizer, "Er ist mu\u0308de") == plain_ids(tokenizer, "Er ist müde")


def test_wordpiece_makes_every_chinese_character_a_word():
    encoding = train(algorithm="wordpiece")("公园很漂亮", add_special_tokens=False)
    assert encoding.tokens() == list("公园很漂亮")
    assert encoding.word_ids() == [0, 1, 2, 3, 4]


def test_unigram_learns_chinese_words():
    assert "公园" in train(algorithm="unigram").tokenize("我们去公园散步")


def test_wordpiece_letters_seen_only_at_the_start_can_continue_a_word():
    tokenizer = train(algorithm="wordpiece")
    assert not any("Ü" in word[1:] for text in TEXTS for word in text.replace("„", " ").split())
    assert decode(tokenizer, "HÜ") == "HÜ"


def test_words_given_one_by_one_are_the_same_as_in_a_text():
    words = GERMAN[4].rstrip(".").split()
    for algorithm in ("wordpiece", "unigram"):  # the docstring sends users of "bpe" to these for token classification
        tokenizer = train(algorithm=algorithm)
        encoding = tokenizer(words, is_split_into_words=True)
        assert encoding["input_ids"] == tokenizer(" ".join(words))["input_ids"]
        assert sorted(set(encoding.word_ids()) - {None}) == list(range(len(words)))


@pytest.mark.parametrize("text", [*GERMAN, *CHINESE, "Die  müde Katze\n schläft (在花园里)."])
def test_offsets_lead_back_to_the_text(algorithm, tokenizer, text):
    encoding = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    spans = [
        span
        for span, special in zip(encoding["offset_mapping"], encoding["special_tokens_mask"], strict=True)
        if not special
    ]
    covered = {position for start, end in spans for position in range(start, end)}
    assert {i for i, character in enumerate(text) if not character.isspace()} <= covered
    assert spans == sorted(spans)
    if algorithm != "unigram":  # there the space is part of the token and of its span
        assert not any(text[start:end].startswith(" ") for start, end in spans)
    for token, (start, end) in zip(encoding.tokens()[1:-1], spans, strict=True):
        if token.isascii() and token.strip("#"):
            assert text[start:end].strip() == token.replace("##", "")


# Saving and loading


def test_auto_tokenizer_gives_it_back_whole(algorithm, tmp_path):
    tokenizer = train(algorithm=algorithm, model_max_length=64, token_types=algorithm != "bpe")
    tokenizer(TEXTS, truncation=True, max_length=5, padding=True)  # is saved along; must not show afterwards
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)

    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert {id: str(t) for id, t in loaded.added_tokens_decoder.items()} == {
        0: "[PAD]", 1: "[UNK]", 2: "[CLS]", 3: "[SEP]", 4: "[MASK]",
    }  # fmt: skip
    for name in ("model_max_length", "model_input_names", "padding_side", "truncation_side", "pad_token_id"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    assert loaded.model_max_length == 64
    for text in [*TEXTS, *FOREIGN, "Der [MASK] schläft."]:
        assert loaded(text).data == tokenizer(text).data
        assert loaded(text, "ein Paar").data == tokenizer(text, "ein Paar").data
        ids = tokenizer(text)["input_ids"]
        assert loaded.decode(ids) == tokenizer.decode(ids)
    batch = {"truncation": True, "padding": "max_length"}
    assert loaded(TEXTS, **batch).data == tokenizer(TEXTS, **batch).data


# Training


def test_the_same_texts_give_the_same_tokenizer(algorithm):
    # The trainers' hash maps are seeded anew for every tokenizer; this small corpus is full of ties.
    assert len({train(algorithm=algorithm, vocab_size=400).backend_tokenizer.to_str() for _ in range(8)}) == 1


def test_every_source_of_texts_gives_the_same_tokenizer(algorithm):
    rows = [{"id": i, "sentence": text} for i, text in enumerate(TEXTS)]
    dataset = Dataset.from_list(rows)
    stream = IterableDataset.from_generator(lambda: iter(rows))
    assert stream.column_names is None  # unknown before the first row
    expected = train(algorithm=algorithm).backend_tokenizer.to_str()
    for texts in (
        (text for text in TEXTS),
        dataset,
        dataset.to_iterable_dataset(),
        stream,
        dataset["sentence"],
        [" \n", *TEXTS, ""],
    ):
        assert train(texts, algorithm=algorithm, text_column="sentence").backend_tokenizer.to_str() == expected


def test_vocab_size_is_reached_or_the_shortfall_is_logged(algorithm, caplog):
    caplog.set_level(logging.WARNING, logger="chinchilla_hf.tokenization")
    size = {"wordpiece": 180, "bpe": 300, "unigram": 170}[algorithm]
    assert len(train(algorithm=algorithm, vocab_size=size)) == size
    assert caplog.messages == []
    tokenizer = train(algorithm=algorithm, vocab_size=5000)
    assert len(tokenizer) < 5000
    (message,) = caplog.messages
    assert f"vocab_size is 5000, but the texts gave only {len(tokenizer)} tokens" in message


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe"])
def test_min_frequency(algorithm):
    tokenizers = [train(algorithm=algorithm, vocab_size=2000, min_frequency=n) for n in (1, 2, 4)]
    assert len(tokenizers[0]) > len(tokenizers[1]) > len(tokenizers[2])


def test_real_text(algorithm, multi30k):
    training, unseen = multi30k
    tokenizer = train(training, algorithm=algorithm, vocab_size=3000)
    assert len(tokenizer) == 3000
    batch = plain_ids(tokenizer, unseen)
    tokens = [token for ids in batch for token in ids]
    unknown = tokens.count(tokenizer.unk_token_id)
    assert unknown == 0 if algorithm == "bpe" else unknown <= 5
    words = sum(len(text.split()) for text in unseen)
    assert len(tokens) / words < {"wordpiece": 1.53, "bpe": 1.56, "unigram": 1.67}[algorithm]  # measured, and 5 %
    if algorithm == "bpe":
        assert tokenizer.batch_decode(batch) == unseen
    if algorithm == "unigram":
        for ids, text in zip(batch, unseen, strict=True):
            assert tokenizer.unk_token_id in ids or tokenizer.decode(ids) == " ".join(text.split())


# Errors


def untouched():
    raise AssertionError("read before the arguments were checked")
    yield


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "sentencepiece"}, r"'sentencepiece', but must be one of wordpiece, bpe, unigram, symbols"),
        ({"vocab_size": 5}, r"vocab_size is 5, but 5 special tokens and one character need 6"),
        ({"vocab_size": 260, "algorithm": "bpe"}, r"vocab_size is 260, but 5 special tokens and 256 bytes need 261"),
        ({"model_max_length": 2}, r"model_max_length is 2, but"),
    ],
)
def test_wrong_options_are_found_before_reading(options, message):
    with pytest.raises(ValueError, match=message):
        train(untouched(), **options)


def test_smallest_vocabularies_that_fit():
    assert len(train(algorithm="bpe", vocab_size=261)) == 261
    texts = ["ab ba", "公园，"]
    # a, b, ##a, ##b and three words of their own; for Unigram these characters and the space
    assert len(train(texts, algorithm="wordpiece", vocab_size=5 + 7)) == 12
    assert len(train(texts, algorithm="unigram", vocab_size=5 + 6)) == 11
    with pytest.raises(ValueError, match=r"vocab_size is 11, but 5 special tokens and 7 characters.* need 12.*'bpe'"):
        train(texts, algorithm="wordpiece", vocab_size=11)
    with pytest.raises(ValueError, match=r"vocab_size is 10, but 5 special tokens and 6 characters need 11.*'bpe'"):
        train(texts, algorithm="unigram", vocab_size=10)


@pytest.mark.parametrize("texts", [[], iter(()), ["", " \n\t", "\u3000"]])
def test_no_text(algorithm, texts):
    with pytest.raises(ValueError, match=r"texts has (0|3) items, but none with any text"):
        train(texts, algorithm=algorithm)


@pytest.mark.parametrize(("item", "kind"), [(None, "NoneType"), (b"Hund", "bytes"), ({"text": "Hund"}, "dict")])
def test_an_item_that_is_no_string(algorithm, item, kind):
    with pytest.raises(TypeError, match=f"texts has a {kind} at position 2"):
        train(["der", "Hund", item, "im Garten"], algorithm=algorithm)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("Der Hund schläft.", "texts is one str"),
        (DatasetDict({"train": Dataset.from_dict({"text": TEXTS})}), r"DatasetDict with the keys \['train'\]"),
        (pandas.DataFrame({"text": TEXTS}), r"DataFrame with the keys \['text'\]"),
    ],
)
def test_texts_of_the_wrong_kind(texts, message):
    with pytest.raises(TypeError, match=message):
        train(texts)


def test_dataset_without_the_text_column():
    dataset = Dataset.from_dict({"en": ENGLISH, "de": GERMAN})
    streams = (dataset.to_iterable_dataset(), IterableDataset.from_generator(lambda: iter(dataset.to_list())))
    for texts in (dataset, *streams):
        with pytest.raises(ValueError, match=r"text_column is 'text', but the dataset has the columns \['en', 'de'\]"):
            train(texts)


class TestSymbols:
    MOLECULES = ("CC(=O)Cl", "[Na+].BrCC", "c1ccccc1")
    PATTERN = r"\[[^\]]+\]|Br|Cl|."

    def test_every_match_of_the_pattern_is_a_token(self, tmp_path):
        options = {"algorithm": "symbols", "symbol_pattern": self.PATTERN, "show_progress": False}
        tokenizer = train_tokenizer(self.MOLECULES, **options)
        assert tokenizer.tokenize("ClCBr[Na+]c1") == ["Cl", "C", "Br", "[Na+]", "c", "1"]
        assert tokenizer.tokenize("C[K+]F") == ["C", "[UNK]", "[UNK]"]
        ids = tokenizer("BrCC c1")["input_ids"]
        assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == "BrCCc1"
        tokenizer.save_pretrained(tmp_path)
        assert AutoTokenizer.from_pretrained(tmp_path)("BrCC c1")["input_ids"] == ids
        assert train_tokenizer(self.MOLECULES, **options).get_vocab() == tokenizer.get_vocab()

    def test_a_character_by_default_and_words_by_a_pattern(self):
        texts = ["up up down", "flat up", "漢字"]
        letters = train_tokenizer(texts, algorithm="symbols", show_progress=False)
        assert letters.tokenize("up 漢") == ["u", "p", "漢"]
        words = train_tokenizer(texts, algorithm="symbols", symbol_pattern=r"\S+", show_progress=False)
        assert words.tokenize("up  down\nflat") == ["up", "down", "flat"] and len(words) == 5 + 4

    def test_bad_input(self):
        with pytest.raises(ValueError, match="3 symbols need 8: raise it"):
            train_tokenizer(["abc"], algorithm="symbols", vocab_size=7, show_progress=False)
        with pytest.raises(ValueError, match=r"'\(\(', which is no regular expression"):
            train_tokenizer(["abc"], algorithm="symbols", symbol_pattern="((", show_progress=False)
        with pytest.raises(ValueError, match="which is for algorithm 'symbols', not 'bpe'"):
            train_tokenizer(["abc"], algorithm="bpe", symbol_pattern=".", show_progress=False)
