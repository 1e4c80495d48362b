"""The tokenized data: they are what the files say, each utterance once, whatever state their cache is in."""

import json
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from conftest import TEXTS, make_dialogs

import utils
from convai.data import store
from convai.data.store import DialogSplit, build_arrays, read_store, write_store
from convai.errors import UserError
from convai.model import tokenization
from convai.model.tokenization import GptTokenizer, train_vocabulary
from utils import get_dataset


@pytest.fixture(scope="module")
def tokenizer():
    """One family will do, as the store sees token ids only; with digits, by which the dialogs of the tests differ."""
    digits = [f"{n} {n}{n} reply line yes no hi ho of the other" for n in range(10)]
    return train_vocabulary([*TEXTS, *digits], "openai-gpt", 600)


def turn(*history: str, candidates=("gold .",)) -> dict:
    return {"history": list(history), "candidates": list(candidates)}


def dialog(*utterances: dict, personality=()) -> dict:
    return {"personality": list(personality), "utterances": list(utterances)}


def in_memory(tokenizer, train: list[dict], valid=()) -> dict[str, DialogSplit]:
    arrays = build_arrays({"train": train, "valid": list(valid)}, tokenizer)
    return {name: DialogSplit(arrays, name) for name in ("train", "valid")}


def assert_same_content(split: DialogSplit, dialogs: list[dict], tokenizer) -> None:
    def ids(texts):
        return [tokenizer.encode(text) for text in texts]

    expected = [
        (ids(dialog["personality"]), ids(utterance["history"]), ids(utterance["candidates"]))
        for dialog in dialogs
        for utterance in dialog["utterances"]
    ]
    assert [tuple(example) for example in split] == expected


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
    arrays = build_arrays({"train": train, "valid": valid}, tokenizer)
    assert sorted(encoded) == ["a", "bb", "c", "ddd", "fffff", "gold .", "i sing"]
    assert arrays["tokens"].tolist() == [len(text) for text in encoded]
    assert arrays["utterance_ends"].tolist() == list(range(1, 8))


def test_histories_share_their_turns(tokenizer):
    lines = [f"line {n}" for n in range(40)]
    dialogs = [dialog(*(turn(*lines[:n]) for n in range(1, 40, 2)))] * 2
    arrays = build_arrays({"train": dialogs, "valid": []}, tokenizer)
    assert len(arrays["train.turns"]) == 2 * 39  # not 2 * (1 + 3 + ... + 39)


