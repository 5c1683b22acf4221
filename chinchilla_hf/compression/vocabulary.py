"""
A smaller vocabulary: in a small model the table of tokens is most of it, and a task uses few of them.

Texts that the vocabulary was trimmed for are cut into the same tokens as before, so that the model computes the same
for them; a token that is gone is written by smaller ones.
"""

import json
import logging
import re
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..modeling_chinchilla_pretrained import ChinchillaFamilyPreTrainedModel

logger = logging.getLogger(__name__)

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
ORDERS = ("texts", "both")
KINDS = ("WordPiece", "BPE", "Unigram", "WordLevel")


def trim_vocabulary(
    model: ChinchillaFamilyPreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterable[str],
    min_count: int = 1,
    max_size: int | None = None,
    order: str = "texts",
) -> PreTrainedTokenizerFast:
    """
    Leave to `model` only the tokens that occur in `texts`, in place, and give the tokenizer that goes with it.

    Special tokens stay, and so do single characters: all of ASCII and of the texts, and all bytes where the tokenizer
    writes by bytes. Under `max_size`, characters beyond ASCII have to be frequent, as any token.

    Args:
        model: any of the family; its embeddings, the head that predicts tokens and the ids in its config change.
        tokenizer: of `model`.
        texts: as many as the task has, unlabelled ones, too: what is not in them is written by smaller tokens.
        min_count: a token that occurs less often goes as well, unless `order` is `"both"`.
        max_size: leave at most so many tokens, the first in `order`; `None`: as many as the texts need.
        order: `"texts"`, the most frequent first; or `"both"`, by the better of a token's places in that order and in
            the vocabulary of a WordPiece, in which BERT's stand by their frequency in another, larger corpus: for texts
            that are narrower than what the model is for. Tokens may stay that the texts do not have.

    Returns:
        A tokenizer of the same class, with new ids.

    Raises:
        ValueError: no texts, a `max_size` that is too small for what has to stay, an order that is not there or not for
            this tokenizer, a tokenizer that is not the model's, or one of another kind than WordPiece, BPE, Unigram and
            WordLevel; or encoder and decoder have vocabularies of their own. Nothing has changed then.
    """
    if min_count < 1:
        raise ValueError(f"min_count is {min_count}, expected at least 1")
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}, expected one of {', '.join(ORDERS)}")
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model only {model.config.vocab_size}: pass the "
            "tokenizer of the checkpoint"
        )
    if not getattr(model.config, "share_embeddings", True):
        raise ValueError(
            "encoder and decoder have vocabularies of their own (share_embeddings is False): trim those of "
            "model.get_encoder() and model.get_decoder(), each with its tokenizer"
        )
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = backend["model"]["type"]
    if kind not in KINDS:
        raise ValueError(f"the tokenizer is a {kind}, expected one of {', '.join(KINDS)}")
    if order == "both" and (kind != "WordPiece" or max_size is None):
        raise ValueError("order is 'both', which chooses max_size tokens of a WordPiece: leave it out")
    vocabulary = tokenizer.get_vocab()
    counts, characters = _count(tokenizer, texts)
    has_to_stay = {token["content"] for token in backend["added_tokens"]} | set(tokenizer.all_special_tokens)
    if "unk_token" in backend["model"] and backend["model"]["unk_token"] in vocabulary:
        has_to_stay.add(backend["model"]["unk_token"])
    if kind == "Unigram" and backend["model"]["unk_id"] is not None:
        has_to_stay.add(backend["model"]["vocab"][backend["model"]["unk_id"]][0])
    prefix = backend["model"].get("continuing_subword_prefix") or ""
    rare = characters if max_size is None else {"▁"}  # by which a Unigram begins a word
    for token in vocabulary:
        piece = token.removeprefix(prefix)
        single = len(piece) == 1 and (kind == "BPE" or piece.isascii() or piece in rare)
        if single or BYTE_TOKEN.fullmatch(token):
            has_to_stay.add(token)
    wanted = [token for token, token_id in vocabulary.items() if counts[token_id] >= min_count]
    if order == "both":
        wanted = _by_both(tokenizer, prefix, counts)
    elif max_size is not None:
        wanted.sort(key=lambda token: (-counts[vocabulary[token]], vocabulary[token]))
    merges = backend["model"]["merges"] if kind == "BPE" else []
    kept = _fill(has_to_stay, wanted, max_size, merges)
    old_ids = sorted(vocabulary[token] for token in kept)

    new_ids = {old: new for new, old in enumerate(old_ids)}
    trimmed = _trimmed_tokenizer(tokenizer, backend, new_ids)
    _trim_model(model, old_ids, new_ids)
    logger.info("%s of %s tokens stay", len(old_ids), len(vocabulary))
    return trimmed


def _count(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> tuple[np.ndarray, set[str]]:
    """How often each token occurs, `(tokens,)`, and all characters, as the tokenizer writes them."""
    counts = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=np.int64)
    characters: set[str] = set()
    normalizer, iterator = tokenizer.backend_tokenizer.normalizer, iter(texts)
    while batch := list(islice(iterator, 1000)):
        for text, encoded in zip(
            batch, tokenizer(batch, add_special_tokens=False, verbose=False).input_ids, strict=True
        ):
            counts += np.bincount(encoded, minlength=len(counts)) if encoded else 0
            characters.update(text if normalizer is None else normalizer.normalize_str(text))
    if not counts.any():
        raise ValueError("there are no texts to choose tokens by: pass those of the task")
    return counts, characters


