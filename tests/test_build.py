"""The building of a store: however it is cut, shared out or interrupted, every byte of it is the same."""

import json
import logging
import os
import random
import re
import signal
import sys
import time

import numpy as np
import pytest
import tokenized_dialogs
from conftest import make_dialogs
from decoder_folders import chat_tokenizer
from tokenized_dialogs import assert_same_content, bytes_of, dialog, turn

from convai.data import build, held_out, numbering, spool, tokenizing
from convai.data.build import build_at, open_or_build
from convai.data.formats import find_source
from convai.data.held_out import Data, Plan
from convai.data.store import DialogSplit
from convai.errors import UserError
from convai.model.pretrained_tokenizer import PretrainedTokenizer

tokenizer = tokenized_dialogs.tokenizer


def small_cuts(monkeypatch) -> None:
    """Have a few dozen dialogs make many blocks, ranges of hashes, and pieces."""
    monkeypatch.setattr(spool, "MAX_UTTERANCES", 30)
    monkeypatch.setattr(numbering, "MAX_SORTED", 40)
    monkeypatch.setattr(numbering, "MIN_PIECE", 12)
    monkeypatch.setattr(numbering, "N_PIECES", 1000)


def varied_dialogs(n_dialogs: int) -> list[dict]:
    """Dialogs that share utterances with near and far ones, some without persona or distractors, some with twins."""
    drawn = random.Random(1)
    dialogs = make_dialogs(n_dialogs)
    for d in range(0, n_dialogs, 5):
        dialogs[d] = dialog(turn(f"hi {d % 7}", candidates=[f"yes {d}"]), turn("ho", f"hi {d}", "ho"))
    for d in range(2, n_dialogs, 5):
        last = dialogs[d]["utterances"][-1]["candidates"]
        last[:0] = [last[-1].upper(), last[-1], f"hi {drawn.randrange(n_dialogs)}"]
    return dialogs


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(varied_dialogs(40)))
    return find_source(str(path))


def built(folder, tokenizer, source, **kwargs) -> dict[str, bytes]:
    folder.parent.mkdir(exist_ok=True)
    build_at(folder, tokenizer, source.data(), **kwargs)
    assert not list(folder.parent.glob("*.building"))
    return bytes_of(folder)


@pytest.fixture
def expected(tmp_path, tokenizer, source):
    return built(tmp_path / "expected/store", tokenizer, source)


def test_cut_into_many_blocks_the_examples_are_those_of_the_file(tmp_path, tokenizer, source, expected, monkeypatch):
    small_cuts(monkeypatch)
    splits = open_or_build(None, tokenizer, source.data())
    for name, dialogs in source.load().items():
        plain = DialogSplit(build.build_arrays({name: dialogs}, tokenizer), name)
        assert list(splits[name]) == list(plain)
    candidates = [[text for u in d["utterances"] for text in u["candidates"]] for d in source.load()["train"]]
    untwinned = [d for d, texts in zip(source.load()["train"], candidates, strict=True) if "".join(texts).islower()]
    assert len(untwinned) > 20
    assert_same_content(open_or_build(None, tokenizer, data_of(untwinned))["train"], untwinned, tokenizer)


def data_of(dialogs) -> build.Data:
    plan = Plan({"train": "train"}, None)
    return Data("here", lambda: iter([("train", None), *(("train", d) for d in dialogs)]), lambda n, c: plan)


def test_blocks_and_ranges_change_nothing_but_the_shards(tmp_path, tokenizer, source, expected, monkeypatch):
    small_cuts(monkeypatch)
    cut = built(tmp_path / "cut/store", tokenizer, source)
    assert len(cut) > len(expected) + 5
    names = [name for name in expected if not name.startswith(("tokens", "store.json"))]
    assert len(names) == 16
    assert {name: cut[name] for name in names} == {name: expected[name] for name in names}
    monkeypatch.setattr(numbering, "MIN_PIECE", 2**12)
    assert built(tmp_path / "cut/again", tokenizer, source) == expected


def test_several_processes_make_the_same_store(tmp_path, tokenizer, source, expected, monkeypatch):
    monkeypatch.setattr(numbering, "MIN_PIECE", 12)
    monkeypatch.setattr(numbering, "N_PIECES", 10)
    alone = built(tmp_path / "alone/store", tokenizer, source)
    monkeypatch.setattr(tokenizing, "MIN_FOR_PROCESSES", 0)
    monkeypatch.setattr(tokenizing, "tokenize_piece", None)  # not in this process
    assert built(tmp_path / "shared/store", tokenizer, source, n_processes=2) == alone
    assert len([name for name in alone if name.startswith("tokens")]) == 10


def test_a_tokenizer_of_transformers_is_shared_out_too(tmp_path, source, expected, monkeypatch):
    monkeypatch.setattr(numbering, "MIN_PIECE", 40)
    monkeypatch.setattr(numbering, "N_PIECES", 10)
    decoder = PretrainedTokenizer(chat_tokenizer(), "llama", "chat")
    alone = built(tmp_path / "alone/store", decoder, source)
    monkeypatch.setattr(tokenizing, "MIN_FOR_PROCESSES", 0)
    monkeypatch.setattr(tokenizing, "tokenize_piece", None)  # not in this process
    assert built(tmp_path / "shared/store", decoder, source, n_processes=2) == alone != expected


