"""Where --dataset_path points: files, pairs, folders, URLs, and those that cannot be read or are of no known format."""

import gzip
import json
import sys

import pytest
from conftest import make_dialogs
from dialog_files import GOOD, error_of, load, write_json
from http_server import FileServer

from convai.data import formats
from convai.data.formats import find_source
from convai.data.schema import KeyCheck, check_dialog
from convai.errors import UserError


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVAI_CACHE", str(tmp_path / "cache"))
    with FileServer() as server:
        yield server


def test_a_pair_may_mix_formats_and_a_json_half_may_hold_its_split_or_just_dialogs(tmp_path):
    dialogs, other = make_dialogs(2), make_dialogs(3)
    both = write_json(tmp_path / "both.json", {"train": dialogs, "valid": other})
    bare = write_json(tmp_path / "bare.json", dialogs)
    text = tmp_path / "a.txt"
    text.write_text("1 q\ta\n")
    assert load(f"{both},{both}") == {"train": dialogs, "valid": other}
    assert load(f"{bare}, {both}") == {"train": dialogs, "valid": other}
    assert load(f"{both},{text}")["valid"][0]["utterances"] == [{"history": ["q"], "candidates": ["a"]}]


def test_a_path_with_a_comma_that_exists_is_one_file(tmp_path):
    path = write_json(tmp_path / "a,b.json", make_dialogs(2))
    assert len(load(path)["train"]) == 1


def test_a_folder_with_one_file_for_each_split(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    (folder / "training notes").mkdir(parents=True)
    (folder / "train_self_original.txt").write_text("1 a\tb\n")
    write_json(folder / "valid.json", make_dialogs(2))
    splits = load(folder)
    assert [len(splits["train"]), len(splits["valid"])] == [1, 2]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/data") == splits


@pytest.mark.parametrize("valid", ["valid_1.txt", "validation.txt", "dev.txt", "val-self.txt", "eval.txt", "Dev.txt"])
def test_a_folder_s_validation_file_by_any_of_its_names(tmp_path, valid):
    for name in ("train.txt", valid, "test.txt", "values.csv", "device.log", "evaluate.py"):
        (tmp_path / name).write_text(f"1 a\t{name}\n")
    splits = load(tmp_path)
    assert splits["valid"][0]["utterances"][0]["candidates"] == [valid]


def test_urls_are_downloaded_alone_and_as_a_pair(server):
    server.files["/all.json"] = json.dumps({"train": make_dialogs(3), "valid": make_dialogs(1)}).encode()
    server.files["/v.txt.gz"] = gzip.compress(b"1 a\tb\n")
    assert load(server.url("/all.json")) == {"train": make_dialogs(3), "valid": make_dialogs(1)}
    pair = load(f"{server.url('/all.json')},{server.url('/v.txt.gz')}")
    assert [len(pair["train"]), len(pair["valid"])] == [3, 1]
    assert pair["valid"][0]["utterances"] == [{"history": ["a"], "candidates": ["b"]}]
    assert len(server.requests) == 2  # the first file came from the cache


def test_an_empty_path_is_the_published_personachat(server, monkeypatch):
    server.files["/persona.json"] = json.dumps(make_dialogs(2)).encode()
    monkeypatch.setattr(formats, "PERSONACHAT_URL", server.url("/persona.json"))
    assert len(load("")["train"]) == 1
    monkeypatch.setattr(formats, "PERSONACHAT_URL", server.url("/gone.json"))
    message = error_of("")
    assert "HTTP 404" in message and "/gone.json" in message and "--dataset_path example" in message


def test_example_is_the_embedded_set():
    splits = load("example")
    for dialogs in splits.values():
        check_dialog(dialogs[0], "example", KeyCheck("example"))
    assert len(splits["train"]) > len(splits["valid"]) > 0


def test_the_digest_follows_content_and_roles_not_names(tmp_path):
    a, b = write_json(tmp_path / "a.json", make_dialogs(2)), write_json(tmp_path / "b.json", make_dialogs(3))
    copy = tmp_path / "c.json"
    copy.write_bytes(a.read_bytes())
    digests = [find_source(path).digest() for path in (f"{a}", f"{b}", f"{a},{b}", f"{b},{a}", "example")]
    assert len(set(digests)) == 5
    assert find_source(f"{copy},{b}").digest() == digests[2]


# Mistakes


@pytest.mark.parametrize("path, wanted", [
    ("missing.json", ["there is no", "missing.json", "give a file"]),
    ("~/missing.json", ["there is no", "/missing.json"]),
    pytest.param("a" * 5000, ["there is no"], id="a very long name"),
    ("train.txt,missing.txt", ["there is no", "missing.txt"]),
    ("train.txt,", ["TRAIN,VALID"]),
    ("a,b,c", ["a,b,c", "TRAIN,VALID"]),
    ("folder", ["folder has no file named train*", "TRAIN,VALID"]),
    ("two", ["two has 2 files named valid* or dev* or val* or eval*", "TRAIN,VALID"]),
    ("train.txt,folder", ["folder is a folder", "two files"]),
])  # fmt: skip
def test_paths_that_lead_nowhere(tmp_path, monkeypatch, path, wanted):
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "two"):
        (tmp_path / folder).mkdir()
    for name in ("train.txt", "two/train.txt", "two/valid_a.txt", "two/val_b.txt"):
        (tmp_path / name).write_text("1 a\tb\n")
    message = error_of(path)
    assert all(part in message for part in wanted), message


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = write_json(tmp_path / "a.json", make_dialogs(2))
    source = find_source(str(path))
    path.unlink()
    path.mkdir()  # root may read everything, so what fails here is another reason than permission
    for action in (source.digest, source.load):
        with pytest.raises(UserError, match=r"a\.json cannot be read \(Is a directory\); check the path"):
            action()


