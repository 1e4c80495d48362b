"""The cache of the tokenized data: used again where it fits, and in whatever state it is, the data are right."""

import json
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import tokenized_dialogs
import torch
from conftest import make_dialogs
from tokenized_dialogs import assert_same_content, dialog, turn

import utils
from convai.data import build, store
from convai.data.store import open_store
from convai.errors import UserError
from convai.model import tokenization
from convai.model.tokenization import GptTokenizer
from utils import get_dataset

tokenizer = tokenized_dialogs.tokenizer


@pytest.fixture
def cached(tokenizer, dataset_file, tmp_path, caplog):
    """A folder with the cache of `dataset_file`; (path of the one store in it, a function that gets the data again)."""
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
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    monkeypatch.setattr("convai.data.formats.FileSource.stream", None)  # reading the dialogs would fail
    get()
    assert count_encoded == []
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == before
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


def cut(path, n_bytes):
    path.write_bytes(path.read_bytes()[:-n_bytes])


SHARD, INDEX, MANIFEST = "tokens-000000.bin", "train.candidates.bin", "store.json"
DAMAGE = {
    "not a folder": lambda path: shutil.rmtree(path) or path.write_text("something else"),
    "an older store": lambda path: shutil.rmtree(path) or torch.save({"train": []}, path),
    "an empty folder": lambda path: shutil.rmtree(path) or path.mkdir(),
    "no shard": lambda path: (path / SHARD).unlink(),
    "no index": lambda path: (path / INDEX).unlink(),
    "an empty shard": lambda path: (path / SHARD).write_bytes(b""),
    "a cut shard": lambda path: cut(path / SHARD, 1),
    "a cut index": lambda path: cut(path / INDEX, 4),
    "too long": lambda path: (path / INDEX).write_bytes((path / INDEX).read_bytes() + bytes(4)),
    "flipped in a shard": lambda path: flip_a_bit(path / SHARD, 3),
    "flipped at a shard's end": lambda path: flip_a_bit(path / SHARD, -1),
    "flipped in an index": lambda path: flip_a_bit(path / INDEX, 5),
    "a cut list of files": lambda path: cut(path / MANIFEST, 9),
    "flipped in the list of files": lambda path: flip_a_bit(path / MANIFEST, 40),
    "the list of files is none": lambda path: (path / MANIFEST).write_text("[]"),
    "another version": lambda path: (path / MANIFEST).write_text(
        (path / MANIFEST).read_text().replace(f'"format_version": {store.FORMAT_VERSION}', '"format_version": 0')
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
    (tmp_path / "a.json").write_text(json.dumps([dialog(turn("hi", "ho"))] * 2))
    get_dataset(tokenizer, str(tmp_path / "a.json"), str(tmp_path / "cache"))
    (path,) = tmp_path.glob("cache.*")
    for file in filter(None, path.iterdir()):
        content = file.read_bytes()
        for position in range(0, len(content), 3):
            damaged = bytearray(content)
            damaged[position] ^= 1 << position % 8
            if file.name == MANIFEST and content[position : position + 1].isspace():
                continue  # white space between the values may become other white space
            file.write_bytes(damaged)
            with pytest.raises(store.CorruptStore):
                open_store(path)
        file.write_bytes(content)
    open_store(path)


def test_checksums_are_computed_of_what_was_changed_or_copied_since_it_was_written(cached, tmp_path, monkeypatch):
    path, _ = cached
    read = []
    checksum_of = store.checksum_of
    monkeypatch.setattr(store, "checksum_of", lambda file: read.append(file.name) or checksum_of(file))
    later = (path / MANIFEST).stat().st_mtime_ns + 10**9
    os.utime(path / MANIFEST, ns=(later, later))
    open_store(path)
    assert read == []
    os.utime(path / SHARD, ns=(later + 1, later + 1))
    open_store(path)
    assert read == [SHARD]
    os.utime(path / MANIFEST, ns=(later + 2, later + 2))
    open_store(path)
    assert read == [SHARD]
    copy = shutil.copytree(path, tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(copy / MANIFEST, ns=(1, 1))
    open_store(copy)
    assert len(read) == 1 + len(list(copy.iterdir())) - 1
    assert (copy / MANIFEST).stat().st_mtime_ns > 1


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
    assert_data_despite_warning(splits, dataset_file, tokenizer, caplog, "file/cache.bin", "Not a directory")
    splits = get_dataset(tokenizer, str(dataset_file), str(tmp_path / "file" / "deeper" / "cache.bin"))
    assert (tmp_path / "file").read_text() == "in the way of a folder"


def full_disk_at(folder: Path, monkeypatch, name: str) -> None:
    """Have a function of `os` find no room for what lies below a folder."""
    real = getattr(os, name)

    def refuse(target, *args, **kwargs):
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
        if path.startswith(str(folder)):
            raise OSError(28, "No space left on device")
        return real(target, *args, **kwargs)

    monkeypatch.setattr(os, name, refuse)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("function", ["replace", "fsync", "mkdir"])
def test_a_full_disk_leaves_no_temporary_file(tokenizer, dataset_file, tmp_path, monkeypatch, caplog, function):
    (tmp_path / "caches").mkdir()
    with monkeypatch.context() as patch:
        full_disk_at(tmp_path / "caches", patch, function)
        splits = get_dataset(tokenizer, str(dataset_file), str(tmp_path / "caches" / "cache.bin"))
    assert_data_despite_warning(splits, dataset_file, tokenizer, caplog, "no space left on the disk")
    assert list((tmp_path / "caches").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_damaged_cache_in_a_folder_that_cannot_be_written(cached, tokenizer, dataset_file, caplog, monkeypatch):
    path, get = cached
    (path / SHARD).write_bytes(b"")
    with monkeypatch.context() as patch:
        full_disk_at(path.parent, patch, "replace")
        splits = get()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    del caplog.records[0]
    assert_data_despite_warning(splits, dataset_file, tokenizer, caplog)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_room_anywhere_is_one_line(tokenizer, dataset_file, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    full_disk_at(tmp_path, monkeypatch, "replace")
    with pytest.raises(
        UserError, match=r"cannot be prepared in .* \(no space left on the disk\); make room there, or set"
    ):
        get_dataset(tokenizer, str(dataset_file), str(tmp_path / "cache.bin"))


def test_a_disk_that_does_not_give_back_what_was_written(tokenizer, dataset_file, tmp_path, monkeypatch, caplog):
    real = build.build

    def build_half(*args, **kwargs):
        folder = real(*args, **kwargs)
        if kwargs["durable"]:
            (folder / SHARD).write_bytes(b"half")
        return folder

    monkeypatch.setattr(build, "build", build_half)
    splits = get_dataset(tokenizer, str(dataset_file), str(tmp_path / "cache.bin"))
    assert_data_despite_warning(splits, dataset_file, tokenizer, caplog)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_arrays_are_mapped_not_read(cached):
    path, get = cached
    splits = get()
    assert str(path) in Path("/proc/self/maps").read_text()
    assert not splits["train"]._candidates.flags.owndata
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
