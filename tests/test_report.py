"""The results of an evaluation in a file: whole, and wherever the option points to."""

import errno
import json
import os
from argparse import Namespace

import pytest

from convai.evaluation.report import Result, write_results


def write_to(path) -> None:
    write_results(Namespace(output=str(path)), {"f1": Result({"f1": 0.5}, 2, 2, False)}, "dialogs.json")


def figure_in(path) -> float:
    return json.loads(path.read_text())["results"]["f1"]["f1"]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "results.json").write_text("old")
    (tmp_path / "link").symlink_to("results.json")
    write_to(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and figure_in(tmp_path / "results.json") == 0.5


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EACCES, errno.EROFS])
def test_a_file_that_cannot_be_replaced_is_written_in_its_place(tmp_path, monkeypatch, number):
    """As one that is mounted into a container, or lies in a folder of somebody else."""

    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.replace", refuse)
    write_to(tmp_path / "results.json")
    assert figure_in(tmp_path / "results.json") == 0.5 and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_the_earlier_results(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "results.json").write_text("old")
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_to(tmp_path / "results.json")
    assert (tmp_path / "results.json").read_text() == "old"
