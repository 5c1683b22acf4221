"""
The tokens of a corpus, made once and kept on disk.

    store = TokenStore.build(Corpus("wiki.jsonl.gz"), tokenizer)  # the second time it is only opened

A store is a folder of flat arrays that are mapped into memory, not read, named by the hash of the text and of the
tokenizer: the same text is never tokenized twice, and another text never mistaken for it.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from huggingface_hub.constants import HF_HOME
from tokenizers import Encoding, Tokenizer
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..tokenization import train_tokenizer
from .corpora import Corpus

logger = logging.getLogger(__name__)

# Part of the name of every store: raise it when what is in the files changes.
FORMAT = 1
DEFAULT_CACHE = Path(HF_HOME) / "chinchilla_hf" / "tokens"
# Characters that are tokenized in one call: enough for all cores, little enough to stay far below a gigabyte.
BATCH_CHARACTERS = 4_000_000
# Longer texts are tokenized in parts, cut at white space: the tokenizers need memory for all of a text at once.
MAX_PART_CHARACTERS = 100_000
# A sentence ends at a mark with white space behind it, at a mark of Chinese or Japanese, or at the end of a line.
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？][」』”’）]*\s*|\s*\n\s*")


class TokenStore:
    """
    Tokens of many documents, without special tokens.

    Args:
        folder: what [`build`] has written.

    Attributes:
        tokens: `(tokens,)` ids of all documents, one after the other.
        document_starts: `(documents + 1,)` first token of every document, and the end of the last one.
        document_hashes: `(documents,)` 64 bits of the text of every document.
        sentence_starts: `(sentences + 1,)` first token of every sentence, and the end of the last one; `None` in a
            store that was built without sentences.
        facts: `documents`, `tokens`, `characters`, `skipped` (bad texts left out), `fingerprint`, `tokenizer`,
            `source`.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.facts: dict[str, Any] = json.loads((self.folder / "store.json").read_text(encoding="utf-8"))
        self.tokens = self._array("tokens", self.facts["dtype"])
        self.document_starts = self._array("document_starts", "int64")
        self.document_hashes = self._array("document_hashes", "uint64")
        self.sentence_starts = self._array("sentence_starts", "int64") if self.facts["sentences"] else None

    def _array(self, name: str, dtype: str) -> np.ndarray:
        return np.memmap(self.folder / f"{name}.bin", dtype=dtype, mode="r")

    @classmethod
    def build(
        cls,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerFast,
        *,
        sentences: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        max_documents: int | None = None,
        show_progress: bool = True,
    ) -> "TokenStore":
        """
        The store of `corpus`: from the cache, or made now, on all cores, in bounded memory.

        Args:
            corpus: where the documents come from.
            tokenizer: its special tokens, padding and truncation play no part here.
            sentences: also note where sentences begin, for the next-sentence objective.
            cache_dir: parent folder of all stores; `chinchilla_hf/tokens` in the cache of Hugging Face if not given.
            max_documents: only so many, from the first one.
            show_progress: draw a progress bar.

        Raises:
            ValueError: there are no documents, or [`Corpus`] cannot read them.
        """
        rules = tokenizer.backend_tokenizer.to_str()
        fingerprint = corpus.fingerprint()
        key = json.dumps([FORMAT, fingerprint, hashlib.sha256(rules.encode()).hexdigest(), sentences, max_documents])
        folder = Path(cache_dir or DEFAULT_CACHE) / hashlib.sha256(key.encode()).hexdigest()[:32]
        if (folder / "store.json").is_file():
            logger.info("the tokens of %s are in %s", corpus.source, folder)
            return cls(folder)

        def write(staging: Path) -> None:
            facts = _write(staging, corpus, rules, sentences, max_documents, show_progress)
            facts |= {"source": corpus.source, "fingerprint": fingerprint}
            (staging / "store.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")

        _publish(write, folder)
        return cls(folder)

    def __len__(self) -> int:
        return len(self.document_hashes)

    def held_out(self, share: float) -> np.ndarray:
        """
        `(documents,)` of bool: which documents are held out for validation, about `share` of all.

        The text of a document decides, so that a text that occurs several times is on one side only, and a document
        stays on its side when the corpus grows.
        """
        return is_held_out(self.document_hashes, share)


