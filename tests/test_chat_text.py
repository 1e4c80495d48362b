"""Text in a chat: typed lines made plain, and replies shown while they grow."""

import random

import pytest

import interact
from convai.dialog.terminal import settled
from convai.io.plain_text import plain_line, printable


@pytest.mark.parametrize(
    ("typed", "plain"),
    [
        ("  hello \t there \r\n", "hello   there"),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07text", "red text"),
        ("a\x07b\x00c\x7fd\x9b1me", "abcde"),
        ("\x1b[", "["),
        ("left\u202eright", "leftright"),
        ("fox \N{FOX FACE} 你好 e\u0301", "fox \N{FOX FACE} 你好 e\u0301"),
        ("\N{WOMAN}\u200d\N{ROCKET}", "\N{WOMAN}\u200d\N{ROCKET}"),
        ("byte \udcff", "byte \ufffd"),
        ("\ufeff /h\ufeffi", "/hi"),
    ],
)
def test_plain_line(typed, plain):
    assert plain_line(typed) == plain


@pytest.mark.parametrize(
    ("so_far", "stays"),
    [
        ("hello the", "hello"),
        ("hello there.", "hello"),  # "there ..." may come
        ("i do n", "i do"),  # "i don't"
        ("well i '", "well i"),  # "well i'm"
        ("well i ' r", "well i"),  # "well i're"
        ("hello", ""),
        ("", ""),
    ],
)
def test_settled(so_far, stays):
    assert settled(so_far) == stays


def test_what_has_settled_is_never_taken_back(tokenizer):
    """Whatever tokens follow, the reply begins with all that was shown before."""
    rng = random.Random(0)
    tricky = [tokenizer.encode(text) for text in ("'", "n't", "'s", "s", "re", "t", "do", "n", ".", "?", "i", "\u2019")]
    pieces = [
        i for i, token in enumerate(tokenizer.tokens) if token in {*"'srevlntdm", "'s", "n'", "Ġ", "Ġ'", "Ċ", "â"}
    ]
    likely = [i for ids in tricky for i in ids] + pieces
    for _ in range(5000):
        n_tokens = rng.randrange(1, 9)
        ids = [rng.choice(likely) if rng.random() < 0.8 else rng.randrange(len(tokenizer)) for _ in range(n_tokens)]
        shown = [printable(settled(tokenizer.decode(ids[:n]))) for n in range(n_tokens)]
        shown.append(printable(tokenizer.decode(ids)))
        longest = max(shown, key=len)
        assert longest == shown[-1]
        assert all(longest.startswith(text) for text in shown), shown


def test_sentences_of_a_typed_persona():
    assert interact.split_sentences("i like tea. i am 3.5 m tall! so") == ["i like tea.", "i am 3.5 m tall!", "so"]
