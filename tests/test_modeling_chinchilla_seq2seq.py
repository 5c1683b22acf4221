import copy

import pytest
import torch
from conftest import make_tiny_config, make_tiny_decoder_config, make_tiny_seq2seq_config
from huggingface_hub.errors import StrictDataclassClassValidationError
from parity import from_bart
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DataCollatorForSeq2Seq,
    DynamicCache,
    EncoderDecoderCache,
    MarianConfig,
    MarianMTModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from chinchilla_hf import (
    ChinchillaDecoderModel,
    ChinchillaForCausalLM,
    ChinchillaForConditionalGeneration,
    ChinchillaForMaskedLM,
    ChinchillaModel,
    modeling_chinchilla_decoder,
    train_tokenizer,
)

VARIANTS = [
    {"norm_placement": "output", "position_embedding_type": "rope"},
    {"norm_placement": "post", "position_embedding_type": "learned", "hidden_act": "gelu"},
    {"norm_placement": "pre", "num_key_value_heads": 2, "hidden_act": "silu"},
]
variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))


def make_model(variant: dict | None = None, **settings) -> ChinchillaForConditionalGeneration:
    config = make_tiny_seq2seq_config(encoder=variant, decoder=variant, **settings)
    return ChinchillaForConditionalGeneration(config).eval()


def make_inputs(batch: int = 3) -> dict[str, torch.Tensor]:
    """Texts of 9 to 5 tokens, padded on the right, and labels of 7 to 5."""
    input_ids, labels = torch.randint(5, 100, (batch, 9)), torch.randint(5, 100, (batch, 7))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 5:] = 0
    labels[-1, 5:] = -100
    return {"input_ids": input_ids * attention_mask, "attention_mask": attention_mask, "labels": labels}


def without_labels(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in inputs.items() if name != "labels"}