def hash_documents(texts: Sequence[str]) -> np.ndarray:
    """`(documents,)` 64 bits of the text of every document."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype=np.uint64)


def is_held_out(document_hashes: np.ndarray, share: float) -> np.ndarray:
    """`(documents,)` of bool: which documents are held out for validation, by [`hash_documents`]."""
    return np.asarray(document_hashes) < np.uint64(share * float(2**64 - 2048))


def _publish(write: Callable[[Path], Any], folder: Path) -> None:
    """Let `write` fill a temporary folder, and make it `folder` when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(staging)
        try:
            os.rename(staging, folder)
        except OSError:
            if not folder.is_dir():  # it is there if another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def tokenizer_of_corpus(
    corpus: Corpus,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    max_documents: int | None = None,
    fingerprint: str | None = None,
    **settings: Any,
) -> PreTrainedTokenizerFast:
    """
    A tokenizer that is trained on the first `max_documents` of `corpus`, once: later it comes from the cache.

    Args:
        corpus: where the documents come from.
        cache_dir: as for [`TokenStore.build`].
        max_documents: only so many, from the first one.
        fingerprint: tells this corpus from others, where it is not to be read as a whole first.
        settings: see [`train_tokenizer`].
    """
    key = json.dumps([FORMAT, fingerprint or corpus.fingerprint(), max_documents, settings], sort_keys=True)
    folder = Path(cache_dir or DEFAULT_CACHE) / f"tokenizer-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    if not folder.is_dir():
        texts = (text for text, _ in zip(corpus.documents(), range(max_documents or sys.maxsize), strict=False))
        tokenizer = train_tokenizer(texts, **settings)
        _publish(tokenizer.save_pretrained, folder)
    return AutoTokenizer.from_pretrained(folder)


def pretraining_tokenizer(
    corpus: Corpus,
    *,
    causal: bool,
    vocab_size: int,
    max_length: int = 512,
    algorithm: str | None = None,
    max_documents: int = 200_000,
    cache_dir: str | os.PathLike[str] | None = None,
    fingerprint: str | None = None,
) -> PreTrainedTokenizerFast:
    """
    [`tokenizer_of_corpus`] for pretraining: of a decoder (`causal`) by default BPE, of an encoder WordPiece. It has
    fewer than `vocab_size` tokens where the text does not give so many.
    """
    return tokenizer_of_corpus(
        corpus,
        cache_dir=cache_dir,
        max_documents=max_documents,
        fingerprint=fingerprint,
        algorithm=algorithm or ("bpe" if causal else "wordpiece"),
        vocab_size=vocab_size,
        model_max_length=max_length,
        **({"for_decoder": True} if causal else {}),
    )