@pytest.mark.parametrize("name, content, wanted", [
    ("a.json", '{"train": [\n  {"personality" []}\n]}', "is not JSON: Expecting ':' delimiter at line 2, column 18;"),
    ("a.txt", '{"train": []', "a.txt is not JSON: Expecting ',' delimiter at line 1, column 13"),
    ("a.json", '{"utterances": []}\n{"utterances": []}', "not JSON: Extra data at line 2, column 1"),
    ("a.json", "<html>no such page</html>", "not JSON: Expecting value at line 1, column 1; mend it there, or fetch"),
    ("a.json", "", "not JSON: Expecting value at line 1, column 1"),
    ("a.json", "3", "a.json holds a number only; see example_entry.py"),
    pytest.param("a.json", f"[{'1' * (sys.get_int_max_str_digits() + 1)}]", "no PersonaChat file (Exceeds", id="int"),
    pytest.param("a.json", "[" * 100_000, "a.json is no PersonaChat file (maximum recursion", id="nested too deeply"),
    ("a.json", '{"dialogs": []}', 'it holds "dialogs", but no part of a known name (train, training, valid, '
                                  'validation, dev, val, eval, test, testing); see example_entry.py'),
    ("a.json", '{"train": null}', 'it holds "train", but no part of a known name'),
    ("a.json", "{}", "it holds nothing, but no part"),
    ("a.json", '{"valid": [], "dev": []}', 'a.json: "valid" and "dev" are both names of the valid part; join them'),
    ("a.txt", "", "a.txt: the train split is empty"),
    ("a.txt", "1 hi\tho\nhello\thi", "a.txt, line 2: in ParlAI text a line starts with its number in the dialog and a "
                                     "space; this one starts with 'hello\\thi'"),
    ("a.txt", "1 hi\tho\n\n2\tx", "a.txt, line 3"),
    ("a.txt", "-1 hi\tho", "a.txt, line 1"),
    pytest.param("a.txt", "1" * 5000 + " hi\tho", "a.txt, line 1", id="a very high line number"),
    ("a.txt", "1 your persona: i sing .\n1 hi\tho", "the dialog that ends before line 2 has no turns; a turn and its"),
    ("a.txt", "1 hi\tho\n1 hi\n2 ho", "the dialog that ends before line 4 has no turns"),
])  # fmt: skip
def test_files_that_are_not_of_a_known_format(tmp_path, name, content, wanted):
    path = tmp_path / name
    path.write_text(content)
    message = error_of(path)
    assert str(path) in message
    assert wanted in message


def test_files_that_are_not_text(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes("1 voilà\toui".encode("latin-1"))
    assert f"{path} is not UTF-8 text (byte 6); convert it to UTF-8" in error_of(path)
    path.write_bytes(json.dumps(make_dialogs(2)).encode("utf-16"))
    assert "is not UTF-8 text (byte 0)" in error_of(path)


@pytest.mark.parametrize("damage", [
    lambda zipped: zipped[:-20],
    lambda zipped: zipped[:5],
    lambda zipped: zipped[:30] + b"\xff\xff\xff" + zipped[33:],
    lambda zipped: zipped[:-6] + b"\x00\x00" + zipped[-4:],
])  # fmt: skip
def test_a_damaged_gzip_file(tmp_path, damage):
    path = tmp_path / "a.json.gz"
    path.write_bytes(damage(gzip.compress(json.dumps(make_dialogs(9)).encode())))
    message = error_of(path)
    assert f"{path} cannot be read (" in message
    assert "remove it and fetch it again" in message


def test_the_empty_half_of_a_pair_is_named(tmp_path):
    full, empty = write_json(tmp_path / "full.json", [GOOD]), tmp_path / "empty.txt"
    empty.write_text("\n\n")
    assert f"{empty}: the valid split is empty" in error_of(f"{full},{empty}")
    assert f"{empty}: the train split is empty" in error_of(f"{empty},{full}")
