"""
Train on English texts, and classify those of another language: what a pretraining on texts of both is worth.

    mkdir -p lists/partial
    apt-get -o Dir::State::Lists=$PWD/lists -o Acquire::Languages=en,de update
    python tests/benchmarks/new_language.py --lists lists --language de

The texts are Debian's descriptions of its packages, in English and as its translators have them; the classes are the
sections of the archive, as `games` or `libs`. Packages of one source are in one part. An encoder is pretrained with
`training/pretrain.py` on the descriptions of the training part, once in English and the other language, each pair of
texts one document, and once in English alone, for the same time and with one tokenizer for both; then
`training/classify.py` fine-tunes it on English texts. Beside it, the linear model on TF-IDF, which has what the
languages share, names and terms, and the largest class.
"""

import json
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import HfArgumentParser, pipeline

import chinchilla_hf  # noqa: F401, registers the models with the Auto classes
from chinchilla_hf.baselines import tfidf_baseline
from chinchilla_hf.metrics import confidence_interval

TRAINING = Path(__file__).parents[2] / "training"
APT_HELPER = "/usr/lib/apt/apt-helper"


@dataclass
class Options:
    lists: str = field(metadata={"help": "The folder with apt's package lists and translations."})
    language: str = field(default="de", metadata={"help": "The other language, as apt calls it."})
    classes: int = field(default=20, metadata={"help": "The sections with the most packages."})
    minutes: float = field(default=10.0, metadata={"help": "Minutes of the CPU's work for each pretraining."})
    epochs: float = field(default=6.0, metadata={"help": "Epochs of fine-tuning."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Learning rate of fine-tuning."})
    seed: int = field(default=42, metadata={"help": "Seed of everything."})
    output_dir: str = field(
        default="runs/new_language", metadata={"help": "Texts and models. What is finished is not run again."}
    )


def paragraphs(file: Path) -> Iterator[dict[str, str]]:
    """The fields of every paragraph in one of apt's lists (deb822), whatever it is compressed with."""
    text = subprocess.run([APT_HELPER, "cat-file", str(file)], capture_output=True, check=True).stdout.decode()
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if line.startswith(" "):
                fields[name] += f"\n{line[1:]}"
            else:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        yield fields


def plain(description: str) -> str:
    """A description without the lines that are only a dot, which stand for empty ones."""
    return "\n".join(line for line in description.splitlines() if line.strip() != ".")


def read_packages(options: Options) -> pd.DataFrame:
    """A row a package that is described in both languages, of the largest sections: `part`, `section`, both texts."""

    def all_of(pattern: str) -> Iterator[dict[str, str]]:
        files = sorted(Path(options.lists).glob(pattern))
        if not files:
            raise SystemExit(
                f"error: {options.lists} has no file {pattern}: fetch it as the head of --help says, with "
                f"Acquire::Languages=en,{options.language}"
            )
        for file in files:
            yield from paragraphs(file)

    texts = {}
    for language in ("en", options.language):
        name = f"Description-{language}"
        pattern = f"*_i18n_Translation-{language}*"
        texts[language] = {f["Description-md5"]: plain(f[name]) for f in all_of(pattern) if name in f}
    rows = {}
    for package in all_of("*_Packages*"):
        key = package.get("Description-md5")
        if all(key in of_language for of_language in texts.values()):
            source = package.get("Source", package["Package"]).split()[0]
            # Other packages of one source are described in nearly the same words.
            place = zlib.crc32(source.encode()) % 10
            part = "test" if place < 2 else "validation" if place == 2 else "train"
            values = (part, package["Section"].split("/")[-1], *(of_language[key] for of_language in texts.values()))
            rows[values[2]] = values  # of packages with one text, one
    table = pd.DataFrame(rows.values(), columns=["part", "section", "english", "other"])
    largest = [section for section, _ in Counter(table["section"]).most_common(options.classes)]
    return table[table["section"].isin(largest)].reset_index(drop=True)


def run(script: str, folder: Path, *words: object) -> dict:
    """Run a script of `training/`, unless its folder is finished; its run record."""
    record = folder / "run.json"
    if not record.is_file() or json.loads(record.read_text())["status"] != "finished":
        command = [sys.executable, TRAINING / f"{script}.py", *words, "--output_dir", folder, "--report_to", "none"]
        subprocess.run(list(map(str, command)), check=True)
    return json.loads(record.read_text())


def write_texts(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def accuracy_in(folder: Path, texts: list[str], labels: list[str]) -> float:
    classify = pipeline("text-classification", str(folder))
    results = classify(texts, batch_size=64, truncation=True)
    return float(np.mean([result["label"] == label for result, label in zip(results, labels, strict=True)]))


def main() -> None:
    (options,) = HfArgumentParser(Options, description=__doc__).parse_args_into_dataclasses()
    table, folder = read_packages(options), Path(options.output_dir)
    parts = {name: part for name, part in table.groupby("part")}
    print(", ".join(f"{name} {len(part)}" for name, part in parts.items()), "descriptions")
    (folder / "english").mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        part[["english", "section"]].to_csv(folder / "english" / f"{name}.csv", index=False)
    train, test = parts["train"], parts["test"]
    pairs = [f"{a}\n{b}" for a, b in zip(train["english"], train["other"], strict=True)]
    write_texts(folder / "both.jsonl", pairs)
    write_texts(folder / "one.jsonl", list(train["english"]))

    accuracies: dict[str, list[float]] = {}
    for name in ("both", "one"):
        tokenizer = [] if name == "both" else ["--tokenizer", folder / "both"]
        pretraining = [TRAINING / "recipes" / "encoder.yaml", "--dataset", folder / f"{name}.jsonl", *tokenizer]
        pretraining += ["--row_length", 256, "--per_device_train_batch_size", 16, "--max_minutes", options.minutes]
        pretraining += [
            "--time_budget",
            "cpu",
            "--eval_strategy",
            "no",
            "--save_strategy",
            "no",
            "--seed",
            options.seed,
        ]
        run("pretrain", folder / name, *pretraining)
        tuning = ["--dataset", folder / "english", "--text_column", "english", "--label_column", "section"]
        tuning += ["--model", folder / name, "--pooling", "mean", "--max_length", 256, "--baseline", False]
        tuning += ["--learning_rate", options.learning_rate, "--num_train_epochs", options.epochs]
        tuning += ["--seed", options.seed]
        run("classify", folder / f"{name}-classifier", *tuning)
        accuracies[f"pretrained on {'both' if name == 'both' else 'English'}"] = [
            accuracy_in(folder / f"{name}-classifier", list(test[column]), list(test["section"]))
            for column in ("english", "other")
        ]
    labels = list(train["section"]), list(test["section"])
    accuracies["TF-IDF + linear"] = [
        tfidf_baseline(list(train["english"]), labels[0], list(test[column]), labels[1]).metrics["accuracy"]
        for column in ("english", "other")
    ]
    largest = Counter(labels[0]).most_common(1)[0][0]
    accuracies["the largest class"] = [labels[1].count(largest) / len(test)] * 2

    print(f"\naccuracy on {len(test)} texts, in brackets the 95% interval\n\n| | English | {options.language} |")
    print("|---|---:|---:|")
    for name, values in accuracies.items():
        cells = []
        for value in values:
            low, high = confidence_interval(value, len(test))
            cells.append(f"{value:.3f} ({low:.3f} to {high:.3f})")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
