import copy

import pytest
import torch
from conftest import make_tiny_decoder_config
from parity import from_gpt2
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    StaticCache,
    StoppingCriteriaList,
    TextIteratorStreamer,
    pipeline,
)
from transformers.generation import MaxTimeCriteria

from chinchilla_hf import ChinchillaDecoderModel, ChinchillaForCausalLM, train_tokenizer

VARIANTS = [
    {"norm_placement": "output", "position_embedding_type": "rope"},
    {"norm_placement": "post", "position_embedding_type": "learned", "hidden_act": "gelu"},
    {"norm_placement": "pre", "num_key_value_heads": 2, "hidden_act": "silu"},
    {"norm_placement": "output", "num_key_value_heads": 1, "attention_bias": False, "embedding_norm": False},
]
variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))


def make_model(**settings) -> ChinchillaForCausalLM:
    return ChinchillaForCausalLM(make_tiny_decoder_config(**settings)).eval()


def make_ids(batch: int = 3, length: int = 10) -> torch.Tensor:
    return torch.randint(5, 100, (batch, length))


@pytest.fixture
def gpt2_and_ours() -> tuple[GPT2LMHeadModel, ChinchillaForCausalLM]:
    shape = {"n_positions": 64, "n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=100, bos_token_id=1, eos_token_id=2, pad_token_id=0, **shape)).eval()
    variant = {"norm_placement": "pre", "position_embedding_type": "learned", "embedding_norm": False}
    ours = make_model(**variant, hidden_act="gelu_new")
    ours.load_state_dict(from_gpt2(gpt2.state_dict()))
    return gpt2, ours


@pytest.mark.filterwarnings("ignore:.*loss_type")
def test_decoder_computes_what_gpt2_computes(gpt2_and_ours):
    gpt2, ours = gpt2_and_ours
    ids = make_ids()
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with torch.no_grad():
        theirs, mine = (model(ids, attention_mask=mask, labels=ids, use_cache=True) for model in (gpt2, ours))
        torch.testing.assert_close(mine.logits, theirs.logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(mine.loss, theirs.loss)
        step, mask = make_ids(length=1), torch.ones(3, 11, dtype=torch.long)
        caches = [theirs.past_key_values, mine.past_key_values]
        theirs, mine = (
            model(step, attention_mask=mask, past_key_values=cache)
            for model, cache in zip((gpt2, ours), caches, strict=True)
        )
        torch.testing.assert_close(mine.logits, theirs.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"use_cache": False}, {"prompt_lookup_num_tokens": 2}], ids=str)
def test_generates_the_tokens_of_gpt2(how, gpt2_and_ours):
    ids = make_ids(batch=1)
    generated = [
        model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, **how)
        for model in gpt2_and_ours
    ]
    assert torch.equal(*generated)


@variants
def test_cached_equals_uncached(variant):
    model, ids = make_model(**variant), make_ids()
    with torch.no_grad():
        whole = model(ids).logits
        cache = DynamicCache(config=model.config)
        steps = [model(part, past_key_values=cache).logits for part in ids.split([4, 1, 2, 3], dim=1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)


@variants
def test_static_cache_equals_dynamic(variant):
    model, ids = make_model(**variant), make_ids()
    with torch.no_grad():
        dynamic = [model.generate(ids, do_sample=False, max_new_tokens=12, attention_mask=torch.ones_like(ids))]
        cache = StaticCache(config=model.config, max_cache_len=22)
        logits = [model(part, past_key_values=cache).logits for part in ids.split([6, 4], dim=1)]
        while len(logits) < 13:
            next_ids = logits[-1][:, -1:].argmax(-1)
            dynamic.append(next_ids)
            logits.append(model(next_ids, past_key_values=cache).logits)
    assert torch.equal(dynamic[0][:, 10:-1], torch.cat(dynamic[1:], dim=1))


def test_a_step_with_a_static_cache_compiles_once(fresh_compiler):
    model = make_model()
    ids = make_ids()
    cache = StaticCache(config=model.config, max_cache_len=32)
    with torch.no_grad():
        model(ids, past_key_values=cache)
        step = torch.compile(model, fullgraph=True, backend="eager")
        lengths = []
        for number in range(8):
            # The first call compiles; a second compilation, for whatever reason, would be an error.
            with torch.compiler.set_stance("default" if number == 0 else "fail_on_recompile"):
                step(make_ids(length=1), past_key_values=cache)
            lengths.append(int(cache.get_seq_length()))
    assert lengths == list(range(11, 19))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@variants
def test_no_token_sees_a_later_one(variant, implementation):
    model, ids = make_model(**variant), make_ids()
    model.set_attn_implementation(implementation)
    changed = ids.clone()
    changed[:, 6:] = make_ids(length=4)
    with torch.no_grad():
        torch.testing.assert_close(model(changed).logits[:, :6], model(ids).logits[:, :6])


@variants
def test_eager_attention_equals_sdpa(variant):
    model, ids = make_model(**variant), make_ids()
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        expected = model(ids, attention_mask=mask).logits
        model.set_attn_implementation("eager")
        actual = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(actual[mask == 1], expected[mask == 1], atol=1e-5, rtol=1e-5)


def test_shared_heads_are_heads_repeated():
    shared = make_model(num_key_value_heads=2)
    repeated = make_model()
    weights = shared.state_dict()
    for name, tensor in weights.items():
        if "k_proj" in name or "v_proj" in name:
            weights[name] = tensor.unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1)
    repeated.load_state_dict(weights)
    ids = make_ids()
    cache = shared(ids, use_cache=True).past_key_values
    assert cache.layers[0].keys.shape == (3, 2, 10, 8)
    torch.testing.assert_close(shared(ids).logits, repeated(ids).logits)


