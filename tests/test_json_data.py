"""Data in JSON: parts and keys by their names, data without a valid split, mistakes in the schema with their place."""

import gzip
import logging

import pytest
from conftest import make_dialogs
from dialog_files import GOOD, TURN, error_of, load, warnings_in, write_json

from convai.data.formats import find_source, load_for_evaluation
from convai.errors import UserError
from example_entry import EXAMPLE_ENTRY


def test_json_plain_gzipped_and_with_byte_order_mark_are_the_same(tmp_path):
    data = {"train": make_dialogs(3), "valid": make_dialogs(1)}
    plain = write_json(tmp_path / "a.json", data)
    (tmp_path / "b.bin").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "c").write_bytes(b"\xef\xbb\xbf \n" + plain.read_bytes())
    assert load(plain) == load(tmp_path / "b.bin") == load(tmp_path / "c") == data


def test_the_documented_entry_is_valid(tmp_path):
    data = {"train": [EXAMPLE_ENTRY], "valid": [EXAMPLE_ENTRY]}
    assert load(write_json(tmp_path / "a.json", data)) == data


def test_other_keys_are_named_in_one_warning_and_a_missing_or_null_personality_is_empty(tmp_path, caplog):
    dialog = {"utterances": [{**TURN, "score": 1.5}], "id": 7}
    path = write_json(tmp_path / "a.json", {"train": [dialog, {**dialog, "personality": None}], "valid": [dialog]})
    splits = load(path)
    assert [dialog["personality"] for dialog in splits["train"]] == [[], []]
    assert splits.keys() == {"train", "valid"}
    assert warnings_in(caplog) == [f'{path}: ignored, as no such keys are known: "id" (3 times), "score" (3 times)']


@pytest.mark.parametrize("train", ["train", "training", "Train"])
@pytest.mark.parametrize("valid", ["valid", "validation", "dev", "val", "eval", "VALID"])
def test_parts_by_the_names_that_others_give_them(tmp_path, caplog, train, valid):
    path = write_json(tmp_path / "a.json", {valid: make_dialogs(1), train: make_dialogs(3), "test": make_dialogs(2)})
    with caplog.at_level(logging.INFO):
        assert load(path) == {"train": make_dialogs(3), "valid": make_dialogs(1)}
        assert not caplog.records
        assert load_for_evaluation(str(path)) == (make_dialogs(3), make_dialogs(1))
    assert caplog.messages == [f"{path}: its valid split is evaluated, not its test split"]


def test_a_test_part_is_never_validated_on(tmp_path, caplog):
    path = write_json(tmp_path / "a.json", {"train": make_dialogs(4), "test": [GOOD], "valid": None})
    with caplog.at_level(logging.INFO):
        splits = load(path)
        assert len(splits["train"]) == 3 and GOOD not in splits["valid"]
        assert "1 of its 4 dialogs are held out for valid; its test split is not used" in caplog.messages[0]
        caplog.clear()
        assert load_for_evaluation(str(path)) == (make_dialogs(4), [GOOD])
    assert caplog.messages == [f"{path} has no valid split: its test split is evaluated"]
    only = write_json(tmp_path / "b.json", {"testing": [GOOD, GOOD]})
    assert "b.json: it has a test part only, which is for evaluation" in error_of(only)
    assert load_for_evaluation(str(only)) == ([], [GOOD, GOOD])
    assert load(f"{path},{only}")["valid"] == [GOOD, GOOD]  # asked for


def test_a_part_of_unknown_name_is_named(tmp_path, caplog):
    path = write_json(tmp_path / "a.json", {"train": make_dialogs(3), "holdout": make_dialogs(1), "about": "me"})
    load(path)
    (warning,) = warnings_in(caplog)
    assert 'a.json: ignored, as no such parts are known: "holdout", "about" (known: train, training, valid' in warning


@pytest.mark.parametrize("bad, wanted", [
    ({"persona": ["i sing ."], "utterances": [TURN]}, 'the key "persona" is unknown; did you mean "personality"?'),
    ({"personality": None, "Personas": ["a"], "utterances": [TURN]}, 'key "Personas" is unknown; did you mean "person'),
    ({"personalty": ["i sing ."], "utterances": [TURN]}, 'key "personalty" is unknown; did you mean "personality"?'),
    ({"turns": [TURN]}, 'dialog 1: the key "turns" is unknown; did you mean "utterances"?'),
    ({"utterances": [TURN, {"context": ["a"], "candidates": ["b"]}]},
     'dialog 1, utterance 1: the key "context" is unknown; did you mean "history"?'),
    ({"utterances": [{"history": ["a"], "candidate": ["b"]}]}, '"candidate" is unknown; did you mean "candidates"?'),
    ({"utterances": [{"histroy": ["a"], "candidates": ["b"]}]}, 'key "histroy" is unknown; did you mean "history"?'),
])  # fmt: skip
def test_a_key_that_looks_like_a_missing_one_is_refused_with_a_suggestion(tmp_path, bad, wanted):
    message = error_of(write_json(tmp_path / "a.json", [GOOD, bad]))
    assert "a.json: dialog 1" in message and wanted in message