def _by_both(tokenizer: PreTrainedTokenizerFast, prefix: str, counts: np.ndarray) -> list[str]:
    """All tokens that a WordPiece can write, by the better of their places by `counts` and in the vocabulary."""
    vocabulary, cut = tokenizer.get_vocab(), tokenizer.backend_tokenizer.pre_tokenizer
    # Not such as BERT's [unused1], which the rules take apart before the vocabulary is asked.
    known = [
        token
        for token in sorted(vocabulary, key=vocabulary.__getitem__)
        if cut is None or len(cut.pre_tokenize_str(token.removeprefix(prefix))) == 1
    ]
    by_count = sorted(known, key=lambda token: -counts[vocabulary[token]])
    place = {token: i for i, token in enumerate(known)}
    for i, token in enumerate(by_count):
        place[token] = min(place[token], i)
    return sorted(known, key=place.__getitem__)


def _fill(has_to_stay: set[str], wanted: Iterable[str], max_size: int | None, merges: list[Any]) -> set[str]:
    """Tokens that stay: the first ones that are `wanted`, each with those that it is merged from, up to `max_size`."""
    parts: dict[str, tuple[str, str]] = {}
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        parts.setdefault(left + right, (left, right))

    def with_parts(tokens: Iterable[str], kept: set[str]) -> set[str]:
        found: set[str] = set()
        waiting = list(tokens)
        while waiting:
            token = waiting.pop()
            if token not in kept and token not in found:
                found.add(token)
                waiting.extend(parts.get(token, ()))
        return found

    kept = with_parts(has_to_stay, set())
    if max_size is not None and len(kept) > max_size:
        raise ValueError(
            f"max_size is {max_size}, but {len(kept)} tokens have to stay, special ones and single characters: raise it"
        )
    for token in wanted:
        new = with_parts([token], kept)
        if max_size is None or len(kept) + len(new) <= max_size:
            kept |= new
    return kept


def _trimmed_tokenizer(
    tokenizer: PreTrainedTokenizerFast, backend: dict[str, Any], new_ids: dict[int, int]
) -> PreTrainedTokenizerFast:
    rules = backend["model"]
    if rules["type"] == "Unigram":
        rules["vocab"] = [entry for token_id, entry in enumerate(rules["vocab"]) if token_id in new_ids]
        if rules["unk_id"] is not None:
            rules["unk_id"] = new_ids[rules["unk_id"]]
    else:
        rules["vocab"] = {token: new_ids[old] for token, old in rules["vocab"].items() if old in new_ids}
    if rules["type"] == "BPE":
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in rules["merges"]]
        there = rules["vocab"]
        rules["merges"] = [list(pair) for pair in pairs if all(token in there for token in (*pair, "".join(pair)))]
    for token in backend["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    if backend["post_processor"] is not None:
        _renumber(backend["post_processor"], new_ids)
    if backend["padding"] is not None:
        backend["padding"]["pad_id"] = new_ids[backend["padding"]["pad_id"]]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(backend, ensure_ascii=False), encoding="utf-8")
        trimmed = AutoTokenizer.from_pretrained(folder)
    trimmed.name_or_path = tokenizer.name_or_path
    return trimmed


def _renumber(processor: dict[str, Any], new_ids: dict[int, int]) -> None:
    """The ids of special tokens that a post-processor adds."""
    for inner in processor.get("processors", []):
        _renumber(inner, new_ids)
    for name in ("sep", "cls"):  # BertProcessing and RobertaProcessing
        if name in processor:
            token, old = processor[name]
            processor[name] = [token, new_ids[old]]
    if processor["type"] == "TemplateProcessing":
        for token in processor["special_tokens"].values():
            token["ids"] = [new_ids[old] for old in token["ids"]]


@torch.no_grad()
def _trim_model(model: ChinchillaFamilyPreTrainedModel, old_ids: list[int], new_ids: dict[int, int]) -> None:
    index = torch.tensor(old_ids)
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    # What stays comes first, and Transformers cuts off the rest, of everything that shares these tables.
    tensors = [table.weight for table in tables if table is not None]
    tensors += [table.bias for table in tables if getattr(table, "bias", None) is not None]
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        tensor[: len(old_ids)] = tensor[index.to(tensor.device)].clone()
    model.resize_token_embeddings(len(old_ids))
    configs = [model.config, *(getattr(model.config, name, None) for name in ("encoder", "decoder"))]
    for holder in (*configs, getattr(model, "generation_config", None)):
        for name in [] if holder is None else list(vars(holder)):
            if name.endswith("_token_id"):
                setattr(holder, name, _renumbered(getattr(holder, name), new_ids))
    padding = model.config.pad_token_id
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == len(old_ids):
            module.padding_idx = padding if module.padding_idx is not None else None


def _renumbered(value: Any, new_ids: dict[int, int]) -> Any:
    if isinstance(value, list):
        return [_renumbered(element, new_ids) for element in value]
    return new_ids.get(value, value) if isinstance(value, int) else value
