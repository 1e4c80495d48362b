"""The wrong candidates of an example: the data's own, or drawn from other dialogs, and never the gold reply."""

import tokenized_dialogs
from conftest import make_dialogs
from tokenized_dialogs import dialog, in_memory, turn

tokenizer = tokenized_dialogs.tokenizer


def without_candidates(n_dialogs: int) -> list[dict]:
    return make_dialogs(n_dialogs, n_candidates=1)


def test_distractors_are_drawn_from_other_dialogs_of_the_split(tokenizer):
    dialogs, others = without_candidates(30), [dialog(turn("x", candidates=["of the other split"]))] * 30
    split = in_memory(tokenizer, dialogs, others)["train"]
    replies = [tuple(tokenizer.encode(u["candidates"][-1])) for d in dialogs for u in d["utterances"]]
    seen = set()
    for index, reply in enumerate(replies):
        *drawn, gold = map(tuple, split.example(index, num_candidates=20, n_drawn=19).candidates)
        first_of_dialog = index - index % 2
        assert gold == reply
        assert len(set(drawn)) == len(drawn) == 19
        assert set(drawn) <= {*replies[:first_of_dialog], *replies[first_of_dialog + 2 :]}
        seen.update(drawn)
    assert len(seen) == 60  # every reply serves somewhere


def test_distractors_are_the_same_every_time_and_differ_between_examples(tokenizer):
    first, second = (in_memory(tokenizer, without_candidates(30))["train"] for _ in range(2))
    drawn = [first.example(index, n_drawn=5).candidates[:-1] for index in range(len(first))]
    assert drawn == [second.example(index, n_drawn=5).candidates[:-1] for index in range(len(first))]
    assert len({str(replies) for replies in drawn}) > 50


def test_candidates_of_the_data_are_kept_and_nothing_is_drawn_unasked(tokenizer):
    split = in_memory(tokenizer, [dialog(turn("a", candidates=["b", "c"])), *without_candidates(3)])["train"]
    assert split.example(0, n_drawn=19).candidates == [tokenizer.encode("b"), tokenizer.encode("c")]
    assert len(split.example(1).candidates) == 1


def test_fewer_distractors_where_the_data_have_too_few(tokenizer):
    split = in_memory(tokenizer, without_candidates(3))["train"]
    assert [len(split.example(index, n_drawn=19).candidates) for index in range(6)] == [5] * 6
    assert len(in_memory(tokenizer, without_candidates(1))["train"].example(0, n_drawn=19).candidates) == 1


def test_a_rare_other_dialog_is_found(tokenizer):
    # Nearly all replies belong to the example's own dialog, so blind draws from all examples would miss the other one.
    own = dialog(*(turn("a", candidates=[f"reply {n}"]) for n in range(500)))
    split = in_memory(tokenizer, [own, dialog(turn("a", candidates=["of the other"])), own])["train"]
    for index in range(500):
        assert len(split.example(index, n_drawn=1).candidates) == 2
    assert in_memory(tokenizer, [own, dialog(turn("a", candidates=["of the other"]))])["train"].example(
        7, n_drawn=1
    ).candidates == [tokenizer.encode("of the other"), tokenizer.encode("reply 7")]


def test_distractors_differ_from_the_gold_in_their_tokens_not_only_in_their_text(tokenizer):
    same = [dialog(turn("a", candidates=[text])) for text in ("Yes .", "yes .", " YES  .", "no .", "No .")]
    split = in_memory(tokenizer, same)["train"]
    assert split.example(0, n_drawn=4).candidates == [tokenizer.encode("no ."), tokenizer.encode("yes .")]
    assert split.example(4, n_drawn=4).candidates == [tokenizer.encode("yes ."), tokenizer.encode("no .")]


def test_distractors_that_are_the_gold_once_more_are_left_out(tokenizer):
    """As text (case, punctuation, articles), or as tokens (GPT's are the same for both apostrophes)."""
    twins = ["It's a Market!", "its market", "it’s the market .", "its market"]
    same_tokens = ["i’m fine", "no .", "i'm fine"]
    dialogs = [
        dialog(turn("a", candidates=["no .", *twins, "yes .", "it's the market ."])),
        dialog(turn("a", candidates=["yes .", "Yes"]), turn("b", candidates=same_tokens)),
    ]
    split = in_memory(tokenizer, dialogs, dialogs[:1])
    expected = [["no .", "its market", "its market", "yes .", "it's the market ."], ["Yes"], ["no .", "i'm fine"]]
    for name, n in (("train", 3), ("valid", 1)):
        found = [example.candidates for example in split[name]]
        assert found == [list(map(tokenizer.encode, texts)) for texts in expected[:n]]
    assert split["train"].example(0, num_candidates=2).candidates == found[0][-2:]  # the nearest that differ
    assert len(split["train"].example(1, n_drawn=5).candidates) == 2  # drawn, as nothing of its own is left


def test_drawn_distractors_are_not_the_gold_as_text(tokenizer):
    same = [dialog(turn("a", candidates=[text])) for text in ("Yes , the cats !", "yes cats", "yes . cats", "no .")]
    split = in_memory(tokenizer, same)["train"]
    assert split.example(0, n_drawn=4).candidates == [tokenizer.encode("no ."), tokenizer.encode("yes , the cats !")]
