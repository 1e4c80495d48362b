"""How text becomes words before it becomes tokens, and how words become text again."""

import random

import pytest

from convai.errors import UserError
from convai.model import word_splitting
from convai.model.word_splitting import join_punctuation, standardize_text, word_splitter


@pytest.mark.parametrize("text, standard", [
    ("wait…what—no", "wait...what - no"),
    ("a--b !!??", "a -- b !! ??"),
    ("(x)[y]{z}", "( x ) [ y ] { z }"),
    ("it´s\t 5", "it's 5"),
    (" one \n\n two\n", "one \n two"),
    ("a.b:c", "a.b:c"),
])  # fmt: skip
def test_standard_text(text, standard):
    assert standardize_text(text) == standard


def test_words_of_either_pre_tokenization():
    text = "I can't say “I'm 30”…\nOK?"
    spacy = ["i", "ca", "n't", "say", '"', "i", "'m", "30", '"', "...", "\n", "ok", "?"]
    assert word_splitter("spacy")(text) == spacy
    bert = ["i", "can", "'", "t", "say", "“", "i", "'", "m", "30", "”", "…", "ok", "?"]
    assert word_splitter("bert")(text) == bert
    with pytest.raises(UserError, match="--tokenization must be one of spacy, bert, not 'nltk'"):
        word_splitter("nltk")


def test_chunk_by_chunk_gives_the_words_of_ftfy_and_spacy_on_the_whole_text():
    from ftfy import fix_text
    from spacy.lang.en import English

    whole = English().tokenizer
    parts = [
        "can't",
        "cant",
        "dont",
        "y'all",
        "o'clock",
        "u.s.",
        "a.m.",
        "10am",
        "v.v",
        ":)",
        ":o",
        "'",
        "''",
        ".",
        "...",
    ]
    parts += [
        "!",
        "?",
        ",",
        "-",
        "&amp;",
        "é",
        "x",
        "8",
        "D",
        "'s",
        "s.",
        "hello",
        "World",
        "3.50",
        "\n",
        "\t",
        "http://a.b",
    ]
    drawn = random.Random(0)
    for _ in range(20_000):
        words = ["".join(drawn.choices(parts, k=drawn.choice((1, 1, 1, 2)))) for _ in range(drawn.randint(1, 6))]
        text = " ".join(words)
        expected = [token.text.lower().rstrip(" ") for token in whole(standardize_text(fix_text(text)))]
        assert word_splitter("spacy")(text) == expected


@pytest.mark.parametrize("tokens, text", [
    ("hello , how are you ? fine . great !", "hello, how are you? fine. great!"),
    ("i do n't know , it 's what we 've said and they 'd", "i don't know, it's what we've said and they'd"),
    ("don ' t , i ' m , she ' ll", "don't, i'm, she'll"),
    ("he said ' so ' and 's' n'ts", "he said ' so ' and's' n'ts"),
    ("wait ...", "wait..."),
])  # fmt: skip
def test_punctuation_is_joined(tokens, text):
    assert join_punctuation(tokens) == text


def test_spacy_starts_anew_once_it_has_met_too_many_words(monkeypatch):
    split = word_splitter("spacy")
    monkeypatch.setattr(word_splitting, "MAX_WORDS", 2000)
    sizes = []
    for n in range(3000):
        assert split(f"é{n} don't") == [f"é{n}", "do", "n't"]
        sizes.append(len(word_splitting._spacy_splitter().vocab))
    assert max(sizes) <= 2010 and min(sizes[1500:]) < 1500
