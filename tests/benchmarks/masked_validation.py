"""
What the benchmarks of pretraining compare models by: the same masked tokens of the same documents, for all of them.

    python tests/benchmarks/masked_validation.py --model runs/encoder --masked_pieces runs/quality/masked_pieces.npz \
        [--classification_dataset data_full.json]

`training/pretrain.py` validates on packed rows, whose masks change with the row length, the masking rate and the
objective. Here documents are cut and masked once, at 15%, stored, and given to every checkpoint of ours and of BERT in
padded batches, in float32. Packed rows give the same losses (tests/test_modeling_chinchilla.py), so padding favours
none. A linear probe says what else is in the hidden states: a logistic regression on their mean over each text.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, HfArgumentParser, PreTrainedTokenizerFast

import chinchilla_hf  # noqa: F401, registers the models with the Auto classes
from chinchilla_hf.data.corpora import Corpus
from chinchilla_hf.data.labelled import load_labelled
from chinchilla_hf.data.objectives import IGNORED, MaskedTokens, MaskingSchedule
from chinchilla_hf.data.packing import SpecialTokens, assemble_row, cut_documents
from chinchilla_hf.data.token_store import TokenStore, tokenizer_of_corpus

TRAINING = Path(__file__).parents[2] / "training"
MASKING_RATE = 0.15  # Devlin et al. 2019
BATCH_SIZE = 64


@dataclass
class BenchmarkOptions:
    """What the benchmarks of pretraining share: the text, the shape of the models, where results go."""

    dataset: str = field(metadata={"help": "Any text that training/pretrain.py takes."})
    validation_dataset: str | None = field(
        default=None, metadata={"help": "Text to validate on. Default: what is held out of --dataset."}
    )
    validation_share: float = field(
        default=0.01, metadata={"help": "Share of the documents of --dataset that no model is trained on."}
    )
    classification_dataset: str | None = field(
        default=None, metadata={"help": "data_full.json of CLINC150, or other texts with one label each."}
    )
    text_column: str = field(default="column_0", metadata={"help": "Its column of the text."})
    label_column: str = field(default="column_1", metadata={"help": "Its column of the label."})
    output_dir: str = field(
        default="runs/benchmark",
        metadata={"help": "Tokens, models and results. What is finished there is not run again."},
    )
    max_documents: int | None = field(default=None, metadata={"help": "Only so many documents, for a quick trial."})
    length: int = field(default=128, metadata={"help": "Documents are cut at so many tokens, special ones included."})
    vocab_size: int = field(default=16_384, metadata={"help": "Vocabulary."})
    hidden_size: int = field(default=256, metadata={"help": "Width."})
    num_hidden_layers: int = field(default=6, metadata={"help": "Depth."})
    num_attention_heads: int = field(default=4, metadata={"help": "Heads."})

    @property
    def folder(self) -> Path:
        return Path(self.output_dir)

    @property
    def tokenizer_folder(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def masked_pieces_path(self) -> Path:
        return self.folder / "masked_pieces.npz"

    @property
    def shape(self) -> dict[str, int]:
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
        return {name: getattr(self, name) for name in names}


@dataclass
class MaskedPieces:
    """
    Documents, masked once for all models, by length.

    Args:
        input_ids: `(pieces, length)`, some of them masked; padded at the end.
        labels: `(pieces, length)`, -100 where there is nothing to predict.
        lengths: `(pieces,)` without padding.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray

    @classmethod
    def make(
        cls, store: TokenStore, tokenizer: PreTrainedTokenizerFast, length: int, documents: np.ndarray | None = None
    ) -> "MaskedPieces":
        """Pieces of `documents`, `(documents,)` of bool, or of all that are in `store`."""
        special = SpecialTokens.of(tokenizer)
        starts, lengths = cut_documents(store.document_starts, length - len(special), documents=documents)
        order = np.argsort(lengths, kind="stable")  # so that a batch has little padding
        masked, rng = MaskedTokens(tokenizer, MaskingSchedule(MASKING_RATE, MASKING_RATE)), np.random.default_rng(0)
        items = [masked(assemble_row(store.tokens, starts[[i]], lengths[[i]], special, length), rng, 0) for i in order]
        input_ids, labels = (np.stack([item[name] for item in items]) for name in ("input_ids", "labels"))
        return cls(input_ids, labels, lengths[order] + len(special))

    def save(self, path: Path) -> None:
        np.savez(path, input_ids=self.input_ids, labels=self.labels, lengths=self.lengths)

    @classmethod
    def load(cls, path: Path) -> "MaskedPieces":
        with np.load(path) as arrays:
            return cls(**arrays)


