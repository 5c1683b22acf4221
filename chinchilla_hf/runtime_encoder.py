"""
Labels of words, and vectors of texts, from exported folders (`chinchilla_hf.export_encoder`) on ONNX Runtime: without
torch, without transformers.

    tag = OnnxTokenClassifier("runs/tagger/export")
    tag("Anna lives in Oslo")       whole entities, as the pipeline with aggregation_strategy="first" gives them
    embed = OnnxTextEncoder("runs/encoder/export")
    embed(["one text", "another"])  vectors of length 1
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .runtime import OnnxEncoder, softmax


class OnnxTokenClassifier(OnnxEncoder):
    """
    What `pipeline("token-classification")` does with the checkpoint that was exported: see [`OnnxEncoder`].
    """

    task = "token-classification"

    def __call__(
        self,
        texts: str | Sequence[str],
        aggregation_strategy: str = "first",
        ignore_labels: Sequence[str] = ("O",),
        batch_size: int = 32,
    ) -> list[Any]:
        """
        Labels of the words of texts.

        Args:
            texts: a text, or a list of them.
            aggregation_strategy: `"first"`: a word has the label of its first token, and words of one entity are put
                together; `"none"`: every token by itself.
            ignore_labels: labels that are left out.
            batch_size: texts in a step; those of like length share one.

        Returns:
            Of one text, a list of dictionaries as the pipeline of Transformers gives them, with `start` and `end` in
            the text; of a list, such a list for each text.

        Raises:
            ValueError: another strategy.
        """
        if aggregation_strategy not in ("first", "none"):
            raise ValueError(f"aggregation_strategy is {aggregation_strategy!r}, expected 'first' or 'none'")
        rows = [texts] if isinstance(texts, str) else list(texts)
        found: list[list[dict[str, Any]]] = [[]] * len(rows)
        for chosen, encoded, logits in self.batches(rows, batch_size):
            for i, encoding, scores in zip(chosen, encoded, softmax(logits), strict=True):
                tokens = self._tokens(rows[i], encoding, scores)
                entities = self._entities(tokens) if aggregation_strategy == "first" else tokens
                kind = "entity_group" if aggregation_strategy == "first" else "entity"
                found[i] = [
                    {name: value for name, value in entity.items() if name != "is_subword"}
                    for entity in entities
                    if entity[kind] not in ignore_labels
                ]
        return found[0] if isinstance(texts, str) else found

    def _tokens(self, text: str, encoding: Any, scores: np.ndarray) -> list[dict[str, Any]]:
        prefix = getattr(self.tokenizer.model, "continuing_subword_prefix", None)
        unknown = getattr(self.tokenizer.model, "unk_token", None)
        tokens = []
        for place, (token, (start, end), special) in enumerate(
            zip(encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
        ):
            if special:
                continue
            word = text[start:end]
            if token == unknown:
                token, is_subword = word, False
            elif prefix:
                is_subword = len(token) != len(word)
            else:
                is_subword = start > 0 and " " not in text[start - 1 : start + 1]
            best = int(scores[place].argmax())
            tokens.append(
                {"entity": self.record["labels"][best], "score": float(scores[place, best]), "index": place}
                | {"word": token, "start": start, "end": end, "is_subword": is_subword}
            )
        return tokens

    def _entities(self, tokens: list[dict[str, Any]]) -> list[dict[str, Any]]:
        words: list[list[dict[str, Any]]] = []
        for token in tokens:
            if words and token["is_subword"]:
                words[-1].append(token)
            else:
                words.append([token])
        groups: list[list[list[dict[str, Any]]]] = []
        for word in words:
            begins, kind = _parts(word[0]["entity"])
            if groups and kind == _parts(groups[-1][-1][0]["entity"])[1] and not begins:
                groups[-1].append(word)
            else:
                groups.append([word])
        return [
            {
                "entity_group": group[0][0]["entity"].split("-", 1)[-1],
                "score": float(np.mean([word[0]["score"] for word in group])),
                "word": self._joined([self._joined([token["word"] for token in word]) for word in group]),
                "start": group[0][0]["start"],
                "end": group[-1][-1]["end"],
            }
            for group in groups
        ]

    def _joined(self, words: list[str]) -> str:
        return " ".join(words) if self.tokenizer.decoder is None else self.tokenizer.decoder.decode(words)


def _parts(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and of which kind."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


class OnnxTextEncoder(OnnxEncoder):
    """
    Vectors of texts, the mean of their last hidden states, as sentence-transformers takes it: see [`OnnxEncoder`].
    """

    task = "feature-extraction"

    def __call__(self, texts: str | Sequence[str], batch_size: int = 32) -> np.ndarray:
        """
        `(texts, hidden_size)`, each of length 1: their product is their cosine.

        Args:
            texts: a text, or a list of them.
            batch_size: texts in a step; those of like length share one.
        """
        rows = [texts] if isinstance(texts, str) else list(texts)
        vectors: np.ndarray = np.zeros((len(rows), 0), dtype=np.float32)
        for chosen, encoded, states in self.batches(rows, batch_size):
            if not vectors.shape[1]:
                vectors = np.empty((len(rows), states.shape[2]), dtype=np.float32)
            for i, encoding, of_tokens in zip(chosen, encoded, states, strict=True):
                mean = of_tokens[: len(encoding.ids)].mean(axis=0)
                vectors[i] = mean / np.linalg.norm(mean)
        return vectors
