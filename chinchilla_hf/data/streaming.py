"""
Rows made while the text is read: nothing is stored, and a corpus of any length is trained on from the first minute.

    rows = StreamedRows(corpus, tokenizer, row_length=128, objective=objective)
    for batch in DataLoader(rows, batch_size=64, collate_fn=rows.collate):
        rows.consumed(batch)  # from here on `rows.state_dict()` goes on behind this batch
        ...

A stream is read window by window. A window is a run of documents that is tokenized, packed and shuffled as a whole, so
memory holds two of them, the one that is trained on and the next one, and never more. Each of several readers, which
are the processes of a run times the workers of their data loaders, keeps every so many-th document and passes over the
others: no two see the same one. Where the stream ends, it begins anew, shuffled and masked in another way.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from .corpora import BEGINNING, Corpus, Documents, Place
from .packing import Objective, PackedRows, SpecialTokens, collate_rows, cut_documents, pack
from .token_store import (
    BATCH_CHARACTERS,
    batches,
    hash_documents,
    is_held_out,
    token_dtype,
    tokenize,
    whole_text_tokenizer,
)

# About a million tokens: best fit leaves next to no padding, and the text takes a few megabytes.
WINDOW_CHARACTERS = BATCH_CHARACTERS
# The key under which items and batches carry what [`StreamedRows.consumed`] takes out.
POSITION = "stream_position"


class StreamError(ValueError):
    """A stream that cannot be read, not any further, or not from where a checkpoint says."""


@dataclass(frozen=True)
class StreamPosition:
    """
    How far one reader is. The default is the beginning.

    Args:
        epoch: how often the stream was read to its end.
        window: number of the window, in this epoch.
        document: documents of the stream before the window.
        place: where these end in the corpus.
        first_document: hash of the text with which the window begins, by which a changed stream is noticed; `None`
            before there is a window.
        row: rows of the window that were handed out.
        rows: rows that were handed out in all.
        tokens: tokens of text in them.
        filled: positions of them that are no padding.
        documents: documents of this reader in all windows up to this one, those that are held out included.
        skipped: bad texts left out in these windows.
    """

    epoch: int = 0
    window: int = 0
    document: int = 0
    place: Place = BEGINNING
    first_document: int | None = None
    row: int = 0
    rows: int = 0
    tokens: int = 0
    filled: int = 0
    documents: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class _Window:
    """A window of one reader: where it begins (`row` and what is counted are 0), its rows, and what was read for it."""

    start: StreamPosition
    rows: PackedRows | None  # none where nothing is left to train on
    documents: int
    skipped: int


@dataclass(eq=False, repr=False)
class StreamedRows(IterableDataset):
    """
    Packed rows of a corpus that is read as they are needed, without end.

    Items are those of [`PackedRows`], and besides have the reader's position. They depend on the seed, on the number
    of readers and on what was consumed before, and on nothing else: a run that goes on with `load_state_dict` gets the
    rows that it would have got, however often it was stopped and however far a data loader had read ahead. The next
    window is made in a thread meanwhile; the tokenizer works outside of Python, so the training hardly waits for it.

    Args:
        corpus: where the documents come from.
        tokenizer: as for [`TokenStore.build`].
        row_length: tokens in a row.
        objective: makes inputs and labels of a row.
        seed: of the packing, the order of the rows, and the objective.
        held_out_share: documents that are never given out: those of [`is_held_out`].
        num_items: rows of the whole run, of all processes together, which tell the objective how far the run is.
        max_documents: the stream ends behind so many.
        window_characters: characters of a reader's text in a window, the last document besides.
        process: number of this process, one of `processes`, which all read the same corpus.
        workers: those of the data loader in every process, as its `num_workers`.

    Attributes:
        progress: as in [`PackedRows`].
    """

    corpus: Corpus
    tokenizer: PreTrainedTokenizerFast
    row_length: int
    objective: Objective
    seed: int = 0
    held_out_share: float = 0.0
    num_items: int | None = None
    max_documents: int | None = None
    window_characters: int = WINDOW_CHARACTERS
    process: int = 0
    processes: int = 1
    workers: int = 0
    progress: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.window_characters < 1:
            raise ValueError(f"window_characters is {self.window_characters}, but must be above 0")
        self.special_tokens = SpecialTokens.of(self.tokenizer)
        # Of every reader in this process, how far its consumed rows go; and whose turn it is to give the next batch.
        self._positions = [StreamPosition()] * max(1, self.workers)
        self._turn = 0

    def __len__(self) -> int:
        """Rows of this process in the whole run."""
        if self.num_items is None:
            raise TypeError("num_items is not set, and a stream has no end: go by steps")
        return self.num_items // self.processes

    # ---- How far it is ----

    def consumed(self, batch: dict[str, Any]) -> None:
        """Take the position out of a batch, and remember that its rows, and all before them, were trained on."""
        reader, position = batch.pop(POSITION)
        self._positions[reader] = position
        self._turn = (reader + 1) % len(self._positions)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes to go on behind the batches that were consumed, in the types of JSON."""
        return {
            "processes": self.processes,
            "workers": self.workers,
            "turn": self._turn,
            "positions": [asdict(position) | {"place": list(position.place)} for position in self._positions],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Go on where [`state_dict`] was taken, in the next iterator.

        Raises:
            StreamError: the stream was read by another number of processes or workers.
        """
        for name in ("processes", "workers"):
            if state[name] != getattr(self, name):
                raise StreamError(
                    f"the checkpoint is of a stream read by {state['processes']} process(es) with {state['workers']} "
                    f"data loader worker(s) each, but now there are {self.processes} with {self.workers}: start as "
                    "many as before. Only a run on stored data (without stream) goes on under another number"
                )
        self._positions = [
            StreamPosition(**position | {"place": Place(*position["place"])}) for position in state["positions"]
        ]
        self._turn = state["turn"]

    @property
    def padding(self) -> float:
        """Share of the positions consumed in this process that is padding."""
        return stream_facts([self.state_dict()], self.row_length)["padding"]

    # ---- Rows ----

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        num_workers = 0 if worker is None else worker.num_workers
        if num_workers != self.workers:
            raise ValueError(
                f"the data loader has {num_workers} workers, but these rows were made for {self.workers}: pass workers"
            )
        # The data loader begins with its first worker, so that one is the reader whose turn it is.
        reader = (self._turn + (0 if worker is None else worker.id)) % len(self._positions)
        position = self._positions[reader]
        number, count = self.process * len(self._positions) + reader, self.processes * len(self._positions)
        windows = self._windows(position, number, count)
        executor = ThreadPoolExecutor(1, thread_name_prefix="stream")
        try:
            coming = executor.submit(next, windows)
            going_on = position.first_document is not None  # in a window that is counted in `position` already
            while True:
                window = coming.result()
                coming = executor.submit(next, windows)
                if not going_on:
                    position = replace(
                        window.start,
                        rows=position.rows,
                        tokens=position.tokens,
                        filled=position.filled,
                        documents=position.documents + window.documents,
                        skipped=position.skipped + window.skipped,
                    )
                going_on = False
                for row in range(position.row, 0 if window.rows is None else len(window.rows)):
                    item, position = self._item(window, row, position, number, count)
                    yield item | {POSITION: (reader, position)}
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _item(
        self, window: _Window, number: int, position: StreamPosition, reader: int, readers: int
    ) -> tuple[dict[str, Any], StreamPosition]:
        """What the objective makes of a row of the window, and the position behind it."""
        assert window.rows is not None
        row = window.rows.row(number)
        progress = self.progress
        if progress is None:  # as if all readers were at the same row
            progress = 0.0 if self.num_items is None else min(1.0, position.rows * readers / self.num_items)
        rng = np.random.default_rng((self.seed, 4, reader, position.epoch, position.window, number))
        behind = replace(
            position,
            row=number + 1,
            rows=position.rows + 1,
            tokens=position.tokens + int(row.is_text.sum()),
            filled=position.filled + int((row.documents >= 0).sum()),
        )
        return self.objective(row, rng, progress), behind

    @staticmethod
    def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch of items of one reader, with the position behind the last of them."""
        rows = [{name: value for name, value in item.items() if name != POSITION} for item in items]
        return {**collate_rows(rows), POSITION: items[-1][POSITION]}

    # ---- Windows ----

    def _windows(self, position: StreamPosition, reader: int, readers: int) -> Iterator[_Window]:
        """The windows of a reader from that of `position` on, epoch after epoch, without end."""
        start = StreamPosition(position.epoch, position.window, position.document, position.place)
        expected = position.first_document
        changed = (
            f"document {start.document + 1} of {self.corpus.source} is not what it was when the run was interrupted, "
            "so nothing can go on from there: bring the text back as it was, or start anew in another folder"
        )
        has_rows = expected is not None  # this reader, in this epoch
        counted = 0  # bad texts that an earlier window has counted
        try:
            while True:
                documents = self.corpus.documents(start.place)
                while True:
                    texts, length, first_document = self._read(documents, start.document, reader, readers)
                    if expected not in (None, first_document):
                        raise StreamError(changed)
                    expected = None
                    if length == 0:
                        break
                    rows = self._pack(texts, (self.seed, 3, reader, start.epoch, start.window))
                    has_rows = has_rows or rows is not None
                    start = replace(start, first_document=first_document)
                    yield _Window(start, rows, len(texts), documents.num_skipped - counted)
                    counted = documents.num_skipped
                    start = StreamPosition(start.epoch, start.window + 1, start.document + length, documents.place)
                if not has_rows:
                    raise StreamError(
                        f"{self.corpus.source} has {start.document} documents, but none of two or more tokens to train "
                        f"on for reader {reader + 1} of {readers} (processes times data loader workers): check the "
                        "text and its column, hold out a smaller share, or start fewer readers"
                    )
                counted -= documents.num_skipped  # those behind the last document count for the next window
                start = StreamPosition(start.epoch + 1)
                has_rows = False
        except StreamError:
            raise
        except ValueError as error:  # bad text; where the run was interrupted, there was none
            raise StreamError(str(error) if expected is None else changed) from error
        except OSError as error:  # a connection that broke
            raise StreamError(
                f"{self.corpus.source} could not be read any further ({error}): the same command goes on from the last "
                "checkpoint"
            ) from error

    def _read(self, documents: Documents, number: int, reader: int, readers: int) -> tuple[list[str], int, int | None]:
        """
        The documents of a window that are the reader's, the number of all in it, and the hash of the first of all.
        `number` is that of the first one in the stream.
        """
        texts: list[str] = []
        first_document = None
        characters = length = 0
        remaining = None if self.max_documents is None else self.max_documents - number
        for text in islice(documents, remaining):
            if first_document is None:
                first_document = int(hash_documents([text])[0])
            if (number + length) % readers == reader:
                texts.append(text)
                characters += len(text)
            length += 1
            if characters >= self.window_characters:
                break
        return texts, length, first_document

    def _pack(self, texts: list[str], seed: tuple[int, ...]) -> PackedRows | None:
        """The rows of a window, without what is held out; `None` where nothing is left."""
        kept = ~is_held_out(hash_documents(texts), self.held_out_share)
        tokens, document_starts = tokenize_in_memory(
            [text for text, keep in zip(texts, kept, strict=True) if keep], self.tokenizer
        )
        starts, lengths = cut_documents(document_starts, self.row_length - len(self.special_tokens))
        if len(starts) == 0:
            return None
        pack_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        packing = pack(starts, lengths, self.row_length, len(self.special_tokens), pack_seed)
        return PackedRows(tokens, packing, self.special_tokens, self.objective)


def tokenize_in_memory(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> tuple[np.ndarray, np.ndarray]:
    """What [`TokenStore`] holds as `tokens` and `document_starts`, of a few texts."""
    bare = whole_text_tokenizer(tokenizer.backend_tokenizer.to_str())
    dtype = token_dtype(bare)
    documents = [
        np.concatenate([np.asarray(encoding.ids, dtype=dtype) for _, encoding in parts])
        for batch in batches(texts)
        for parts in tokenize(bare, batch)
    ]
    document_starts = np.zeros(len(documents) + 1, dtype=np.int64)
    np.cumsum([len(document) for document in documents], out=document_starts[1:])
    return np.concatenate([np.empty(0, dtype=dtype), *documents]), document_starts


def held_out_rows(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    row_length: int,
    objective: Objective,
    *,
    share: float,
    max_documents: int,
    seed: int = 0,
) -> PackedRows:
    """
    Rows to validate on, in memory: of those of the first documents of a stream that [`StreamedRows`] never gives out.

    Args:
        corpus, tokenizer, row_length, objective, seed: as for [`StreamedRows`].
        share: its `held_out_share`.
        max_documents: how many documents are looked at.

    Raises:
        ValueError: there are no documents; none, or all, of the first ones are held out; [`Corpus`] cannot read them.
    """
    texts: list[str] = []
    count = 0
    for text in islice(corpus.documents(), max_documents):
        count += 1
        if is_held_out(hash_documents([text]), share)[0]:
            texts.append(text)
    if count == 0:
        raise ValueError(f"{corpus.source} holds no documents with text: check the file, and text_column")
    if not 0 < len(texts) < count:
        raise ValueError(
            f"validation_share is {share}, which leaves {len(texts)} of the first {count} documents of the stream for "
            "validation and the others for training (equal texts stay together): change it, look at more documents "
            "(validation_documents), or give more"
        )
    special_tokens = SpecialTokens.of(tokenizer)
    tokens, document_starts = tokenize_in_memory(texts, tokenizer)
    starts, lengths = cut_documents(document_starts, row_length - len(special_tokens))
    packing = pack(starts, lengths, row_length, len(special_tokens), seed)
    return PackedRows(tokens, packing, special_tokens, objective, seed)


def stream_facts(states: Sequence[dict[str, Any]], row_length: int) -> dict[str, Any]:
    """
    What was read so far, for the record of a run.

    Args:
        states: the [`StreamedRows.state_dict`] of every process.
        row_length: tokens in a row.

    Returns:
        `documents`, `tokens` and `rows` that were handed out, by all readers together and counted again in every
        epoch; `epochs` that all of them have behind them; `skipped` bad texts; `padding`, the share of all positions.
    """
    positions = [position for state in states for position in state["positions"]]
    total = {name: sum(position[name] for position in positions) for name in ("documents", "tokens", "rows", "filled")}
    filled = total.pop("filled")
    return total | {
        "epochs": min(position["epoch"] for position in positions),
        "skipped": max(position["skipped"] for position in positions),  # every reader comes by all of them
        "padding": 1 - filled / (total["rows"] * row_length) if total["rows"] else 0.0,
    }
