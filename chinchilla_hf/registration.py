"""
Registration with the Auto classes and as pipelines, without importing torch.

`AutoModelForX.register(Config, Model)` wants the classes themselves, so calling it when this package is imported
would import torch and the whole of `transformers.modeling_utils`: seconds, for a user who only wants `--help`. So we
wait until something imports Transformers' Auto modules, and then add our names to the tables that those keep for
their own models: class names, resolved at first use in the module `transformers.models.<model type>`, for which
`sys.modules` holds this package. Where the Auto modules are imported already, nothing is left to save and the public
`register` does it. Pipelines are registered as soon as Transformers' own are imported, which import torch anyway.
"""

import importlib
import sys
from types import ModuleType

import wrapt

# Model type -> configuration class, and Auto class -> model class.
FAMILIES = {
    "chinchilla": (
        "ChinchillaConfig",
        {
            "AutoModel": "ChinchillaModel",
            "AutoModelForTextEncoding": "ChinchillaModel",
            "AutoModelForPreTraining": "ChinchillaForPreTraining",
            "AutoModelForMaskedLM": "ChinchillaForMaskedLM",
            "AutoModelForNextSentencePrediction": "ChinchillaForNextSentencePrediction",
            "AutoModelForSequenceClassification": "ChinchillaForSequenceClassification",
            "AutoModelForTokenClassification": "ChinchillaForTokenClassification",
            "AutoModelForQuestionAnswering": "ChinchillaForQuestionAnswering",
            "AutoModelForMultipleChoice": "ChinchillaForMultipleChoice",
        },
    ),
    "chinchilla_decoder": (
        "ChinchillaDecoderConfig",
        {
            "AutoModel": "ChinchillaDecoderModel",
            "AutoModelForCausalLM": "ChinchillaForCausalLM",
        },
    ),
    "chinchilla_seq2seq": (
        "ChinchillaSeq2SeqConfig",
        {
            "AutoModel": "ChinchillaSeq2SeqModel",
            "AutoModelForSeq2SeqLM": "ChinchillaForConditionalGeneration",
        },
    ),
}

_CONFIGURATION_AUTO = "transformers.models.auto.configuration_auto"
_MODELING_AUTO = "transformers.models.auto.modeling_auto"
_PIPELINES = "transformers.pipelines"
# Module of ours -> task, the pipeline's class, and the Auto class of its models, which may be the module's own.
PIPELINES = {
    f"{__package__}.pipeline_chinchilla": (
        "chinchilla-translation",
        "ChinchillaTranslationPipeline",
        "AutoModelForSeq2SeqLM",
    ),
    f"{__package__}.pipeline_chinchilla_answering": (
        "chinchilla-question-answering",
        "ChinchillaQuestionAnsweringPipeline",
        "AutoModelForQuestionAnswering",
    ),
    f"{__package__}.pipeline_chinchilla_zero_shot": (
        "chinchilla-zero-shot-classification",
        "ChinchillaZeroShotPipeline",
        "AutoModelForZeroShot",
    ),
}


def register_auto_classes() -> None:
    """Make every Auto class of Transformers know our models: now, or as soon as it is imported."""
    package = sys.modules[__package__]
    for model_type in FAMILIES:
        sys.modules[f"transformers.models.{model_type}"] = package
    if _CONFIGURATION_AUTO in sys.modules:
        _register_classes(package)
    else:
        wrapt.register_post_import_hook(_add_config_names, _CONFIGURATION_AUTO)
        wrapt.register_post_import_hook(_add_model_names, _MODELING_AUTO)


def register_pipelines() -> None:
    """Make `transformers.pipeline` know ours: now, or as soon as it is imported."""
    # Whichever of these modules comes first imports the others, and is not ready until it ends.
    for module in (*PIPELINES, _PIPELINES):
        wrapt.register_post_import_hook(_add_pipelines, module)


def _add_pipelines(_: ModuleType) -> None:
    transformers = importlib.import_module("transformers")
    for name, (task, class_name, auto_class) in PIPELINES.items():
        ours = sys.modules.get(name)
        if ours is not None and not hasattr(ours, "__all__"):  # its last line: the hook on it comes later
            continue
        ours = importlib.import_module(name)
        registry = importlib.import_module(_PIPELINES).PIPELINE_REGISTRY
        if task not in registry.supported_tasks:
            model_class = getattr(ours if hasattr(ours, auto_class) else transformers, auto_class)
            registry.register_pipeline(task, getattr(ours, class_name), pt_model=model_class)


def _add_config_names(configuration_auto: ModuleType) -> None:
    for model_type, (config_name, _) in FAMILIES.items():
        configuration_auto.CONFIG_MAPPING_NAMES[model_type] = config_name


def _add_model_names(modeling_auto: ModuleType) -> None:
    for model_type, (_, model_names) in FAMILIES.items():
        for auto_name, model_name in model_names.items():
            mapping = getattr(modeling_auto, auto_name)._model_mapping
            mapping._model_mapping[model_type] = model_name


def _register_classes(package: ModuleType) -> None:
    auto = importlib.import_module("transformers.models.auto")
    for model_type, (config_name, model_names) in FAMILIES.items():
        config_class = getattr(package, config_name)
        auto.AutoConfig.register(model_type, config_class, exist_ok=True)
        for auto_name, model_name in model_names.items():
            getattr(auto, auto_name).register(config_class, getattr(package, model_name), exist_ok=True)
