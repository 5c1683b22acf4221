"""Windows, spans and the pipeline that answers questions: every character counts, in any script."""

import itertools
import math
import subprocess
import sys

import pytest
import torch
from conftest import make_tiny_config
from transformers import AutoConfig, BertConfig, BertForQuestionAnswering, pipeline

from chinchilla_hf import (
    ChinchillaForQuestionAnswering,
    ChinchillaForSequenceClassification,
    ChinchillaQuestionAnsweringPipeline,
    train_tokenizer,
)
from chinchilla_hf.answer_windows import EncodedText, Window, WindowCutter, rank_spans
from chinchilla_hf.conversion import convert_model
from chinchilla_hf.pipeline_chinchilla_answering import pad_rows

# Each with its words, some of which are answers.
TEXTS = {
    "English": "Who barks? The dog barks, and the cat sleeps.",
    "German": "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "decomposed": "Zwo\u0308lf Boxka\u0308mpfer im cafe\u0301 u\u0308ber Ka\u0308se",
    "Chinese": "狗在跑，猫在睡觉。鸟在唱歌！",
    "Japanese": "犬が走る。ガラスのコップ が か\u3099らす",
    "Arabic": "الْكَلْبُ يَرْكُضُ وَالْقِطُّ نَائِمٌ",
    "Hindi": "कुत्ता दौड़ता है और बिल्ली सोती है",
    "emoji": "a 😀 and 👩‍👩‍👧 with 👍🏽 or ❤️ 🇩🇪 end",
    "odd spaces": "one\u00a0two \u3000three\tfour\r\nfive  \u200bsix",
    "rare": "ﬁne naïve Ⅳ ½ ǅ ﷽ İstanbul 𝔘𝔫𝔦 x\u0301\u0323y",
}
ALGORITHMS = ("wordpiece", "bpe", "unigram")


@pytest.fixture(scope="module")
def tokenizers():
    # The emoji are left out: what the tokenizer does not know has to come back, too.
    texts = [text for name, text in TEXTS.items() if name != "emoji"] * 5
    return {
        algorithm: train_tokenizer(
            texts, algorithm=algorithm, vocab_size=400, lowercase=lowercase, model_max_length=48, show_progress=False
        )
        for algorithm, lowercase in zip(ALGORITHMS, (True, False, False), strict=True)
    }


def characters(encoded: EncodedText, first: int, last: int) -> str:
    start, end = encoded.characters_of(first, last)
    return encoded.text[start:end]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", TEXTS)
def test_words_come_back_as_they_were(tokenizers, algorithm, name):
    text = TEXTS[name]
    (encoded,) = WindowCutter(tokenizers[algorithm], 48, 8).encode([text])
    words = text.split()
    place = 0
    for word in words:
        start = text.index(word, place)
        place = start + len(word)
        first, last = encoded.tokens_of(start, place)
        assert first <= last
        assert characters(encoded, first, last) in (word, word.strip("\u200b"))  # a space without width may be left out


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", TEXTS)
def test_no_span_of_tokens_tears_a_character_apart(tokenizers, algorithm, name):
    text = TEXTS[name]
    (encoded,) = WindowCutter(tokenizers[algorithm], 48, 8).encode([text])
    for first, last in itertools.combinations_with_replacement(range(len(encoded.ids)), 2):
        start, end = encoded.characters_of(first, last)
        answer = text[start:end]
        assert answer == answer.strip()
        for mark in "\u0308\u0301\u0323\u3099\ufe0f\u200d🏽":
            assert not answer.startswith(mark) and not (answer and text[end : end + 1] == mark)
        assert not answer.endswith("\u200d")


def test_single_characters_of_a_script_without_spaces(tokenizers):
    text = TEXTS["Chinese"]
    (encoded,) = WindowCutter(tokenizers["wordpiece"], 48, 8).encode([text])
    for start in range(len(text) - 1):
        first, last = encoded.tokens_of(start, start + 2)
        assert characters(encoded, first, last) == text[start : start + 2]


def test_an_answer_without_a_token_is_told(tokenizers):
    (encoded,) = WindowCutter(tokenizers["wordpiece"], 48, 8).encode(["a   b"])
    first, last = encoded.tokens_of(1, 3)
    assert last < first


