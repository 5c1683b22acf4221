"""
The zero-shot pipeline: texts by classes that nobody trained on, from the names of the classes alone.

`pipeline("zero-shot-classification")` of Transformers needs a model that was fine-tuned on inference. This one takes
any encoder, and is called in the same way: a classifier with an entailment label is asked whether each class follows
from the text; of any other body, the vectors of the text and of the classes' names are compared.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers.pipelines import ZeroShotClassificationPipeline

# What cosines are multiplied by before the softmax, as where sentence-transformers trains with them.
SIMILARITY_SCALE = 20.0
BY_ENTAILMENT, BY_SIMILARITY = "This example is {}.", "{}"


class AutoModelForZeroShot:
    """What [`ChinchillaZeroShotPipeline`] loads of a checkpoint: a classifier with its head, of any other the body."""

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> PreTrainedModel:
        """As that of the Auto classes."""
        of_config = ("cache_dir", "revision", "subfolder", "token", "trust_remote_code", "local_files_only")
        config = AutoConfig.from_pretrained(name, **{key: kwargs[key] for key in of_config if key in kwargs})
        architectures = config.architectures or []
        classifies = any(architecture.endswith("ForSequenceClassification") for architecture in architectures)
        return (AutoModelForSequenceClassification if classifies else AutoModel).from_pretrained(name, **kwargs)


class ChinchillaZeroShotPipeline(ZeroShotClassificationPipeline):
    """
    Classifies texts by the names of the classes, by entailment or by similarity, whichever the checkpoint is for.

    Args:
        pooling: of similarity: `"mean"` over the tokens or the first one's state, `"cls"`. Default: that of the config
            where `pooler_type` is `"normalized"`, and otherwise the mean.
        kwargs: of Transformers' pipelines.

    Raises:
        ValueError: a classifier has no label that begins with "entail"; or there is no such pooling.

    Example:

    ```python
    >>> import chinchilla_hf
    >>> from transformers import pipeline

    >>> classify = pipeline("chinchilla-zero-shot-classification", "runs/minilm")
    >>> result = classify("I was charged twice", candidate_labels=["billing", "delivery", "password reset"])
    >>> result["labels"], [round(score, 2) for score in result["scores"]]
    (['billing', 'password reset', 'delivery'], [0.77, 0.2, 0.03])
    ```
    """

    def __init__(self, pooling: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        config = self.model.config
        if pooling is None:
            pooling = config.pooling if getattr(config, "pooler_type", None) == "normalized" else "mean"
        if pooling not in ("mean", "cls"):
            raise ValueError(f"pooling is {pooling!r}, but must be 'mean' or 'cls'")
        self.pooling = pooling
        self._known: tuple[tuple[str, ...], torch.Tensor] | None = None

    @property
    def by_similarity(self) -> bool:
        return self.model.base_model is self.model

    @property
    def entailment_id(self) -> int | None:
        """That of the classifier's label; of similarity there is none."""
        if self.by_similarity:
            return None
        label2id = self.model.config.label2id
        for label, number in label2id.items():
            if label.lower().startswith("entail"):
                return number
        raise ValueError(
            f"the model classifies into {', '.join(map(repr, label2id))}, and none of them begins with 'entail': give "
            "one that was fine-tuned on inference with that label (training/classify.py keeps the names of labels), or "
            "compare vectors with model=AutoModel.from_pretrained(...)"
        )

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if self.by_similarity:
            postprocess |= preprocess
        return preprocess, forward, postprocess

    def __call__(self, sequences: str | list[str], *args: Any, **kwargs: Any) -> Any:
        """
        Classify.

        Args:
            sequences: one text, or several.
            candidate_labels: the classes, a list or a text with commas between them.
            hypothesis_template: what a class becomes part of at `{}`. Default: `"This example is {}."` for entailment,
                the name alone for similarity.
            multi_label: several classes may be true, and each has a score for itself; else they add up to 1.
            kwargs: `batch_size`.

        Returns:
            `{"sequence": text, "labels": classes, "scores": their scores}`, the best first; of several texts a list.

        Raises:
            ValueError: no class, or a template without `{}`.
            TypeError: a text that is no string.
        """
        return super().__call__(sequences, *args, **kwargs)

    def preprocess(
        self,
        inputs: str,
        candidate_labels: list[str] | None = None,
        hypothesis_template: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        if not isinstance(inputs, str):
            raise TypeError(f"there is a {type(inputs).__name__} among the texts, but only strings can be classified")
        if hypothesis_template is None:
            hypothesis_template = BY_SIMILARITY if self.by_similarity else BY_ENTAILMENT
        candidate_labels = candidate_labels or []
        if not self.by_similarity:
            yield from super().preprocess(inputs, candidate_labels, hypothesis_template)
            return
        self._args_parser([inputs], candidate_labels, hypothesis_template)  # for its errors
        yield {"sequence": inputs, "is_last": True, **self._encode([inputs])}

    def _encode(self, texts: list[str]) -> dict[str, torch.Tensor]:
        limit = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        encoded = self.tokenizer(texts, truncation=True, max_length=limit, padding=True, return_tensors="pt")
        return {name: encoded[name] for name in self.tokenizer.model_input_names if name in encoded}

    def _vectors(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """`(texts, hidden_size)`, of length 1."""
        states = self.model(**inputs).last_hidden_state.float()
        if self.pooling == "cls":
            return nn.functional.normalize(states[:, 0], dim=-1)
        mask = inputs["attention_mask"].unsqueeze(-1)
        return nn.functional.normalize((states * mask).sum(dim=1), dim=-1)  # the mean, but for its length

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if not self.by_similarity:
            return super()._forward(inputs)
        text = {name: inputs.pop(name) for name in ("sequence", "is_last")}
        return text | {"vector": self._vectors(inputs)}

    def _vectors_of_labels(self, hypotheses: tuple[str, ...]) -> torch.Tensor:
        """On the CPU. Those of the last call are kept."""
        if self._known is None or self._known[0] != hypotheses:
            with torch.no_grad():
                inputs = {name: tensor.to(self.device) for name, tensor in self._encode(list(hypotheses)).items()}
                self._known = hypotheses, self._vectors(inputs).cpu()
        return self._known[1]

    def postprocess(
        self,
        model_outputs: list[dict[str, Any]],
        multi_label: bool = False,
        candidate_labels: list[str] | None = None,
        hypothesis_template: str | None = None,
    ) -> dict[str, Any]:
        if not self.by_similarity:
            return super().postprocess(model_outputs, multi_label)
        labels = candidate_labels or []
        template = BY_SIMILARITY if hypothesis_template is None else hypothesis_template
        vectors = self._vectors_of_labels(tuple(template.format(label) for label in labels))
        (output,) = model_outputs
        cosines = vectors @ output["vector"].flatten()
        scores = cosines.clamp(0, 1) if multi_label else (SIMILARITY_SCALE * cosines).softmax(dim=0)
        order = cosines.argsort(descending=True).tolist()
        return {
            "sequence": output["sequence"],
            "labels": [labels[number] for number in order],
            "scores": [scores[number].item() for number in order],
        }


__all__ = ["AutoModelForZeroShot", "ChinchillaZeroShotPipeline"]