def test_keys_that_only_look_like_one_are_ignored_where_that_is_there(tmp_path, caplog):
    dialogs = [{**GOOD, "persona": ["x"]}, {"utterances": [TURN], "personality_id": 3, "persona": None}]
    assert len(load(write_json(tmp_path / "a.json", dialogs))["train"]) == 1
    assert '"persona" (1 times), "personality_id" (1 times)' in warnings_in(caplog)[0]


@pytest.mark.parametrize("as_list", [True, False])
def test_five_percent_of_a_file_without_valid_split_are_held_out(tmp_path, as_list, caplog):
    dialogs = make_dialogs(60)
    path = write_json(tmp_path / "a.json", dialogs if as_list else {"train": dialogs})
    with caplog.at_level(logging.INFO):
        splits = load(path)
    assert "3 of its 60 dialogs are held out" in caplog.text
    assert [len(splits["train"]), len(splits["valid"])] == [57, 3]
    assert sorted(splits["train"] + splits["valid"], key=str) == sorted(dialogs, key=str)
    assert splits == load(path)
    assert splits["valid"] != dialogs[:3]  # drawn, not cut off
    assert splits["valid"] != dialogs[-3:]


def test_two_dialogs_are_the_fewest_that_can_be_split(tmp_path):
    splits = load(write_json(tmp_path / "a.json", make_dialogs(2)))
    assert [len(splits["train"]), len(splits["valid"])] == [1, 1]
    assert "lone dialog" in error_of(write_json(tmp_path / "a.json", make_dialogs(1)))


@pytest.mark.parametrize("content", [[EXAMPLE_ENTRY], EXAMPLE_ENTRY, {"train": [EXAMPLE_ENTRY]}])
def test_one_dialog_serves_where_no_split_is_needed(tmp_path, content):
    path = write_json(tmp_path / "a.json", content)
    assert find_source(str(path)).load(split_needed=False) == {"train": [EXAMPLE_ENTRY], "valid": []}
    assert load_for_evaluation(str(path)) == ([], [EXAMPLE_ENTRY])
    assert "a lone dialog cannot be split" in error_of(path)


def test_no_dialog_at_all_serves_nowhere(tmp_path):
    with pytest.raises(UserError, match="the train split is empty"):
        find_source(str(write_json(tmp_path / "a.json", []))).load(split_needed=False)


@pytest.mark.parametrize("bad, wanted", [
    ({"train": {}, "valid": [GOOD]}, '"train" must be a list of dialogs, not an object'),
    ({"train": [GOOD, "hi"], "valid": [GOOD]}, "train dialog 1 must be an object, not a string"),
    ({"train": [GOOD], "valid": [GOOD, GOOD, {"personality": []}]},
     'valid dialog 2, key "utterances" must be a list, not missing or null'),
    ({"train": [GOOD], "valid": [{**GOOD, "personality": "i sing ."}]},
     'valid dialog 0, key "personality" must be a list of strings, not a string'),
    ({"train": [{**GOOD, "personality": [None]}], "valid": [GOOD]},
     'train dialog 0, key "personality" must hold strings only, not missing or null'),
    ({"train": [{**GOOD, "utterances": []}], "valid": [GOOD]},
     'train dialog 0 has no turns: its "utterances" are empty'),
    ({"train": [{"utterances": [TURN, [TURN]]}], "valid": [GOOD]},
     "train dialog 0, utterance 1 must be an object, not a list"),
    ({"train": [{"utterances": [{"candidates": ["a"]}]}], "valid": [GOOD]},
     'train dialog 0, utterance 0, key "history" must be a list of strings, not missing or null'),
    ({"train": [{"utterances": [TURN, {"history": ["a"], "candidates": ["b", 3]}]}], "valid": [GOOD]},
     'train dialog 0, utterance 1, key "candidates" must hold strings only, not a number'),
    ({"train": [{"utterances": [{"history": ["a"], "candidates": []}]}], "valid": [GOOD]},
     'train dialog 0, utterance 0, key "candidates" is empty; it needs at least the gold reply'),
    ({"train": [GOOD], "valid": []}, "the valid split is empty; it needs at least one dialog"),
    ({"train": [], "valid": [GOOD]}, "the train split is empty"),
    ({"train": []}, "the train split is empty; it needs at least two dialogs"),
    ([], "the train split is empty"),
    ([GOOD, True], "dialog 1 must be an object, not a boolean"),
])  # fmt: skip
def test_json_of_another_schema_is_refused_naming_split_dialog_and_key(tmp_path, bad, wanted):
    path = write_json(tmp_path / "a.json", bad)
    message = error_of(path)
    assert message.startswith(str(path))
    assert wanted in message
