"""The tokenized data: they are what the files say, each utterance once, and text that got lost is told."""

import json
import logging

import numpy as np
import pytest
import tokenized_dialogs
from conftest import TEXTS, make_dialogs
from tokenized_dialogs import assert_same_content, dialog, in_memory, turn

from convai.data.build import build_arrays
from convai.data.store import DialogSplit
from convai.model import tokenization
from convai.model.tokenization import GptTokenizer, train_vocabulary
from utils import get_dataset

tokenizer = tokenized_dialogs.tokenizer


# Content


def test_the_splits_hold_what_the_file_holds(tokenizer, dataset_file, tmp_path):
    data = json.loads(dataset_file.read_text())
    for cache in ("", str(tmp_path / "cache")):
        splits = get_dataset(tokenizer, str(dataset_file), cache)
        for name in ("train", "valid"):
            assert splits[name].n_dialogs == len(data[name])
            assert_same_content(splits[name], data[name], tokenizer)


def test_dialogs_of_every_shape(tokenizer):
    cut = [turn("b", "c", "d"), turn("c", "d", "e")]  # only the latest lines of a longer history
    dialogs = [
        dialog(turn("a"), turn("a", "b", "c"), personality=["i sing .", "i sing ."]),
        dialog(*cut),
        dialog(turn(candidates=["x", "", "y", "gold ."]), turn("", "", candidates=["y", "x"])),
        dialog(turn("a", "b", "c"), turn("a"), turn("a"), personality=[""]),  # shorter, and the same again
        dialog(turn("a\nb \t c", "日本", "i'm 😀")),
    ]
    assert_same_content(in_memory(tokenizer, dialogs)["train"], dialogs, tokenizer)


def test_unlike_numbers_of_candidates(tokenizer):
    candidates = [f"{text} {n}" for n, text in enumerate(TEXTS)]
    split = in_memory(tokenizer, [dialog(turn("a", candidates=candidates[:5]), turn("a", candidates=candidates[:2]))])
    gold = [tokenizer.encode(candidates[4]), tokenizer.encode(candidates[1])]
    for num_candidates, n_expected in ((1, [1, 1]), (2, [2, 2]), (4, [4, 2]), (9, [5, 2]), (None, [5, 2])):
        examples = [split["train"].example(i, num_candidates) for i in range(2)]
        assert [len(example.candidates) for example in examples] == n_expected
        assert [example.candidates[-1] for example in examples] == gold
    assert split["train"].example(0, 3).candidates == [tokenizer.encode(text) for text in candidates[2:5]]


def test_each_unique_utterance_is_tokenized_and_stored_once(tokenizer, monkeypatch):
    encoded = []
    monkeypatch.setattr(GptTokenizer, "encode", lambda self, text: encoded.append(text) or [len(text)])
    train = [dialog(turn("a", candidates=["c", "bb"]), turn("a", "bb", "ddd"), personality=["i sing", "a"])] * 2
    valid = [dialog(turn("bb", candidates=["a", "fffff"]), personality=["i sing"])]
    store = build_arrays({"train": train, "valid": valid}, tokenizer)
    assert encoded == ["i sing", "a", "c", "bb", "ddd", "gold .", "fffff"]  # as they first occur
    ((ends, _, tokens),) = store.utterances.shards
    assert tokens.tolist() == [len(text) for text in encoded]
    assert ends.tolist() == list(range(1, 8))


def test_histories_share_their_turns(tokenizer):
    lines = [f"line {n}" for n in range(40)]
    dialogs = [dialog(*(turn(*lines[:n]) for n in range(1, 40, 2)))] * 2
    store = build_arrays({"train": dialogs, "valid": []}, tokenizer)
    assert len(store.splits["train"]["turns"]) == 2 * 39  # not 2 * (1 + 3 + ... + 39)


@pytest.mark.parametrize("n_tokens, dtype", [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_ids_take_16_bits_where_they_fit(tmp_path, n_tokens, dtype):
    class LastIds:
        def __len__(self):
            return n_tokens

        def encode(self, text):
            return [n_tokens - 1] * len(text)

        def lost_share(self, text, ids):
            return 0.0

    store = build_arrays({"train": [dialog(turn("ab"))], "valid": []}, LastIds())
    assert store.utterances.shards[0][2].dtype == dtype
    assert DialogSplit(store, "train")[0].history == [[n_tokens - 1] * 2]


def test_a_data_set_of_empty_utterances(tokenizer, tmp_path):
    dialogs = [dialog(turn("", candidates=[""]), personality=[""])] * 2
    (tmp_path / "a.json").write_text(json.dumps({"train": dialogs, "valid": dialogs}))
    splits = get_dataset(tokenizer, str(tmp_path / "a.json"), str(tmp_path / "cache"))
    assert_same_content(splits["train"], dialogs, tokenizer)


def test_indices_beyond_the_split_are_errors(tokenizer):
    split = in_memory(tokenizer, make_dialogs(1))["train"]
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"example {index} of 2"):
            split[index]


# Text that the vocabulary cannot spell


def test_lost_text_is_told_with_its_share_whether_built_or_cached(tokenizer, tmp_path, caplog):
    persona = ["живу в москве .", "i sing .", "i sing , да .", " ", "да ."]
    dialogs = [dialog(turn("hello", candidates=["yes", "no"]), personality=persona)]
    (tmp_path / "a.json").write_text(json.dumps({"train": dialogs, "valid": dialogs}))
    for _ in range(2):
        caplog.clear()
        get_dataset(tokenizer, str(tmp_path / "a.json"), str(tmp_path / "cache"))
        (record,) = caplog.records
        message = record.getMessage()
        assert record.levelno == logging.WARNING and "\n" not in message
        assert "all of the text: 2 of 8 utterances (25 %) are mostly unknown to it ('живу в москве .')" in message


def test_utterances_of_which_nothing_is_left_are_told(tmp_path, caplog):
    learned = train_vocabulary(TEXTS, "gpt2", 400).vocab
    tokenizer = tokenization.Gpt2Tokenizer({token: i for token, i in learned.items() if token.isascii()}, [])
    (tmp_path / "a.json").write_text(json.dumps([dialog(turn("a", candidates=["日本"]))] * 2))
    get_dataset(tokenizer, str(tmp_path / "a.json"), "")
    assert "1 of 2 utterances (50 %) are empty in it ('日本')" in caplog.text
