"""
Useful tokens a second of causal training, against `GPT2LMHeadModel` in Trainer, in one run.

    python tests/benchmarks/causal_speed.py --dataset corpus.jsonl.gz [--max_documents 8000] [--rounds 5] [--seconds 20]

All train on the same documents, truncated at `--length` tokens, with a model of the same size. Ours is
`PretrainingTrainer` on packed rows, as training/pretrain.py sets it up: Muon, bfloat16 where the machine multiplies it
in hardware, the attention that is faster there, the loss made a few tokens at a time, no dropout. GPT-2 is in Trainer
as it is by default: random batches of 8 documents, padded to their longest by `DataCollatorForLanguageModeling`, AdamW,
float32, GPT-2's dropout. Three more GPT-2s get what a user may give it: as many documents as our step has positions
for; bfloat16 as well; and eager attention without dropout besides.

A step counts as a whole: making the batch, gradient, optimizer. Useful tokens are those of the documents, padding is
none. The contestants, each in a process of its own, take turns (`turns.py`); printed are medians, and the median of the
ratios within a turn.
"""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from turns import ENDLESS, Worker, device_name, print_rates, rates_in_turns, train_in_turns

from chinchilla_hf import ChinchillaDecoderConfig, ChinchillaForCausalLM
from chinchilla_hf.data.corpora import Corpus
from chinchilla_hf.data.objectives import tokens_to_continue
from chinchilla_hf.data.packing import PackedRows, SpecialTokens, collate_rows, pack
from chinchilla_hf.data.token_store import TokenStore, tokenizer_of_corpus
from chinchilla_hf.processes import keep_freed_memory
from chinchilla_hf.trainer import PretrainingTrainer
from chinchilla_hf.training_arguments import PretrainingArguments, bf16_is_fast, choose_attention

logging.getLogger("transformers").setLevel(logging.ERROR)

OURS = "ours"


@dataclass(frozen=True)
class Peer:
    """How a GPT-2 is trained. The defaults are those of Trainer and of GPT-2."""

    batch_size: int | None = 8  # None: documents for as many positions as a step of ours has
    bf16: bool = False  # where the machine multiplies it in hardware
    attention: str = "sdpa"
    dropout: float = 0.1


PEERS = {
    "GPT2LMHeadModel, fp32, batch 8": Peer(),
    "GPT2LMHeadModel, fp32, large batch": Peer(None),
    "GPT2LMHeadModel, bf16, large batch": Peer(None, bf16=True),
    "GPT2LMHeadModel, bf16, eager, no dropout": Peer(None, bf16=True, attention="eager", dropout=0.0),
}


@dataclass
class Options:
    dataset: str = field(metadata={"help": "Any text that training/pretrain.py takes."})
    max_documents: int = field(default=20_000, metadata={"help": "Documents, from the first one."})
    length: int = field(default=128, metadata={"help": "Documents are truncated at so many tokens; also our rows."})
    tokens_per_step: int = field(default=16_384, metadata={"help": "Positions of a step, padding included."})
    vocab_size: int = field(default=16_384, metadata={"help": "Vocabulary."})
    hidden_size: int = field(default=256, metadata={"help": "Width."})
    num_hidden_layers: int = field(default=6, metadata={"help": "Depth."})
    num_attention_heads: int = field(default=4, metadata={"help": "Heads."})
    rounds: int = field(default=5, metadata={"help": "Turns of each contestant."})
    seconds: float = field(default=20.0, metadata={"help": "Seconds of a turn; the step under way is ended."})

    @property
    def shape(self) -> dict[str, int]:
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
        return {name: getattr(self, name) for name in names}


class Documents(Dataset):
    """Truncated documents as Trainer takes them: ids, special tokens included, without padding."""

    def __init__(self, store: TokenStore, special_tokens: SpecialTokens, length: int):
        self.tokens, self.special_tokens = store.tokens, special_tokens
        lengths = np.minimum(np.diff(store.document_starts), length - len(special_tokens))
        kept = lengths >= 2  # nothing is to be learned from a single token
        self.starts, self.lengths = store.document_starts[:-1][kept], lengths[kept]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        text = self.tokens[self.starts[index] : self.starts[index] + self.lengths[index]].tolist()
        return {"input_ids": [*self.special_tokens.before, *text, *self.special_tokens.after]}


