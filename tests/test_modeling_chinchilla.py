import copy
import math

import pytest
import torch
from conftest import make_tiny_config
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, Trainer, TrainingArguments

import chinchilla_hf
from chinchilla_hf import (
    ChinchillaForMaskedLM,
    ChinchillaForMultipleChoice,
    ChinchillaForNextSentencePrediction,
    ChinchillaForPreTraining,
    ChinchillaForQuestionAnswering,
    ChinchillaForSequenceClassification,
    ChinchillaForTokenClassification,
    ChinchillaModel,
)

BATCH, LENGTH = 4, 12
HEADS = [
    ChinchillaForMaskedLM,
    ChinchillaForMultipleChoice,
    ChinchillaForNextSentencePrediction,
    ChinchillaForPreTraining,
    ChinchillaForQuestionAnswering,
    ChinchillaForSequenceClassification,
    ChinchillaForTokenClassification,
]
VARIANTS = [
    {"norm_placement": "output", "position_embedding_type": "rope"},
    {"norm_placement": "post", "position_embedding_type": "learned", "hidden_act": "gelu"},
    {"norm_placement": "pre", "position_embedding_type": "rope", "hidden_act": "silu", "type_vocab_size": 0},
    {"norm_placement": "output", "position_embedding_type": "learned", "embedding_norm": False},
    {"norm_placement": "pre", "attention_bias": False, "mlp_bias": False, "layer_norm_bias": False, "head_dim": 6},
]
variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))
every_head = pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__.removeprefix("Chinchilla"))


