"""
Batches of text pairs that are filled by the number of tokens, not of pairs: short pairs come many at a time.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

IGNORED = -100  # the label that Transformers' losses leave out

Pair = tuple[np.ndarray, np.ndarray]


class TokenPairs:
    """
    Token ids of sources and targets, in two flat arrays.

    Args:
        sources, targets: token ids of every text, special tokens included.
    """

    def __init__(self, sources: Iterable[Sequence[int]], targets: Iterable[Sequence[int]]):
        self._ids, self._starts = zip(*(_flattened(side) for side in (sources, targets)), strict=True)
        if len(self._starts[0]) != len(self._starts[1]):
            raise ValueError(
                f"there are {len(self._starts[0]) - 1} sources and {len(self._starts[1]) - 1} targets: give pairs"
            )

    def __len__(self) -> int:
        return len(self._starts[0]) - 1

    def __getitem__(self, index: int) -> Pair:
        source, target = (
            ids[starts[index] : starts[index + 1]] for ids, starts in zip(self._ids, self._starts, strict=True)
        )
        return source, target

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of sources and targets, `(2, pairs)`."""
        return np.stack([np.diff(starts) for starts in self._starts])


def _flattened(texts: Iterable[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    ids = [np.asarray(text, dtype=np.int32) for text in texts]
    starts = np.concatenate([[0], np.cumsum([len(text) for text in ids], dtype=np.int64)])
    return np.concatenate(ids) if ids else np.empty(0, np.int32), starts.astype(np.int64)


def fill_batches(lengths: np.ndarray, max_tokens: int, rng: np.random.Generator | None = None) -> list[np.ndarray]:
    """
    Numbers of the pairs of every batch; pairs of like lengths share one, so that little is padding.

    Args:
        lengths: tokens of sources and targets, `(2, pairs)`.
        max_tokens: the most positions of a batch: sources and targets, padding included.
        rng: shuffles the batches, and which of the pairs of like length share one; without it, the shortest come first.

    Raises:
        ValueError: a pair that is longer than a batch.
    """
    sources, targets = lengths
    longest = int((sources + targets).max(initial=0))
    if longest > max_tokens:
        raise ValueError(
            f"max_tokens is {max_tokens}, but the longest pair has {longest} tokens: raise it, or cut texts earlier"
        )
    # By the length of the target, then of the source; half a token more or less changes the neighbours.
    noise = 0.0 if rng is None else rng.uniform(-0.5, 0.5, len(sources))
    order = np.lexsort((sources + noise, targets))
    batches: list[np.ndarray] = []
    begin = longest_source = longest_target = 0
    for end, number in enumerate(order):
        longest_source = max(longest_source, int(sources[number]))
        longest_target = max(longest_target, int(targets[number]))
        if (longest_source + longest_target) * (end - begin + 1) > max_tokens:
            batches.append(order[begin:end])
            begin, longest_source, longest_target = end, int(sources[number]), int(targets[number])
    if len(order):
        batches.append(order[begin:])
    if rng is not None:
        rng.shuffle(batches)
    return batches


class TokenBatches(Dataset):
    """
    Whole batches of pairs, for as many epochs as it takes; every epoch fills and orders them anew.

    Item `i` depends on the seed and on `i` alone, not on what was read before or how many processes there are: so
    read the items in order, a device one at a time (`train_sampling_strategy="sequential"`,
    `per_device_train_batch_size=1`), and a run can be stopped and moved anywhere.

    Args:
        pairs: of the split.
        max_tokens: positions of a batch, see [`fill_batches`].
        seed: of the batches and their order.
        num_items: length of the data set; one epoch if not given.
    """

    def __init__(self, pairs: TokenPairs, max_tokens: int, seed: int = 0, num_items: int | None = None):
        self.pairs = pairs
        self.max_tokens = max_tokens
        self.seed = seed
        self._lengths = pairs.lengths
        self._epoch, self._first = 0, 0  # the epoch at hand, and the number of its first item
        self._batches = self._filled(0)
        self.batches_per_epoch = len(self._batches)  # of the first epoch; others differ by a few
        self.num_items = self.batches_per_epoch if num_items is None else num_items

    def _filled(self, epoch: int) -> list[np.ndarray]:
        return fill_batches(self._lengths, self.max_tokens, np.random.default_rng((self.seed, epoch)))

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, index: int) -> list[Pair]:
        if not 0 <= index < self.num_items:
            raise IndexError(index)
        if index < self._first:
            self._epoch, self._first, self._batches = 0, 0, self._filled(0)
        while index >= self._first + len(self._batches):
            self._first += len(self._batches)
            self._epoch += 1
            self._batches = self._filled(self._epoch)
        return [self.pairs[number] for number in self._batches[index - self._first]]


class PairCollator:
    """
    A batch for an encoder-decoder: `input_ids`, `attention_mask`, and `labels`, which the model shifts itself.

    Args:
        pad_token_id: of the sources.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, items: Sequence[Pair | list[Pair]]) -> dict[str, torch.Tensor]:
        """`items`: pairs, or the batches of pairs of a [`TokenBatches`]."""
        pairs: list[Pair] = []
        for item in items:
            pairs += item if isinstance(item, list) else [item]
        input_ids = _padded([source for source, _ in pairs], self.pad_token_id)
        lengths = torch.tensor([len(source) for source, _ in pairs])
        return {
            "input_ids": input_ids,
            "attention_mask": (torch.arange(input_ids.shape[1]) < lengths[:, None]).long(),
            "labels": _padded([target for _, target in pairs], IGNORED),
        }


def _padded(rows: list[np.ndarray], value: int) -> torch.Tensor:
    """`(rows, longest)`, int64."""
    padded = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(padded)