LONG = " ".join(TEXTS.values()) * 3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("max_length", "stride"), [(24, 0), (24, 5), (48, 30), (400, 8), (5000, 64)])
def test_windows_are_those_of_the_tokenizers_overflow(tokenizers, algorithm, max_length, stride):
    """Of a release of Transformers in which it works: some gave the last window only."""
    tokenizer, question = tokenizers[algorithm], "Who barks?"
    cutter = WindowCutter(tokenizer, max_length, stride)
    asked, context = cutter.encode([question, LONG])
    windows = cutter.windows(asked, context)
    overflow = tokenizer(
        question,
        LONG,
        max_length=max_length,
        stride=stride,
        truncation="only_second",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    rows = [cutter.row(asked, context, window) for window in windows]
    for name in ("input_ids", "token_type_ids"):
        assert [row[name] for row in rows] == overflow[name]
    for number, window in enumerate(windows):
        places = overflow.sequence_ids(number)
        assert window.offset == places.index(1)
        theirs = [
            offsets for offsets, side in zip(overflow["offset_mapping"][number], places, strict=True) if side == 1
        ]
        part = slice(window.first, window.last)
        ours = list(zip(context.starts[part], context.ends[part], strict=True))
        # A byte-level tokenizer counts the space before the first token of every window but the first to that token.
        known = 1 if algorithm == "bpe" and number else 0
        assert list(map(tuple, theirs))[known:] == ours[known:]


@pytest.mark.parametrize("length", range(1, 40))
def test_windows_cover_every_token_and_every_short_answer(tokenizers, length):
    cutter = WindowCutter(tokenizers["wordpiece"], 18, 5)
    question = EncodedText("q", [7] * 4, [0] * 4, [1] * 4)
    windows = cutter.windows(question, EncodedText("c", [8] * length, [0] * length, [1] * length))
    assert windows[0].first == 0 and windows[-1].last == length
    assert all(window.last - window.first <= 18 - 4 - cutter.num_special_tokens for window in windows)
    for first in range(length):  # any 6 tokens in a row are whole in a window
        last = min(first + 5, length - 1)
        assert any(window.first <= first and last < window.last for window in windows)


def test_what_leaves_no_room_is_refused(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    with pytest.raises(ValueError, match="max_length is 10 and stride 8, but of a row 3 tokens are special"):
        WindowCutter(tokenizer, 10, 8)
    with pytest.raises(ValueError, match="does not tell which characters"):
        WindowCutter(object(), 48, 8)
    cutter = WindowCutter(tokenizer, 24, 8)
    long, short, nothing = cutter.encode(["who " * 20, "who", " "])
    with pytest.raises(ValueError, match=r"the question 'who who.*has 20 tokens, which leaves 1 of a window of 24"):
        cutter.windows(long, short)
    with pytest.raises(ValueError, match="the context ' ' has no token"):
        cutter.windows(short, nothing)


def test_padding_only_where_lengths_differ():
    rows = [{"input_ids": [5, 6], "token_type_ids": [0, 1]}, {"input_ids": [5, 6], "token_type_ids": [0, 1]}]
    assert set(pad_rows(rows, 3)) == {"input_ids", "token_type_ids"}
    rows[1] = {"input_ids": [5], "token_type_ids": [1]}
    batch = pad_rows(rows, 3)
    assert batch["input_ids"].tolist() == [[5, 6], [5, 3]]
    assert batch["token_type_ids"].tolist() == [[0, 1], [1, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


# ---- Ranking spans ----


def letters(length: int) -> EncodedText:
    """A text of which every token is a character."""
    return EncodedText(
        "abcdefghijklmnopqrstuvwxyz"[:length], list(range(length)), list(range(length)), list(range(1, length + 1))
    )


@pytest.mark.parametrize("with_null", [False, True])
@pytest.mark.parametrize("max_answer_length", [1, 3, 100])
def test_spans_are_the_best_of_all(max_answer_length, with_null):
    context = letters(20)
    windows = [Window(0, 12, 3), Window(8, 20, 3)]
    start_logits, end_logits = torch.randn(2, 16), torch.randn(2, 16)
    scores: dict[tuple[int, int], float] = {}
    for number, window in enumerate(windows):
        for first, last in itertools.combinations_with_replacement(range(window.first, window.last), 2):
            if last - first < max_answer_length:
                score = start_logits[number, 3 + first - window.first] + end_logits[number, 3 + last - window.first]
                scores[first, last + 1] = max(float(score), scores.get((first, last + 1), -math.inf))
    expected = sorted(scores.items(), key=lambda item: -item[1])[:5]
    ranked = rank_spans(context, windows, start_logits, end_logits, max_answer_length, 5, with_null)
    assert [(span.start, span.end) for span in ranked.spans] == [span for span, _ in expected]
    assert [span.logit for span in ranked.spans] == pytest.approx([score for _, score in expected])

    null = min(start_logits[i, 0] + end_logits[i, 0] for i in range(2))
    assert ranked.null_logit == pytest.approx(float(null))
    assert ranked.no_answer_score == pytest.approx(float(null) - expected[0][1])
    assert ranked.null_probability > 0 if with_null else ranked.null_probability == 0
    everything = rank_spans(letters(20), [Window(0, 12, 3)], start_logits[:1], end_logits[:1], 100, 1000, with_null)
    total = sum(span.probability for span in everything.spans)
    assert 0 < total < 1  # of pairs of a start and an end, some have the end first


def test_a_window_without_the_answer_does_not_win_by_being_sure():
    context = letters(8)
    start_logits, end_logits = torch.full((2, 6), -5.0), torch.full((2, 6), -5.0)
    start_logits[0, 2] = end_logits[0, 2] = 1.0  # the only span of its window, and weak
    start_logits[1, 2:] = end_logits[1, 2:] = 4.0
    start_logits[1, 3] = end_logits[1, 3] = 4.5
    (span,) = rank_spans(context, [Window(0, 4, 2), Window(4, 8, 2)], start_logits, end_logits).spans
    assert (span.start, span.end) == (5, 6)


def test_the_same_characters_count_once_and_tokens_without_any_never():
    context = EncodedText("ab c", [0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3, 4])  # the third token is a space
    logits = torch.tensor([[0.0, 1, 2, 9, 3]])
    spans = rank_spans(context, [Window(0, 4, 1)], logits, logits, 4, 20).spans
    found = [(span.start, span.end) for span in spans]
    assert len(found) == len(set(found)) and (2, 2) not in found
    assert {context.text[start:end] for start, end in found} == {"a", "b", "c", "ab", "ab c", "b c"}


# ---- The pipeline ----

CONTEXT = " ".join(text for name, text in TEXTS.items() if name != "emoji")
QUESTIONS = ["Who barks?", "Who sleeps, the cat or the dog?", "jagen", "谁在跑？", "Who?"]


@pytest.fixture(scope="module")
def folder(tokenizers, tmp_path_factory):
    tokenizer = tokenizers["wordpiece"]
    torch.manual_seed(0)
    config = make_tiny_config(vocab_size=len(tokenizer), max_position_embeddings=48)
    path = tmp_path_factory.mktemp("answers")
    ChinchillaForQuestionAnswering(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def answer(folder):
    return pipeline("chinchilla-question-answering", folder, bf16=False)


def one_by_one(answer, question: str, context: str, top_k: int = 1) -> list[dict]:
    """Every window alone through the model."""
    cutter = WindowCutter(answer.tokenizer, 48, 12)
    asked, encoded = cutter.encode([question, context])
    windows = cutter.windows(asked, encoded)
    starts, ends = [], []
    for window in windows:
        row = cutter.row(asked, encoded, window)
        with torch.no_grad():
            outputs = answer.model(**{name: torch.tensor([ids], device=answer.device) for name, ids in row.items()})
        starts.append(outputs.start_logits[0].cpu())
        ends.append(outputs.end_logits[0].cpu())
    return [
        {"score": pytest.approx(span.probability, rel=1e-3), "start": span.start, "end": span.end}
        | {"answer": context[span.start : span.end]}
        for span in rank_spans(encoded, windows, starts, ends, top_k=top_k).spans
    ]


def test_registered_under_a_name_of_its_own(answer):
    assert type(answer) is ChinchillaQuestionAnsweringPipeline


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_across_questions_do_not_change_answers(answer, batch_size):
    expected = [one_by_one(answer, question, CONTEXT)[0] for question in QUESTIONS]
    assert answer(question=QUESTIONS, context=CONTEXT, batch_size=batch_size) == expected
    assert answer(question=QUESTIONS[0], context=CONTEXT, batch_size=batch_size) == expected[0]
    best = answer(question=QUESTIONS[0], context=CONTEXT, batch_size=batch_size, top_k=3)
    assert best == one_by_one(answer, QUESTIONS[0], CONTEXT, top_k=3) and len(best) == 3


def test_every_form_of_input(answer):
    contexts = [CONTEXT, "The dog barks."]
    rows = [{"question": QUESTIONS[0], "context": context, "id": "x"} for context in contexts]
    expected = answer(rows)
    assert len(expected) == 2
    assert answer(question=QUESTIONS[0], context=contexts) == expected
    assert answer(question=QUESTIONS[:1] * 2, context=contexts) == expected
    assert answer({"question": QUESTIONS[0], "context": contexts}) == expected
    assert answer(rows[0]) == expected[0]
    assert list(answer(row for row in rows)) == expected
    assert list(answer(tuple(rows))) == expected
    assert answer([]) == []
    for result, context in zip(expected, contexts, strict=True):
        assert result["answer"] == context[result["start"] : result["end"]]


def test_a_stream_is_read_a_part_at_a_time(answer, monkeypatch):
    monkeypatch.setattr(ChinchillaQuestionAnsweringPipeline, "_READ_AHEAD", 2)
    read = []

    def rows():
        for number in range(7):
            read.append(number)
            yield {"question": QUESTIONS[number % 5], "context": "The dog barks, the cat sleeps."}

    results = answer(rows())
    first = next(results)
    assert len(read) <= 2
    whole = answer(question=[QUESTIONS[number % 5] for number in range(7)], context="The dog barks, the cat sleeps.")
    assert [first, *results] == whole


def test_a_context_is_tokenized_once_and_full_windows_need_no_padding(answer, monkeypatch):
    texts, batches = [], []
    encode, forward = WindowCutter.encode, answer._forward
    monkeypatch.setattr(WindowCutter, "encode", lambda self, given: texts.extend(given) or encode(self, given))
    monkeypatch.setattr(
        answer, "_forward", lambda inputs, **kwargs: batches.append(inputs) or forward(inputs, **kwargs)
    )
    answer(question=QUESTIONS, context=CONTEXT * 3, batch_size=4)
    assert sorted(texts) == sorted([*QUESTIONS, CONTEXT * 3])
    windows = sum(len(batch["input_ids"]) for batch in batches)
    padded = sum(len(batch["input_ids"]) for batch in batches if "attention_mask" in batch)
    assert windows > 4 * len(QUESTIONS) and padded <= 8  # the last window of each question is shorter
    lengths = [batch["input_ids"].shape[1] for batch in batches]
    assert lengths == sorted(lengths, reverse=True)


def test_settings_of_the_training_and_of_the_call(answer, monkeypatch):
    settings = {"max_length": 40, "stride": 4, "max_answer_length": 2, "no_answer_threshold": 0.0}
    given = answer(question=QUESTIONS[0], context=CONTEXT, **settings | {"no_answer_threshold": math.inf})
    monkeypatch.setattr(answer.model.config, "question_answering", settings, raising=False)
    assert answer(question=QUESTIONS[0], context=CONTEXT, no_answer_threshold=math.inf) == given
    none = answer(question=QUESTIONS[0], context=CONTEXT, no_answer_threshold=-math.inf)
    assert (none["answer"], none["start"], none["end"]) == ("", 0, 0) and 0 < none["score"] < 1
    best = answer(question=QUESTIONS[0], context=CONTEXT, no_answer_threshold=-math.inf, top_k=2)
    assert [item["answer"] for item in best] == ["", given["answer"]]


def test_without_questions_that_have_no_answer_there_always_is_one(answer):
    assert answer(question="Who?", context="dog")["answer"] == "dog"


def test_bfloat16_where_it_is_asked_for(answer):
    exact = answer(question=QUESTIONS, context=CONTEXT)
    rough = answer(question=QUESTIONS, context=CONTEXT, bf16=True)
    assert [item["score"] for item in rough] == pytest.approx([item["score"] for item in exact], rel=0.2)
    assert rough != exact and answer.model.dtype == torch.float32
    assert answer.model.config._attn_implementation == "sdpa"  # as it was


def test_a_bert_answers_the_same_as_what_it_becomes(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=48,
        initializer_range=0.2,
    )
    bert = BertForQuestionAnswering(config).eval()
    models = (bert, convert_model(bert).eval())
    results = [
        pipeline("chinchilla-question-answering", model, tokenizer=tokenizer, bf16=False)(
            question=QUESTIONS, context=CONTEXT
        )
        for model in models
    ]
    for theirs, ours in zip(*results, strict=True):
        assert ours.pop("score") == pytest.approx(theirs.pop("score"), rel=1e-3) and ours == theirs


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"question": " ", "context": "a dog"}, ValueError, "the question is empty"),
        ({"question": "Who?", "context": "\n"}, ValueError, "the context is empty"),
        ({"question": "Who?", "context": [None]}, TypeError, "the context is None"),
        ({"question": ["Who?", 3], "context": "a dog"}, TypeError, "the question is 3"),
        ({"question": "Who?"}, TypeError, "give a question and a context"),
        ({"inputs": "Who?"}, TypeError, "must be a dictionary with 'question' and 'context'"),
        ({"inputs": [{"question": "Who?"}]}, TypeError, "must be a dictionary with 'question' and 'context'"),
        ({"question": ["a", "b"], "context": ["a"]}, ValueError, "2 questions and 1 contexts"),
        ({"question": "who " * 40, "context": "a dog"}, ValueError, "has 40 tokens, which leaves 5 of a window of 48"),
        ({"question": "a", "context": "b", "max_length": 64}, ValueError, "64, but the model has 48 positions"),
        ({"question": "a", "context": "b", "top_k": 0}, ValueError, "top_k is 0"),
        ({"question": "a", "context": "b", "topk": 2}, TypeError, "unknown: topk"),
    ],
)
def test_wrong_input_raises(answer, arguments, error, message):
    with pytest.raises(error, match=message):
        answer(**arguments)


@pytest.mark.parametrize(
    "imports",
    [
        "import chinchilla_hf; from transformers import pipeline",
        "from transformers import pipeline; import chinchilla_hf",
        "from chinchilla_hf import ChinchillaQuestionAnsweringPipeline; from transformers import pipeline",
        "import chinchilla_hf.pipeline_chinchilla; import chinchilla_hf.pipeline_chinchilla_answering",
    ],
)
def test_both_pipelines_are_registered_in_whatever_order_modules_are_imported(imports):
    script = f"""{imports}
from transformers.pipelines import PIPELINE_REGISTRY
for task in ("chinchilla-question-answering", "chinchilla-translation"):
    print(PIPELINE_REGISTRY.check_task(task)[1]["impl"].__name__)"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    names = ["ChinchillaQuestionAnsweringPipeline", "ChinchillaTranslationPipeline"]
    assert result.stdout.split() == names, result.stderr


def test_the_old_name_works_without_the_package(folder, answer, tmp_path):
    script = f"""
import sys
sys.modules["chinchilla_hf"] = None
from transformers import pipeline
answer = pipeline("question-answering", {folder!r}, trust_remote_code=True, bf16=False)
print(answer(question={QUESTIONS!r}, context={CONTEXT!r}))
answer.save_pretrained({str(tmp_path)!r})
again = pipeline("question-answering", {str(tmp_path)!r}, trust_remote_code=True, bf16=False)
print(again(question={QUESTIONS!r}, context={CONTEXT!r}))
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    expected = repr(answer(question=QUESTIONS, context=CONTEXT))
    assert result.stdout.splitlines() == [expected, expected]


def test_a_model_with_another_head_leaves_the_pipeline_behind(folder, tmp_path):
    assert set(AutoConfig.from_pretrained(folder).custom_pipelines) == {"question-answering"}
    ChinchillaForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path)
    assert not hasattr(AutoConfig.from_pretrained(tmp_path), "custom_pipelines")
