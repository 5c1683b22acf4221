"""
A translator from an exported folder (`chinchilla_hf.export_translation`) on ONNX Runtime: without torch, without
transformers.

    translate = OnnxTranslator("runs/translation/export")
    translate("A dog runs.")     [{'translation_text': 'Ein Hund rennt.'}], as the pipeline gives it
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .runtime import open_session, read_export_record
from .text_segments import split_text

ENCODER, DECODER = "onnx/encoder.onnx", "onnx/decoder.onnx"
QUANTIZED_ENCODER, QUANTIZED_DECODER = "onnx/encoder_quantized.onnx", "onnx/decoder_quantized.onnx"
SOURCE_TOKENIZER, TARGET_TOKENIZER = "tokenizer.json", "target_tokenizer.json"
TASK = "translation"
LOWEST = -1e9  # of a score: below all that can be


class OnnxTranslator:
    """
    What `pipeline("chinchilla-translation")` does with the checkpoint that was exported.

    Args:
        folder: that `training/export_translator.py` has written.
        quantized: take the int8 model; `None`: where there is one.
        num_threads: of ONNX Runtime; its own choice if not given.

    Raises:
        FileNotFoundError: the folder holds no such export.
        ImportError: ONNX Runtime is not installed.
        ValueError: the folder was written by another version of this package, or is of another task.
    """

    def __init__(self, folder: str | os.PathLike[str], quantized: bool | None = None, num_threads: int | None = None):
        folder = Path(folder)
        record = read_export_record(folder, TASK)
        if quantized is None:
            quantized = (folder / QUANTIZED_DECODER).is_file()
        names = (QUANTIZED_ENCODER, QUANTIZED_DECODER) if quantized else (ENCODER, DECODER)
        self.encoder, self.decoder = (open_session(folder, name, num_threads) for name in names)
        from tokenizers import Tokenizer

        self.source_tokenizer = Tokenizer.from_file(str(folder / SOURCE_TOKENIZER))
        target = folder / TARGET_TOKENIZER
        self.target_tokenizer = Tokenizer.from_file(str(target)) if target.is_file() else self.source_tokenizer
        for tokenizer in (self.source_tokenizer, self.target_tokenizer):
            tokenizer.no_padding()
            tokenizer.no_truncation()
        self.record = record
        self.encoder_inputs = [given.name for given in self.encoder.get_inputs()]
        self.of_encoder = [output.name for output in self.encoder.get_outputs()]
        self.of_decoder = [output.name for output in self.decoder.get_outputs()]
        shapes = {given.name: given.shape for given in self.decoder.get_inputs()}
        # `(rows, heads, length, head_dim)`
        self.past = {name: shapes[name] for name in shapes if name.startswith("past_")}

    def __call__(
        self,
        texts: str | Sequence[str],
        num_beams: int | None = None,
        max_length: int | None = None,
        batch_size: int = 8,
    ) -> list[dict[str, str]]:
        """
        Translate, line by line, and sentence by sentence where a line is too long for the model.

        Args:
            texts: one text, or a list of them.
            num_beams: of the search; 1 is greedy. What the checkpoint says if not given.
            max_length: longest translation of a segment in tokens; thrice the segment's length and 20 if not given.
            batch_size: segments in a step; those of like length share one.

        Returns:
            `{"translation_text": ...}` for each text.
        """
        rows = [texts] if isinstance(texts, str) else list(texts)
        beams = self.record["num_beams"] if num_beams is None else num_beams
        if beams < 1:
            raise ValueError(f"num_beams is {beams}, expected at least 1")
        longest = self.record["max_length"]

        def fits(segment: str) -> bool:
            return len(self.source_tokenizer.encode(segment).ids) <= longest

        # Of every segment: its text, what stands before it, and its ids.
        segments = [(row, *part) for row, text in enumerate(rows) for part in split_text(text, fits)]
        ids = [self.source_tokenizer.encode(segment).ids if segment else [] for _, _, segment in segments]
        order = sorted((i for i in range(len(ids)) if ids[i]), key=lambda i: len(ids[i]))
        translated = [""] * len(segments)
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            for i, found in zip(chosen, self.generate([ids[i] for i in chosen], beams, max_length), strict=True):
                translated[i] = self.target_tokenizer.decode(found, skip_special_tokens=True).strip()
        results = [""] * len(rows)
        for (row, before, _), text in zip(segments, translated, strict=True):
            results[row] += before + text
        return [{"translation_text": text} for text in results]

    def generate(self, ids: Sequence[Sequence[int]], num_beams: int, max_length: int | None = None) -> list[list[int]]:
        """
        Token ids of the translations, as `generate` of Transformers finds them: greedily, or by a beam search.

        Args:
            ids: of the sources.
            num_beams: 1 for greedy.
            max_length: tokens of a translation, the one that begins it included.
        """
        record = self.record
        longest = max(map(len, ids))
        sources = np.full((len(ids), longest), record["source_pad_token_id"], dtype=np.int64)
        mask = np.zeros((len(ids), longest), dtype=np.int64)
        for row, values in enumerate(ids):
            sources[row, : len(values)], mask[row, : len(values)] = values, 1
        limit = min(record["target_positions"], 3 * longest + 20 if max_length is None else max_length)
        state = self.start(sources, mask, len(ids) * num_beams)
        search = _greedy if num_beams == 1 else _beam_search
        return search(state, len(ids), num_beams, limit, record)

    def start(self, input_ids: np.ndarray, attention_mask: np.ndarray, rows: int) -> "Decoding":
        """The decoder before its first step, with so many rows for the sources, `(sources, length)`, together."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        found = self.encoder.run(None, {name: given[name] for name in self.encoder_inputs})
        return Decoding(
            self, {**dict(zip(self.of_encoder, found, strict=True)), "attention_mask": attention_mask}, rows
        )


