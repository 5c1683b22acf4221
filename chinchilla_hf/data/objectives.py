"""
What is learned from a packed row: to fill in masked tokens, to predict the next one, or both in turn.

Objectives are functions of a row, a random generator and how far the run is, so the same seed and step give the same
masks, and the next epoch gives others.
"""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from .packing import Objective, Row

IGNORED = -100  # the label that Transformers' losses leave out


@dataclass(frozen=True)
class MaskingSchedule:
    """
    The share of tokens to predict, on a line from `start` to `end` over a run.

    A high rate early trains faster, a low one late is closer to use (Ankner et al. 2024, "Dynamic Masking Rate
    Schedules for MLM Pretraining": 0.30 to 0.15).

    Args:
        start: share at the beginning.
        end: share at the end.

    Raises:
        ValueError: a share that is not between 0 and 1.
    """

    start: float = 0.3
    end: float = 0.15

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"masking rate ({name}) is {getattr(self, name)}, but must be between 0 and 1")

    def rate(self, progress: float) -> float:
        """The share to predict when `progress`, from 0 to 1, of the run is done."""
        return self.start + (self.end - self.start) * progress


class MaskedTokens:
    """
    Masked language modelling (Devlin et al. 2019): of the tokens to predict, most become the mask token, some a random
    token, and some stay.

    Args:
        tokenizer: has a mask token.
        schedule: share of the tokens to predict.
        mask_share: of the tokens to predict, the share that becomes the mask token.
        random_share: the share that becomes a random token; the rest stays as it is.

    Raises:
        ValueError: the tokenizer has no mask token, or the shares are not shares.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        schedule: MaskingSchedule | None = None,
        mask_share: float = 0.8,
        random_share: float = 0.1,
    ):
        if tokenizer.mask_token_id is None:
            raise ValueError("the tokenizer has no mask token, which masked tokens need: add one, or train causally")
        if mask_share < 0 or random_share < 0 or mask_share + random_share > 1:
            raise ValueError(
                f"mask_share is {mask_share} and random_share {random_share}, but both are shares of the tokens to "
                "predict, and 1 at most together"
            )
        self.schedule = schedule or MaskingSchedule()
        self.mask_share = mask_share
        self.random_share = random_share
        self.mask_token_id = tokenizer.mask_token_id
        self.ordinary_tokens = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)

    def __call__(self, row: Row, rng: np.random.Generator, progress: float) -> dict[str, np.ndarray]:
        candidates = np.flatnonzero(row.is_text)
        count = max(1, round(self.schedule.rate(progress) * len(candidates)))
        chosen = rng.choice(candidates, count, replace=False, shuffle=False)
        labels = np.full_like(row.input_ids, IGNORED)
        labels[chosen] = row.input_ids[chosen]
        fate = rng.random(count)
        input_ids = row.input_ids.copy()
        input_ids[chosen[fate < self.mask_share]] = self.mask_token_id
        replaced = chosen[(fate >= self.mask_share) & (fate < self.mask_share + self.random_share)]
        input_ids[replaced] = rng.choice(self.ordinary_tokens, len(replaced))
        return {"input_ids": input_ids, "position_ids": row.position_ids, "labels": labels}


def next_tokens(row: Row, rng: np.random.Generator, progress: float) -> dict[str, np.ndarray]:
    """
    Causal language modelling with the masked-token head of an encoder: every token predicts the next one of its
    document. `labels` are shifted, position `i` holds the token `i + 1`.
    """
    labels = np.full_like(row.input_ids, IGNORED)
    follows = (row.documents[1:] == row.documents[:-1]) & (row.documents[1:] >= 0)
    labels[:-1][follows] = row.input_ids[1:][follows]
    return {"input_ids": row.input_ids, "position_ids": row.position_ids, "labels": labels}


def tokens_to_continue(row: Row, rng: np.random.Generator, progress: float) -> dict[str, np.ndarray]:
    """
    Causal language modelling for decoders, which shift their labels themselves: `labels` are the tokens, but the first
    one of every document, which nothing comes before.
    """
    labels = np.where((row.documents >= 0) & (row.position_ids > 0), row.input_ids, IGNORED)
    return {"input_ids": row.input_ids, "position_ids": row.position_ids, "labels": labels}


class MaskedOrCausal:
    """
    Rows with masked tokens and rows to continue, in one run of an encoder (Charpentier and Samuel 2024, GPT-BERT).

    Args:
        masked: for the masked rows.
        causal_share: share of the rows that are causal.

    Raises:
        ValueError: `causal_share` is not a share.
    """

    def __init__(self, masked: MaskedTokens, causal_share: float):
        if not 0 <= causal_share <= 1:
            raise ValueError(f"causal_share is {causal_share}, but must be a share from 0 to 1")
        self.masked = masked
        self.causal_share = causal_share

    def __call__(self, row: Row, rng: np.random.Generator, progress: float) -> dict[str, np.ndarray]:
        is_causal = rng.random() < self.causal_share
        objective: Objective = next_tokens if is_causal else self.masked
        return {**objective(row, rng, progress), "causal_rows": np.array(is_causal)}
