"""Data files are hashed once: again only where size, time or inode say that they are others."""

import json
import os
import shutil

import pytest
import tokenized_dialogs
from conftest import make_dialogs

from convai.data import digests
from convai.data.digests import KnownDigests
from utils import get_dataset

tokenizer = tokenized_dialogs.tokenizer


@pytest.fixture
def hashed(monkeypatch):
    """A list that grows with every file that is hashed."""
    files = []
    real = digests.hashlib.file_digest
    monkeypatch.setattr(digests.hashlib, "file_digest", lambda file, name: files.append(file.name) or real(file, name))
    return files


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(make_dialogs(9)))
    an_hour_ago(path)
    return path


def an_hour_ago(path, seconds: int = 3600) -> None:
    then = path.stat().st_mtime_ns - seconds * 10**9
    os.utime(path, ns=(then, then))


def test_a_known_file_is_not_read_again_and_a_changed_one_is_found(tmp_path, path, hashed):
    cache = str(tmp_path / "caches/cache.bin")
    first = KnownDigests(cache).of(path)
    assert KnownDigests(cache).of(path) == first and len(hashed) == 1
    content = path.read_bytes()
    path.write_bytes(content.replace(b"market", b"MARKET"))  # of the same size
    an_hour_ago(path, 1800)
    changed = KnownDigests(cache).of(path)
    assert changed != first and len(hashed) == 2
    other = tmp_path / "other.json"
    shutil.copy2(path, other)
    other.write_bytes(content)
    shutil.copystat(path, other)
    os.replace(other, path)  # of the same size and time, but another inode
    assert KnownDigests(cache).of(path) == first and len(hashed) == 3


def test_a_file_that_has_just_been_written_is_read_again(tmp_path, path, hashed):
    path.write_bytes(path.read_bytes())
    for _ in range(2):
        KnownDigests(str(tmp_path / "cache")).of(path)
    assert len(hashed) == 2
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"FILE": 7}', '{"FILE": {"state": [1, 2, 3], "sha256": "00"}}'])
def test_a_damaged_record_is_made_anew(tmp_path, path, hashed, content):
    cache = str(tmp_path / "cache")
    (tmp_path / ".cache.digests.json").write_text(content.replace("FILE", str(path)))
    first = KnownDigests(cache).of(path)
    assert KnownDigests(cache).of(path) == first and len(hashed) == 1


def test_without_a_cache_nothing_is_kept(tmp_path, path, hashed):
    for _ in range(2):
        KnownDigests().of(path)
    assert len(hashed) == 2 and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path, path, hashed):
    (tmp_path / "file").write_text("in the way of a folder")
    digest = KnownDigests(str(tmp_path / "file/cache")).of(path)
    assert digest == KnownDigests().of(path)


def test_the_data_are_hashed_at_the_first_start_only(tmp_path, path, tokenizer, hashed):
    for _ in range(3):
        get_dataset(tokenizer, str(path), str(tmp_path / "cache"))
    assert hashed == [str(path)]
