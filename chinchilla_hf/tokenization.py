"""Train a tokenizer of your own on your own text: WordPiece, byte-level BPE or Unigram; or one of symbols.

    tokenizer = train_tokenizer(texts, algorithm="wordpiece", vocab_size=16384)
    tokenizer.save_pretrained("my-tokenizer")  # AutoTokenizer.from_pretrained("my-tokenizer") gives it back whole

What they have in common, and why:

- Special tokens `[PAD] [UNK] [CLS] [SEP] [MASK]` are ids 0 to 4. A text becomes `[CLS] A [SEP]` and a pair
  `[CLS] A [SEP] B [SEP]` with token types 0 and 1, as in BERT; for a decoder, which goes on with a text, `[CLS] A`.
- Umlauts and accents are kept, also with `lowercase=True`.
- No character of the texts is left out of the vocabulary. Chinese has thousands of them, so a limit on the alphabet
  would turn the rarer ones into `[UNK]` without a word.
- No NFKC: it rewrites full-width Chinese punctuation (`，！？`) as ASCII. WordPiece and Unigram use NFC, which only
  makes `u` + combining diaeresis the same as `ü`; byte-level BPE changes nothing, so that decoding is exact.
- The same texts give the same tokenizer. The trainers of the `tokenizers` library alone do not promise it, because
  they walk over randomly seeded hash maps: see `_wordpiece` and `_unigram`.
"""

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

