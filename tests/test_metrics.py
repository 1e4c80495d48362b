"""The ConvAI2 metrics by hand-made numbers."""

import math
from collections import Counter

import pytest

from convai.evaluation.metrics import (
    SPECIAL_ENTRIES,
    best_first,
    count_words,
    dictionary_texts,
    f1_score,
    f1_summands,
    figures,
    gold_rank,
    hit_summands,
    normalize_answer,
    perplexity,
    split_words,
)


def test_normalize_answer_by_hand():
    assert normalize_answer("The  cat, a dog & an_owl!") == ["cat", "dog", "owl"]
    assert normalize_answer("a.the.an ?") == []
    assert normalize_answer("I'm Anne; THEN") == ["i", "m", "anne", "then"]


@pytest.mark.parametrize(
    ("reply", "gold", "f1"),
    [
        ("the cat sat", "a cat sat down .", 0.8),  # precision 2/2, recall 2/3
        ("dog dog dog", "dog", 0.5),  # one of three counts
        ("", "cat", 0.0),
        ("cat", "", 0.0),
        ("", "", 0.0),
        ("the !", "a ?", 0.0),
        ("Cat.", "cat", 1.0),
    ],
)
def test_f1_by_hand(reply, gold, f1):
    assert f1_score(reply, gold) == pytest.approx(f1)


class TestGoldRank:
    def test_counts_better_candidates(self):
        assert gold_rank(["x", "y", "z"], [0.1, 0.9, 0.5], "z") == 2
        assert gold_rank(["x", "y", "z"], [0.1, 0.4, 0.5], "z") == 1

    def test_ties_go_against_the_gold(self):
        assert gold_rank(["x", "y", "z"], [0.5, 0.1, 0.5], "z") == 2
        assert gold_rank(["z", "x", "y"], [0.5, 0.5, 0.5], "z") == 3
        assert best_first(["z", "x", "y"], [0.5, 0.5, 0.9], "z") == ["y", "x", "z"]

    def test_gold_missing_is_never_a_hit(self):
        assert gold_rank(["x", "y"], [0.1, 0.2], "z") is None
        assert figures(Counter(hit_summands(None))) == {"hits@1": 0, "hits@5": 0, "hits@10": 0, "n_examples": 1}

    def test_single_candidate_is_a_hit(self):
        assert gold_rank(["z"], [-3.0], "z") == 1

    def test_the_same_words_count_as_the_gold(self):
        assert gold_rank(["Z !", "y", "z"], [0.9, 0.5, 0.1], "z") == 1


def test_figures_by_hand():
    totals = Counter()
    for rank in (1, 2, 6, None):
        totals.update(hit_summands(rank))
    assert figures(totals) == {"hits@1": 0.25, "hits@5": 0.5, "hits@10": 0.75, "n_examples": 4}
    totals = Counter(f1_summands("cat", "cat"))
    totals.update(f1_summands("dog", "cat"))
    assert figures(totals) == {"f1": 0.5, "n_examples": 2}
    assert figures(Counter()) == {}
    assert perplexity(3 * math.log(7), 3) == pytest.approx(7)
    assert math.isnan(perplexity(0.0, 0))
    assert perplexity(1e6, 1) == math.inf


def test_split_words_by_hand():
    assert split_words("Hi,you: it's 3.5 (ok)!?") == ["hi", ",", "you", ":", "it's", "3", ".", "5", "(ok)", "!", "?"]
    assert split_words(" \n") == []


def test_dictionary_counts_train_text_and_labels_and_valid_text():
    train = {
        "personality": ["i ski"],
        "utterances": [
            {"history": ["hi"], "candidates": ["bad", "hello"]},
            {"history": ["hi", "hello", "why ?"], "candidates": ["so"]},
        ],
    }
    valid = {"personality": ["we row"], "utterances": [{"history": ["yo", "lo", "no"], "candidates": ["secret"]}]}
    persona_lines = {"your": 2, "persona": 2, ":": 2, "i": 1, "ski": 1, "we": 1, "row": 1}
    said = {"hi": 1, "hello": 1, "why": 1, "?": 1, "so": 1, "yo": 1, "lo": 1, "no": 1}
    assert count_words(dictionary_texts([train], [valid])) == SPECIAL_ENTRIES | persona_lines | said
    # A lone file's text and labels, once.
    lone = {"your": 1, "persona": 1, ":": 1, "we": 1, "row": 1, "yo": 1, "lo": 1, "no": 1, "secret": 1}
    assert count_words(dictionary_texts([], [valid])) == SPECIAL_ENTRIES | lone