def test_where_processes_fail_this_one_goes_on_alone(tmp_path, tokenizer, source, monkeypatch, caplog):
    monkeypatch.setattr(numbering, "MIN_PIECE", 12)
    monkeypatch.setattr(numbering, "N_PIECES", 10)
    alone = built(tmp_path / "alone/store", tokenizer, source)
    monkeypatch.setattr(tokenizing, "MIN_FOR_PROCESSES", 0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert built(tmp_path / "shared/store", tokenizer, source, n_processes=2) == alone
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    pattern = r"tokenizing in other processes failed \(.*(Broken pipe|status 1)\); this one goes on alone"
    assert re.fullmatch(pattern, warning)


def test_the_processes_import_this_package_wherever_they_are_started(tmp_path, tokenizer, source, monkeypatch, caplog):
    (tmp_path / "convai").mkdir()
    (tmp_path / "convai/__init__.py").write_text("raise SystemExit('another package')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(numbering, "MIN_PIECE", 12)
    monkeypatch.setattr(numbering, "N_PIECES", 2)
    monkeypatch.setattr(tokenizing, "MIN_FOR_PROCESSES", 0)
    monkeypatch.setattr(tokenizing, "tokenize_piece", None)  # not in this process
    assert built(tmp_path / "shared/store", tokenizer, source, n_processes=2)
    assert not caplog.records


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_at_twenty_random_moments_it_goes_on_to_the_same_store(tmp_path, tokenizer, source, monkeypatch):
    small_cuts(monkeypatch)
    start = time.perf_counter()
    expected = built(tmp_path / "expected/store", tokenizer, source)
    seconds = time.perf_counter() - start
    path = tmp_path / "caches/store"
    path.parent.mkdir()
    drawn, n_killed, n_left = random.Random(3), 0, set()
    while n_killed < 20:
        child = os.fork()
        if not child:
            try:
                build_at(path, tokenizer, source.data())
            finally:
                os._exit(sys.exc_info()[0] is not None)
        time.sleep(drawn.uniform(0, seconds / 4))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        was_killed = os.WIFSIGNALED(status)
        assert was_killed or status == 0
        n_killed += was_killed
        n_left.add(len(list(path.parent.rglob("*"))))
        if not was_killed:  # it was done: the next one begins anew
            assert bytes_of(path) == expected
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    assert len(n_left) > 5  # it was killed in different states
    assert built(path, tokenizer, source) == expected
    assert list(path.parent.iterdir()) == [path]


def test_what_is_done_is_not_done_again(tmp_path, tokenizer, source, monkeypatch):
    small_cuts(monkeypatch)
    expected = built(tmp_path / "expected/store", tokenizer, source)
    tokenized = []
    encode = type(tokenizer).encode

    def count(self, text):
        tokenized.append(text)
        if len(tokenized) == 40:
            raise KeyboardInterrupt
        return encode(self, text)

    monkeypatch.setattr(type(tokenizer), "encode", count)
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / "caches/store", tokenizer, source)
    assert (tmp_path / "caches/store.building").is_dir()
    monkeypatch.setattr("convai.data.formats.read_file", None)  # reading the dialogs would fail
    assert built(tmp_path / "caches/store", tokenizer, source) == expected
    assert len(tokenized) - len(set(tokenized)) <= numbering.MIN_PIECE  # those of one piece


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_of_two_that_build_at_once_one_waits_and_opens_what_the_other_made(tmp_path, tokenizer, source, caplog):
    path, flag, data = tmp_path / "store", tmp_path / "flag", source.data()

    def slowly():
        flag.touch()
        time.sleep(1)
        return data.dialogs()

    child = os.fork()
    if not child:
        try:
            build_at(path, tokenizer, data._replace(dialogs=slowly))
        finally:
            os._exit(sys.exc_info()[0] is not None)
    while not flag.exists():
        time.sleep(0.01)
    with caplog.at_level(logging.INFO, "convai.data.build"):
        store = build_at(path, tokenizer, Data("nowhere", None, None))
    assert os.waitpid(child, 0)[1] == 0
    assert len(DialogSplit(store, "train")) > 50
    assert [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]


def test_nothing_is_left_of_a_build_that_the_data_end(tmp_path, tokenizer):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([*make_dialogs(3), 7]))
    with pytest.raises(UserError, match="dialog 3 must be an object"):
        open_or_build(tmp_path / "caches/store", tokenizer, find_source(str(path)).data())
    assert list((tmp_path / "caches").iterdir()) == []


@pytest.mark.parametrize("n", [2, 60, 999, 1000, 5_000, 123_456])
def test_what_is_held_out_is_what_sample_draws(n):
    drawn = random.Random(42).sample(range(n), max(1, round(0.05 * n)))
    assert np.flatnonzero(np.frombuffer(held_out.draw(n), dtype=bool)).tolist() == sorted(drawn)


def test_both_sides_are_held_out_together_in_the_store_too(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(spool, "MAX_UTTERANCES", 7)
    rows = [f'a {n},b {n},"User 1: hi {n}\nUser 2: ho {n}"\n' for n in range(40)]
    path = tmp_path / "a.csv"
    path.write_text("user 1 personas,user 2 personas,Best Generated Conversation\n" + "".join(rows))
    source = find_source(str(path))
    splits = open_or_build(None, tokenizer, source.data())
    lists = source.load()
    assert len(lists["valid"]) == 4
    for name, dialogs in lists.items():
        assert_same_content(splits[name], dialogs, tokenizer)