@pytest.fixture(params=["bart", "marian"])
def theirs_and_ours(request) -> tuple[nn.Module, ChinchillaForConditionalGeneration]:
    parts = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}
    shape = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in parts.items()}
    shape |= {"vocab_size": 100, "d_model": 32, "max_position_embeddings": 64, "init_std": 0.2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    common = {**shape, **ids, "forced_eos_token_id": None, "activation_function": "gelu"}
    if request.param == "bart":
        theirs, position_offset = BartForConditionalGeneration(BartConfig(**common)), 2
    else:
        theirs, position_offset = MarianMTModel(MarianConfig(**common, scale_embedding=False)), 0
    variant = {"norm_placement": "post", "position_embedding_type": "learned", "hidden_act": "gelu"}
    variant |= {"embedding_norm": request.param == "bart", "type_vocab_size": 0}
    ours = make_model(variant)
    ours.load_state_dict(from_bart(theirs.state_dict(), position_offset))
    return theirs.eval(), ours


def test_computes_what_bart_and_marian_compute(theirs_and_ours):
    inputs = make_inputs()
    with torch.no_grad():
        theirs, mine = (model(**inputs) for model in theirs_and_ours)
        torch.testing.assert_close(mine.logits, theirs.logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(mine.loss, theirs.loss)
        tokens, caches = torch.randint(5, 100, (3, 4)), [None, None]
        for step in tokens.split([2, 1, 1], dim=1):  # the second and the third with a cache
            theirs, mine = (
                model(**without_labels(inputs), decoder_input_ids=step, past_key_values=cache, use_cache=True)
                for model, cache in zip(theirs_and_ours, caches, strict=True)
            )
            torch.testing.assert_close(mine.logits, theirs.logits, atol=1e-5, rtol=0)
            caches = [theirs.past_key_values, mine.past_key_values]


@pytest.mark.parametrize("how", [{}, {"num_beams": 4}, {"use_cache": False}], ids=str)
def test_generates_the_tokens_of_bart_and_marian(how, theirs_and_ours):
    inputs = without_labels(make_inputs())
    generated = [model.generate(**inputs, do_sample=False, max_new_tokens=20, **how) for model in theirs_and_ours]
    assert torch.equal(*generated)


@variants
def test_cached_equals_uncached(variant):
    model, inputs = make_model(variant), without_labels(make_inputs())
    tokens = torch.randint(5, 100, (3, 6))
    with torch.no_grad():
        whole = model(**inputs, decoder_input_ids=tokens).logits
        cache, steps = None, []
        for part in tokens.split([3, 1, 2], dim=1):
            outputs = model(**inputs, decoder_input_ids=part, past_key_values=cache, use_cache=True)
            cache = outputs.past_key_values
            steps.append(outputs.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_mask_of_a_source_is_made_once_a_text_and_is_never_that_of_another(attention, monkeypatch):
    made = []
    original = modeling_chinchilla_decoder.create_bidirectional_mask

    def counted(**kwargs):
        made.append(kwargs)
        return original(**kwargs)

    monkeypatch.setattr(modeling_chinchilla_decoder, "create_bidirectional_mask", counted)
    model = make_model()
    model.set_attn_implementation(attention)
    tokens = torch.randint(5, 100, (3, 6))
    cache = EncoderDecoderCache(*(DynamicCache(config=model.config.decoder) for _ in range(2)))
    for _ in range(2):  # another source, in the same cache
        inputs = without_labels(make_inputs())
        inputs["attention_mask"][0, 2:] = 0
        with torch.no_grad():
            steps = [
                model(**inputs, decoder_input_ids=part, past_key_values=cache).logits for part in tokens.split(1, dim=1)
            ]
            assert len(made) == 1
            whole = model(**inputs, decoder_input_ids=tokens).logits
        torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)
        cache.reset()
        made.clear()
    with torch.no_grad():
        for mask in (inputs["attention_mask"], inputs["attention_mask"].flip(0), None):  # changed within a text
            model(inputs["input_ids"], mask, decoder_input_ids=tokens[:, :1], past_key_values=cache)
    assert len(made) == 3


@variants
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_rows_that_share_a_source_equal_rows_with_a_source_each(variant, attention):
    model = make_model(variant)
    model.set_attn_implementation(attention)
    inputs = without_labels(make_inputs())
    tokens = torch.randint(5, 100, (6, 7))  # two rows for each of three sources
    states = model.model.encoder(**inputs).last_hidden_state
    shared, single = (
        model.model.decoder(
            tokens,
            encoder_hidden_states=states.repeat_interleave(times, 0),
            encoder_attention_mask=inputs["attention_mask"].repeat_interleave(times, 0),
            output_attentions=attention == "eager",
        )
        for times in (1, 2)
    )
    torch.testing.assert_close(shared.last_hidden_state, single.last_hidden_state, atol=1e-5, rtol=1e-5)
    if attention == "eager":
        torch.testing.assert_close(shared.cross_attentions, single.cross_attentions, atol=1e-5, rtol=1e-5)
        assert shared.cross_attentions[0].shape == (6, 4, 7, 9)


@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 4, "num_return_sequences": 2},
        {"num_beams": 3, "use_cache": False},
        {"num_beams": 3, "cache_implementation": "static"},
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 3, "output_attentions": True, "return_dict_in_generate": True},
    ],
    ids=str,
)
def test_beams_that_share_their_source_generate_what_they_would_without(how, monkeypatch):
    model = make_model()
    model.set_attn_implementation("eager")
    inputs = without_labels(make_inputs())
    torch.manual_seed(0)
    shared = model.generate(**inputs, **how, max_new_tokens=12)
    for name in ("_expand_inputs_for_generation", "_reorder_cache"):  # back to those of Transformers
        monkeypatch.delattr(ChinchillaForConditionalGeneration, name)
    torch.manual_seed(0)
    expected = model.generate(**inputs, **how, max_new_tokens=12)
    if "output_attentions" in how:
        for ours, theirs in zip(shared.cross_attentions, expected.cross_attentions, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        shared, expected = shared.sequences, expected.sequences
    assert torch.equal(shared, expected)


@variants
def test_ways_to_generate_agree(variant):
    """Static and dynamic cache and none; a text alone and in a batch; greedy, with beams."""
    model, inputs = make_model(variant), without_labels(make_inputs())
    how = {"do_sample": False, "max_new_tokens": 10, "min_new_tokens": 10}
    for beams in (1, 3):
        expected = model.generate(**inputs, num_beams=beams, **how)
        for cache in ({"cache_implementation": "static", "disable_compile": True}, {"use_cache": False}):
            assert torch.equal(model.generate(**inputs, num_beams=beams, **how, **cache), expected)
        for row in range(3):
            length = int(inputs["attention_mask"][row].sum())
            alone = model.generate(inputs["input_ids"][row : row + 1, :length], num_beams=beams, **how)
            assert torch.equal(alone[0], expected[row])


@variants
def test_every_parameter_is_trained(variant):
    model = make_model(variant).train()
    model(**make_inputs()).loss.backward()
    # A bias on all keys alike shifts every score of a query alike: softmax does not see it.
    seen = [(name, p) for name, p in model.named_parameters() if not name.endswith("k_proj.bias")]
    assert [name for name, parameter in seen if parameter.grad is None or not parameter.grad.any()] == []


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    model, inputs = make_model().train(), make_inputs()
    checkpointed = copy.deepcopy(model)
    checkpointed.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    for candidate in (model, checkpointed):
        candidate(**inputs).loss.backward()
    gradients = dict(checkpointed.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_is_smoothed_cross_entropy_of_unshifted_labels(label_smoothing):
    """In training; in evaluation there is no smoothing."""
    fused = make_model(label_smoothing=label_smoothing).train()
    plain = copy.deepcopy(fused)
    plain.config.decoder.fused_loss = False
    inputs = make_inputs()
    labels = inputs["labels"].flatten()
    outputs = [model(**inputs) for model in (fused, plain)]
    assert outputs[0].logits is None
    expected = nn.functional.cross_entropy(outputs[1].logits.flatten(0, 1), labels, label_smoothing=label_smoothing)
    for model, output in zip((fused, plain), outputs, strict=True):
        torch.testing.assert_close(output.loss, expected)
        output.loss.backward()
        evaluated = model.eval()(**inputs)
        torch.testing.assert_close(evaluated.loss, nn.functional.cross_entropy(evaluated.logits.flatten(0, 1), labels))
    gradients = dict(plain.named_parameters())
    for name, parameter in fused.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, msg=name)


def test_decoder_reads_labels_one_place_later():
    labels = torch.tensor([[11, 12, 13], [14, 15, -100], [16, -100, -100]])
    expected = torch.tensor([[3, 11, 12], [3, 14, 15], [3, 16, 0]])
    assert torch.equal(make_model().prepare_decoder_input_ids_from_labels(labels), expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_accumulated_steps_equal_one_large_step_in_trainer(label_smoothing, tmp_path):
    inputs = make_inputs(batch=8)
    inputs["labels"][::3, 2:] = -100  # batches of very different sizes
    rows = [{name: value[row].tolist() for name, value in inputs.items()} for row in range(8)]
    tokenizer = train_tokenizer(["a b c d e f g h"], vocab_size=100, model_max_length=32, show_progress=False)
    start = make_model(label_smoothing=label_smoothing)
    weights = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        model = copy.deepcopy(start)
        arguments = Seq2SeqTrainingArguments(
            output_dir=tmp_path,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        collator = DataCollatorForSeq2Seq(tokenizer, model=model)
        Seq2SeqTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collator).train()
        weights.append(model.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, msg=name, atol=1e-5, rtol=1e-4)


@variants
def test_saved_equals_loaded_bit_for_bit(variant, tmp_path):
    model, inputs = make_model(variant), make_inputs()
    model.save_pretrained(tmp_path)
    loaded, report = ChinchillaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def embeddings_of(model: ChinchillaForConditionalGeneration) -> list[nn.Parameter]:
    parts = (model.get_encoder(), model.get_decoder())
    return [*(part.get_input_embeddings().weight for part in parts), model.lm_head.weight]


@pytest.mark.parametrize(
    ("settings", "num_matrices"),
    [
        ({}, 1),
        ({"share_embeddings": False}, 2),
        ({"encoder": {"vocab_size": 80}}, 2),
        ({"tie_word_embeddings": False}, 3),
    ],
)
def test_embeddings_are_tied_three_ways_where_they_fit(settings, num_matrices, tmp_path):
    model = ChinchillaForConditionalGeneration(make_tiny_seq2seq_config(**settings))
    assert len({id(matrix) for matrix in embeddings_of(model)}) == num_matrices
    model.save_pretrained(tmp_path)
    loaded = ChinchillaForConditionalGeneration.from_pretrained(tmp_path)
    assert len({id(matrix) for matrix in embeddings_of(loaded)}) == num_matrices
    for mine, theirs in zip(embeddings_of(model), embeddings_of(loaded), strict=True):
        assert torch.equal(mine, theirs)


def test_resizing_keeps_all_three_tied():
    model, inputs = make_model(), make_inputs()
    before = model(**inputs).logits
    model.resize_token_embeddings(120, mean_resizing=False)
    assert (model.config.encoder.vocab_size, model.config.decoder.vocab_size) == (120, 120)
    assert len({id(matrix) for matrix in embeddings_of(model)}) == 1
    torch.testing.assert_close(model(**inputs).logits[..., :100], before)
    with pytest.raises(ValueError, match="share_embeddings is False"):
        make_model(share_embeddings=False).resize_token_embeddings(120)


def test_warm_start_from_an_encoder_and_a_decoder(tmp_path):
    encoder = ChinchillaForMaskedLM(make_tiny_config(hidden_size=24, norm_placement="pre")).eval()
    decoder = ChinchillaForCausalLM(make_tiny_decoder_config(num_key_value_heads=2)).eval()
    encoder.save_pretrained(tmp_path / "encoder")
    decoder.save_pretrained(tmp_path / "decoder")
    model = ChinchillaForConditionalGeneration.from_encoder_decoder_pretrained(
        tmp_path / "encoder", tmp_path / "decoder", decoder_start_token_id=1
    )
    inputs = make_inputs()
    states = model.get_encoder()(**without_labels(inputs)).last_hidden_state
    assert torch.equal(states, encoder.model(**without_labels(inputs)).last_hidden_state)
    # Without its cross-attention, which is new, the decoder is the old one.
    for layer in model.get_decoder().layers:
        nn.init.zeros_(layer.cross_attn_norm.weight)
    ids = torch.randint(5, 100, (3, 6))
    torch.testing.assert_close(
        model(**without_labels(inputs), decoder_input_ids=ids).logits, decoder(ids).logits, atol=1e-5, rtol=1e-5
    )
    model(**inputs).loss.backward()
    model.save_pretrained(tmp_path / "both")
    loaded = ChinchillaForConditionalGeneration.from_pretrained(tmp_path / "both")
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_warm_start_of_both_from_one_encoder(tmp_path):
    encoder = ChinchillaForMaskedLM(make_tiny_config(position_embedding_type="learned"))
    encoder.save_pretrained(tmp_path)
    model = ChinchillaForConditionalGeneration.from_encoder_decoder_pretrained(
        tmp_path, tmp_path, decoder_start_token_id=1
    )
    assert model.config.share_embeddings and len({id(matrix) for matrix in embeddings_of(model)}) == 1
    for layer in model.get_decoder().layers:
        nn.init.zeros_(layer.cross_attn_norm.weight)
    ids = torch.randint(5, 100, (2, 6))
    causal = encoder.model(ids, causal_rows=torch.ones(2, dtype=torch.bool)).last_hidden_state
    torch.testing.assert_close(
        model.get_decoder()(ids, encoder_hidden_states=torch.zeros(2, 3, 32)).last_hidden_state, causal
    )


def test_warm_start_from_another_family_raises(tmp_path):
    BartForConditionalGeneration(
        BartConfig(vocab_size=20, d_model=16, encoder_layers=1, decoder_layers=1)
    ).save_pretrained(tmp_path / "bart")
    ChinchillaModel(make_tiny_config()).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="model type 'bart'"):
        ChinchillaForConditionalGeneration.from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "bart")


