"""The cache of the tokenized data: used again where it fits, and in whatever state it is, the data are right."""

import json
import logging
import os
import sys
from pathlib import Path

import pytest
import safetensors.numpy
import safetensors.torch
import tokenized_dialogs
import torch
from conftest import make_dialogs
from tokenized_dialogs import assert_same_content, dialog, turn

import utils
from convai.data import store
from convai.data.store import build_arrays, read_store, write_store
from convai.errors import UserError
from convai.model import tokenization
from convai.model.tokenization import GptTokenizer
from utils import get_dataset

tokenizer = tokenized_dialogs.tokenizer


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