# The order fixes the ids: padding is 0, what `nn.Embedding(padding_idx=0)` and BERT checkpoints use.
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def train_tokenizer(
    texts: Iterable[str],
    *,
    algorithm: str = "wordpiece",
    vocab_size: int = 16384,
    lowercase: bool = False,
    model_max_length: int = 512,
    text_column: str = "text",
    min_frequency: int = 2,
    token_types: bool = True,
    for_decoder: bool = False,
    symbol_pattern: str | None = None,
    show_progress: bool = True,
) -> PreTrainedTokenizerFast:
    r"""Train a tokenizer on `texts`, ready for `save_pretrained` and for any model of transformers.

    Which algorithm:

    - `"wordpiece"` (Schuster and Nakajima 2012; Devlin et al. 2019, BERT): the default for an encoder. Splits at spaces
      and punctuation, makes every Chinese character a word of its own, and works on texts that are split into words
      already (token classification). A character that the texts never had is `[UNK]`, and so is a word of more than
      100 characters. Decoding puts spaces between words and between Chinese characters.
    - `"bpe"` (Sennrich et al. 2016, on bytes: Radford et al. 2019, GPT-2): for a decoder, for code, for text with any
      characters whatever. Nothing is ever `[UNK]`, and decoding gives back the text exactly (save a space in front of a
      literal `[MASK]`). Words given one by one (`is_split_into_words=True`) miss the space in front that the words
      of a running text have, so take another algorithm for token classification.
    - `"unigram"` (Kudo 2018): for languages written without spaces. It sees text in which the space is one more
      character, not words, and so finds Chinese words of several characters. The slowest to train, and the one that
      wants text: from 0.8 MB of captions it made 7 % more tokens a text than BPE, from 12 MB of English 5 % fewer. A
      character that the texts never had is `[UNK]`. Decoding gives back the text up to white space.
    - `"symbols"`: for sequences that are not prose, such as molecules as SMILES or moves of a price. Every character is
      a token, or every match of `symbol_pattern`, and what is between matches; white space only separates. A symbol
      that the texts never had is `[UNK]`. Decoding gives back the text without its white space.

    Args:
        texts: Strings (a list, a generator, a file), or a `datasets.Dataset` or `IterableDataset`, which is read in
            batches. Read once, never held in memory; WordPiece keeps a copy on disk, in the folder for temporary files,
            while it trains. Texts without a visible character are skipped.
        algorithm: `"wordpiece"`, `"bpe"`, `"unigram"` or `"symbols"`.
        vocab_size: The largest number of tokens, special tokens included. A small corpus gives fewer, which is logged:
            build the model with `len(tokenizer)`.
        lowercase: Put everything in lower case, at training and at use. German loses the mark of its nouns.
        model_max_length: The number of tokens, special tokens included, to which `truncation=True` cuts: the
            `max_position_embeddings` of the model.
        text_column: The column to read from a `datasets` object.
        min_frequency: How often a pair of tokens has to occur to be merged into one. Unigram does not merge and
            ignores it, and so do symbols.
        token_types: Return `token_type_ids`. False for a model that does not take them: `generate` refuses them.
        for_decoder: For a causal decoder: no `[SEP]` behind a text, so that the model goes on with it, `[CLS]` and
            `[SEP]` as `bos_token` and `eos_token`, and no token types.
        symbol_pattern: Of `"symbols"`: a regular expression, in the syntax of Oniguruma, which is that of Python for
            most purposes: `r"\[[^]]+\]|Br|Cl|."` for SMILES, `r"\S+"` where spaces are between. Default: a character.
        show_progress: Draw progress bars.

    Returns:
        The tokenizer, padding and truncating on the right.

    Raises:
        TypeError: `texts` is one string or a dict, or one of its items is not a string.
        ValueError: The algorithm is unknown, the vocabulary cannot hold the special tokens and the alphabet or the
            symbols, `symbol_pattern` is no regular expression or not for this algorithm, there is no text, the dataset
            has no column `text_column`, or `model_max_length` leaves no room for text.
    """
    algorithms = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram, "symbols": _symbols}
    train = algorithms.get(algorithm)
    if train is None:
        raise ValueError(f"algorithm is {algorithm!r}, but must be one of {', '.join(algorithms)}: name one")
    if symbol_pattern is not None:
        if algorithm != "symbols":
            raise ValueError(
                f"symbol_pattern is {symbol_pattern!r}, which is for algorithm 'symbols', not {algorithm!r}"
            )
        train = partial(_symbols, pattern=symbol_pattern)
    if model_max_length < 3:
        raise ValueError(f"model_max_length is {model_max_length}, but [CLS], one token and [SEP] need 3: raise it")
    smallest = len(SPECIAL_TOKENS) + (256 if algorithm == "bpe" else 1)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size is {vocab_size}, but {len(SPECIAL_TOKENS)} special tokens and "
            f"{'256 bytes' if algorithm == 'bpe' else 'one character'} need {smallest}: raise it, to some thousands "
            "for some megabytes of text"
        )

    backend = train(_strings(texts, text_column), vocab_size, lowercase, min_frequency, show_progress)
    if backend.get_vocab_size() < vocab_size and algorithm != "symbols":  # of these there are as many as there are
        logger.warning(
            "vocab_size is %d, but the texts gave only %d tokens: build the model with len(tokenizer), or train the "
            "tokenizer on more text",
            vocab_size,
            backend.get_vocab_size(),
        )

    template = processors.TemplateProcessing(
        single="[CLS] $A" if for_decoder else "[CLS] $A [SEP]",
        pair="[CLS] $A $B" if for_decoder else "[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    if algorithm == "bpe":
        # Without it the offsets of " Hund" include the space, and the answer to a question would start with one.
        backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    else:
        backend.post_processor = template

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **SPECIAL_TOKENS,
        **({"bos_token": "[CLS]", "eos_token": "[SEP]"} if for_decoder else {}),
        model_max_length=model_max_length,
        model_input_names=[
            "input_ids",
            *(["token_type_ids"] if token_types and not for_decoder else []),
            "attention_mask",
        ],
        padding_side="right",
        truncation_side="right",
        clean_up_tokenization_spaces=False,  # the decoders below know what to clean up
    )


