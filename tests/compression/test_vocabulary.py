"""A trimmed vocabulary: the same tokens, and the same outputs, for the texts that it was trimmed for."""

import random

import pytest
import torch
from conftest import make_tiny_config, make_tiny_decoder_config, make_tiny_seq2seq_config
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from chinchilla_hf import (
    ChinchillaForCausalLM,
    ChinchillaForConditionalGeneration,
    ChinchillaForMaskedLM,
    ChinchillaForSequenceClassification,
    train_tokenizer,
)
from chinchilla_hf.compression.vocabulary import trim_vocabulary

WORDS = (
    "the cat sees house houses seeing dogs walk walked walking über größe 漢字 naïve résumé letters lettered".split()  # noqa: SIM905
)
TEXTS = ["the cat sees the houses", "walked über größe", "seeing 漢字, naïve cats!"]
ALGORITHMS = ["wordpiece", "bpe", "unigram"]


@pytest.fixture(scope="module")
def tokenizers():
    rng = random.Random(0)
    corpus = [" ".join(rng.choices(WORDS, k=8)) for _ in range(300)]
    return {
        algorithm: train_tokenizer(corpus, algorithm=algorithm, vocab_size=400, show_progress=False)
        for algorithm in ALGORITHMS
    }


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        name: getattr(tokenizer, name)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id")
        if getattr(tokenizer, name) is not None
    }