@variants
def test_a_row_alone_generates_what_it_does_in_a_left_padded_batch(variant):
    model = make_model(**variant)
    texts = [make_ids(1, length) for length in (9, 4, 6)]
    batch, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    for row, text in enumerate(texts):
        batch[row, -text.shape[1] :], mask[row, -text.shape[1] :] = text, 1
    how = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    together = model.generate(batch, attention_mask=mask, **how)[:, 9:]
    without_cache = model.generate(batch, attention_mask=mask, use_cache=False, **how)[:, 9:]
    assert torch.equal(together, without_cache)
    for row, text in enumerate(texts):
        alone = model.generate(text, attention_mask=torch.ones_like(text), **how)[:, text.shape[1] :]
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("position_embedding_type", ["rope", "learned"])
@pytest.mark.parametrize("use_cache", [False, True])
def test_packed_documents_equal_separate_ones(use_cache, position_embedding_type, implementation):
    model = make_model(position_embedding_type=position_embedding_type)
    model.set_attn_implementation(implementation)
    documents = [make_ids(1, length) for length in (5, 3, 4)]
    row = torch.cat(documents, dim=1)
    position_ids = torch.cat([torch.arange(document.shape[1]) for document in documents]).unsqueeze(0)
    with torch.no_grad():
        packed = model(row, position_ids=position_ids, use_cache=use_cache).logits
        separate = torch.cat([model(document).logits for document in documents], dim=1)
    torch.testing.assert_close(packed, separate, atol=1e-5, rtol=1e-5)


def test_every_parameter_is_trained():
    model, ids = make_model().train(), make_ids()
    model(ids, labels=ids).loss.backward()
    # A bias on all keys alike shifts every score of a query alike: softmax does not see it.
    seen = [(name, p) for name, p in model.named_parameters() if not name.endswith("k_proj.bias")]
    assert [name for name, parameter in seen if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    model, ids = make_model().train(), make_ids()
    checkpointed = copy.deepcopy(model)
    checkpointed.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    for candidate in (model, checkpointed):
        candidate(ids, labels=ids).loss.backward()
    gradients = dict(checkpointed.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad)


def test_fused_loss_is_the_plain_one():
    fused = make_model().train()
    plain = copy.deepcopy(fused)
    plain.config.fused_loss = False
    ids = make_ids()
    labels = ids.clone()
    labels[0, :4] = -100
    outputs = [model(ids, labels=labels) for model in (fused, plain)]
    assert outputs[0].logits is None and outputs[1].logits.shape == (3, 10, 100)
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss)
    for output in outputs:
        output.loss.backward()
    gradients = dict(plain.named_parameters())
    for name, parameter in fused.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, msg=name)
    assert fused.eval()(ids, labels=labels).logits.shape == (3, 10, 100)


@pytest.mark.parametrize("training", [True, False])
def test_loss_of_parts_adds_up_to_the_loss_of_the_whole(training):
    model, ids = make_model().train(training), make_ids(batch=4)
    labels = ids.clone()
    labels[0, 3:] = -100
    targets = int(labels[:, 1:].ne(-100).sum())
    parts = [model(ids[rows], labels=labels[rows], num_items_in_batch=targets).loss for rows in (slice(2), slice(2, 4))]
    torch.testing.assert_close(sum(parts), model(ids, labels=labels).loss)