class Decoding:
    """The decoder with its cache, for some rows to each source."""

    def __init__(self, translator: OnnxTranslator, of_sources: dict[str, np.ndarray], rows: int):
        self.session, self.names = translator.decoder, translator.of_decoder
        self.of_sources = {
            given.name: of_sources[given.name] for given in self.session.get_inputs() if given.name in of_sources
        }
        self.past = {
            name: np.zeros((rows, int(shape[1]), 0, int(shape[3])), dtype=np.float32)
            for name, shape in translator.past.items()
        }

    def log_probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """`(rows, vocabulary)`, of what comes behind `tokens`, `(rows,)`, the last ones."""
        given = {"decoder_input_ids": tokens[:, None].astype(np.int64), **self.of_sources, **self.past}
        found = dict(zip(self.names, self.session.run(None, given), strict=True))
        logits = found.pop("logits")
        self.past = {name.replace("present_", "past_"): values for name, values in found.items()}
        logits = logits - logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    def reorder(self, rows: np.ndarray) -> None:
        """Let each row go on from one of `rows`."""
        if not np.array_equal(rows, np.arange(len(rows))):
            self.past = {name: values[rows] for name, values in self.past.items()}


def _greedy(state: Decoding, sources: int, _: int, limit: int, record: dict[str, Any]) -> list[list[int]]:
    tokens = np.full(sources, record["decoder_start_token_id"])
    found: list[list[int]] = [[] for _ in range(sources)]
    is_open = np.ones(sources, dtype=bool)
    for _ in range(limit - 1):
        tokens = np.where(is_open, state.log_probabilities(tokens).argmax(axis=-1), record["pad_token_id"])
        is_open &= tokens != record["eos_token_id"]
        for row in np.flatnonzero(is_open):
            found[row].append(int(tokens[row]))
        if not is_open.any():
            break
    return found


def _beam_search(state: Decoding, sources: int, beams: int, limit: int, record: dict[str, Any]) -> list[list[int]]:
    """
    As in Transformers with `early_stopping=False`: twice as many candidates as beams in every step, those among the
    first half of them that end compete with the translations found so far by their mean log probability, and a source
    is done when its best running beam could not win any more.
    """
    end, penalty = record["eos_token_id"], record["length_penalty"]
    running = np.full((sources, beams), LOWEST, dtype=np.float32)
    running[:, 0] = 0  # all begin alike: one of them counts
    tokens = np.full(sources * beams, record["decoder_start_token_id"])
    written: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(sources)]
    # Of each source the best translations so far, at most as many as beams: scores and token ids.
    found: list[list[tuple[float, list[int]]]] = [[] for _ in range(sources)]
    can_improve = np.ones(sources, dtype=bool)
    for length in range(1, limit):  # of the tokens written after this step
        candidates = state.log_probabilities(tokens).reshape(sources, beams, -1) + running[:, :, None]
        vocabulary = candidates.shape[-1]
        candidates = candidates.reshape(sources, -1)
        best = np.argpartition(-candidates, 2 * beams - 1, axis=-1)[:, : 2 * beams]
        scores = np.take_along_axis(candidates, best, axis=-1)
        order = np.argsort(-scores, axis=-1, kind="stable")
        best, scores = np.take_along_axis(best, order, axis=-1), np.take_along_axis(scores, order, axis=-1)
        is_last = length == limit - 1
        came_from = np.zeros((sources, beams), dtype=np.int64)
        chosen = np.zeros((sources, beams), dtype=np.int64)
        for source in range(sources):
            of_beam, of_token = best[source] // vocabulary, best[source] % vocabulary
            ends = (of_token == end) | is_last
            if can_improve[source]:
                for rank in np.flatnonzero(ends[:beams]):
                    text = [*written[source][of_beam[rank]], int(of_token[rank])]
                    found[source].append((float(scores[source, rank]) / length**penalty, text))
                found[source] = sorted(found[source], key=lambda pair: -pair[0])[:beams]
            goes_on = np.flatnonzero(~ends)[:beams] if not is_last else np.arange(beams)
            came_from[source], chosen[source] = of_beam[goes_on], of_token[goes_on]
            running[source] = scores[source, goes_on]
            written[source] = [
                [*written[source][beam], int(token)]
                for beam, token in zip(came_from[source], chosen[source], strict=True)
            ]
            if len(found[source]) == beams:
                can_improve[source] &= running[source, 0] / length**penalty > found[source][-1][0]
        if is_last or not can_improve.any():
            break
        state.reorder((came_from + beams * np.arange(sources)[:, None]).ravel())
        tokens = chosen.ravel()
    return [[token for token in (of_source[0][1] if of_source else []) if token != end] for of_source in found]
