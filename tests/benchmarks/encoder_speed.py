"""
Forward and backward of the encoder against `BertModel`, same shape, dtype, dropout and padded batch, in one run.

    python tests/benchmarks/encoder_speed.py [--dtype float32|bfloat16] [--hidden_size 384] ...

Measured in turns (ours, BERT, ours, ...), so that a slow moment of the machine hits both; printed are the medians and
the median of the ratios of neighbours. `bert twin` has BERT's own settings (norm after the residual, learned positions,
gelu), `default` the defaults of a `ChinchillaConfig` (norm on the sub-layer's output, rotary positions, relu). All
three with both attention implementations: which one is faster depends on the machine, the dtype and the length.
"""

import copy
import time
from dataclasses import dataclass, field
from statistics import median

import torch
from transformers import BertConfig, BertModel, HfArgumentParser

from chinchilla_hf import ChinchillaConfig, ChinchillaModel
from chinchilla_hf.conversion import convert_model


@dataclass
class Options:
    hidden_size: int = field(default=384, metadata={"help": "Width."})
    num_hidden_layers: int = field(default=6, metadata={"help": "Depth."})
    num_attention_heads: int = field(default=12, metadata={"help": "Heads."})
    batch_size: int = field(default=32, metadata={"help": "Texts."})
    length: int = field(default=64, metadata={"help": "Tokens of the longest text; the shortest has a quarter."})
    dtype: str = field(default="float32", metadata={"help": "float32, or bfloat16 for autocast."})
    dropout: float = field(default=0.1, metadata={"help": "Hidden dropout; attention dropout is 0 for all."})
    rounds: int = field(default=30, metadata={"help": "Measurements of each."})


def make_step(model, inputs: dict[str, torch.Tensor], dtype: torch.dtype):
    def step() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(**inputs).last_hidden_state.float().square().mean()
        loss.backward()
        elapsed = time.perf_counter() - start
        model.zero_grad()
        return elapsed

    return step


def main() -> None:
    (options,) = HfArgumentParser(Options, description=__doc__).parse_args_into_dataclasses()
    torch.manual_seed(0)
    shape = {
        "vocab_size": 30522,
        "hidden_size": options.hidden_size,
        "num_hidden_layers": options.num_hidden_layers,
        "num_attention_heads": options.num_attention_heads,
        "intermediate_size": 4 * options.hidden_size,
    }
    bert = BertModel(
        BertConfig(**shape, hidden_dropout_prob=options.dropout, attention_probs_dropout_prob=0.0),
        add_pooling_layer=False,
    )
    models = {
        "BertModel": bert,
        "bert twin": convert_model(bert),
        "default": ChinchillaModel(ChinchillaConfig(**shape, hidden_dropout=options.dropout)),
    }
    for name, model in list(models.items()):
        models[f"{name}, eager"] = copy.deepcopy(model)
        models[f"{name}, eager"].set_attn_implementation("eager")
    lengths = torch.linspace(options.length, options.length // 4, options.batch_size).long()
    mask = (torch.arange(options.length) < lengths[:, None]).long()
    inputs = {"input_ids": torch.randint(5, 30522, mask.shape) * mask, "attention_mask": mask}
    inputs["token_type_ids"] = torch.zeros_like(mask)
    steps = {name: make_step(model.train(), inputs, getattr(torch, options.dtype)) for name, model in models.items()}
    for step in steps.values():
        step(), step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            times[name].append(step())
    print(f"{options.dtype}, batch {options.batch_size} x {options.length}, {torch.get_num_threads()} threads")
    for name in steps:
        peer = "BertModel, eager" if name.endswith("eager") else "BertModel"
        ratio = median(ours / theirs for ours, theirs in zip(times[name], times[peer], strict=True))
        print(f"{name:<17} {1000 * median(times[name]):8.1f} ms a step   {ratio:.3f} of the time of {peer}")


if __name__ == "__main__":
    main()