def test_labels_that_are_shifted_already():
    model, ids = make_model(), make_ids()
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(model(ids, labels=ids, shift_labels=shifted).loss, model(ids, labels=ids).loss)


@variants
def test_saved_equals_loaded_bit_for_bit(variant, tmp_path):
    model, ids = make_model(**variant), make_ids()
    model.save_pretrained(tmp_path)
    loaded, report = ChinchillaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.lm_head.weight is loaded.model.embeddings.embed_tokens.weight


def test_attentions_and_hidden_states_come_out():
    model, ids = make_model(), make_ids()
    model.set_attn_implementation("eager")
    outputs = model(ids, output_attentions=True, output_hidden_states=True)
    assert [attention.shape for attention in outputs.attentions] == [(3, 4, 10, 10)] * 2
    assert len(outputs.hidden_states) == 3 and not outputs.cross_attentions
    assert not outputs.attentions[0].triu(1).any()


def test_compiles_and_exports_as_one_graph(fresh_compiler):
    model = make_model(num_key_value_heads=2)
    ids = make_ids()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        expected = model(**inputs, use_cache=False).logits
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**inputs, use_cache=False).logits, expected)
        dynamic = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in inputs}
        program = torch.export.export(
            model, (), {**inputs, "use_cache": False}, dynamic_shapes={**dynamic, "use_cache": None}, strict=False
        )
        other = {name: value[:2, :7] for name, value in inputs.items()}
        torch.testing.assert_close(
            program.module()(**other, use_cache=False).logits, model(**other, use_cache=False).logits
        )


def test_wrong_inputs_raise():
    model = make_model()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model.model()
    with pytest.raises(ValueError, match="max_position_embeddings is 64, but the input has 65 tokens"):
        model(make_ids(1, 65))
    cache = model(make_ids(1, 60), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="5 tokens after 60 in the cache"):
        model(make_ids(1, 5), past_key_values=cache)
    with pytest.raises(ValueError, match="add_cross_attention is False, but encoder_hidden_states are given"):
        model.model(make_ids(), encoder_hidden_states=torch.zeros(3, 4, 32))
    with pytest.raises(ValueError, match="encoder_hidden_states are missing"):
        ChinchillaDecoderModel(make_tiny_decoder_config(add_cross_attention=True))(make_ids())


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["a good film", "a bad film", "the cast is good", "the plot is bad", "what a waste of time"] * 4
    return train_tokenizer(texts, vocab_size=90, model_max_length=32, show_progress=False)


def test_generate_samples_streams_assists_and_stops(tokenizer):
    model = make_model(vocab_size=len(tokenizer), max_position_embeddings=128)
    inputs = tokenizer(["a good film"], add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
    length = inputs["input_ids"].shape[1]
    greedy = model.generate(**inputs, do_sample=False, max_new_tokens=30)

    sampled = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        sampled.append(model.generate(**inputs, do_sample=True, top_p=0.9, temperature=0.7, max_new_tokens=30))
    assert torch.equal(sampled[0], sampled[1]) and not torch.equal(sampled[0], sampled[2])

    assistant = ChinchillaForCausalLM(copy.deepcopy(model.config)).eval()
    assisted = model.generate(**inputs, assistant_model=assistant, do_sample=False, max_new_tokens=30)
    assert torch.equal(assisted, greedy)

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    model.generate(**inputs, do_sample=False, max_new_tokens=30, streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(greedy[0, length:])

    stopped = model.generate(
        **inputs, max_new_tokens=30, do_sample=False, stopping_criteria=StoppingCriteriaList([MaxTimeCriteria(0.0)])
    )
    assert stopped.shape[1] == length + 1


def test_text_generation_pipeline(tokenizer, tmp_path, capfd):
    model = make_model(vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(tmp_path)
    pipe = pipeline("text-generation", str(tmp_path))
    results = pipe(["a good", "what a waste of"], max_new_tokens=5, do_sample=False, batch_size=2)
    assert [result[0]["generated_text"].startswith(text) for result, text in zip(results, ("a", "what"), strict=True)]
    printed = capfd.readouterr()
    assert "not supported" not in printed.out + printed.err