def test_decoder_with_another_width_than_the_encoder():
    model = ChinchillaForConditionalGeneration(make_tiny_seq2seq_config(encoder={"hidden_size": 48})).eval()
    assert not model.config.share_embeddings
    assert model(**make_inputs()).logits.shape == (3, 7, 100)


def test_encoder_outputs_stand_in_for_ids():
    model, inputs = make_model(), make_inputs()
    encoded = model.get_encoder()(**without_labels(inputs))
    expected = model(**inputs).logits
    rest = {"attention_mask": inputs["attention_mask"], "labels": inputs["labels"]}
    assert torch.equal(model(encoder_outputs=encoded, **rest).logits, expected)
    assert torch.equal(model(encoder_outputs=(encoded.last_hidden_state,), **rest).logits, expected)


def test_attentions_and_hidden_states_come_out():
    model, inputs = make_model(), make_inputs()
    model.set_attn_implementation("eager")
    outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    assert [attention.shape for attention in outputs.cross_attentions] == [(3, 4, 7, 9)] * 2
    assert [attention.shape for attention in outputs.decoder_attentions] == [(3, 4, 7, 7)] * 2
    assert [attention.shape for attention in outputs.encoder_attentions] == [(3, 4, 9, 9)] * 2
    assert len(outputs.encoder_hidden_states) == len(outputs.decoder_hidden_states) == 3
    assert not outputs.cross_attentions[0][1, :, :, 5:].any()  # padding


def test_compiles_as_one_graph(fresh_compiler):
    model, inputs = make_model(), make_inputs()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)


def test_wrong_settings_raise():
    with pytest.raises(
        StrictDataclassClassValidationError, match="share_embeddings is True, but the encoder has 80 tokens"
    ):
        make_tiny_seq2seq_config(encoder={"vocab_size": 80}, share_embeddings=True)
    with pytest.raises(StrictDataclassClassValidationError, match="tie_word_embeddings is False"):
        make_tiny_seq2seq_config(tie_word_embeddings=False, share_embeddings=True)
    with pytest.raises(StrictDataclassClassValidationError, match=r"label_smoothing is 1\.5"):
        make_tiny_seq2seq_config(label_smoothing=1.5)
    assert isinstance(make_model().get_decoder(), ChinchillaDecoderModel)
