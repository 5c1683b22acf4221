"""Fine-tuning of a part: heads across checkpoints, frozen layers, rates by layer, LoRA."""

import logging
import sys

import pytest
import torch
from conftest import make_tiny_config
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from chinchilla_hf import (
    ChinchillaForMaskedLM,
    ChinchillaForQuestionAnswering,
    ChinchillaForSequenceClassification,
    ChinchillaForTokenClassification,
    ChinchillaModel,
    train_tokenizer,
)
from chinchilla_hf.trainer import FineTuningTrainer, hide_tokens
from chinchilla_hf.transfer import (
    TransferArguments,
    check_transfer,
    count_trained,
    describe_trained,
    layer_depths,
    layer_groups,
    load_for_task,
    merge_lora,
    plain_model,
    prepare_transfer,
)

PLACE = {"id2label": dict(enumerate(["O", "B-X", "I-X"])), "label2id": {"O": 0, "B-X": 1, "I-X": 2}}


def make_tagger(**overrides) -> ChinchillaForTokenClassification:
    return ChinchillaForTokenClassification(make_tiny_config(num_labels=3, **overrides))


@pytest.fixture
def rows() -> Dataset:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 100, (16, 8), generator=generator)
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": (ids % 3).tolist()})


OF_TRAINER = ("layer_decay", "token_dropout", "adversarial_epsilon")


def make_trainer(folder, model, rows, **options) -> FineTuningTrainer:
    ours = {name: options.pop(name) for name in OF_TRAINER if name in options}
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-2} | options
    options = {"save_strategy": "epoch", "report_to": "none", "disable_tqdm": True} | options
    return FineTuningTrainer(model, TrainingArguments(folder, use_cpu=True, **options), train_dataset=rows, **ours)


# ---- Heads across checkpoints ----

