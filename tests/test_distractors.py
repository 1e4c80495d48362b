"""The wrong candidates of an example: the data's own, or drawn from other dialogs, and never the gold reply."""

import json
import subprocess
import sys

import pytest
import tokenized_dialogs
from conftest import ROOT, make_dialogs
from tokenized_dialogs import dialog, in_memory, turn

from convai.data import distractors

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


def test_random_draws_stay_as_they_were(tokenizer):
    """Figures that were published with drawn distractors are of these: example 0 distracts by 15, 13, ..."""
    split = in_memory(tokenizer, without_candidates(30))["train"]
    drawn = {0: [15, 13, 35, 8, 3], 1: [24, 41, 58, 2, 55], 7: [54, 8, 55, 30, 48], 59: [10, 30, 25, 37, 55]}
    assert {index: split.draw_distractors(index, 5) for index in drawn} == drawn
    few = in_memory(tokenizer, without_candidates(3))["train"]
    assert [few.draw_distractors(index, 19) for index in (0, 3)] == [[2, 4, 5, 3], [0, 5, 1, 4]]


def drawn_by(kind: str, tokenizer, dialogs: list[dict], index: int, n: int) -> list[int]:
    split = in_memory(tokenizer, dialogs)["train"]
    assert split.draw_by(kind, tokenizer.decode) == len(split)
    drawn = split.draw_distractors(index, n)
    assert drawn == split.draw_distractors(index, n)
    again = in_memory(tokenizer, dialogs)["train"]
    again.draw_by(kind, tokenizer.decode)
    assert drawn == again.draw_distractors(index, n)
    return drawn


def saying(*replies: str) -> list[dict]:
    """A dialog of one exchange for each reply."""
    return [dialog(turn("hi", candidates=[reply])) for reply in replies]


def test_the_same_speakers_other_turns_distract_first(tokenizer):
    """Examples 0 to 4 are one dialog, whose third reply is said twice, and whose last is the gold once more."""
    own = dialog(*(turn("hi", candidates=[text]) for text in ("yes .", "no .", "ho .", "Ho !", "Yes !")))
    dialogs = [own, *saying("reply 1", "reply 2", "No .", "reply 3")]
    assert set(drawn_by("same_speaker_other_turn", tokenizer, dialogs, 0, 2)) in ({1, 2}, {1, 3})
    *first, last = drawn_by("same_speaker_other_turn", tokenizer, dialogs, 0, 3)
    assert set(first) in ({1, 2}, {1, 3}) and last in (5, 6, 8)  # 7 is said already
    every = drawn_by("same_speaker_other_turn", tokenizer, dialogs, 0, 19)
    assert set(every[:2]) == set(first) and sorted(every[2:]) == [5, 6, 8]
    assert sorted(drawn_by("same_speaker_other_turn", tokenizer, dialogs[:1], 0, 19)) == sorted(first)


def test_similar_replies_share_most_words(tokenizer):
    """Of 0: 3 shares three of its words, 5 two, 4 one; 1 is its twin; 2, of its own dialog, is left out."""
    first = dialog(turn("hi", candidates=["00 11 22 33"]), turn("hi", candidates=["The 00, 11 22 33!"]),
                   turn("hi", candidates=["00 11 22 44"]))  # fmt: skip
    dialogs = [first, *saying("00 11 22 55", "66 77 88 00", "44 55 11 22", "99 99 99 99", "no .", "ho .")]
    assert drawn_by("similar", tokenizer, dialogs, 0, 1) == [3]
    assert drawn_by("similar", tokenizer, dialogs, 0, 3) == [3, 5, 4]
    six = drawn_by("similar", tokenizer, dialogs, 0, 6)
    assert six[:3] == [3, 5, 4] and sorted(six[3:]) == [6, 7, 8]  # no word in common: as at random
    assert six == drawn_by("similar", tokenizer, dialogs, 0, 19)
    assert sorted(drawn_by("similar", tokenizer, dialogs, 8, 2)) != [8]