def _wordpiece(
    texts: Iterator[str], vocab_size: int, lowercase: bool, min_frequency: int, show_progress: bool
) -> Tokenizer:
    """WordPiece with BERT's splitting.

    The trainer numbers the characters that continue a word ("##a") in the order of a randomly seeded hash map and
    breaks ties between merges by these numbers, so that two runs differ by a few tokens (huggingface/tokenizers#1794).
    Here it gets them in order of code point, which takes a pass over the texts to know them. This has a second use:
    every letter of the texts can then continue a word, also one that was only seen at the start of words.
    """
    normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            # strip_accents=None would follow `lowercase` and turn "schön" into "schon".
            normalizers.BertNormalizer(
                clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=lowercase
            ),
        ]
    )
    splitter = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    splitter.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    with tempfile.TemporaryFile("w+", encoding="utf-8") as normalized:
        alphabet: set[str] = set()
        for text in texts:
            text = normalizer.normalize_str(text)
            alphabet.update(text)
            normalized.write(text + "\n")
        alphabet.discard(" ")
        # Chinese characters and punctuation are words of their own: they never continue one.
        inner = [
            "##" + character
            for character in sorted(alphabet)
            if len(splitter.pre_tokenizer.pre_tokenize_str(normalizer.normalize_str("a" + character))) == 1
        ]
        _check_alphabet(vocab_size, len(alphabet) + len(inner), "characters, alone and inside words,")

        normalized.seek(0)
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            show_progress=show_progress,
            special_tokens=[*SPECIAL_TOKENS.values(), *inner],
        )
        splitter.train_from_iterator(normalized, trainer)

    # A new one, in which the "##a" are ordinary tokens and not special ones.
    tokenizer = Tokenizer(models.WordPiece(vocab=splitter.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer


def _bpe(texts: Iterator[str], vocab_size: int, lowercase: bool, min_frequency: int, show_progress: bool) -> Tokenizer:
    """Byte-level BPE with GPT-2's splitting. The 256 bytes are always in the vocabulary, seen or not."""
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    # A space in front of the first word would come back when decoding.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    *others, mask = SPECIAL_TOKENS.values()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        show_progress=show_progress,
        # The space belongs to the token: masking " Hund" leaves no lone " ", so "[MASK]" takes the one before it.
        special_tokens=[*others, AddedToken(mask, lstrip=True, special=True, normalized=False)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _unigram(
    texts: Iterator[str], vocab_size: int, lowercase: bool, min_frequency: int, show_progress: bool
) -> Tokenizer:
    """Unigram with SentencePiece's space.

    The trainer gives the characters that its pruning dropped the scores `lowest`, `lowest + 0.0001`, `lowest + 0.0002`
    and so on in the order of a randomly seeded hash set, and it sums floats in such an order. Here the dropped
    characters all get `lowest`, the scores are rounded and ties are sorted, after which runs agree. Still possible, but
    not seen, is a difference in the last bits that tips a pruning decision.
    """
    normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            *([normalizers.Lowercase()] if lowercase else []),
            normalizers.Replace(Regex(r"\s+"), " "),  # a line break is no character of its own, as in SentencePiece
            # Only on the right: this runs on the text between special tokens, and in "[MASK] Hund" the space counts.
            normalizers.Strip(left=False, right=True),
        ]
    )
    tokenizer = Tokenizer(models.Unigram())
    # "first": the text after a [MASK] starts no new word. Punctuation is not split off: the trainer takes as candidates
    # only strings that occur in two different words (huggingface/tokenizers#1027), and "▁two" is one thanks to "▁two,".
    # With the split, 12,000 lines of multi30k and 5,000 tokens gave 11 % more tokens a text.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    alphabet: set[str] = {" "}

    def normalized() -> Iterator[str]:
        for text in texts:
            text = normalizer.normalize_str(text)
            alphabet.update(text)
            yield text
        _check_alphabet(vocab_size, len(alphabet), "characters")  # the trainer starts when this ends

    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        show_progress=show_progress,
        special_tokens=list(SPECIAL_TOKENS.values()),
        unk_token="[UNK]",
    )
    tokenizer.train_from_iterator(normalized(), trainer)

    special, pieces = [], []
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    lowest = min(score for _, score in vocabulary)
    for token, score in vocabulary:
        if token in SPECIAL_TOKENS.values():
            special.append((token, 0.0))
            continue
        steps = (score - lowest) / 1e-4
        if len(token) == 1 and steps < len(alphabet) and abs(steps - round(steps)) < 1e-6:
            score = lowest
        pieces.append((token, round(score, 4)))
    pieces.sort(key=lambda piece: (-piece[1], piece[0]))
    tokenizer.model = models.Unigram([*special, *pieces], unk_id=1)
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return tokenizer