HEADS = {
    "none": (ChinchillaModel, AutoModel),
    "masked": (ChinchillaForMaskedLM, AutoModelForMaskedLM),
    "texts": (ChinchillaForSequenceClassification, AutoModelForSequenceClassification),
    "words": (ChinchillaForTokenClassification, AutoModelForTokenClassification),
    "answers": (ChinchillaForQuestionAnswering, AutoModelForQuestionAnswering),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("saved", HEADS)
def test_auto_classes_load_across_heads_without_a_word_on_weights_that_they_have_no_use_for(
    tmp_path, caplog, saved, head
):
    HEADS[saved][0](make_tiny_config()).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model, info = HEADS[head][1].from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is HEADS[head][0]
    assert not info["unexpected_keys"] and "UNEXPECTED" not in caplog.text
    if saved == head or head == "none":
        assert not caplog.text
    # What is missing is of a head, and of a pooler that the checkpoint never had.
    assert all(name.split(".")[0] != "model" or "pooler" in name for name in info["missing_keys"])


@pytest.mark.parametrize("saved", ["masked", "texts", "answers", "none"])
def test_the_body_is_loaded_and_the_head_is_fresh(tmp_path, caplog, saved):
    source = HEADS[saved][0](make_tiny_config(num_labels=3))
    source.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model, line = load_for_task(tmp_path, ChinchillaForTokenClassification, name="mine", **PLACE)
    assert line == "from mine: the body; fresh: classifier (99 parameters)" and not caplog.text
    body = source.base_model.state_dict()
    for name, tensor in model.base_model.state_dict().items():
        assert torch.equal(tensor, body[name]), name
    if saved == "texts":  # of the same shape, but of another task
        assert not torch.equal(model.classifier.weight, source.classifier.weight)
        assert 0 < model.classifier.weight.std() < 0.5 and not model.classifier.bias.any()
    assert model.config.id2label == PLACE["id2label"]


def test_a_head_of_the_same_task_goes_on_if_the_labels_are_the_same(tmp_path):
    source = ChinchillaForTokenClassification(make_tiny_config(**PLACE))
    source.save_pretrained(tmp_path)
    model, line = load_for_task(tmp_path, ChinchillaForTokenClassification, name="mine", **PLACE)
    assert line == "from mine: the body and the head (classifier); fresh: nothing"
    assert torch.equal(model.classifier.weight, source.classifier.weight)
    other = {"id2label": {0: "O", 1: "B-Y", 2: "I-Y"}, "label2id": {"O": 0, "B-Y": 1, "I-Y": 2}}
    model, line = load_for_task(tmp_path, ChinchillaForTokenClassification, name="mine", **other)
    assert line == "from mine: the body; fresh: classifier (99 parameters)"
    assert not torch.equal(model.classifier.weight, source.classifier.weight)
    model, line = load_for_task(tmp_path, ChinchillaForTokenClassification, num_labels=7)
    assert model.classifier.weight.shape == (7, 32) and "fresh: classifier" in line


@pytest.mark.parametrize("head", [BertForMaskedLM, BertForSequenceClassification])
def test_a_bert_gives_its_body(tmp_path, caplog, head):
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    source = head(BertConfig(**shape, vocab_size=100, max_position_embeddings=32, num_labels=3))
    source.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model, line = load_for_task(tmp_path, ChinchillaForTokenClassification, name="bert", **PLACE)
        pooled = load_for_task(tmp_path, ChinchillaForSequenceClassification, name="bert", num_labels=4)[1]
    assert line == "from bert: the body; fresh: classifier (99 parameters)" and "LOAD REPORT" not in caplog.text
    has_pooler = head is BertForSequenceClassification
    pooler = "" if has_pooler else ", pooler (1,056 parameters)"
    assert pooled == f"from bert: the body; fresh: classifier (132 parameters){pooler}"
    query = source.bert.encoder.layer[0].attention.self.query.weight
    assert torch.equal(model.model.layers[0].self_attn.q_proj.weight, query)


def test_half_precision_becomes_float32(tmp_path):
    make_tagger().half().save_pretrained(tmp_path)
    assert load_for_task(tmp_path, ChinchillaForTokenClassification)[0].dtype == torch.float32


# ---- Freezing ----


def changed_by_training(tmp_path, rows, options, activation_checkpointing=False) -> tuple[set[str], set[str]]:
    """Names of the parameters that a training changed, and of those that it left."""
    model = make_tagger(type_vocab_size=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arguments = {"activation_checkpointing": activation_checkpointing}
    trainer = make_trainer(
        tmp_path, prepare_transfer(model, options), rows, layer_decay=options.layer_decay, **arguments
    )
    trainer.train()
    after = plain_model(trainer.model).state_dict()
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    return changed, set(before) - changed


def test_frozen_layers_are_the_same_after_training(tmp_path, rows):
    changed, left = changed_by_training(tmp_path, rows, TransferArguments(freeze_layers=1))
    assert left == {name for name in left | changed if "embeddings." in name or ".layers.0." in name}
    assert "classifier.weight" in changed and "model.layers.1.mlp.up_proj.weight" in changed


def test_all_layers_frozen_leave_the_head(tmp_path, rows):
    changed, _ = changed_by_training(tmp_path, rows, TransferArguments(freeze_layers=2))
    assert changed == {"classifier.weight", "classifier.bias"}


def test_a_frozen_table_of_tokens(tmp_path, rows):
    changed, left = changed_by_training(tmp_path, rows, TransferArguments(freeze_embeddings=True))
    assert left == {"model.embeddings.embed_tokens.weight"} and "model.embeddings.norm.weight" in changed


# ---- Rates ----


@pytest.mark.parametrize("norm_placement", ["output", "post", "pre"])
def test_depths_count_from_the_head(norm_placement):
    model = ChinchillaForSequenceClassification(make_tiny_config(norm_placement=norm_placement))
    depths = {name: layer_depths(model)[parameter] for name, parameter in model.named_parameters()}
    assert depths["classifier.weight"] == depths["model.pooler.dense.bias"] == 0
    assert depths.get("model.norm.weight", 0) == 0
    assert {depth for name, depth in depths.items() if ".layers.1." in name} == {1}
    assert {depth for name, depth in depths.items() if ".layers.0." in name} == {2}
    assert {depth for name, depth in depths.items() if ".embeddings." in name} == {3}


def test_rates_fall_from_layer_to_layer_and_only_matrices_decay(tmp_path, rows):
    model = make_tagger()
    trainer = make_trainer(tmp_path, model, rows, layer_decay=0.5, weight_decay=0.1, learning_rate=8e-3)
    groups = trainer.create_optimizer().param_groups
    of = {parameter: group for group in groups for parameter in group["params"]}
    assert len(of) == len(list(model.parameters()))
    assert groups[0]["lr"] == 8e-3  # the one that is logged
    rates = {
        "classifier.weight": 8e-3,
        "model.layers.1.mlp.up_proj.weight": 4e-3,
        "model.layers.0.mlp.up_proj.bias": 2e-3,
    }
    rates |= {"model.embeddings.embed_tokens.weight": 1e-3}
    for name, rate in rates.items():
        assert of[model.get_parameter(name)]["lr"] == pytest.approx(rate), name
    for name, parameter in model.named_parameters():
        plain = name.endswith("bias") or "norm" in name
        assert of[parameter]["weight_decay"] == (0 if plain else 0.1), name


def test_a_schedule_scales_all_rates(tmp_path, rows):
    trainer = make_trainer(tmp_path, make_tagger(), rows, layer_decay=0.5, lr_scheduler_type="constant")
    trainer.train()
    rates = sorted({group["lr"] for group in trainer.optimizer.param_groups}, reverse=True)
    assert rates == pytest.approx([1e-2, 5e-3, 2.5e-3, 1.25e-3])


def test_without_decay_the_groups_are_those_of_trainer(tmp_path, rows):
    trainer = make_trainer(tmp_path, make_tagger(), rows)
    assert [group["lr"] for group in trainer.create_optimizer().param_groups] == [1e-2, 1e-2]


# ---- LoRA ----


def with_updates(options: TransferArguments, model=None):
    """A prepared model whose updates are not zero, as they are at first."""
    pytest.importorskip("peft")
    model = prepare_transfer(model or make_tagger(), options).eval()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_trains_its_updates_and_the_head_only(tmp_path, rows, checkpointing):
    pytest.importorskip("peft")
    options = TransferArguments(lora_rank=2, lora_targets=["q_proj", "up_proj"])
    changed, _ = changed_by_training(tmp_path, rows, options, activation_checkpointing=checkpointing)
    matrices = {f"model.layers.{i}.{name}.weight" for i in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj")}
    assert changed == matrices | {"classifier.weight", "classifier.bias"}


def test_lora_takes_all_layers_that_are_not_frozen():
    model = with_updates(TransferArguments(lora_rank=2, freeze_layers=1))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    modules = {name.split(".lora_")[0].split("layers.")[1] for name in trained if ".lora_" in name}
    attention = {f"1.self_attn.{name}_proj" for name in "qkvo"}
    assert modules == attention | {"1.mlp.up_proj", "1.mlp.down_proj"}
    assert {name.rpartition(".")[2] for name in trained if ".lora_" not in name} == {"weight", "bias"}
    model = with_updates(TransferArguments(lora_rank=2), ChinchillaForSequenceClassification(make_tiny_config()))
    assert any("pooler" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_updates_have_the_size_of_alpha():
    for options, scaling in (({}, 2.0), ({"lora_alpha": 6.0}, 1.5)):
        model = with_updates(TransferArguments(lora_rank=4, **options))
        assert model.base_model.model.model.layers[0].self_attn.q_proj.scaling == {"default": scaling}


def test_merged_updates_compute_the_same_and_load_without_peft(tmp_path, monkeypatch):
    ids = torch.randint(5, 100, (2, 9))
    model = with_updates(TransferArguments(lora_rank=2, lora_dropout=0.1))
    with torch.no_grad():
        before = model(input_ids=ids).logits
        merge_lora(model)
        merge_lora(model)  # once is enough
        merged = model(input_ids=ids).logits
        plain = plain_model(model)
        torch.testing.assert_close(merged, before, atol=1e-5, rtol=1e-5)
        assert torch.equal(plain(ids).logits, merged)
        assert type(plain) is ChinchillaForTokenClassification
        plain.save_pretrained(tmp_path)
        monkeypatch.setitem(sys.modules, "peft", None)
        assert torch.equal(ChinchillaForTokenClassification.from_pretrained(tmp_path)(ids).logits, merged)
    assert not any("lora" in name for name in load_file(tmp_path / "model.safetensors"))


def test_a_plain_model_has_the_updates_even_if_nobody_merged_them():
    ids = torch.randint(5, 100, (2, 9))
    model = with_updates(TransferArguments(lora_rank=2))
    with torch.no_grad():
        before = model(input_ids=ids).logits
        torch.testing.assert_close(plain_model(model)(ids).logits, before, atol=1e-5, rtol=1e-5)


def test_lora_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path, rows):
    pytest.importorskip("peft")
    options = TransferArguments(lora_rank=2, lora_dropout=0.2, layer_decay=0.8)
    torch.manual_seed(3)
    start = make_tagger(hidden_dropout=0.1)
    start.save_pretrained(tmp_path / "start")

    def run(folder, **arguments):
        model, _ = load_for_task(tmp_path / "start", ChinchillaForTokenClassification)
        torch.manual_seed(5)
        trainer = make_trainer(
            tmp_path / folder, prepare_transfer(model, options), rows, layer_decay=options.layer_decay
        )
        trainer.train(**arguments)
        return plain_model(trainer.model).state_dict()

    whole = run("whole")
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < 30_000
    assert not (checkpoint / "model.safetensors").exists()
    resumed = run("resumed", resume_from_checkpoint=str(checkpoint))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert not torch.equal(whole["classifier.weight"], start.classifier.weight)


def test_a_checkpoint_of_lora_is_written_without_a_look_at_the_hub(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    model = make_tagger()
    model.config._name_or_path = model.name_or_path = "me/base"
    asked = []
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *name: asked.append(name))
    prepare_transfer(model, TransferArguments(lora_rank=2)).save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file() and not asked


def test_what_is_trained_is_said_in_one_line():
    model = make_tagger()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert describe_trained(model, TransferArguments()) == f"training {total:,} of {total:,} parameters"
    options = TransferArguments(freeze_layers=2, layer_decay=0.9)
    line = describe_trained(prepare_transfer(model, options), options)
    assert line == (
        f"training 99 of {total:,} parameters (the embeddings and the first 2 layers frozen; rates 0.9 times those of "
        "the next layer)"
    )
    options = TransferArguments(lora_rank=3, lora_targets=["q_proj"])
    model = with_updates(options)
    assert count_trained(model) == 99 + 2 * 3 * (32 + 32)
    assert describe_trained(model, options) == f"training 483 of {total:,} parameters (LoRA of rank 3)"


def test_groups_of_lora_have_the_rates_of_their_layers():
    model = with_updates(TransferArguments(lora_rank=2))
    groups = layer_groups(model, [], 1.0, 0.5, 0.0)
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rates[parameter] == (0.25 if "layers.0." in name else 0.5 if "layers.1." in name else 1.0), name


# ---- Hidden tokens ----


@pytest.fixture
def tokenizer():
    return train_tokenizer(["a b c d e f g h"], vocab_size=100, model_max_length=32, show_progress=False)


def test_a_share_of_the_tokens_is_hidden_and_no_special_one(tokenizer):
    torch.manual_seed(0)
    ids = torch.randint(0, len(tokenizer), (200, 50))
    hidden = hide_tokens(ids, tokenizer, 0.25)
    is_special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    assert torch.equal(hidden[is_special], ids[is_special]) and is_special.any()
    changed = hidden != ids
    assert (hidden[changed] == tokenizer.mask_token_id).all()
    assert changed[~is_special].float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert not torch.equal(hide_tokens(ids, tokenizer, 0.25), hidden)


def test_tokens_are_hidden_in_training_and_not_in_evaluation(tmp_path, rows, tokenizer):
    model, seen = make_tagger(), {True: 0, False: 0}

    def count(module, inputs):
        seen[module.training] += int((inputs[0] == tokenizer.mask_token_id).sum())

    model.get_input_embeddings().register_forward_pre_hook(count)
    assert not any(tokenizer.mask_token_id in ids for ids in rows["input_ids"])
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no")
    trainer = FineTuningTrainer(
        model, arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer, token_dropout=0.5
    )
    trainer.train()
    trainer.evaluate()
    hidden = seen[True]
    assert hidden > 100 and seen == {True: hidden, False: 0}


def test_a_tokenizer_that_has_no_mask_token_is_refused(tokenizer):
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match=r"token_dropout is 0.1, but the tokenizer has no mask token"):
        check_transfer(make_tagger(), TransferArguments(token_dropout=0.1), tokenizer)


def test_hidden_tokens_need_a_tokenizer(tmp_path, rows):
    with pytest.raises(ValueError, match=r"token_dropout is 0.1, but processing_class is NoneType: give a tokenizer"):
        make_trainer(tmp_path, make_tagger(), rows, token_dropout=0.1)


# ---- Adversarial training ----


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_step_learns_where_the_table_of_tokens_is_moved_against_the_model(tmp_path, rows, accumulated):
    model = make_tagger(hidden_dropout=0.0)
    trainer = make_trainer(
        tmp_path, model, rows, adversarial_epsilon=0.5, gradient_accumulation_steps=accumulated, max_grad_norm=0
    )
    trainer.current_gradient_accumulation_steps = accumulated
    table = model.get_input_embeddings().weight
    start = table.detach().clone()
    batch = {name: torch.tensor(column) for name, column in rows[:5].items()}

    half = {name: column[::2].contiguous() for name, column in batch.items()}
    (gradient,) = torch.autograd.grad(model(**half).loss, table)
    with torch.no_grad():
        plain = model(**half).loss
        length = start.square().sum(1).mean().sqrt()
        table.add_(0.5 * length * gradient / gradient.norm())
        assert model(**half).loss > plain
    (expected,) = torch.autograd.grad(model(**batch).loss, table)
    table.data.copy_(start)

    loss = trainer.training_step(model, batch)
    assert torch.equal(table, start)
    torch.testing.assert_close(accumulated * table.grad, expected)
    with torch.no_grad():
        assert accumulated * loss.item() != pytest.approx(model(**batch).loss.item(), rel=1e-3)


def test_adversarial_training_learns_and_resumes_exactly(tmp_path, rows):
    torch.manual_seed(0)
    start = make_tagger()

    def run(folder, resume_from_checkpoint=None, **options):
        model = make_tagger()
        model.load_state_dict(start.state_dict())
        trainer = make_trainer(tmp_path / folder, model, rows, num_train_epochs=10, **options)
        trainer.train(resume_from_checkpoint=resume_from_checkpoint)
        return trainer

    trainer = run("whole", adversarial_epsilon=0.3)
    assert trainer.evaluate(rows)["eval_loss"] < 0.5
    checkpoint = str(tmp_path / "whole" / "checkpoint-20")
    resumed = run("resumed", checkpoint, adversarial_epsilon=0.3).model.state_dict()
    plain = run("plain").model.state_dict()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(resumed[name], tensor), name
    assert not torch.equal(plain["classifier.weight"], resumed["classifier.weight"])


def test_the_table_of_tokens_comes_back_when_a_step_fails(tmp_path, rows, monkeypatch):
    model = make_tagger()
    trainer = make_trainer(tmp_path, model, rows, adversarial_epsilon=0.5)
    trainer.current_gradient_accumulation_steps = 1
    start = model.get_input_embeddings().weight.detach().clone()
    moved = []

    def fail(*args, **kwargs):
        moved.append(not torch.equal(model.get_input_embeddings().weight, start))
        raise RuntimeError("out of memory")

    monkeypatch.setattr(trainer.accelerator, "backward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.training_step(model, {name: torch.tensor(column) for name, column in rows[:4].items()})
    assert moved == [True] and torch.equal(model.get_input_embeddings().weight, start)


def test_the_table_of_tokens_stays_where_there_is_no_direction(tmp_path, rows):
    model = make_tagger()
    trainer = make_trainer(tmp_path, model, rows, adversarial_epsilon=0.5)
    trainer.current_gradient_accumulation_steps = 1
    table = model.get_input_embeddings().weight
    start, seen = table.detach().clone(), []
    model.register_forward_pre_hook(lambda *_: seen.append(table.detach().clone()))
    batch = {name: torch.tensor(column) for name, column in rows[:4].items()}
    trainer.training_step(model, batch | {"labels": torch.full_like(batch["labels"], -100)})  # counts for nothing
    assert len(seen) == 2 and torch.equal(seen[0], start) and torch.equal(seen[1], start)
    assert torch.equal(table, start)


def test_a_table_of_tokens_that_does_not_move_is_refused(tmp_path, rows, monkeypatch):
    model = make_tagger()
    model.get_input_embeddings().requires_grad_(False)
    with pytest.raises(ValueError, match=r"adversarial_epsilon is 0.5, but the table of tokens is frozen"):
        make_trainer(tmp_path, model, rows, adversarial_epsilon=0.5)
    prepare = Trainer.create_accelerator_and_postprocess

    def with_shards(trainer):
        prepare(trainer)
        trainer.is_fsdp_enabled = True

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", with_shards)
    with pytest.raises(ValueError, match=r"adversarial_epsilon is 0.5, but FSDP and DeepSpeed hold the table"):
        make_trainer(tmp_path, make_tagger(), rows, adversarial_epsilon=0.5)


# ---- Bad options ----

BAD_OPTIONS = {
    "negative layers": ({"freeze_layers": -1}, "freeze_layers is -1"),
    "no rate": ({"layer_decay": 0.0}, "layer_decay is 0.0, but must be above 0"),
    "rising rates": ({"layer_decay": 1.1}, "layer_decay is 1.1"),
    "all tokens hidden": ({"token_dropout": 1.0}, "token_dropout is 1.0"),
    "negative epsilon": ({"adversarial_epsilon": -0.1}, "adversarial_epsilon is -0.1, but must be a number of lengths"),
    "endless epsilon": ({"adversarial_epsilon": float("inf")}, "adversarial_epsilon is inf"),
    "moved and frozen": (
        {"adversarial_epsilon": 0.3, "freeze_embeddings": True},
        "adversarial_epsilon is 0.3, which moves the table of tokens, but freeze_embeddings is True",
    ),
    "moved and layers frozen": ({"adversarial_epsilon": 0.3, "freeze_layers": 1}, "but freeze_layers is 1"),
    "moved and updated": ({"adversarial_epsilon": 0.3, "lora_rank": 4}, "but lora_rank is 4"),
    "negative rank": ({"lora_rank": -4}, "lora_rank is -4"),
    "all dropped": ({"lora_rank": 4, "lora_dropout": 1.0}, "lora_dropout is 1.0"),
    "no size": ({"lora_rank": 4, "lora_alpha": 0.0}, "lora_alpha is 0.0"),
    "targets without LoRA": ({"lora_targets": ["q_proj"]}, "lora_targets is .*without lora_rank"),
    "dropout without LoRA": ({"lora_dropout": 0.1}, "lora_dropout is 0.1, but without lora_rank"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_options_that_make_no_sense_are_refused(case):
    options, message = BAD_OPTIONS[case]
    with pytest.raises(ValueError, match=message):
        TransferArguments(**options)


def test_lora_without_peft_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"lora_rank is 8, but LoRA needs the package peft.*'chinchilla-hf\[lora\]'"):
        TransferArguments(lora_rank=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_layers": 3}, "freeze_layers is 3, but the model has 2 layers"),
        ({"lora_rank": 2, "freeze_layers": 2}, "leaves no layer for LoRA"),
        ({"lora_rank": 2, "lora_targets": ["q_proj", "query"]}, "lora_targets has 'query', which matches no .*q_proj"),
        ({"lora_rank": 2, "lora_targets": ["classifier"]}, "'classifier', which matches no linear layer"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(options, message):
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match=message):
        check_transfer(make_tagger(), TransferArguments(**options))