def make_inputs(batch: int = BATCH, length: int = LENGTH) -> dict[str, torch.Tensor]:
    """Rows of different lengths, padded on the right, in two token types."""
    lengths = torch.linspace(length, length // 2, batch).long()
    attention_mask = (torch.arange(length) < lengths[:, None]).long()
    return {
        "input_ids": torch.randint(5, 100, (batch, length)) * attention_mask,
        "attention_mask": attention_mask,
        "token_type_ids": (torch.arange(length) >= length // 3).long().expand(batch, -1) * attention_mask,
    }


def make_labelled_inputs(head: type, batch: int = BATCH) -> dict[str, torch.Tensor]:
    inputs = make_inputs(batch)
    if head is ChinchillaForMultipleChoice:
        inputs = {name: torch.stack([value, value.flip(0)], dim=1) for name, value in inputs.items()}
        return inputs | {"labels": torch.randint(2, (batch,))}
    if head is ChinchillaForQuestionAnswering:
        return inputs | {"start_positions": torch.randint(4, (batch,)), "end_positions": torch.randint(4, (batch,))}
    if head in (ChinchillaForNextSentencePrediction, ChinchillaForSequenceClassification):
        return inputs | {"labels": torch.randint(2, (batch,))}
    num_classes = 2 if head is ChinchillaForTokenClassification else 100
    labels = torch.randint(num_classes, inputs["input_ids"].shape)
    labels[inputs["attention_mask"] == 0] = -100
    extra = {"next_sentence_label": torch.randint(2, (batch,))} if head is ChinchillaForPreTraining else {}
    return inputs | {"labels": labels} | extra


def logits_of(outputs) -> torch.Tensor:
    """The first tensor that is not the loss."""
    return next(value for name, value in outputs.items() if name != "loss")


def real_logits(outputs, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """`logits_of`, without those of padding, of which graphs may make something else."""
    logits, mask = logits_of(outputs), inputs["attention_mask"]
    return logits[mask.bool()] if logits.shape[:2] == mask.shape else logits


def reference_forward(model: ChinchillaModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The encoder from its definition, with plain torch and explicit loops over heads."""
    config, weights = model.config, model.state_dict()

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(x, name):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        x = (x - mean) / (variance + config.layer_norm_eps).sqrt() * weights[f"{name}.weight"]
        return x + weights.get(f"{name}.bias", 0)

    def rotate(x):  # pairs (i, i + half) turned by position * theta^(-2i / head_dim)
        half = x.shape[-1] // 2
        frequencies = 10000.0 ** (-torch.arange(half) * 2 / x.shape[-1])
        angles = torch.arange(x.shape[-2])[:, None] * frequencies
        first, second = x[..., :half], x[..., half:]
        return torch.cat(
            (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), -1
        )

    def attention(x, prefix):
        query, key, value = (linear(x, f"{prefix}.{name}_proj").split(config.head_dim, -1) for name in "qkv")
        heads = []
        for q, k, v in zip(query, key, value, strict=True):
            if config.position_embedding_type == "rope":
                q, k = rotate(q), rotate(k)
            scores = q @ k.mT / math.sqrt(config.head_dim)
            scores = scores.masked_fill(inputs["attention_mask"][:, None, :] == 0, float("-inf"))
            heads.append(scores.softmax(-1) @ v)
        return linear(torch.cat(heads, -1), f"{prefix}.o_proj")

    def feed_forward(x, prefix):
        activation = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}[config.hidden_act]
        return linear(activation(linear(x, f"{prefix}.up_proj")), f"{prefix}.down_proj")

    x = weights["embeddings.embed_tokens.weight"][inputs["input_ids"]]
    if config.type_vocab_size > 0:
        x = x + weights["embeddings.embed_token_types.weight"][inputs["token_type_ids"]]
    if config.position_embedding_type == "learned":
        x = x + weights["embeddings.embed_positions.weight"][: x.shape[1]]
    if config.embedding_norm:
        x = norm(x, "embeddings.norm")
    for layer in range(config.num_hidden_layers):
        for f, part in ((attention, "self_attn"), (feed_forward, "mlp")):
            name = f"layers.{layer}.{part}"
            if config.norm_placement == "output":
                x = x + norm(f(x, name), f"{name}_norm")
            elif config.norm_placement == "post":
                x = norm(x + f(x, name), f"{name}_norm")
            else:
                x = x + f(norm(x, f"{name}_norm"), name)
    return norm(x, "norm") if config.norm_placement == "pre" else x


@variants
def test_encoder_computes_its_definition(variant):
    model = ChinchillaModel(make_tiny_config(**variant)).eval()
    for name, parameter in model.named_parameters():  # norms start at 1 and 0: give every parameter a say
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
    inputs = make_inputs()
    with torch.no_grad():
        actual = model(**inputs).last_hidden_state
        expected = reference_forward(model, inputs)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(actual[real], expected[real], rtol=1e-4, atol=1e-5)


@variants
def test_eager_attention_equals_sdpa_on_a_padded_batch(variant):
    model = ChinchillaForMaskedLM(make_tiny_config(**variant)).eval()
    inputs = make_inputs()
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        assert model.config._attn_implementation == "sdpa"
        expected = model(**inputs).logits[real]
        model.set_attn_implementation("eager")
        actual = model(**inputs).logits[real]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask", "ignore:`torch.jit.script_method`")
def test_flex_attention_equals_sdpa_on_padded_and_packed_rows():
    # one test for both: flex attention compiles its kernel, which takes the better part of a minute
    model = ChinchillaForMaskedLM(make_tiny_config(head_dim=16)).eval()  # flex attention needs head_dim >= 16
    rows = torch.randint(5, 100, (2, 12))
    padded = {"attention_mask": torch.tensor([[1] * 12, [1] * 7 + [0] * 5])}
    packed = {"position_ids": torch.tensor([[*range(5), *range(3), *range(4)], [*range(1), *range(11)]])}
    with torch.no_grad():
        for inputs in (padded, packed):
            real = inputs.get("attention_mask", torch.ones(2, 12)).bool()
            model.set_attn_implementation("sdpa")
            expected = model(rows, **inputs).logits[real]
            model.set_attn_implementation("flex_attention")
            torch.testing.assert_close(model(rows, **inputs).logits[real], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("position_embedding_type", ["rope", "learned"])
def test_packed_documents_equal_separate_ones(position_embedding_type, implementation):
    config = make_tiny_config(position_embedding_type=position_embedding_type)
    model = ChinchillaForMaskedLM._from_config(config, attn_implementation=implementation).eval()
    lengths = [[5, 3, 4], [12], [1, 11]]
    rows = torch.randint(5, 100, (len(lengths), 12))
    position_ids = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    with torch.no_grad():
        packed = model(rows, position_ids=position_ids).logits
        for row, row_lengths, logits in zip(rows, lengths, packed, strict=True):
            for document, expected in zip(row.split(row_lengths), logits.split(row_lengths), strict=True):
                alone = model(document[None]).logits[0]
                torch.testing.assert_close(expected, alone, rtol=1e-4, atol=1e-5)


def test_packed_documents_stay_apart_beside_an_attention_mask(tiny_config):
    model = ChinchillaModel(tiny_config).eval()
    row = torch.randint(5, 100, (1, 8))
    inputs = {
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]]),
    }
    with torch.no_grad():
        packed = model(row, **inputs).last_hidden_state
        alone = model(row[:, 3:6]).last_hidden_state
    torch.testing.assert_close(packed[:, 3:6], alone, rtol=1e-4, atol=1e-5)


def test_flash_attention_refuses_packed_rows_that_it_would_mix(tiny_config):
    model = ChinchillaModel(tiny_config)
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        model(torch.ones(2, 4, dtype=torch.long), position_ids=torch.tensor([[0, 1, 0, 1], [0, 1, 2, 3]]))


@variants
def test_a_row_alone_equals_the_row_in_a_padded_batch(variant):
    model = ChinchillaForSequenceClassification(make_tiny_config(pooling="mean", **variant)).eval()
    inputs = make_inputs()
    with torch.no_grad():
        together = model(**inputs).logits
        for index, length in enumerate(inputs["attention_mask"].sum(-1)):
            alone = model(**{name: value[index : index + 1, :length] for name, value in inputs.items()}).logits
            torch.testing.assert_close(alone[0], together[index], rtol=1e-4, atol=1e-5)


def test_mean_pooling_averages_real_tokens_only():
    model = ChinchillaModel(make_tiny_config(pooling="mean"), add_pooling_layer=True).eval()
    inputs = make_inputs()
    outputs = model(**inputs)
    states = outputs.last_hidden_state[1, : inputs["attention_mask"][1].sum()]
    torch.testing.assert_close(outputs.pooler_output[1], model.pooler.dense(states.mean(0)).tanh())


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_normalized_pooler_scales_to_channels_of_unit_mean_square(pooling):
    model = ChinchillaModel(make_tiny_config(pooling=pooling, pooler_type="normalized"), add_pooling_layer=True).eval()
    assert not list(model.pooler.parameters())
    inputs = make_inputs()
    outputs = model(**inputs)
    states = outputs.last_hidden_state[1, : inputs["attention_mask"][1].sum()]
    pooled = states[0] if pooling == "cls" else states.mean(0)
    torch.testing.assert_close(outputs.pooler_output[1], pooled / pooled.norm() * 32**0.5)
    torch.testing.assert_close(outputs.pooler_output.square().mean(-1), torch.ones(BATCH))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_normalized_pooler_takes_what_half_precision_holds(dtype):
    pooler = ChinchillaModel(make_tiny_config(pooler_type="normalized"), add_pooling_layer=True).pooler
    states = torch.stack([torch.zeros(3, 32), torch.full((3, 32), 6e4), torch.full((3, 32), 1e-4)]).to(dtype)
    pooled = pooler(states)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled.float(), torch.tensor([0.0, 1.0, 1.0])[:, None].expand(3, 32))


def test_normalized_pooler_travels_in_checkpoints(tmp_path):
    model = ChinchillaForSequenceClassification(make_tiny_config(pooling="mean", pooler_type="normalized")).eval()
    inputs = make_labelled_inputs(ChinchillaForSequenceClassification)
    loss = model(**inputs).loss
    loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    model.save_pretrained(tmp_path / "head")
    loaded, report = AutoModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"].difference(
        {"classifier.weight", "classifier.bias"}
    )
    del inputs["labels"]
    assert torch.equal(loaded(**inputs).pooler_output, model.model(**inputs).pooler_output)
    loaded.save_pretrained(tmp_path / "body")
    assert AutoModel.from_pretrained(tmp_path / "body").pooler.dense is None
    # From one kind to the other: the dense layer goes without a word, and comes with one.
    as_dense, report = AutoModel.from_pretrained(tmp_path / "body", pooler_type="dense", output_loading_info=True)
    assert report["missing_keys"] == {"pooler.dense.weight", "pooler.dense.bias"}
    as_dense.save_pretrained(tmp_path / "dense")
    _, report = AutoModel.from_pretrained(tmp_path / "dense", pooler_type="normalized", output_loading_info=True)
    assert not any(report.values()), report


@every_head
def test_every_parameter_of_a_head_is_trained(head, tiny_config):
    model = head(tiny_config)
    model(**make_labelled_inputs(head)).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    frozen = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    # A bias on all keys alike shifts every score of a query alike, and one on all choices alike those of all choices:
    # softmax does not see it.
    unseen = ("k_proj.bias", "classifier.bias") if head is ChinchillaForMultipleChoice else "k_proj.bias"
    assert [name for name in frozen if not name.endswith(unseen)] == []


@every_head
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(head, use_reentrant, tiny_config):
    model = head(tiny_config)
    checkpointed = copy.deepcopy(model)
    checkpointed.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    checkpointed.train()
    assert checkpointed.is_activation_checkpointing
    inputs = make_labelled_inputs(head)
    for candidate in (model.train(), checkpointed):
        candidate(**inputs).loss.backward()
    gradients = dict(checkpointed.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad)


@every_head
def test_saved_equals_loaded_bit_for_bit(head, tiny_config, tmp_path):
    model = head(tiny_config).eval()
    model.save_pretrained(tmp_path)
    loaded, report = head.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    inputs = make_labelled_inputs(head)
    assert torch.equal(logits_of(loaded(**inputs)), logits_of(model(**inputs)))


def test_loading_rebuilds_the_rotary_frequencies(tmp_path):
    config = make_tiny_config(rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    model = ChinchillaModel(config)
    model.save_pretrained(tmp_path)
    loaded = ChinchillaModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.rotary_emb.inv_freq, 500.0 ** (-torch.arange(0, 8, 2) / 8))


def test_bare_model_loads_just_what_a_head_saved(tiny_config, tmp_path):
    for head, has_pooler in ((ChinchillaForMaskedLM, False), (ChinchillaForSequenceClassification, True)):
        head(tiny_config).save_pretrained(tmp_path / head.__name__)
        loaded, report = ChinchillaModel.from_pretrained(tmp_path / head.__name__, output_loading_info=True)
        assert (loaded.pooler is not None) == has_pooler
        assert not report["missing_keys"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept_and_close(dtype, tiny_config, tmp_path):
    model = ChinchillaForMaskedLM(tiny_config).eval()
    model.save_pretrained(tmp_path)
    half = ChinchillaForMaskedLM.from_pretrained(tmp_path, dtype=dtype)
    inputs = make_inputs()
    logits = half(**inputs).logits
    assert logits.dtype == dtype
    assert F.cosine_similarity(logits.float().flatten(), model(**inputs).logits.flatten(), dim=0) > 0.999


def test_bf16_autocast_trains(tiny_config):
    model = ChinchillaForPreTraining(tiny_config)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**make_labelled_inputs(ChinchillaForPreTraining)).loss
    assert loss.dtype == torch.float32
    loss.backward()


@every_head
def test_compiles_and_exports_as_one_graph(head, tiny_config, fresh_compiler):
    model = head(tiny_config).eval()
    inputs = {
        name: value
        for name, value in make_labelled_inputs(head).items()
        if "label" not in name and "positions" not in name
    }
    with torch.no_grad():
        expected = real_logits(model(**inputs), inputs)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(real_logits(compiled(**inputs), inputs), expected)

        dynamic = {
            name: {0: torch.export.Dim.DYNAMIC, value.dim() - 1: torch.export.Dim.DYNAMIC}
            for name, value in inputs.items()
        }
        program = torch.export.export(model, (), inputs, dynamic_shapes=dynamic, strict=False)
        other = {name: value[:3, ..., :9] for name, value in inputs.items()}
        torch.testing.assert_close(real_logits(program.module()(**other), other), real_logits(model(**other), other))


def test_an_exported_graph_takes_all_lengths_that_it_is_told(tiny_config):
    """Of a named range, nothing is ruled out: ExecuTorch plans its memory by it."""
    model = ChinchillaForSequenceClassification(tiny_config).eval()
    length = torch.export.Dim("length", min=2, max=30)
    ids = torch.randint(5, 100, (1, 9))
    program = torch.export.export(model, (ids,), dynamic_shapes={"input_ids": {1: length}}, strict=False)
    for size in (2, 16, 17, 30):
        ids = torch.randint(5, 100, (1, size))
        with torch.no_grad():
            torch.testing.assert_close(program.module()(ids).logits, model(ids).logits)


@pytest.mark.filterwarnings("ignore")  # of torch's and Transformers' own, still experimental, exporters
def test_onnx_runtime_computes_the_same_at_another_shape(tiny_config):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra 'export' is not installed")
    from transformers.exporters import OnnxConfig, OnnxExporter

    model = ChinchillaForSequenceClassification(tiny_config).eval()
    padded, longer = torch.ones(2, 12, dtype=torch.long), torch.ones(3, 20, dtype=torch.long)
    padded[1, 8:] = longer[2, 5:] = 0
    inputs = [{"input_ids": torch.randint(5, 100, mask.shape), "attention_mask": mask} for mask in (padded, longer)]
    exported = OnnxExporter().export(model, inputs[0], config=OnnxConfig(dynamic=True))
    for batch in inputs:
        torch.testing.assert_close(exported(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-5)


def test_packed_rows_compile(tiny_config, fresh_compiler):
    model = ChinchillaModel(tiny_config).eval()
    row, position_ids = torch.randint(5, 100, (2, 6)), torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3]])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(row, position_ids=position_ids).last_hidden_state,
            model(row, position_ids=position_ids).last_hidden_state,
        )


def test_resizing_the_vocabulary_keeps_head_and_embeddings_tied(tiny_config):
    model = ChinchillaForMaskedLM(tiny_config).eval()
    inputs = make_inputs()
    before = model(**inputs).logits
    model.resize_token_embeddings(120, mean_resizing=False)
    assert model.config.vocab_size == 120
    assert model.lm_head.weight is model.model.embeddings.embed_tokens.weight
    after = model(**inputs).logits
    assert after.shape[-1] == 120
    torch.testing.assert_close(after[..., :100], before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("head", [ChinchillaForMaskedLM, ChinchillaForPreTraining])
def test_sparse_prediction_works_at_the_labelled_positions_alone(head, training, tiny_config):
    sparse = head(tiny_config).train(training)
    whole = copy.deepcopy(sparse)
    whole.config.sparse_prediction = False
    inputs = make_labelled_inputs(head)
    inputs["labels"][:, ::2] = -100
    few, all_ = sparse(**inputs), whole(**inputs)
    labelled = inputs["labels"] != -100
    if not training:  # in training there are none
        torch.testing.assert_close(logits_of(few), logits_of(all_)[labelled])
    torch.testing.assert_close(few.loss, all_.loss)
    few.loss.backward()
    all_.loss.backward()
    gradients = dict(whole.named_parameters())
    for name, parameter in sparse.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, msg=name)
    without = {name: value for name, value in inputs.items() if "label" not in name}
    assert logits_of(sparse(**without)).shape == (*labelled.shape, tiny_config.vocab_size)


def test_a_batch_without_a_labelled_position_has_no_loss(tiny_config):
    model = ChinchillaForMaskedLM(tiny_config)
    outputs = model(torch.randint(5, 100, (2, 8)), labels=torch.full((2, 8), -100))
    outputs.loss.backward()
    assert outputs.loss == 0
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_untied_head_has_its_own_matrix(tmp_path):
    model = ChinchillaForMaskedLM(make_tiny_config(tie_word_embeddings=False))
    assert model.lm_head.weight is not model.model.embeddings.embed_tokens.weight
    model.save_pretrained(tmp_path)
    loaded = ChinchillaForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_attentions_and_hidden_states_come_out(tiny_config):
    model = ChinchillaModel._from_config(tiny_config, attn_implementation="eager").eval()
    inputs = make_inputs()
    outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    assert len(outputs.hidden_states) == 3 and len(outputs.attentions) == 2
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    weights = outputs.attentions[0]  # (batch, heads, length, length)
    assert weights.shape == (BATCH, 4, LENGTH, LENGTH)
    torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, 4, LENGTH))
    assert not weights[inputs["attention_mask"][:, None, None, :].expand_as(weights) == 0].any()


def test_token_types_are_accepted_and_ignored_without_a_table():
    model = ChinchillaModel(make_tiny_config(type_vocab_size=0)).eval()
    inputs = make_inputs()
    with_types = model(**inputs).last_hidden_state
    without = model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    assert torch.equal(with_types, without)


def test_embeddings_stand_in_for_ids(tiny_config):
    model = ChinchillaModel(tiny_config).eval()
    inputs = make_inputs()
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    by_embeds = model(inputs_embeds=embeds, **{k: v for k, v in inputs.items() if k != "input_ids"})
    assert torch.equal(by_embeds.last_hidden_state, model(**inputs).last_hidden_state)


def test_wrong_inputs_raise(tiny_config):
    model = ChinchillaModel(tiny_config)
    with pytest.raises(ValueError, match="max_position_embeddings is 64, but the input has 65 tokens"):
        model(torch.ones(1, 65, dtype=torch.long))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(torch.ones(1, 2, dtype=torch.long), inputs_embeds=torch.ones(1, 2, 32))


def test_nothing_compiles_by_itself(tiny_config, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: pytest.fail("torch.compile was called"))
    ChinchillaForMaskedLM(tiny_config)(**make_labelled_inputs(ChinchillaForMaskedLM)).loss.backward()


# not question answering: Trainer counts items by `labels`, and divides by the steps where there are none
@pytest.mark.parametrize("head", [head for head in HEADS if head is not ChinchillaForQuestionAnswering])
def test_loss_of_parts_adds_up_to_the_loss_of_the_whole(head, tiny_config):
    """As Trainer does under gradient accumulation: each part is told the number of items of the whole."""
    model = head(tiny_config).eval()
    inputs = make_labelled_inputs(head, batch=8)
    if head is ChinchillaForPreTraining:  # its two losses have different denominators: equal parts are exact
        inputs["attention_mask"][:] = 1
        inputs["labels"][:] = torch.randint(100, inputs["labels"].shape)
    whole = model(**inputs).loss
    num_items = (inputs["labels"] != -100).sum()
    parts = [{name: value[index : index + 2] for name, value in inputs.items()} for index in range(0, 8, 2)]
    total = sum(model(**part, num_items_in_batch=num_items).loss for part in parts)
    torch.testing.assert_close(total, whole)


PROBLEMS = {
    "single_label_classification": (3, lambda batch: torch.randint(3, (batch,))),
    "multi_label_classification": (3, lambda batch: torch.randint(2, (batch, 3)).float()),
    "regression": (1, lambda batch: torch.randn(batch)),
}


@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_accumulated_steps_equal_one_large_step_in_trainer(problem_type, tmp_path):
    num_labels, make_labels = PROBLEMS[problem_type]
    model = ChinchillaForSequenceClassification(make_tiny_config(num_labels=num_labels, problem_type=problem_type))
    inputs = make_inputs(8) | {"labels": make_labels(8)}
    rows = [{name: value[index] for name, value in inputs.items()} for index in range(8)]
    results = []
    for batch_size, accumulation in ((8, 1), (1, 8)):
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        )
        candidate = copy.deepcopy(model)
        Trainer(candidate, arguments, train_dataset=rows).train()
        results.append(candidate.state_dict())
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(results[0]["classifier.weight"], model.classifier.weight)


@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_problem_type_is_inferred_from_the_labels(problem_type):
    num_labels, make_labels = PROBLEMS[problem_type]
    model = ChinchillaForSequenceClassification(make_tiny_config(num_labels=num_labels))
    labels = make_labels(BATCH)
    outputs = model(**make_inputs(), labels=labels)
    assert model.config.problem_type == problem_type
    expected = {
        "single_label_classification": lambda: F.cross_entropy(outputs.logits, labels),
        "multi_label_classification": lambda: F.binary_cross_entropy_with_logits(outputs.logits, labels),
        "regression": lambda: F.mse_loss(outputs.logits[:, 0], labels),
    }[problem_type]()
    torch.testing.assert_close(outputs.loss, expected)


def test_labels_of_the_wrong_shape_raise():
    model = ChinchillaForSequenceClassification(
        make_tiny_config(num_labels=3, problem_type="multi_label_classification")
    )
    with pytest.raises(ValueError, match=r"labels have shape \(4,\).*expects \(4, 3\)"):
        model(**make_inputs(), labels=torch.ones(BATCH))


def test_integer_multi_labels_are_cast():
    model = ChinchillaForSequenceClassification(make_tiny_config(num_labels=3))
    labels = torch.randint(2, (BATCH, 3))
    outputs = model(**make_inputs(), labels=labels)
    torch.testing.assert_close(outputs.loss, F.binary_cross_entropy_with_logits(outputs.logits, labels.float()))


def test_default_config_starts_near_a_uniform_guess():
    model = ChinchillaForMaskedLM(chinchilla_hf.ChinchillaConfig(vocab_size=1000, num_hidden_layers=2))
    labels = torch.randint(1000, (4, 32))
    assert model(labels, labels=torch.randint(1000, (4, 32))).loss.item() == pytest.approx(math.log(1000), rel=0.05)


def test_damaged_weights_say_so(tiny_config, tmp_path):
    ChinchillaModel(tiny_config).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"\xff" * len(whole), b""):
        weights.write_bytes(damaged)
        with pytest.raises(OSError, match="truncated or corrupted"):
            ChinchillaModel.from_pretrained(tmp_path)


def test_another_model_type_raises(tmp_path):
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1, vocab_size=50)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match=r"model type 'bert', expected 'chinchilla'.*convert_checkpoint"):
        ChinchillaModel.from_pretrained(tmp_path)


def test_tokenizer_of_a_bert_feeds_the_model_whole(minilm):
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    model = ChinchillaModel(make_tiny_config(vocab_size=len(tokenizer)))
    model(
        **tokenizer(["a text", "another, longer text"], ["its pair", "and its pair"], padding=True, return_tensors="pt")
    )