def prepare(options: BenchmarkOptions, *, sentences: bool = False) -> tuple[TokenStore, PreTrainedTokenizerFast]:
    """
    Tokenizer, tokens and masked pieces, in the output folder: what every run starts from, and none is to wait for.

    Args:
        options: of the benchmark.
        sentences: also note where sentences begin, as the next-sentence objective wants.
    """
    corpus, cache = Corpus(options.dataset), options.folder / "tokens"
    if not options.tokenizer_folder.is_dir():
        settings = {"vocab_size": options.vocab_size, "model_max_length": 512}
        made = tokenizer_of_corpus(corpus, cache_dir=cache, max_documents=options.max_documents, **settings)
        made.save_pretrained(options.tokenizer_folder)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer_folder)
    limits: dict[str, Any] = {"cache_dir": cache, "max_documents": options.max_documents}
    store = TokenStore.build(corpus, tokenizer, **limits)
    if sentences:
        TokenStore.build(corpus, tokenizer, sentences=True, **limits)
    if options.validation_dataset:
        validation = TokenStore.build(Corpus(options.validation_dataset), tokenizer, cache_dir=cache)
        pieces = MaskedPieces.make(validation, tokenizer, options.length)
    else:
        pieces = MaskedPieces.make(store, tokenizer, options.length, store.held_out(options.validation_share))
    pieces.save(options.masked_pieces_path)
    return store, tokenizer


def pretraining_command(options: BenchmarkOptions, folder: Path, minutes: float, **recipe: Any) -> list[str]:
    """
    The command that pretrains a model of ours in `folder`: the recipe, with the options `recipe` changed.

    All of its time goes into training: it neither evaluates nor saves before the end.
    """
    arguments = {
        "dataset": options.dataset,
        "cache_dir": options.folder / "tokens",
        "tokenizer": options.tokenizer_folder,
        "validation_share": options.validation_share,
        "max_documents": options.max_documents,
        "max_minutes": minutes,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "output_dir": folder,
        **options.shape,
        **recipe,
    }
    pairs = [(f"--{name}", str(value)) for name, value in arguments.items() if value is not None]
    script, settings = TRAINING / "pretrain.py", TRAINING / "recipes" / "encoder.yaml"
    return [sys.executable, str(script), str(settings), *(part for pair in pairs for part in pair)]


@torch.no_grad()
def masked_scores(checkpoint: Path, pieces: MaskedPieces) -> dict[str, float]:
    """Cross-entropy (nats a masked token) and share of the masked tokens that `checkpoint` fills in."""
    model = AutoModelForMaskedLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    is_sparse = getattr(model.config, "sparse_prediction", False)
    loss = hits = 0.0
    for begin in range(0, len(pieces.lengths), BATCH_SIZE):
        lengths = torch.from_numpy(pieces.lengths[begin : begin + BATCH_SIZE])
        longest = int(lengths.max())
        input_ids, labels = (
            torch.from_numpy(part[begin : begin + BATCH_SIZE, :longest]) for part in (pieces.input_ids, pieces.labels)
        )
        mask = (torch.arange(longest) < lengths[:, None]).long()
        labelled = labels != IGNORED
        if is_sparse:  # ours projects to the vocabulary where there are labels only
            logits = model(input_ids=input_ids, attention_mask=mask, labels=labels).logits
        else:
            logits = model(input_ids=input_ids, attention_mask=mask).logits[labelled]
        loss += torch.nn.functional.cross_entropy(logits, labels[labelled], reduction="sum").item()
        hits += (logits.argmax(dim=-1) == labels[labelled]).sum().item()
    tokens = int((pieces.labels != IGNORED).sum())
    return {"validation_loss": loss / tokens, "masked_accuracy": hits / tokens}


@torch.no_grad()
def mean_states(checkpoint: Path, texts: list[str], max_length: int = 64) -> np.ndarray:
    """`(texts, hidden_size)`: the mean over the last hidden states of each text."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    features = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    order = np.argsort([len(text) for text in texts], kind="stable")
    for begin in range(0, len(order), 4 * BATCH_SIZE):
        chosen = order[begin : begin + 4 * BATCH_SIZE]
        batch = tokenizer(
            [texts[i] for i in chosen], padding=True, truncation=True, max_length=max_length, return_tensors="pt"
        )
        kept = batch["attention_mask"].unsqueeze(-1)  # (batch, length, 1)
        states = model(**batch).last_hidden_state
        features[chosen] = ((states * kept).sum(dim=1) / kept.sum(dim=1)).numpy()
    return features


def probe_accuracy(checkpoint: Path, dataset: str, text_column: str, label_column: str) -> float:
    """
    Accuracy of a linear probe on the validation split: what is chosen by it has then not seen the test split.
    """
    data = load_labelled(dataset, text_column=text_column, label_column=label_column)
    features = {split: mean_states(checkpoint, data.splits[split]["text"][:]) for split in ("train", "validation")}
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    probe.fit(features["train"], data.splits["train"]["labels"][:])
    return float(probe.score(features["validation"], data.splits["validation"]["labels"][:]))


@dataclass
class Options:
    model: str = field(metadata={"help": "Checkpoint of ours or of BERT."})
    masked_pieces: str = field(metadata={"help": "What `MaskedPieces.save` has written."})
    classification_dataset: str | None = field(default=None, metadata={"help": "Also a linear probe on these texts."})
    text_column: str = field(default="column_0", metadata={"help": "Their column of the text."})
    label_column: str = field(default="column_1", metadata={"help": "Their column of the label."})


def main() -> None:
    (options,) = HfArgumentParser(Options, description=__doc__).parse_args_into_dataclasses()
    scores = masked_scores(Path(options.model), MaskedPieces.load(Path(options.masked_pieces)))
    if options.classification_dataset:
        columns = options.text_column, options.label_column
        scores["probe_accuracy"] = probe_accuracy(Path(options.model), options.classification_dataset, *columns)
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
