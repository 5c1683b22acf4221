"""
Further formats of an exported classifier, for runtimes beside ONNX Runtime: OpenVINO on Intel's processors, ExecuTorch
in native applications on telephones. They are compared with torch as ONNX is.

    openvino/model.xml                  float32, with its weights in model.bin
    executorch/model.pte                float32, for XNNPACK; one text at a time
    executorch/model_quantized.pte      int8 weights by torchao, activations quantized as they come
"""

import copy
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim
from transformers import PreTrainedTokenizerFast

from .modeling_chinchilla import ChinchillaPreTrainedModel

OPENVINO, EXECUTORCH, QUANTIZED_EXECUTORCH = (
    "openvino/model.xml",
    "executorch/model.pte",
    "executorch/model_quantized.pte",
)
FORMATS = {"openvino": ("OpenVINO float32",), "executorch": ("ExecuTorch float32", "ExecuTorch int8")}
COMPARED_TEXTS = 100

# Of one text: token ids and what goes with them, `(1, length)` each; and what comes out, `(labels,)`.
Runner = Callable[[dict[str, torch.Tensor]], np.ndarray]


def check_formats(formats: Sequence[str]) -> None:
    """
    Raises:
        ImportError: the runtime of one of them is not installed.
        ValueError: no such format.
    """
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"there is no format {name!r}, expected some of {', '.join(FORMATS)}")
        for package in {"openvino": ("openvino",), "executorch": ("executorch", "torchao")}[name]:
            if importlib.util.find_spec(package) is None:
                raise ImportError(f"{package} is not installed: pip install 'chinchilla-hf[{name}]'")


def write_format(
    name: str, model: ChinchillaPreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, max_length: int
) -> dict[str, tuple[Runner, float]]:
    """
    Write `model` in the format `name`.

    Args:
        name: one of `FORMATS`.
        model: in float32.
        tokenizer: of it.
        folder: of the export.
        max_length: longest text in tokens.

    Returns:
        What runs each of the files, and its megabytes.
    """
    example = tokenizer("one text, and it is not the shortest", truncation=True, return_tensors="pt")
    inputs = {name: example[name] for name in tokenizer.model_input_names if name in example}
    write = _write_openvino if name == "openvino" else _write_executorch
    return write(model.eval(), inputs, folder, max_length)


def _write_openvino(
    model: ChinchillaPreTrainedModel, inputs: dict[str, torch.Tensor], folder: Path, max_length: int
) -> dict[str, tuple[Runner, float]]:
    import openvino
    from transformers.exporters import OpenVINOConfig, OpenVINOExporter

    inputs = {name: values.expand(2, -1) for name, values in inputs.items()}  # a batch of one would be one for ever
    program, _ = OpenVINOExporter().export_program(model, inputs, config=OpenVINOConfig(dynamic=True))
    path = folder / OPENVINO
    path.parent.mkdir()
    OpenVINOExporter.save_program(program, path)
    # On processors with bfloat16, OpenVINO computes in it unless told otherwise.
    precise = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    compiled = openvino.Core().compile_model(str(path), "CPU", precise)

    def run(given: dict[str, torch.Tensor]) -> np.ndarray:
        return np.array(compiled({name: values.numpy() for name, values in given.items()})[0][0])

    size = sum(file.stat().st_size for file in path.parent.iterdir()) / 1e6
    return {"OpenVINO float32": (run, size)}


def _write_executorch(
    model: ChinchillaPreTrainedModel, inputs: dict[str, torch.Tensor], folder: Path, max_length: int
) -> dict[str, tuple[Runner, float]]:
    from executorch.runtime import Runtime
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerAxis, quantize_
    from transformers.exporters import ExecutorchConfig, ExecutorchExporter

    quantized = copy.deepcopy(model)
    of_weights = {"weight_dtype": torch.int8, "weight_granularity": PerAxis(0)}
    quantize_(quantized, Int8DynamicActivationIntxWeightConfig(**of_weights))
    length = Dim("length", min=2, max=max_length)
    config = ExecutorchConfig(dynamic_shapes={name: {1: length} for name in inputs})
    (folder / EXECUTORCH).parent.mkdir()
    found: dict[str, tuple[Runner, float]] = {}
    for name, of_model, file in (
        ("ExecuTorch float32", model, EXECUTORCH),
        ("ExecuTorch int8", quantized, QUANTIZED_EXECUTORCH),
    ):
        program, _ = ExecutorchExporter().export_program(of_model, inputs, config=config)
        path = folder / file
        ExecutorchExporter.save_program(program, path)
        method = Runtime.get().load_program(str(path)).load_method("forward")

        def run(given: dict[str, torch.Tensor], method: Any = method) -> np.ndarray:
            return method.execute([given[name] for name in inputs])[0][0].numpy().copy()

        found[name] = run, path.stat().st_size / 1e6
    return found


@torch.inference_mode()
def check_format(
    runners: dict[str, tuple[Runner, float]],
    model: ChinchillaPreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str | tuple[str, str]],
) -> dict[str, dict[str, float]]:
    """
    How far what `runners` give is from torch, on the first texts: `difference`, the largest of a score, `agreement`,
    the share of texts with the same label, `milliseconds`, the median time of one text, and `megabytes`.
    """
    found = {name: {"difference": 0.0, "agreement": 0.0, "megabytes": size} for name, (_, size) in runners.items()}
    times: dict[str, list[float]] = {name: [] for name in runners}
    compared = texts[:COMPARED_TEXTS]
    for text in compared:
        pair = text if isinstance(text, tuple) else (text,)
        encoded = tokenizer(*pair, truncation=True, return_tensors="pt")
        inputs = {name: encoded[name] for name in tokenizer.model_input_names if name in encoded}
        expected = model(**inputs).logits[0].float().numpy()
        for name, (run, _) in runners.items():
            start = time.perf_counter()
            scores = run(inputs)
            times[name].append(1e3 * (time.perf_counter() - start))
            difference = float(np.abs(scores - expected).max())
            found[name]["difference"] = max(found[name]["difference"], difference)
            found[name]["agreement"] += float(scores.argmax() == expected.argmax()) / len(compared)
    return {name: values | {"milliseconds": statistics.median(times[name])} for name, values in found.items()}