@pytest.mark.parametrize("n_tokens, dtype", [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_ids_take_16_bits_where_they_fit(tmp_path, n_tokens, dtype):
    class LastIds:
        def __len__(self):
            return n_tokens

        def encode(self, text):
            return [n_tokens - 1] * len(text)

        def lost_share(self, text, ids):
            return 0.0

    dialogs = [dialog(turn("ab"))]
    write_store(tmp_path / "cache", build_arrays({"train": dialogs, "valid": []}, LastIds()))
    arrays = read_store(tmp_path / "cache")
    assert arrays["tokens"].dtype == dtype
    assert DialogSplit(arrays, "train")[0].history == [[n_tokens - 1] * 2]


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


# Drawn distractors


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


# The cache


@pytest.fixture
def cached(tokenizer, dataset_file, tmp_path, caplog):
    """A folder with the cache of `dataset_file`; (path of the one file in it, a function that gets the data again)."""
    folder = tmp_path / "caches"

    def get():
        caplog.clear()
        return get_dataset(tokenizer, str(dataset_file), str(folder / "cache.bin"))

    get()
    (path,) = folder.iterdir()
    assert path.name.startswith("cache.bin.")
    assert not caplog.records
    return path, get


@pytest.fixture
def count_encoded(monkeypatch):
    """A list that grows with every text that is tokenized."""
    texts = []
    encode = GptTokenizer.encode
    monkeypatch.setattr(GptTokenizer, "encode", lambda self, text: texts.append(text) or encode(self, text))
    return texts


def test_the_cache_is_reused(cached, count_encoded, caplog, monkeypatch):
    path, get = cached
    before = path.stat().st_mtime_ns
    monkeypatch.setattr("convai.data.formats.FileSource.load", None)  # reading the dialogs would fail
    get()
    assert count_encoded == []
    assert path.stat().st_mtime_ns == before
    assert not caplog.records


def variants(tokenizer):
    """Tokenizers that differ from `tokenizer`, each in one thing that can change ids."""
    vocab, merges, special_ids = tokenizer.vocab, tokenizer.merges, tokenizer.special_ids
    swapped = {**special_ids, "<bos>": special_ids["<eos>"], "<eos>": special_ids["<bos>"]}
    a_for_b = {**vocab, "a": vocab["b"], "b": vocab["a"]}
    return {
        "vocabulary": GptTokenizer(a_for_b, merges, special_ids),
        "merges": GptTokenizer(vocab, merges[:-1], special_ids),
        "special ids": GptTokenizer(vocab, merges, swapped),
        "pre-tokenization": GptTokenizer(vocab, merges, special_ids, "bert"),
    }


@pytest.mark.parametrize("what", ["vocabulary", "merges", "special ids", "pre-tokenization"])
def test_another_tokenizer_gets_a_cache_of_its_own(tokenizer, cached, dataset_file, what):
    path, _ = cached
    get_dataset(variants(tokenizer)[what], str(dataset_file), str(path.parent / "cache.bin"))
    assert len(list(path.parent.iterdir())) == 2


def test_other_versions_of_format_and_word_splitters_get_caches_of_their_own(cached, monkeypatch):
    path, get = cached
    for module in (store, utils):
        monkeypatch.setattr(module, "FORMAT_VERSION", 999)
    get()
    assert len(list(path.parent.iterdir())) == 2
    monkeypatch.setattr(tokenization, "version", lambda package: f"another {package}")
    get()
    assert len(list(path.parent.iterdir())) == 3


def test_other_data_at_the_same_path_get_a_cache_of_their_own(cached, dataset_file, tokenizer):
    path, get = cached
    data = {"train": make_dialogs(5), "valid": make_dialogs(2)}
    dataset_file.write_text(json.dumps(data))
    assert_same_content(get()["train"], data["train"], tokenizer)
    assert len(list(path.parent.iterdir())) == 2


def flip_a_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def header_length(path) -> int:
    return int.from_bytes(path.read_bytes()[:8], "little")


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "last byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "too long": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "flipped in the data": lambda path: flip_a_bit(path, -5),
    "flipped in the first array": lambda path: flip_a_bit(path, 8 + header_length(path)),
    "flipped in the length": lambda path: flip_a_bit(path, 1),
    "flipped in the header": lambda path: flip_a_bit(path, 30),
    "not a store": lambda path: path.write_text("something else"),
    "a pickle": lambda path: torch.save({"train": []}, path),
    "another safetensors file": lambda path: safetensors.torch.save_file(
        {"a": torch.ones(2, dtype=torch.bfloat16)}, path
    ),
    "another version": lambda path: (
        safetensors.numpy.save_file(read_store(path), str(path) + "x", {"format_version": "0"})
        or os.replace(str(path) + "x", path)
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_built_again_with_a_warning(cached, tokenizer, dataset_file, caplog, damage):
    path, get = cached
    DAMAGE[damage](path)
    splits = get()
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert str(path) in warning.getMessage() and "damaged" in warning.getMessage()
    assert_same_content(splits["train"], json.loads(dataset_file.read_text())["train"], tokenizer)
    assert list(path.parent.iterdir()) == [path]
    get()
    assert not caplog.records


def test_no_single_flipped_bit_goes_unnoticed(tokenizer, tmp_path):
    path = tmp_path / "cache"
    write_store(path, build_arrays({"train": [dialog(turn("hi", "ho"))], "valid": []}, tokenizer))
    content = path.read_bytes()
    for position in range(0, len(content), 3):
        if content[position : position + 1] == b" ":
            continue  # white space that pads the header may become other white space
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(store.CorruptStore):
            read_store(path)


def assert_data_despite_warning(splits, dataset_file, tokenizer, caplog, *parts):
    data = json.loads(dataset_file.read_text())
    for name in ("train", "valid"):
        assert_same_content(splits[name], data[name], tokenizer)
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    for part in ("cannot be used", *parts):
        assert part in warning.getMessage()


def test_a_folder_that_cannot_be_made_still_gives_the_data(tokenizer, dataset_file, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way of a folder")
    splits = get_dataset(tokenizer, str(dataset_file), str(tmp_path / "file" / "cache.bin"))
    assert_data_despite_warning(splits, dataset_file, tokenizer, caplog, "file/cache.bin", "exists")
    splits = get_dataset(tokenizer, str(dataset_file), str(tmp_path / "file" / "deeper" / "cache.bin"))
    assert (tmp_path / "file").read_text() == "in the way of a folder"


def refuse(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("function", ["os.replace", "os.fsync"])
def test_a_full_disk_leaves_no_temporary_file(tokenizer, dataset_file, tmp_path, monkeypatch, caplog, function):
    monkeypatch.setattr(function, refuse)
    splits = get_dataset(tokenizer, str(dataset_file), str(tmp_path / "caches" / "cache.bin"))
    assert_data_despite_warning(splits, dataset_file, tokenizer, caplog, "No space left on device")
    assert list((tmp_path / "caches").iterdir()) == []


def test_a_damaged_cache_in_a_folder_that_cannot_be_written(cached, tokenizer, dataset_file, caplog, monkeypatch):
    path, get = cached
    path.write_bytes(b"")
    monkeypatch.setattr("os.replace", refuse)
    splits = get()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    del caplog.records[0]
    assert_data_despite_warning(splits, dataset_file, tokenizer, caplog)


def test_a_disk_that_does_not_give_back_what_was_written(tokenizer, dataset_file, tmp_path, monkeypatch, caplog):
    def write_half(path, arrays):
        path.write_bytes(b"half")

    monkeypatch.setattr(store, "write_store", write_half)
    splits = get_dataset(tokenizer, str(dataset_file), str(tmp_path / "cache.bin"))
    assert_data_despite_warning(splits, dataset_file, tokenizer, caplog)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_arrays_are_mapped_not_read(cached):
    path, get = cached
    splits = get()
    assert str(path) in Path("/proc/self/maps").read_text()
    assert not splits["train"]._tokens.flags.owndata
    del splits
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_without_a_prefix_nothing_is_written(tokenizer, dataset_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    get_dataset(tokenizer, str(dataset_file), "")
    assert sorted(tmp_path.iterdir()) == before


def test_a_lone_dialog_from_the_cache_of_a_chat_is_refused_for_training(tokenizer, tmp_path):
    path, cache = tmp_path / "one.json", str(tmp_path / "cache")
    path.write_text(json.dumps(make_dialogs(1)))
    splits = get_dataset(tokenizer, str(path), cache, split_needed=False)
    assert (splits["train"].n_dialogs, splits["valid"].n_dialogs) == (1, 0)
    with pytest.raises(UserError, match=r"one.json: a lone dialog cannot be split"):
        get_dataset(tokenizer, str(path), cache)


def test_the_example_set_is_cached_too(tokenizer, tmp_path, count_encoded):
    first = get_dataset(tokenizer, "example", str(tmp_path / "cache"))
    n_encoded = len(count_encoded)
    again = get_dataset(tokenizer, "example", str(tmp_path / "cache"))
    assert len(count_encoded) == n_encoded > 0
    assert list(again["valid"]) == list(first["valid"])
