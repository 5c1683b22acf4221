"""
Many documents to a row: what [`pack`] plans, a `PackedRows` data set builds.

Rows of one length waste nothing on padding, and every step does the same work. Documents in a row stay apart because
their positions start again at 0: the models see that and never let them attend to each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

# Pieces that are packed together: enough that best fit leaves next to no padding, few enough to keep memory small and
# to mix documents from all over the corpus.
BLOCK_PIECES = 1 << 18


@dataclass(frozen=True)
class Packing:
    """
    Which pieces of text stand in which row.

    Args:
        starts: `(pieces,)` first token of every piece in the token store, in the order of the rows.
        lengths: `(pieces,)` tokens of every piece, without special tokens.
        row_starts: `(rows + 1,)`: row `i` holds the pieces `row_starts[i]` to `row_starts[i + 1] - 1`.
        row_length: tokens in a row, special tokens and padding included.
        padding: share of all positions that no piece fills.
    """

    starts: np.ndarray
    lengths: np.ndarray
    row_starts: np.ndarray
    row_length: int
    padding: float

    def __len__(self) -> int:
        return len(self.row_starts) - 1


def cut_documents(
    document_starts: np.ndarray, max_length: int, min_length: int = 2, documents: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    Documents as pieces of at most `max_length` tokens.

    Args:
        document_starts: `(documents + 1,)` first token of every document, and the end of the last one.
        max_length: longest piece; what a longer document has beyond it becomes pieces of its own.
        min_length: shortest piece; there is nothing to learn from a single token without context.
        documents: `(documents,)` of bool: which ones; all if not given.

    Returns:
        `(pieces,)` first tokens and `(pieces,)` lengths, in the order of the documents.
    """
    document_lengths = np.diff(document_starts)
    if documents is not None:
        document_lengths = np.where(documents, document_lengths, 0)
    num_pieces = -(-document_lengths // max_length)  # rounded up
    owners = np.repeat(np.arange(len(document_lengths)), num_pieces)
    number = np.arange(len(owners)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)  # in its document
    offsets = number * max_length
    starts = document_starts[:-1][owners] + offsets
    lengths = np.minimum(document_lengths[owners] - offsets, max_length)
    kept = lengths >= min_length
    return starts[kept], lengths[kept]


def pack(starts: np.ndarray, lengths: np.ndarray, row_length: int, overhead: int, seed: int) -> Packing:
    """
    Put pieces into rows by best-fit decreasing: the longest first, each into the fullest row that still has room
    (Johnson et al. 1974), which Ding et al. 2024 ("Fewer Truncations Improve Language Modeling") use for documents.

    Args:
        starts, lengths: from [`cut_documents`].
        row_length: tokens in a row.
        overhead: special tokens that every piece gets.
        seed: of the order in which pieces are packed in blocks, and of the order of the rows.

    Raises:
        ValueError: there are no pieces, or one does not fit into a row.
    """
    if len(lengths) == 0:
        raise ValueError("there are no documents of two or more tokens to pack: check the text and its column")
    if lengths.max() + overhead > row_length:
        raise ValueError(
            f"the longest piece has {lengths.max()} tokens and {overhead} special ones, but a row has {row_length}: "
            "cut the documents to shorter pieces"
        )
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(lengths))
    orders, row_sizes = [], []
    for begin in range(0, len(shuffled), BLOCK_PIECES):
        block = shuffled[begin : begin + BLOCK_PIECES]
        order, sizes = _best_fit(lengths[block] + overhead, row_length)
        orders.append(block[order])
        row_sizes.append(sizes)
    order, sizes = np.concatenate(orders), np.concatenate(row_sizes)
    row_starts = np.concatenate([[0], np.cumsum(sizes)])

    rows = rng.permutation(len(sizes))
    within = np.concatenate([np.arange(row_starts[row], row_starts[row + 1]) for row in rows])
    order = order[within]
    used = lengths.sum() + overhead * len(lengths)
    return Packing(
        starts=starts[order],
        lengths=lengths[order].astype(np.int32),
        row_starts=np.concatenate([[0], np.cumsum(sizes[rows])]),
        row_length=row_length,
        padding=1 - used / (len(sizes) * row_length),
    )


