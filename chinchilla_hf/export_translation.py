"""
A translator as a folder that runs without torch: `chinchilla_hf.runtime_translation`.

    export.json                     what was exported, and the figures of the check
    tokenizer.json                  and target_tokenizer.json, where the two languages have their own
    onnx/encoder.onnx               of sources, the keys and values that every decoder layer reads
    onnx/decoder.onnx               one token on, with the cache of those before; both in float32, one file each
    onnx/encoder_quantized.onnx     int8 weights, and the same of the decoder
    README.md                       its card, with these figures

The export is compared with the pipeline on your texts, and refused if it translates anything else.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedTokenizerFast

from .export import (
    check_request,
    common_problems,
    median_milliseconds,
    new_export,
    quantize_weights,
    refuse,
    write_onnx,
)
from .export_card import write_translator_export_card
from .modeling_chinchilla_seq2seq import ChinchillaForConditionalGeneration
from .pipeline_chinchilla import ChinchillaTranslationPipeline
from .run_record import describe_machine, package_versions, write_atomically
from .runtime import EXPORT_RECORD, FORMAT
from .runtime_translation import (
    DECODER,
    ENCODER,
    QUANTIZED_DECODER,
    QUANTIZED_ENCODER,
    SOURCE_TOKENIZER,
    TARGET_TOKENIZER,
    TASK,
    OnnxTranslator,
)

TIMED_TEXTS = 20
# What `generate` can do besides, and the runtime cannot.
PLAIN = {"do_sample": False, "early_stopping": False, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


@dataclasses.dataclass
class TranslatorFigures:
    """
    What the check of an export has found.

    Args:
        texts: that were translated.
        full_difference: largest difference of a float32 score from torch's, along torch's translations.
        full_agreement: share of the texts that float32 translates as torch does.
        quantized_agreement: share of the texts that int8 translates as float32 does.
        bleu: of torch, float32 and int8, where there are references; sacreBLEU's.
        milliseconds: the median time for one text, on one thread.
        megabytes: of the models.
    """

    texts: int
    full_difference: float
    full_agreement: float
    quantized_agreement: float | None = None
    bleu: dict[str, float] = dataclasses.field(default_factory=dict)
    milliseconds: dict[str, float] = dataclasses.field(default_factory=dict)
    megabytes: dict[str, float] = dataclasses.field(default_factory=dict)


class EncoderGraph(nn.Module):
    """What is computed once of a source: `(sources, heads, length, head_dim)` for each layer of the decoder."""

    def __init__(self, model: ChinchillaForConditionalGeneration):
        super().__init__()
        self.model = model.model
        self.eval()

    def forward(self, input_ids: torch.LongTensor, attention_mask: torch.LongTensor) -> dict[str, torch.Tensor]:
        states = self.model.encoder(input_ids, attention_mask).last_hidden_state
        outputs: dict[str, torch.Tensor] = {}
        for i, layer in enumerate(cast("list[Any]", self.model.decoder.layers)):
            keys, values = layer.cross_attn.keys_and_values_of_encoder(states, None)
            outputs |= {f"cross_keys_{i}": keys, f"cross_values_{i}": values}
        return outputs


class DecoderGraph(nn.Module):
    """
    Scores of the next token, with the keys and values that the following steps need.

    `decoder_input_ids` are `(rows, 1)`, the cache is `(rows, heads, length so far, head_dim)`; of each source there are
    one or more rows, one after the other.
    """

    def __init__(self, model: ChinchillaForConditionalGeneration):
        super().__init__()
        self.model = model
        self.eval()

    def forward(
        self, decoder_input_ids: torch.LongTensor, attention_mask: torch.LongTensor, **states: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        decoder = self.model.model.decoder
        layers = range(len(decoder.layers))
        own, cross = DynamicCache(), DynamicCache()
        for i in layers:
            own.update(states[f"past_keys_{i}"], states[f"past_values_{i}"], i)
            cross.update(states[f"cross_keys_{i}"], states[f"cross_values_{i}"], i)
        cache = EncoderDecoderCache(own, cross)
        cache.is_updated = dict.fromkeys(layers, True)
        outputs = decoder(
            decoder_input_ids,
            past_key_values=cache,
            # They are in the cache: of the states, only the shape counts.
            encoder_hidden_states=states["cross_keys_0"][:, 0],
            encoder_attention_mask=attention_mask,
            use_cache=True,
        )
        found = {"logits": self.model.lm_head(outputs.last_hidden_state[:, -1])}
        for i in layers:
            found |= {f"present_keys_{i}": own.layers[i].keys, f"present_values_{i}": own.layers[i].values}
        return found


def export_translator(
    model: ChinchillaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    folder: str | os.PathLike[str],
    texts: Sequence[str],
    references: Sequence[str] | None = None,
    *,
    target_tokenizer: PreTrainedTokenizerFast | None = None,
    quantize: bool = True,
    largest_loss: float = 0.5,
    model_name: str | None = None,
    force: bool = False,
) -> TranslatorFigures:
    """
    Export a translator, and check it.

    Args:
        model: in float32.
        tokenizer: of it.
        folder: made if it is not there; an older export in it is replaced when the new one is whole.
        texts: to translate, for the comparison.
        references: their translations; then int8 may lose no more than `largest_loss` of BLEU.
        target_tokenizer: where the target language has its own.
        quantize: also make the int8 models.
        largest_loss: points of BLEU that int8 may lose.
        model_name: for the card; the model's class if not given.
        force: write it all the same; the figures say what is wrong.

    Raises:
        ExportRefusedError: float32 differs from torch by more than 1e-4 in a score, or in a translation; int8 loses too
            much, or is not faster than float32 on this machine. Nothing is written.
        FileExistsError: `folder` holds something else than an export.
        ImportError: a package of the extra `export` is missing.
        ValueError: no texts, not as many references, or a way of generating that the runtime does not know.
    """
    check_request(texts)
    if references is not None and len(references) != len(texts):
        raise ValueError(f"there are {len(texts)} texts, but {len(references)} references")
    generation = model.generation_config
    for name, value in PLAIN.items():
        if getattr(generation, name) not in (None, value):
            raise ValueError(
                f"{name} is {getattr(generation, name)} in generation_config, but the runtime knows {value} only: set "
                "it so"
            )
    model = model.eval()
    with new_export(folder) as staging:
        _write_models(model, tokenizer, staging, quantize)
        tokenizer.backend_tokenizer.save(str(staging / SOURCE_TOKENIZER))
        if target_tokenizer is not None:
            target_tokenizer.backend_tokenizer.save(str(staging / TARGET_TOKENIZER))
        record = _record(model, tokenizer)
        _write_record(staging, record)  # the runtime reads it
        figures = check_translator(model, tokenizer, staging, texts, references, target_tokenizer)
        problems = _problems(figures, largest_loss)
        refuse(problems, force)
        record |= {"figures": dataclasses.asdict(figures), "problems": problems}
        _write_record(staging, record)
        write_translator_export_card(staging, record, model_name or type(model).__name__)
    return figures


def _write_models(
    model: ChinchillaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path, quantize: bool
) -> None:
    encoded = tokenizer(["one text", "and another one, which is longer"], padding=True, return_tensors="pt")
    of_sources = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    rows, config = 6, model.model.decoder.config  # three beams of each source
    with torch.no_grad():
        cross = EncoderGraph(model)(**of_sources)
    first = torch.zeros(rows, 1, dtype=torch.long)
    given = {"decoder_input_ids": first, "attention_mask": of_sources["attention_mask"]}
    for i in range(config.num_hidden_layers):
        heads, width = config.attention_heads_of(i) // config.num_key_value_groups, cast(int, config.head_dim)
        given |= {f"past_{kind}_{i}": torch.zeros(rows, heads, 3, width) for kind in ("keys", "values")}
    write_onnx(EncoderGraph(model), of_sources, folder / ENCODER)
    write_onnx(DecoderGraph(model), given | cross, folder / DECODER)
    if quantize:
        quantize_weights(folder / ENCODER, folder / QUANTIZED_ENCODER)
        quantize_weights(folder / DECODER, folder / QUANTIZED_DECODER)


def _record(model: ChinchillaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    config, generation = model.config, model.generation_config
    end = generation.eos_token_id if generation.eos_token_id is not None else config.eos_token_id
    return {
        "format": FORMAT,
        "task": TASK,
        "num_beams": generation.num_beams or 1,
        "length_penalty": 1.0 if generation.length_penalty is None else generation.length_penalty,
        "max_length": min(tokenizer.model_max_length, model.model.encoder.config.max_position_embeddings),
        "target_positions": model.model.decoder.config.max_position_embeddings,
        "decoder_start_token_id": config.decoder_start_token_id,
        "eos_token_id": end[0] if isinstance(end, list) else end,
        "pad_token_id": config.pad_token_id,
        "source_pad_token_id": tokenizer.pad_token_id,
        "parameters": model.num_parameters(),
        "figures": None,
        "problems": [],
        "machine": describe_machine("cpu"),
        "versions": package_versions(),
    }


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    write_atomically(folder / EXPORT_RECORD, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


@torch.inference_mode()
def check_translator(
    model: ChinchillaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    folder: str | os.PathLike[str],
    texts: Sequence[str],
    references: Sequence[str] | None = None,
    target_tokenizer: PreTrainedTokenizerFast | None = None,
) -> TranslatorFigures:
    """Compare the export in `folder` with the pipeline on `model`, on `texts`; see [`TranslatorFigures`]."""
    folder = Path(folder)
    translators = {"float32": OnnxTranslator(folder, quantized=False)}
    if (folder / QUANTIZED_DECODER).is_file():
        translators["int8"] = OnnxTranslator(folder, quantized=True)
    pipeline = ChinchillaTranslationPipeline(model=model, tokenizer=tokenizer, target_tokenizer=target_tokenizer)
    found = {"torch": [result["translation_text"] for result in pipeline(list(texts))]}
    for name, translator in translators.items():
        found[name] = [result["translation_text"] for result in translator(texts)]

    def agreement(one: str, other: str) -> float:
        return float(np.mean([a == b for a, b in zip(found[one], found[other], strict=True)]))

    timed: dict[str, Any] = {"torch": pipeline}
    timed |= {name: OnnxTranslator(folder, name == "int8", num_threads=1) for name in translators}
    files = {"float32": (ENCODER, DECODER), "int8": (QUANTIZED_ENCODER, QUANTIZED_DECODER)}
    figures = TranslatorFigures(
        texts=len(texts),
        full_difference=_difference(
            model, tokenizer, target_tokenizer or tokenizer, translators["float32"], texts, found["torch"]
        ),
        full_agreement=agreement("torch", "float32"),
        quantized_agreement=agreement("float32", "int8") if "int8" in found else None,
        milliseconds=median_milliseconds(timed, texts, calls=TIMED_TEXTS, warm_up=2),
        megabytes={name: sum((folder / file).stat().st_size for file in files[name]) / 1e6 for name in translators},
    )
    if references is not None:
        from sacrebleu import corpus_bleu

        figures.bleu = {name: corpus_bleu(lines, [list(references)]).score for name, lines in found.items()}
    return figures


def _difference(
    model: ChinchillaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    target_tokenizer: PreTrainedTokenizerFast,
    translator: OnnxTranslator,
    texts: Sequence[str],
    translations: Sequence[str],
) -> float:
    """The largest difference of log probabilities along torch's translations of the first texts."""
    largest = 0.0
    for text, translation in list(zip(texts, translations, strict=True))[:TIMED_TEXTS]:
        inputs = tokenizer(text, truncation=True, return_tensors="pt")
        targets = target_tokenizer(translation, truncation=True, return_tensors="pt")["input_ids"][:, 1:]
        given = model.prepare_decoder_input_ids_from_labels(targets)
        logits = model(inputs["input_ids"], inputs["attention_mask"], decoder_input_ids=given).logits[0]
        expected = logits.float().log_softmax(dim=-1).numpy()
        state = translator.start(inputs["input_ids"].numpy(), inputs["attention_mask"].numpy(), rows=1)
        for step, token in enumerate(given[0].tolist()):
            scores = state.log_probabilities(np.array([token]))[0]
            largest = max(largest, float(np.abs(scores - expected[step]).max()))
    return largest


def _problems(figures: TranslatorFigures, largest_loss: float) -> list[str]:
    """What an export promises and this one does not keep."""
    problems = common_problems(figures.full_difference, figures.milliseconds)
    if figures.full_agreement < 1:
        problems.append(f"float32 translates {figures.full_agreement:.2%} of the texts as torch does, expected all")
    if "int8" in figures.bleu and figures.bleu["float32"] - figures.bleu["int8"] > largest_loss:
        problems.append(
            f"int8 has a BLEU of {figures.bleu['int8']:.2f} and float32 {figures.bleu['float32']:.2f}, expected a loss "
            f"of at most {largest_loss:g}"
        )
    return problems
