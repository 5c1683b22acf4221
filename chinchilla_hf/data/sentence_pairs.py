"""
Pairs of text for the next-sentence objective (Devlin et al. 2019), on packed rows.

A pair is two neighbouring runs of sentences of one document. Half of the time, drawn anew in every epoch, the second
run is replaced by that of another document, of nearly the same length, so that the length gives nothing away.
"""

from dataclasses import dataclass

import numpy as np

from .objectives import IGNORED, MaskedTokens
from .packing import PackedRows, Packing, Row, SpecialTokens, pack
from .token_store import TokenStore

# The second run of another document is at least so long, as a share of what it replaces; and never longer, to fit.
SHORTEST_LENDER = 0.9


@dataclass(frozen=True)
class Pairs:
    """
    Pairs of neighbouring runs of sentences.

    Args:
        starts: `(pairs,)` first token of the first run.
        first_lengths: `(pairs,)` tokens of the first run; the second begins right behind it.
        second_lengths: `(pairs,)` tokens of the second run.
        documents: `(pairs,)` number of the document.
    """

    starts: np.ndarray
    first_lengths: np.ndarray
    second_lengths: np.ndarray
    documents: np.ndarray


def find_pairs(store: TokenStore, max_length: int, documents: np.ndarray | None = None) -> Pairs:
    """
    Cut documents into pairs of at most `max_length` tokens, at the boundary of sentences that is nearest to the middle.

    Args:
        store: built with `sentences=True`.
        max_length: tokens of both runs together.
        documents: `(documents,)` of bool: which ones; all if not given.

    Raises:
        ValueError: the store has no sentences, or no document has two that fit into `max_length` tokens.
    """
    if store.sentence_starts is None:
        raise ValueError("the token store was built without sentences: build it with sentences=True")
    sentence_starts = np.asarray(store.sentence_starts)
    first_sentences = np.searchsorted(sentence_starts, store.document_starts)
    found: list[tuple[int, int, int, int]] = []
    for document in range(len(store)) if documents is None else np.flatnonzero(documents).tolist():
        bounds = sentence_starts[first_sentences[document] : first_sentences[document + 1] + 1].tolist()
        begin = 0
        while begin + 2 < len(bounds):
            end = begin + 2
            while end + 1 < len(bounds) and bounds[end + 1] - bounds[begin] <= max_length:
                end += 1
            if bounds[end] - bounds[begin] > max_length:
                begin += 1  # the two are too long together: the second may still fit with the third
                continue
            middle = (bounds[begin] + bounds[end]) / 2
            cut = min(bounds[begin + 1 : end], key=lambda bound: abs(bound - middle))
            found.append((bounds[begin], cut - bounds[begin], bounds[end] - cut, document))
            begin = end
    if not found:
        raise ValueError(
            f"no document has two sentences that fit into {max_length} tokens, which the next-sentence objective "
            "needs: train without it, on longer rows, or on running text"
        )
    return Pairs(*np.array(found, dtype=np.int64).T)


class SentencePairRows(PackedRows):
    """
    As [`PackedRows`], with a pair for every document of a row, masked tokens in it, and whether it is a true one.

    Items also have `token_type_ids`, 1 in the second run and its end, and `next_sentence_label`, `(row_length,)`: at
    the first token of a pair 0 if the second run follows the first, 1 if it is another's, and -100 elsewhere.

    Args:
        tokens: `(tokens,)` of a [`TokenStore`].
        pairs: of its sentences.
        row_length: tokens in a row.
        special_tokens: one before and one after a text; a pair has the latter in its middle, too.
        masked: what else is learned from the row.
        seed, num_items: as for [`PackedRows`].
    """

    def __init__(
        self,
        tokens: np.ndarray,
        pairs: Pairs,
        row_length: int,
        special_tokens: SpecialTokens,
        masked: MaskedTokens,
        seed: int = 0,
        num_items: int | None = None,
    ):
        self.pairs = pairs
        # The numbers of the pairs stand in for their first tokens, so that the packing says which pair is where.
        numbers = np.arange(len(pairs.starts))
        overhead = len(special_tokens) + len(special_tokens.after)
        packing: Packing = pack(numbers, pairs.first_lengths + pairs.second_lengths, row_length, overhead, seed)
        super().__init__(tokens, packing, special_tokens, masked, seed, num_items)
        self._by_length = np.argsort(pairs.second_lengths, kind="stable")
        self._sorted_lengths = pairs.second_lengths[self._by_length]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        number, rng, progress = self._draw(index)
        row, token_type_ids, next_sentence_label = self._pair_row(number, rng)
        made = self.objective(row, rng, progress)
        return {**made, "token_type_ids": token_type_ids, "next_sentence_label": next_sentence_label}

    def _pair_row(self, number: int, rng: np.random.Generator) -> tuple[Row, np.ndarray, np.ndarray]:
        packing, pairs, special = self.packing, self.pairs, self.special_tokens
        input_ids = np.full(packing.row_length, special.padding, dtype=np.int64)
        position_ids = np.empty(packing.row_length, dtype=np.int64)
        documents = np.full(packing.row_length, -1, dtype=np.int64)
        is_text = np.zeros(packing.row_length, dtype=bool)
        token_type_ids = np.zeros(packing.row_length, dtype=np.int64)
        labels = np.full(packing.row_length, IGNORED, dtype=np.int64)
        end = 0
        numbers = packing.starts[packing.row_starts[number] : packing.row_starts[number + 1]]
        for document, pair in enumerate(numbers.tolist()):
            lender = self._lender(pair, rng) if rng.random() < 0.5 else pair
            first = self.tokens[pairs.starts[pair] : pairs.starts[pair] + pairs.first_lengths[pair]]
            begin_second = pairs.starts[lender] + pairs.first_lengths[lender]
            second = self.tokens[begin_second : begin_second + pairs.second_lengths[lender]]
            ids = np.array([*special.before, *first, *special.after, *second, *special.after], dtype=np.int64)
            begin, end = end, end + len(ids)
            in_second = len(special.before) + len(first) + len(special.after)
            input_ids[begin:end] = ids
            position_ids[begin:end] = np.arange(len(ids))
            documents[begin:end] = document
            is_text[begin + len(special.before) : begin + len(special.before) + len(first)] = True
            is_text[begin + in_second : begin + in_second + len(second)] = True
            token_type_ids[begin + in_second : end] = 1
            labels[begin] = int(lender != pair)
        position_ids[end:] = np.arange(packing.row_length - end)
        return Row(input_ids, position_ids, documents, is_text), token_type_ids, labels

    def _lender(self, pair: int, rng: np.random.Generator) -> int:
        """A pair of another document whose second run is as long as that of `pair`, or a little shorter."""
        length = int(self.pairs.second_lengths[pair])
        end = np.searchsorted(self._sorted_lengths, length, side="right")
        for shortest in (SHORTEST_LENDER * length, 0):  # the second where the first finds none in a small corpus
            begin = np.searchsorted(self._sorted_lengths, shortest)
            for _ in range(8):
                lender = int(self._by_length[rng.integers(begin, end)])
                if self.pairs.documents[lender] != self.pairs.documents[pair]:
                    return lender
        return pair  # there is no other document: it stays a true pair