def _write(
    folder: Path, corpus: Corpus, rules: str, sentences: bool, max_documents: int | None, show_progress: bool
) -> dict[str, Any]:
    tokenizer = whole_text_tokenizer(rules)
    dtype = token_dtype(tokenizer)
    names = ["tokens", "document_starts", "document_hashes", *(["sentence_starts"] if sentences else [])]
    files: dict[str, BinaryIO] = {}
    documents = corpus.documents()
    num_documents = num_tokens = num_characters = 0
    try:
        for name in names:
            files[name] = open(folder / f"{name}.bin", "wb")  # noqa: SIM115, closed below
        bar = tqdm(total=corpus.size, unit="B", unit_scale=True, desc="Tokenizing", disable=not show_progress)
        for batch in batches(documents, max_documents):
            files["document_hashes"].write(hash_documents(batch).tobytes())
            for text, parts in zip(batch, tokenize(tokenizer, batch, offsets=sentences), strict=True):
                files["document_starts"].write(np.int64(num_tokens).tobytes())
                for part, encoding in parts:
                    if sentences:
                        starts = _sentence_starts(part, encoding.offsets)
                        files["sentence_starts"].write((starts + num_tokens).tobytes())
                    files["tokens"].write(np.asarray(encoding.ids, dtype=dtype).tobytes())
                    num_tokens += len(encoding.ids)
                num_characters += len(text)
            num_documents += len(batch)
            bar.update(documents.bytes_read - bar.n)
            bar.set_postfix(documents=num_documents, refresh=False)
        bar.close()
        for name in names:
            if name.endswith("_starts"):
                files[name].write(np.int64(num_tokens).tobytes())
            files[name].flush()
            os.fsync(files[name].fileno())
    finally:
        for file in files.values():
            file.close()
    if num_tokens == 0:
        raise ValueError(f"{corpus.source} holds no documents with text: check the file, and text_column")
    if documents.num_skipped:
        logger.warning("%d texts of %s could not be read and were left out", documents.num_skipped, corpus.source)
    return {
        "documents": num_documents,
        "tokens": num_tokens,
        "characters": num_characters,
        "skipped": documents.num_skipped,
        "dtype": dtype,
        "sentences": sentences,
        "tokenizer": hashlib.sha256(rules.encode()).hexdigest(),
    }


def whole_text_tokenizer(rules: str) -> Tokenizer:
    """The tokenizer of the JSON `rules`, without truncation and padding."""
    tokenizer = Tokenizer.from_str(rules)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_dtype(tokenizer: Tokenizer) -> str:
    """The smallest integers that hold its tokens."""
    return "uint16" if tokenizer.get_vocab_size() <= 1 << 16 else "uint32"


def tokenize(
    tokenizer: Tokenizer, texts: Sequence[str], *, offsets: bool = False
) -> Iterator[list[tuple[str, Encoding]]]:
    """
    For every text, the parts that it is tokenized in, each with its tokens.

    Args:
        tokenizer: works on all cores.
        texts: at most a batch, see [`batches`].
        offsets: whether the encodings have them, which takes longer.
    """
    parts = [_parts(text) for text in texts]
    encode = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
    encodings = iter(encode([part for of_text in parts for part in of_text], add_special_tokens=False))
    for of_text in parts:
        yield [(part, next(encodings)) for part in of_text]


def batches(documents: Iterable[str], max_documents: int | None = None) -> Iterator[list[str]]:
    """Documents, as many at a time as are tokenized in one call."""
    batch: list[str] = []
    size = 0
    for number, text in enumerate(documents, start=1):
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
        if number == max_documents:
            break
    if batch:
        yield batch


def _parts(text: str) -> list[str]:
    """`text` in parts that are short enough, each but the first beginning with the white space it was cut at."""
    parts = []
    begin = 0
    while len(text) - begin > MAX_PART_CHARACTERS:
        end = max(text.rfind(space, begin + 1, begin + MAX_PART_CHARACTERS) for space in " \n\t")
        end = end if end > begin else begin + MAX_PART_CHARACTERS
        parts.append(text[begin:end])
        begin = end
    return [*parts, text[begin:]]


def _sentence_starts(text: str, offsets: list[tuple[int, int]]) -> np.ndarray:
    """The numbers of the tokens with which the sentences of `text` begin: that of the first one is 0."""
    token_ends = np.fromiter((end for _, end in offsets), dtype=np.int64, count=len(offsets))
    ends = [match.end() for match in _SENTENCE_END.finditer(text) if match.end() < len(text)]
    # Not the beginnings of the tokens: some tokenizers count the space before a word to it.
    starts = np.unique(np.concatenate([[0], np.searchsorted(token_ends, ends, side="right")])).astype(np.int64)
    return starts[starts < len(offsets)]
