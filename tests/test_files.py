"""Files are written whole or not at all: failures, kills, devices, processes that meet."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest
from conftest import cannot_run

from convai.io import files
from convai.io.files import TEMPORARY_FILES, atomic_write, write_json, write_text
from convai.training.run_folder import what_a_kill_left


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_appears_when_it_is_complete(tmp_path, durable):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path, durable=durable) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.match(TEMPORARY_FILES) and temporary.parent == tmp_path
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with atomic_write(tmp_path / "made", durable=True) as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / "a.txt").write_text("a")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "inner" / "a.txt").read_text() == "a" and names(tmp_path) == ["made"]


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    forced = []
    monkeypatch.setattr(files, "force_to_disk", lambda path: forced.append((path.name, (tmp_path / "made").exists())))
    with atomic_write(tmp_path / "made", durable=True) as temporary:
        temporary.mkdir()
        (temporary / "a.txt").write_text("a")
    assert forced == [("a.txt", False), (temporary.name, False), (tmp_path.name, True)]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("no")])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failure_leaves_the_old_one_and_nothing_else(tmp_path, error, kind):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_write(path) as temporary:
        if kind == "folder":
            temporary.mkdir()
        (temporary / "half" if kind == "folder" else temporary).write_text("half")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("function", ["os.replace", "os.fsync"])
def test_a_disk_that_fails_at_the_end(tmp_path, monkeypatch, function):
    def refuse(*args):
        raise OSError(28, "No space left on device")

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(function, refuse)
    with pytest.raises(OSError, match="No space left"), atomic_write(tmp_path / "a", durable=True) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_what_a_kill_leaves_is_known_by_its_name_and_nothing_else_is(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    left = ["README.md.0123abcd.tmp", "model.safetensors.tmp", "checkpoints/update-00000002.deadbeef.tmp",
            "checkpoints/update-00000002.tmp"]  # fmt: skip
    kept = ["notes.tmp", "a.0123abc.tmp", "model.safetensors", "checkpoints/update-00000002", "0123abcd.tmp"]
    for name in [*left, *kept]:
        (tmp_path / name).touch()
    assert sorted(what_a_kill_left(tmp_path)) == sorted(tmp_path / name for name in left)


def write_often(path: Path, value: int) -> None:
    for _ in range(200):
        write_json(path, [value] * 1000)


def test_processes_that_write_the_same_file(tmp_path):
    path = tmp_path / "a.json"
    processes = [multiprocessing.Process(target=write_often, args=(path, value)) for value in (1, 2)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        if path.exists():
            content = json.loads(path.read_text())
            assert content in ([1] * 1000, [2] * 1000)
    assert [process.exitcode for process in processes] == [0, 0] and names(tmp_path) == ["a.json"]


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    if not hasattr(os, "mkfifo"):
        cannot_run("there are no pipes with names")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "through")
    assert os.read(reader, 100) == b"through" and pipe.is_fifo() and names(tmp_path) == ["pipe"]
    os.close(reader)


def test_permissions_are_those_of_a_plain_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_json(tmp_path / "ours", {})
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_as_it_is_written(tmp_path):
    write_json(tmp_path / "a", {"é": [1]})
    assert (tmp_path / "a").read_bytes() == '{\n  "é": [\n    1\n  ]\n}\n'.encode().replace(b"\n", os.linesep.encode())
    write_json(tmp_path / "a", {"é": [1]}, indent=None, ensure_ascii=True)
    assert (tmp_path / "a").read_text() == '{"\\u00e9": [1]}\n'


def test_a_kill_within_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def die() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == 9 and path.read_text() == "old"
    (left,) = tmp_path.glob(TEMPORARY_FILES)
    assert left.read_text() == "half"
