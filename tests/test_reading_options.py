"""What is made of rows: whose replies, which persona, and what a row with a fault does."""

import json

import pytest
import tokenized_dialogs
from conftest import needs
from dialog_files import GOOD, TURN, warnings_in

from convai.data.formats import find_source, load_for_evaluation, read_splits
from convai.errors import UserError
from convai.options import ReadingOptions, training_parser
from utils import get_dataset

tokenizer = tokenized_dialogs.tokenizer

SKIP = ReadingOptions(on_bad_row="skip")
GOOD_ROW = json.dumps(GOOD)
MESSAGES = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
REPLY = {"personality": ["i sing ."], **TURN, "conv_id": 7}


def lines(*rows) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


BAD_ROWS = {
    "lines of messages": ("a.jsonl", lines(
        MESSAGES, '{"messages": [', MESSAGES, {"messages": [{"role": "user", "content": 7}]}, {"a": 1}, 5, MESSAGES,
    ), 3, 4, "a.jsonl, line 2 is not JSON: Expecting value at column 15; mend it there, or fetch the file again."),
    "lines, the first one cut": ("a.jsonl", lines('{"messages": [', MESSAGES), 1, 1, "a.jsonl, line 1 is not JSON"),
    "lines, the first one of another kind": ("a.jsonl", lines({"version": 3}, MESSAGES), 1, 1,
                                             "a.jsonl, line 1: its columns are version; needed are personality"),
    "lines, the first one of another layout": ("a.jsonl", lines({"dialog": 7}, MESSAGES, MESSAGES), 2, 1,
                                               'a.jsonl, line 1, key "dialog" must be a list of strings, not a number'),
    "lines of dialogs": ("a.jsonl", lines(GOOD, {"utterances": []}, GOOD), 2, 1, "a.jsonl, line 2 has no turns"),
    "array of dialogs": ("a.json", json.dumps([GOOD, "hi", GOOD, {"turns": [TURN]}]), 2, 2,
                         "a.json: dialog 1 must be an object, not a string."),
    "array, the first one of another kind": ("a.json", json.dumps([{"a": 1}, MESSAGES]), 1, 1,
                                             'a.json: row 0, key "messages" must be a list of messages, not missing'),
    "parts": ("a.json", json.dumps({"train": [GOOD, {**GOOD, "utterances": [[]]}], "valid": [GOOD]}), 2, 1,
              "a.json: train dialog 1, utterance 0 must be an object, not a list."),
    "rows of replies": ("a.jsonl", lines(REPLY, REPLY | {"candidates": []}, REPLY), 1, 1,
                        'a.jsonl, line 2, key "candidates" is empty; it needs at least the gold reply.'),
    "CSV": ("a.csv", 'user 1 personas,user 2 personas,Best Generated Conversation\n'
            'a,b,"User 1: x\nUser 2: y"\na,b,c,d\na,b,"User 1: x\nUser 2: y"\na,b,z\n', 4, 2,
            "a.csv: row 1 has more fields than the first line; put those with commas into quotes."),
    "ParlAI text": ("a.txt", "1 hi\tho\n2 so\tsi\n1 no reply\n1 hi\tho\nbroken\n2 so\tsi\n1 bye\tbye\n", 2, 2,
                    "a.txt: the dialog that ends before line 4 has no turns; a turn and its reply stand on one line"),
    "ParlAI text with names": ("a.txt", "text:a\tlabels:b\nnothing\ntext:c\tlabels:d\tepisode_done:True\n"
                               "text:e\tlabels:f\n", 1, 1, "a.txt, line 2: in this form of ParlAI text each field is"),
}  # fmt: skip


@pytest.mark.parametrize("name, content, n_good, n_bad, first", BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_stop_or_are_skipped_and_counted(tmp_path, caplog, monkeypatch, name, content, n_good, n_bad, first):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError) as stopped:
        read_splits(path.relative_to(tmp_path))
    assert name in str(stopped.value)
    splits = read_splits(path.relative_to(tmp_path), SKIP)
    assert sum(map(len, splits.values())) == n_good
    (warning,) = warnings_in(caplog)
    assert warning.startswith(f"{name}: bad rows, which are skipped: {n_bad}; the first: ")
    assert first in warning


