"""
Small Transformers of your own in the Hugging Face stack.

`import chinchilla_hf` registers the models with `AutoConfig`, `AutoModel` and every `AutoModelFor...` that fits, and
pipelines that Transformers has no more. It does nothing else: neither torch nor the models are imported before they are
used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register_auto_classes, register_pipelines

__version__ = "0.1.0"

# Public name -> the module that defines it, imported at first use.
_MODULE_OF = {
    "ChinchillaConfig": "configuration_chinchilla",
    "ChinchillaDecoderConfig": "configuration_chinchilla",
    "ChinchillaDecoderModel": "modeling_chinchilla_decoder",
    "ChinchillaDecoderPreTrainedModel": "modeling_chinchilla_decoder",
    "ChinchillaForCausalLM": "modeling_chinchilla_decoder",
    "ChinchillaForConditionalGeneration": "modeling_chinchilla_seq2seq",
    "ChinchillaForMaskedLM": "modeling_chinchilla",
    "ChinchillaForMultipleChoice": "modeling_chinchilla",
    "ChinchillaForNextSentencePrediction": "modeling_chinchilla",
    "ChinchillaForPreTraining": "modeling_chinchilla",
    "ChinchillaForQuestionAnswering": "modeling_chinchilla",
    "ChinchillaForSequenceClassification": "modeling_chinchilla",
    "ChinchillaForTokenClassification": "modeling_chinchilla",
    "ChinchillaModel": "modeling_chinchilla",
    "ChinchillaPreTrainedModel": "modeling_chinchilla",
    "ChinchillaQuestionAnsweringPipeline": "pipeline_chinchilla_answering",
    "ChinchillaSeq2SeqConfig": "configuration_chinchilla",
    "ChinchillaSeq2SeqModel": "modeling_chinchilla_seq2seq",
    "ChinchillaSeq2SeqPreTrainedModel": "modeling_chinchilla_seq2seq",
    "ChinchillaTranslationPipeline": "pipeline_chinchilla",
    "ChinchillaZeroShotPipeline": "pipeline_chinchilla_zero_shot",
    "train_tokenizer": "tokenization",
}

__all__ = [*_MODULE_OF, "__version__"]

if TYPE_CHECKING:
    from .configuration_chinchilla import ChinchillaConfig, ChinchillaDecoderConfig, ChinchillaSeq2SeqConfig
    from .modeling_chinchilla import (
        ChinchillaForMaskedLM,
        ChinchillaForMultipleChoice,
        ChinchillaForNextSentencePrediction,
        ChinchillaForPreTraining,
        ChinchillaForQuestionAnswering,
        ChinchillaForSequenceClassification,
        ChinchillaForTokenClassification,
        ChinchillaModel,
        ChinchillaPreTrainedModel,
    )
    from .modeling_chinchilla_decoder import (
        ChinchillaDecoderModel,
        ChinchillaDecoderPreTrainedModel,
        ChinchillaForCausalLM,
    )
    from .modeling_chinchilla_seq2seq import (
        ChinchillaForConditionalGeneration,
        ChinchillaSeq2SeqModel,
        ChinchillaSeq2SeqPreTrainedModel,
    )
    from .pipeline_chinchilla import ChinchillaTranslationPipeline
    from .pipeline_chinchilla_answering import ChinchillaQuestionAnsweringPipeline
    from .pipeline_chinchilla_zero_shot import ChinchillaZeroShotPipeline
    from .tokenization import train_tokenizer


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_auto_classes()
register_pipelines()