def test_equally_similar_replies_come_in_the_order_of_the_data(tokenizer):
    texts = [f"00 {n}{n}" for n in range(1, 8)]
    assert drawn_by("similar", tokenizer, saying("00", *texts), 0, 7) == [1, 2, 3, 4, 5, 6, 7]
    many = saying("00 11 22", *(f"00 {n} {m}" for n in range(10) for m in range(10)))
    drawn = drawn_by("similar", tokenizer, many, 0, 99)  # more than are sorted at once
    assert len(drawn) == len(set(drawn)) == 99
    replies = [set(utterance["utterances"][0]["candidates"][0].split()) for utterance in many]
    n_shared = [len(replies[0] & replies[other]) for other in drawn]
    assert n_shared == sorted(n_shared, reverse=True)


def test_a_reply_without_words_gets_distractors_at_random(tokenizer):
    dialogs = saying("...", "yes .", "no .", "ho .")
    assert sorted(drawn_by("similar", tokenizer, dialogs, 0, 9)) == [1, 2, 3]
    assert drawn_by("similar", tokenizer, saying("!", "?"), 0, 9) in ([], [1])  # by text they are the same


def test_of_large_data_a_sample_is_searched(tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(distractors, "N_SIMILAR", 10)
    dialogs = saying(*(f"{n}{n} {m}{m} reply" for n in range(5) for m in range(6)))
    split = in_memory(tokenizer, dialogs)["train"]
    with caplog.at_level("INFO"):
        split.draw_by("similar", tokenizer.decode)
    assert "similar distractors are chosen among 10 of the 30 different replies" in caplog.text
    pool = {example for index in range(30) for example in split.draw_distractors(index, 3)}
    assert len(pool) == 10
    assert all(len(split.draw_distractors(index, 3)) == 3 for index in range(30))


def test_candidates_of_the_data_need_no_index(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)  # cannot be imported
    split = in_memory(tokenizer, [dialog(turn("a", candidates=["b", "c"]))] * 2)["train"]
    assert split.draw_by("similar", tokenizer.decode) == 0
    assert len(split.example(0, n_drawn=5).candidates) == 2


def test_training_and_evaluation_draw_alike_and_say_how(tmp_path):
    """A run's validation and the evaluation of its checkpoint, as users start them."""

    def run(script: str, *arguments: str) -> str:
        command = [sys.executable, ROOT / script, *arguments, "--dataset_path", "a.json + b.json"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return result.stdout + result.stderr

    for name in ("a", "b"):
        dialogs = json.dumps({"train": without_candidates(12), "valid": without_candidates(12)})
        (tmp_path / f"{name}.json").write_text(dialogs if name == "a" else dialogs.replace("pets", "dogs"))
    run("new_model.py", "new", "--n_layer", "1", "--n_embd", "16", "--n_head", "2")
    told = run("train.py", "--from_scratch", "--model", "new", "--output_dir", "run", "--distractors", "similar",
               "--num_candidates", "3", "--max_updates", "2", "--lr", "1e-2")  # fmt: skip
    assert "train: 48 of 48 examples are without distractors, which are drawn (similar)" in told
    assert json.loads((tmp_path / "run/arguments.json").read_text())["distractors"] == "similar"
    assert "distractors are drawn (similar)" in (tmp_path / "run/README.md").read_text()
    found = run("convai_evaluation.py", "--model", "run", "--distractors", "similar", "--output", "figures.json")
    assert "FINAL Hits@1 (by head, 19 drawn (similar) distractors): " in found
    row = next(line for line in found.splitlines() if line.startswith("this run "))
    assert row.split() == ["this", "run", "-", "-", "-"]  # the published figures are of other distractors
    figures = json.loads((tmp_path / "figures.json").read_text())["results"]["hits@1"]
    validation = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert figures["hits@1"] == pytest.approx(validation["hits@1"])
    assert figures["distractors"] == "drawn (similar)"