def _symbols(
    texts: Iterator[str],
    vocab_size: int,
    lowercase: bool,
    min_frequency: int,
    show_progress: bool,
    pattern: str = r"\S",
) -> Tokenizer:
    """A token for every match of `pattern`, and for what is between matches. `min_frequency` does not count."""
    try:
        symbol = Regex(pattern)
    except Exception as error:  # the library has no class of its own for it
        raise ValueError(f"symbol_pattern is {pattern!r}, which is no regular expression: {error}") from None
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(symbol, behavior="isolated")]
    )
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(
        vocab_size=2**31,  # to know how many there are
        show_progress=show_progress,
        special_tokens=list(SPECIAL_TOKENS.values()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    symbols = tokenizer.get_vocab_size() - len(SPECIAL_TOKENS)
    if symbols + len(SPECIAL_TOKENS) > vocab_size:
        raise ValueError(
            f"vocab_size is {vocab_size}, but {len(SPECIAL_TOKENS)} special tokens and {symbols:,} symbols need "
            f"{symbols + len(SPECIAL_TOKENS):,}: raise it, or give a symbol_pattern of shorter symbols"
        )
    return tokenizer


def _check_alphabet(vocab_size: int, alphabet_size: int, what: str) -> None:
    needed = len(SPECIAL_TOKENS) + alphabet_size
    if vocab_size < needed:
        raise ValueError(
            f"vocab_size is {vocab_size}, but {len(SPECIAL_TOKENS)} special tokens and {alphabet_size} {what} need "
            f"{needed}: raise it to several times that, or use algorithm='bpe', whose alphabet is 256 bytes"
        )


def _strings(texts: Iterable[str], text_column: str) -> Iterator[str]:
    """The texts one by one, each checked to be a string; those without a visible character are left out."""
    if isinstance(texts, str | bytes):
        raise TypeError(f"texts is one {type(texts).__name__}, but a list of texts is needed: put it in a list")
    if isinstance(texts, Mapping) or hasattr(texts, "columns"):  # the second: a DataFrame
        # Iterating gives the keys, strings too: training on them would succeed.
        raise TypeError(f"texts is a {type(texts).__name__} with the keys {list(texts)}: pass one of its values")
    if hasattr(texts, "column_names"):  # a datasets.Dataset or IterableDataset
        texts = _column(texts, text_column)

    number, found = 0, False
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise TypeError(
                f"texts has a {type(text).__name__} at position {number - 1}, but only strings can be trained on: "
                "convert it or leave it out"
            )
        if text.strip():
            found = True
            yield text
    if not found:
        raise ValueError(f"texts has {number} items, but none with any text in it: check the file or column it is from")


def _column(dataset: Any, text_column: str) -> Iterator[str]:
    # A stream may not know its columns before its first row.
    names = dataset.column_names or list(next(iter(dataset), {}))
    if text_column not in names:
        raise ValueError(f"text_column is {text_column!r}, but the dataset has the columns {names}: name one of them")
    for batch in dataset.select_columns([text_column]).iter(batch_size=1000):
        yield from batch[text_column]
