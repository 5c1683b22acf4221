"""What a student learns of its teacher's tokens: which of them are the same, and how far their states are apart."""

import pytest
import torch
from conftest import make_tiny_config
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
)

from chinchilla_hf import ChinchillaModel, train_tokenizer
from chinchilla_hf.compression.token_states import (
    OWN_POSITIONS,
    TEACHER_POSITIONS,
    AttentionInputs,
    TaughtCollator,
    TokenTeacher,
    relations_loss,
    tokens_for_both,
)

TEXTS = ["where is my card", "send money to my mother", "hello", "what is the balance of my savings account today"]
SHAPE = {"vocab_size": 100, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3}
SHAPE |= {"intermediate_size": 32, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


@pytest.fixture(scope="module")
def tokenizers():
    """A small WordPiece and a larger byte-level BPE."""
    options = {"model_max_length": 128, "show_progress": False}
    return (
        train_tokenizer(TEXTS * 5, vocab_size=60, **options),
        train_tokenizer(TEXTS * 5, vocab_size=300, algorithm="bpe", **options),
    )


def test_the_tokens_that_are_the_same_stand_for_the_same_characters(tokenizers):
    own, theirs = tokenizers
    pairs = [text.upper() for text in TEXTS]
    columns = tokens_for_both(TEXTS, pairs, own, theirs, 128)
    found = set()
    for row, (text, pair) in enumerate(zip(TEXTS, pairs, strict=True)):
        positions = []
        for tokenizer, name in zip(tokenizers, (OWN_POSITIONS, TEACHER_POSITIONS), strict=True):
            encoding = tokenizer(text, pair).encodings[0]
            positions.append(
                [
                    (encoding.sequence_ids[i], (text, pair)[encoding.sequence_ids[i]][slice(*encoding.offsets[i])])
                    for i in columns[name][row]
                ]
            )
        assert positions[0] == positions[1]
        assert len(set(columns[OWN_POSITIONS][row])) == len(columns[OWN_POSITIONS][row])
        found |= set(positions[0])
    assert (0, "my") in found and len(found) > 8
    assert columns["teacher_inputs_input_ids"] == theirs(TEXTS, pairs).input_ids


def test_the_collator_pads_what_each_of_the_two_reads(tokenizers):
    columns = tokens_for_both(TEXTS, None, *tokenizers, 128)
    own = tokenizers[0](TEXTS)
    rows = [{name: values[i] for name, values in (*own.items(), *columns.items())} for i in range(len(TEXTS))]
    batch = TaughtCollator(*tokenizers)([dict(row, labels=0) for row in rows])
    assert batch["input_ids"].shape != batch["teacher_inputs_input_ids"].shape
    assert batch["labels"].tolist() == [0] * 4
    for i in range(len(TEXTS)):
        for name in (OWN_POSITIONS, TEACHER_POSITIONS):
            kept = batch[name][i]
            assert kept[kept >= 0].tolist() == columns[name][i]
    bare = TaughtCollator(*tokenizers)([{name: row[name] for name in own} for row in rows])
    assert set(bare) == set(own)


@pytest.mark.parametrize(
    "make",
    [
        lambda: BertModel(BertConfig(**SHAPE)),
        lambda: DistilBertModel(
            DistilBertConfig(**SHAPE, dim=24, n_layers=4, n_heads=3, hidden_dim=32, sinusoidal_pos_embds=False)
        ),
        lambda: GPT2Model(GPT2Config(**SHAPE)),
        lambda: LlamaModel(LlamaConfig(**SHAPE)),
        lambda: ModernBertModel(ModernBertConfig(**SHAPE)),
        lambda: ChinchillaModel(make_tiny_config(hidden_size=24, num_attention_heads=3, head_dim=8)),
    ],
)
def test_queries_keys_and_values_of_the_last_layer(make):
    model = make().eval()
    kept = AttentionInputs(model)
    inputs = torch.randint(5, 90, (2, 7))
    model(inputs)
    before = kept.take()
    assert [tuple(states.shape) for states in before] == [(2, 7, 24)] * 3 and kept.widths == [24] * 3
    # each is a linear function of the same states: with the weights doubled, of the last layer alone, so are they
    last = [m for name, m in model.named_modules() if any(part in name for part in ("query", "q_lin", "q_proj"))]
    joined = [m for name, m in model.named_modules() if name.endswith(("c_attn", "Wqkv"))]
    module = (last or joined)[-1]
    with torch.no_grad():
        module.weight.mul_(2)
        if module.bias is not None:
            module.bias.mul_(2)
    model(inputs)
    after = kept.take()
    torch.testing.assert_close(after[0], 2 * before[0])
    kept.remove()
    model(inputs)
    assert not kept._parts


def test_a_model_without_such_modules():
    with pytest.raises(ValueError, match=r"Sequential has no projections of attention .* set attention_weight to 0"):
        AttentionInputs(nn.Sequential(nn.Linear(2, 2)))


def test_relations_are_those_of_each_head_and_do_not_see_what_is_absent():
    own, theirs = torch.randn(2, 5, 8), torch.randn(2, 5, 12)
    present = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    expected = []
    for row, count in ((0, 5), (1, 3)):
        for head in range(4):
            of_own, of_teacher = own[row, :count, 2 * head : 2 * head + 2], theirs[row, :count, 3 * head : 3 * head + 3]
            q = (of_own @ of_own.T / 2**0.5).softmax(-1)
            p = (of_teacher @ of_teacher.T / 3**0.5).softmax(-1)
            expected.append((p * (p / q).log()).sum(-1))
    expected = torch.cat([torch.stack(expected[:4]).mean(0), torch.stack(expected[4:]).mean(0)]).mean()
    torch.testing.assert_close(relations_loss(own, theirs, present, heads=4), expected)
    assert relations_loss(theirs, theirs, present, heads=4).abs() < 1e-6


def make_pair():
    torch.manual_seed(0)
    teacher = BertModel(BertConfig(**SHAPE, initializer_range=0.3)).eval()
    student = ChinchillaModel(make_tiny_config(num_hidden_layers=2, hidden_size=16, num_attention_heads=2, head_dim=8))
    return teacher, student.eval()


def columns_of(ids):
    positions = torch.arange(ids.shape[1]).expand(len(ids), -1)
    return {"teacher_inputs_input_ids": ids, OWN_POSITIONS: positions, TEACHER_POSITIONS: positions}


def loss_of(tokens, student, columns, ids):
    return tokens(student(ids, output_hidden_states=True), tokens.ask(columns), columns)


def test_a_student_of_another_shape_comes_nearer():
    teacher, student = make_pair()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    tokens = TokenTeacher(teacher, student, hidden_weight=1.0, attention_weight=1.0)
    assert tokens.layers == [0, 2, 4] and tokens.relation_heads == 2  # 3 heads do not fit into a width of 16
    ids = torch.randint(5, 90, (8, 7))
    parameters = [*student.parameters(), *tokens.parameters()]
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in parameters}
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    losses = []
    for _ in range(150):
        loss = loss_of(tokens, student, columns_of(ids), ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    tokens.release()


def test_a_student_that_is_its_teacher_has_its_relations():
    teacher, _ = make_pair()
    twin = BertModel(teacher.config).eval()
    twin.load_state_dict(teacher.state_dict())
    tokens = TokenTeacher(teacher, twin, hidden_weight=0.0, attention_weight=1.0)
    ids = torch.randint(5, 90, (2, 7))
    columns = columns_of(ids)
    assert loss_of(tokens, twin, columns, ids) < 1e-6
    columns[TEACHER_POSITIONS] = columns[TEACHER_POSITIONS].flip(1)
    assert loss_of(tokens, twin, columns, ids) > 1e-3
    columns[OWN_POSITIONS] = torch.full_like(columns[OWN_POSITIONS], -1)
    assert loss_of(tokens, twin, columns, ids) == 0


def test_relation_heads_that_do_not_fit():
    teacher, student = make_pair()
    with pytest.raises(ValueError, match=r"relation_heads is 3, but must divide .*\[16, 16, 16\] of the student"):
        TokenTeacher(teacher, student, 0.0, 1.0, relation_heads=3)