@torch.no_grad()
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_texts_are_cut_and_computed_as_before(tokenizers, algorithm, tmp_path):
    tokenizer = tokenizers[algorithm]
    config = make_tiny_config(vocab_size=len(tokenizer), sparse_prediction=False, **token_ids(tokenizer))
    model = ChinchillaForMaskedLM(config).eval()
    before = [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(TEXTS).input_ids]
    logits = [model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS]
    trimmed = trim_vocabulary(model, tokenizer, TEXTS)

    assert len(trimmed) == model.config.vocab_size < len(tokenizer)
    assert type(trimmed) is type(tokenizer) and trimmed.special_tokens_map == tokenizer.special_tokens_map
    assert [trimmed.convert_ids_to_tokens(ids) for ids in trimmed(TEXTS).input_ids] == before
    columns = tokenizer.convert_tokens_to_ids(trimmed.convert_ids_to_tokens(list(range(len(trimmed)))))
    for text, expected in zip(TEXTS, logits, strict=True):
        torch.testing.assert_close(model(**trimmed(text, return_tensors="pt")).logits, expected[..., columns])
    assert model.lm_head.weight is model.model.embeddings.embed_tokens.weight
    assert model.config.pad_token_id == trimmed.pad_token_id == model.model.embeddings.embed_tokens.padding_idx
    # a word that is gone is written by what is left, without unknowns where its characters are known
    assert trimmed.unk_token_id is None or trimmed.unk_token_id not in trimmed("walks").input_ids

    model.save_pretrained(tmp_path)
    trimmed.save_pretrained(tmp_path)
    loaded, read = ChinchillaForMaskedLM.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    inputs = read(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(inputs.input_ids, trimmed(TEXTS, padding=True, return_tensors="pt").input_ids)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_rare_tokens_go_and_their_characters_stay(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    model = ChinchillaForSequenceClassification(make_tiny_config(vocab_size=len(tokenizer)))
    trimmed = trim_vocabulary(model, tokenizer, ["cat"] * 3 + ["house"], min_count=2)
    assert trimmed.tokenize("cat") == ["cat"]
    assert len(trimmed.tokenize("house")) > 1 and "[UNK]" not in trimmed.tokenize("house")
    assert trimmed.tokenize("漢") == ["[UNK]"]  # not in the texts
    assert model(**trimmed("cat house", return_tensors="pt")).logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_most_frequent_tokens_stay_up_to_a_size(tokenizers, algorithm):
    tokenizer = tokenizers[algorithm]
    model = ChinchillaForMaskedLM(make_tiny_config(vocab_size=len(tokenizer), **token_ids(tokenizer))).eval()
    texts = ["the cat"] * 5 + ["the house"] * 3 + ["walked"]
    with pytest.raises(ValueError, match=r"max_size is 7, but \d+ tokens have to stay") as raised:
        trim_vocabulary(model, tokenizer, texts, max_size=7)
    least = int(str(raised.value).split("but ")[1].split()[0])
    assert model.config.vocab_size == len(tokenizer)  # nothing has changed
    longer = [token for token in tokenizer.tokenize("the cat") if len(token) > 1 and token != "▁"]
    room = 8 if algorithm == "bpe" else max(1, len(longer))  # of a BPE, also for what these are made of
    trimmed = trim_vocabulary(model, tokenizer, texts, max_size=least + room)
    assert least < len(trimmed) <= least + 8 and model.config.vocab_size == len(trimmed)
    assert trimmed.tokenize("the cat") == tokenizer.tokenize("the cat")
    assert set(trimmed.get_vocab()) < set(tokenizer.get_vocab())
    if longer:  # this Unigram writes by single characters, but for one word
        assert len(trimmed.tokenize("the walked")) > len(tokenizer.tokenize("the walked"))
    assert model(**trimmed(texts, padding=True, return_tensors="pt")).logits.isfinite().all()


def test_tokens_that_the_texts_lack_stay_by_their_place_in_the_vocabulary():
    rules = {"[UNK]": 0, "[PAD]": 1, "[unused0]": 2, "a": 3, "dog": 4, "cat": 5, "##s": 6, "horse": 7, "owl": 8}
    backend = Tokenizer(WordPiece(rules, unk_token="[UNK]"))
    backend.pre_tokenizer = BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")

    def tokens(order: str, max_size: int) -> set[str]:
        model = ChinchillaForSequenceClassification(make_tiny_config(vocab_size=9, pad_token_id=1))
        trimmed = trim_vocabulary(model, tokenizer, ["owl owl horse"], max_size=max_size, order=order)
        return set(trimmed.get_vocab()) - {"[UNK]", "[PAD]", "a", "##s"}  # which have to stay

    assert tokens("texts", 5) == {"owl"} and tokens("texts", 9) == {"owl", "horse"}
    assert tokens("both", 6) == {"owl", "dog"} and tokens("both", 7) == {"owl", "dog", "horse"}
    assert tokens("both", 9) == {"owl", "dog", "horse", "cat"}  # and not [unused0], which no text is cut into


@torch.no_grad()
def test_what_writes_gives_its_tokens_the_same_scores():
    tokenizer = train_tokenizer(
        [" ".join(WORDS)] * 20, algorithm="bpe", vocab_size=400, for_decoder=True, show_progress=False
    )
    ids = token_ids(tokenizer)
    own = {"vocab_size": len(tokenizer), **ids}
    decoder = ChinchillaForCausalLM(make_tiny_decoder_config(**own)).eval()
    pair = ChinchillaForConditionalGeneration(
        make_tiny_seq2seq_config(own, own, **ids, decoder_start_token_id=ids["bos_token_id"])
    ).eval()
    for model in (decoder, pair):

        def scores(of: PreTrainedTokenizerFast, model=model) -> torch.Tensor:
            inputs = of("the cat sees", return_tensors="pt").input_ids
            return model(input_ids=inputs, labels=inputs).logits[0]

        expected = scores(tokenizer)
        trimmed = trim_vocabulary(model, tokenizer, TEXTS)
        columns = tokenizer.convert_tokens_to_ids(trimmed.convert_ids_to_tokens(list(range(len(trimmed)))))
        torch.testing.assert_close(scores(trimmed), expected[:, columns])
        assert model.generation_config.eos_token_id == trimmed.eos_token_id == model.config.eos_token_id
        written = model.generate(trimmed("the cat", return_tensors="pt").input_ids, max_new_tokens=5)
        assert written.max() < len(trimmed)


def test_vocabularies_of_their_own_are_refused():
    own = {"vocab_size": 100}
    model = ChinchillaForConditionalGeneration(make_tiny_seq2seq_config(own, own, share_embeddings=False))
    tokenizer = train_tokenizer(["the cat"] * 9, vocab_size=60, show_progress=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="encoder and decoder have vocabularies of their own"):
        trim_vocabulary(model, tokenizer, ["the cat"])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_vocabulary_of_a_bert(minilm):
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    config = make_tiny_config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    model = ChinchillaForSequenceClassification(config).eval()
    pairs = [("Where is my card?", "It's in the mail."), ("transfer $500", "naïve 漢")]
    before = [tokenizer.convert_ids_to_tokens(tokenizer(*pair).input_ids) for pair in pairs]
    with torch.no_grad():
        logits = model(**tokenizer(*pairs[0], return_tensors="pt")).logits
        trimmed = trim_vocabulary(model, tokenizer, (text for pair in pairs for text in pair))
        assert 100 < len(trimmed) < 300
        assert [trimmed.convert_ids_to_tokens(trimmed(*pair).input_ids) for pair in pairs] == before
        torch.testing.assert_close(model(**trimmed(*pairs[0], return_tensors="pt")).logits, logits)


def test_refused(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    model = ChinchillaForSequenceClassification(make_tiny_config(vocab_size=len(tokenizer)))
    table = model.model.embeddings.embed_tokens.weight.clone()
    for texts, options, message in (
        ([], {}, "there are no texts to choose tokens by"),
        (TEXTS, {"min_count": 0}, "min_count is 0, expected at least 1"),
        (TEXTS, {"order": "size"}, "order is 'size', expected one of texts, both"),
        (TEXTS, {"order": "both"}, "order is 'both', which chooses max_size tokens of a WordPiece"),
    ):
        with pytest.raises(ValueError, match=message):
            trim_vocabulary(model, tokenizer, texts, **options)
    small = ChinchillaForSequenceClassification(make_tiny_config())
    with pytest.raises(ValueError, match=rf"the tokenizer has {len(tokenizer)} tokens, but the model only 100"):
        trim_vocabulary(small, tokenizer, TEXTS)
    assert torch.equal(model.model.embeddings.embed_tokens.weight, table)