def useful_tokens(pad_token_id: int, inputs: dict[str, torch.Tensor]) -> int:
    return int(inputs["input_ids"].ne(pad_token_id).sum())


def our_trainer(options: Options, documents: Documents, tokenizer: PreTrainedTokenizerFast, folder: str) -> Trainer:
    """As training/pretrain.py makes it with recipes/decoder.yaml."""
    arguments = PretrainingArguments(
        output_dir=folder,
        max_steps=ENDLESS,
        per_device_train_batch_size=options.tokens_per_step // options.length,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    if arguments.device.type == "cpu":
        keep_freed_memory()
    special = documents.special_tokens
    packing = pack(documents.starts, documents.lengths, options.length, len(special), arguments.seed)
    num_items = ENDLESS * arguments.train_batch_size
    rows = PackedRows(documents.tokens, packing, special, tokens_to_continue, arguments.seed, num_items)
    config = ChinchillaDecoderConfig(
        **options.shape, vocab_size=len(tokenizer), hidden_dropout=0.0, pad_token_id=tokenizer.pad_token_id
    )
    model = ChinchillaForCausalLM(config)
    model.set_attn_implementation(choose_attention(arguments, options.length))
    return PretrainingTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collate_rows,
        processing_class=tokenizer,
        tokens_per_step=options.tokens_per_step,
        padding=packing.padding,
    )


def peer_trainer(
    peer: Peer, options: Options, documents: Documents, tokenizer: PreTrainedTokenizerFast, folder: str
) -> Trainer:
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=options.hidden_size,
        n_layer=options.num_hidden_layers,
        n_head=options.num_attention_heads,
        n_positions=512,
        resid_pdrop=peer.dropout,
        embd_pdrop=peer.dropout,
        attn_pdrop=peer.dropout,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GPT2LMHeadModel(config)
    model.set_attn_implementation(peer.attention)
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=ENDLESS,
        per_device_train_batch_size=peer.batch_size or options.tokens_per_step // options.length,
        bf16=peer.bf16 and bf16_is_fast(),
        use_cpu=not torch.accelerator.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return Trainer(model, arguments, train_dataset=documents, data_collator=collator, processing_class=tokenizer)


def serve(
    connection: Connection, name: str, options: Options, documents: Documents, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Be the process of a contestant."""
    set_seed(0)
    make: Callable[..., Trainer] = our_trainer if name == OURS else partial(peer_trainer, PEERS[name])
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(options, documents, tokenizer, folder)
        train_in_turns(connection, trainer, partial(useful_tokens, tokenizer.pad_token_id))


def prepare(options: Options) -> tuple[Documents, Any]:
    """Documents and the tokenizer that is trained on them, the same for all."""
    corpus = Corpus(options.dataset)
    settings = {"vocab_size": options.vocab_size, "model_max_length": 512, "show_progress": False}
    with tempfile.TemporaryDirectory() as cache:
        common: dict[str, Any] = {"cache_dir": cache, "max_documents": options.max_documents}
        tokenizer = tokenizer_of_corpus(corpus, **common, **settings)
        store = TokenStore.build(corpus, tokenizer, **common, show_progress=False)
        documents = Documents(store, SpecialTokens.of(tokenizer), options.length)
        documents.tokens = np.array(documents.tokens)  # of a file that is about to go
    return documents, tokenizer


def main() -> None:
    (options,) = HfArgumentParser(Options, description=__doc__).parse_args_into_dataclasses()
    documents, tokenizer = prepare(options)
    workers = {name: Worker(serve, name, options, documents, tokenizer) for name in (OURS, *PEERS)}
    rates = rates_in_turns(workers, options.rounds, options.seconds)
    full = float(np.mean(documents.lengths + len(documents.special_tokens))) / options.length
    on = device_name("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{len(documents):,} documents, on average {full:.0%} of {options.length} tokens; {on}")
    print(f"a step of ours, and a large batch, has {options.tokens_per_step:,} positions")
    print_rates(rates, OURS)


if __name__ == "__main__":
    main()
