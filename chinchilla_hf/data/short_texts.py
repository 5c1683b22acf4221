"""
Short texts from long documents: sentences, and spans of a few words.

What is asked of an assistant, searched for or said in a chat is short, and the documents of a corpus are not. A model
that learns from short texts learns for these, and takes far more texts in the same time.
"""

import re
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

from .token_store import hash_documents, is_held_out

# Behind marks that end a sentence or a clause of its own, at line breaks, dashes and the bars of tables.
_BREAKS = re.compile(r"(?<=[.!?;:…])\s+|\n+|--+|\s[|–—]\s")
# Share of the sentences that are short enough which stay whole; of the others there are spans, too.
WHOLE_SHARE = 0.7


def short_texts(
    documents: Iterable[str],
    min_words: int = 3,
    max_words: int = 18,
    seed: int = 42,
    held_out_share: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """
    Sentences of `documents`, and spans of words of those that are long; every text once, and none of a single word.

    Words are what stands between spaces: of a script without them, cut texts by tokens instead. Of one document come
    the same texts, whatever stands around it.

    Args:
        documents: raw text.
        min_words, max_words: a span has a number of words between these, each as likely; the rest of a sentence may
            have fewer.
        seed: of the spans.
        held_out_share: share of the documents, by their hash, whose texts are marked as held out.

    Yields:
        `text` and `held_out`.

    Raises:
        ValueError: what [`check_words`] raises.
    """
    check_words(min_words, max_words)
    seen: set[int] = set()  # 64 bits of each text: among a billion, hardly one is taken for another
    for document in documents:
        hashes = hash_documents([document])
        held_out = bool(is_held_out(hashes, held_out_share)[0])
        for text in _texts_of(document, Random(int(hashes[0]) ^ seed), min_words, max_words):
            key = int(hash_documents([text])[0])
            if key not in seen:
                seen.add(key)
                yield {"text": text, "held_out": held_out}


def check_words(min_words: int, max_words: int) -> None:
    """
    Raises:
        ValueError: these are no lengths of spans: fewer than 2 words at least, or fewer at most than at least.
    """
    if not 2 <= min_words <= max_words:
        raise ValueError(
            f"min_words is {min_words} and max_words {max_words}, expected at least 2, and no more than the other"
        )


def _texts_of(document: str, rng: Random, min_words: int, max_words: int) -> Iterator[str]:
    for sentence in _BREAKS.split(document):
        words = sentence.split()
        whole = len(words) <= max_words and rng.random() < WHOLE_SHARE
        while len(words) > 1:
            length = len(words) if whole else rng.randint(min_words, max_words)
            yield " ".join(words[:length])
            words = words[length:]
