"""
`BertForMaskedLM` as people pretrain it: the peer of `pretraining_quality.py`.

As in Transformers' run_mlm.py: Trainer with its AdamW, random batches padded to their longest text, 15% masked,
dropout. It gets what a knowing user would give it: bfloat16 where the machine multiplies it in hardware, the attention
that is measured to be faster here, and a learning rate that falls to 0 exactly at the end of its time.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from masked_validation import MASKING_RATE
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from chinchilla_hf.callbacks import BudgetClock
from chinchilla_hf.data.packing import SpecialTokens, cut_documents
from chinchilla_hf.data.token_store import TokenStore
from chinchilla_hf.optim import decaying_schedule
from chinchilla_hf.training_arguments import bf16_is_fast

# Trainer wants a number of steps. A run that ends by time takes as many as fit.
ENDLESS = 1_000_000_000


@dataclass
class BertOptions:
    """How the peer is trained. Its defaults are those of Transformers, but for what has to be chosen."""

    bert_learning_rates: list[float] = field(
        default_factory=lambda: [2e-4, 5e-4, 1e-3],
        metadata={"help": "Of BERT, each with the full time: the best counts."},
    )
    bert_batch_size: int = field(default=32, metadata={"help": "Texts in a step of BERT."})
    bert_dropout: float = field(default=0.1, metadata={"help": "Dropout of BERT, of attention, too; 0 is without."})
    bert_warmup_share: float = field(default=0.05, metadata={"help": "Share of BERT's time for the warm-up."})
    bert_sampling: str = field(
        default="random",
        metadata={"help": "How BERT's batches are made.", "choices": ["random", "group_by_length"]},
    )


class Pieces(Dataset):
    """Documents as a Trainer takes them: no padding, special tokens around the text."""

    def __init__(self, store: TokenStore, special_tokens: SpecialTokens, length: int, validation_share: float):
        self.tokens, self.special_tokens = store.tokens, special_tokens
        self.starts, self.lengths = cut_documents(
            store.document_starts, length - len(special_tokens), documents=~store.held_out(validation_share)
        )

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def mean_length(self) -> float:
        """Tokens of a document, special ones included."""
        return float(self.lengths.mean()) + len(self.special_tokens)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        before, after = self.special_tokens.before, self.special_tokens.after
        text = self.tokens[self.starts[index] : self.starts[index] + self.lengths[index]].tolist()
        is_special = [1] * len(before) + [0] * len(text) + [1] * len(after)
        return {"input_ids": [*before, *text, *after], "special_tokens_mask": is_special}


def faster_attention(model: BertForMaskedLM, batch: dict[str, torch.Tensor], bf16: bool) -> str:
    """The attention with which a forward and backward pass takes less time, dropout included."""
    seconds: dict[str, list[float]] = {"eager": [], "sdpa": []}
    for _ in range(4):  # in turns, so that a slow moment of the machine hits both
        for name, of_this in seconds.items():
            model.set_attn_implementation(name)
            start = time.perf_counter()
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                loss = model(**batch).loss
            loss.backward()
            of_this.append(time.perf_counter() - start)
            model.zero_grad()
    return min(seconds, key=lambda name: min(seconds[name]))


def pretrain_bert(
    options: BertOptions,
    learning_rate: float,
    pieces: Pieces,
    tokenizer: PreTrainedTokenizerFast,
    shape: dict[str, int],
    minutes: float,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """Train for `minutes`, and save model and tokenizer in `folder`. Returns the steps, tokens, seconds, attention."""
    set_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        intermediate_size=4 * shape["hidden_size"],
        hidden_dropout_prob=options.bert_dropout,
        attention_probs_dropout_prob=options.bert_dropout,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=ENDLESS,
        learning_rate=learning_rate,
        weight_decay=0.01,
        per_device_train_batch_size=options.bert_batch_size,
        train_sampling_strategy=options.bert_sampling,
        use_cpu=not torch.accelerator.is_available(),
        bf16=bf16_is_fast(),
        seed=seed,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
    )
    clock = BudgetClock(minutes)
    trainer = Trainer(
        BertForMaskedLM(config).train(),
        arguments,
        train_dataset=pieces,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKING_RATE),
        callbacks=[clock],
    )
    model = trainer.model
    batch = {name: tensor.to(model.device) for name, tensor in next(iter(trainer.get_train_dataloader())).items()}
    attention = faster_attention(model, batch, arguments.bf16)
    model.set_attn_implementation(attention)
    # Trainer's own linear schedule goes by steps, and how many fit is known at the end only.
    trainer.lr_scheduler = decaying_schedule(
        trainer.create_optimizer(), ENDLESS, options.bert_warmup_share, progress=clock.progress
    )
    trainer.train()
    steps, seconds = trainer.state.global_step, clock.seconds
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tokens = round(steps * options.bert_batch_size * pieces.mean_length)
    return {"steps": steps, "tokens": tokens, "seconds": seconds, "attention": attention}