def test_what_is_skipped_adds_to_no_other_count(tmp_path, caplog):
    """A row's lost turns, and the unknown keys in it, go with it."""
    bad = {"messages": [{"role": "tool", "content": ""}, {"role": "user", "content": None, "name": "x"}], "id": 1}
    path = tmp_path / "a.jsonl"
    path.write_text(lines(MESSAGES, bad, {**MESSAGES, "id": 2}))
    assert len(read_splits(path, SKIP)[""]) == 2
    keys, skipped = warnings_in(caplog)
    assert keys == f'{path}: ignored, as no such keys are known: "id" (1 times)'
    assert skipped.startswith(
        f'{path}: bad rows, which are skipped: 1; the first: {path}, line 2, key "messages", mess'
    )


@pytest.mark.parametrize("name, content", [
    ("a.jsonl", '{"messages": [\n[]\n'),
    ("a.json", '[7, {"a": 1}]'),
    ("a.txt", "hello\nworld\n"),
])  # fmt: skip
def test_a_file_of_bad_rows_only_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=f"{name}: all of its . rows are bad; the first: .*{name}"):
        read_splits(path, SKIP)


def test_rows_of_a_table_are_skipped(tmp_path, caplog, monkeypatch):
    pyarrow, pq, datasets = needs("pyarrow"), needs("pyarrow.parquet"), needs("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "folder").mkdir()
    table = pyarrow.Table.from_pylist([MESSAGES, {"messages": None}, MESSAGES])
    pq.write_table(table, tmp_path / "folder/train.parquet")
    assert len(find_source(str(tmp_path / "folder"), SKIP).splits()["train"]) == 2
    assert "folder: bad rows, which are skipped: 1; the first:" in warnings_in(caplog)[0]
    assert 'train row 1, key "messages" must be a list of messages, not missing' in warnings_in(caplog)[0]


TWO_SIDES = (
    "user 1 personas,user 2 personas,Best Generated Conversation\n"
    'I bake.,I ski.,"User 1: Hi!\nUser 2: Hello, you?\nUser 1: I bake."\n'
    ',I sew.,"User 1: Hello?\n"\n'
)


@pytest.mark.parametrize("sides, personas, lost", [
    ("both", [["I bake."], ["I ski."], []],
     ["conversations without a reply to learn, which are left out: 1"]),
    ("first", [["I bake."], []], []),
    ("second", [["I ski."]], ["turns after a conversation's last reply, which are left out: 1; "
                              "conversations without a reply to learn, which are left out: 1"]),
])  # fmt: skip
def test_whose_replies_are_learned(tmp_path, caplog, sides, personas, lost):
    path = tmp_path / "a.csv"
    path.write_text(TWO_SIDES)
    dialogs = read_splits(path, ReadingOptions(sides=sides))[""]
    assert [dialog["personality"] for dialog in dialogs] == personas
    assert warnings_in(caplog) == [f"{path}: {one}" for one in lost]


def test_the_systems_message_is_no_persona_where_that_is_asked_for(tmp_path, caplog):
    system = {"role": "system", "content": "you are helpful ."}
    path = tmp_path / "a.jsonl"
    preference = {"prompt": [system, {"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}
    path.write_text(lines({"messages": [system, *MESSAGES["messages"]]}))
    (tmp_path / "b.jsonl").write_text(lines(preference))
    for file, without in ((path, ["you are helpful ."]), (tmp_path / "b.jsonl", ["you are helpful ."])):
        assert [dialog["personality"] for dialog in read_splits(file)[""]] == [without]
        assert [d["personality"] for d in read_splits(file, ReadingOptions(persona_from="none"))[""]] == [[]]
        assert warnings_in(caplog)[-1] == (
            f"{file}: messages of the system, which are left out as they are no persona here: 1"
        )


def test_the_cache_is_of_these_options_too(tmp_path, tokenizer):
    (tmp_path / "a.csv").write_text(TWO_SIDES)
    prefix = str(tmp_path / "cache")
    ways = [ReadingOptions(), ReadingOptions(sides="first"), SKIP, ReadingOptions(persona_from="none")]
    for n_files, options in enumerate(ways, start=1):
        for _ in range(2):
            splits = get_dataset(tokenizer, str(tmp_path / "a.csv"), prefix, split_needed=False, options=options)
        assert len(list(tmp_path.glob("cache.*"))) == n_files
        assert splits["train"].n_dialogs + splits["valid"].n_dialogs == (2 if options.sides == "first" else 3)


def test_scripts_hand_their_options_on(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines(MESSAGES, "broken", MESSAGES))
    options = training_parser().parse_args(["--on_bad_row", "skip", "--sides", "first"])
    assert options.reading() == ReadingOptions(sides="first", on_bad_row="skip")
    assert len(load_for_evaluation(str(tmp_path / "a.jsonl"), options.reading())[1]) == 2