def _best_fit(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of the items by their row, and how many items each row has."""
    # open_rows[room]: rows with so much room left. The set bits of `rooms` say which of these lists are not empty, so
    # that the fullest row with enough room is the lowest set bit from `size` on.
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0
    row_of = np.empty(len(sizes), dtype=np.int64)
    num_rows = 0
    for item in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[item])
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
        else:
            room, row = capacity, num_rows
            num_rows += 1
        row_of[item] = row
        room -= size
        if room > 0:
            if not open_rows[room]:
                rooms |= 1 << room
            open_rows[room].append(row)
    return np.argsort(row_of, kind="stable"), np.bincount(row_of, minlength=num_rows)


@dataclass(frozen=True)
class SpecialTokens:
    """What a tokenizer puts around a document, and what it fills up with."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    padding: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> "SpecialTokens":
        """
        Those that `tokenizer` puts around a text. Where it puts none behind it, as for a decoder that is to go on with
        the text, its `eos_token` marks the end of a document.

        Raises:
            ValueError: the tokenizer has no padding token.
        """
        if tokenizer.pad_token_id is None:
            raise ValueError(
                "the tokenizer has no padding token: set tokenizer.pad_token, for example to its eos_token"
            )
        with_specials, inner = (tokenizer("a", add_special_tokens=flag)["input_ids"] for flag in (True, False))
        begin = next(i for i in range(len(with_specials)) if with_specials[i : i + len(inner)] == inner)
        after = with_specials[begin + len(inner) :]
        if not after and tokenizer.eos_token_id is not None:
            after = [tokenizer.eos_token_id]
        return cls(tuple(with_specials[:begin]), tuple(after), int(tokenizer.pad_token_id))

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


@dataclass(frozen=True)
class Row:
    """
    One packed row, before an objective has worked on it.

    Args:
        input_ids: `(row_length,)`.
        position_ids: `(row_length,)`: start again at every document, and at the padding.
        documents: `(row_length,)`: number of the document in the row, -1 for padding.
        is_text: `(row_length,)` of bool: neither special token nor padding.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    documents: np.ndarray
    is_text: np.ndarray


# What an objective makes of a row, a random generator, and the share of the run that is done: arrays by the names of
# the model's arguments.
Objective = Callable[[Row, np.random.Generator, float], dict[str, np.ndarray]]


class PackedRows(Dataset):
    """
    Packed rows for as many epochs as it takes, each with the work of the objective done anew.

    Item `i` is row `i % rows` of epoch `i // rows`, in an order of its own in every epoch. It depends on the seed and
    on `i` alone, not on what was read before, how many processes there are, or how large their batches are: so read
    the items in order (`train_sampling_strategy="sequential"`), and a run can be stopped and moved anywhere.

    Args:
        tokens: `(tokens,)` of a [`TokenStore`].
        packing: which pieces of them stand in which row.
        special_tokens: around every piece.
        objective: makes inputs and labels of a row.
        seed: of the order of the rows, and of the objective.
        num_items: length of the data set; one epoch if not given.

    Attributes:
        progress: share of the run that is done, for the objective, where the number of an item does not tell: in a run
            that ends at a time, whoever trains sets it.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        packing: Packing,
        special_tokens: SpecialTokens,
        objective: Objective,
        seed: int = 0,
        num_items: int | None = None,
    ):
        self.tokens = tokens
        self.packing = packing
        self.special_tokens = special_tokens
        self.objective = objective
        self.seed = seed
        self.num_items = len(packing) if num_items is None else num_items
        self.progress: float | None = None
        self._order: tuple[int, np.ndarray] | None = None  # epoch and its order of the rows

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        number, rng, progress = self._draw(index)
        return self.objective(self.row(number), rng, progress)

    def _draw(self, index: int) -> tuple[int, np.random.Generator, float]:
        """Of item `index`: the number of its row, its random generator, and the share of the run that is done."""
        if not 0 <= index < self.num_items:
            raise IndexError(index)
        epoch, place = divmod(index, len(self.packing))
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, 1, epoch)).permutation(len(self.packing))
        progress = index / self.num_items if self.progress is None else self.progress
        return int(self._order[1][place]), np.random.default_rng((self.seed, 2, index)), progress

    def row(self, number: int) -> Row:
        """Row `number` of the packing, as it is before the objective."""
        pieces = slice(self.packing.row_starts[number], self.packing.row_starts[number + 1])
        starts, lengths = self.packing.starts[pieces], self.packing.lengths[pieces]
        return assemble_row(self.tokens, starts, lengths, self.special_tokens, self.packing.row_length)


def assemble_row(
    tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray, special_tokens: SpecialTokens, row_length: int
) -> Row:
    """The pieces of `tokens` that begin at `starts` and have `lengths` tokens, one after the other, then padding."""
    num_before, num_after = len(special_tokens.before), len(special_tokens.after)
    input_ids = np.full(row_length, special_tokens.padding, dtype=np.int64)
    position_ids = np.empty(row_length, dtype=np.int64)
    documents = np.full(row_length, -1, dtype=np.int64)
    is_text = np.zeros(row_length, dtype=bool)
    end = 0
    for document, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        begin = end
        first, last = begin + num_before, begin + num_before + length
        end = last + num_after
        input_ids[begin:first] = special_tokens.before
        input_ids[first:last] = tokens[start : start + length]
        input_ids[last:end] = special_tokens.after
        position_ids[begin:end] = np.arange(end - begin)
        documents[begin:end] = document
        is_text[first:last] = True
    position_ids[end:] = np.arange(row_length - end)  # so padding is a document of its own
    return Row(input_ids, position_ids, documents, is_text)


def collate_rows(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """A batch of items of [`PackedRows`]: all have one length, so they are just stacked."""
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
