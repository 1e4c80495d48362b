"""JSON read value by value: what `json` makes of the whole, wherever the window ends, and the same messages."""

import json
import random

import pytest
from dialog_files import GOOD, error_of, load, write_json

from convai.data import json_stream
from convai.data.json_stream import JsonStream
from convai.errors import UserError

VALUES = [
    {"a": [1, -2.5e3, True, None, "x", {}], "b": {"c": []}},
    'é 日本 😀 \\ " / \b \n \u2028',
    "half \ud83d alone",
    12345678901234567890,
    -0.5,
    float("-inf"),
    [],
    ["ends"],
    7,
]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_the_elements_are_those_of_the_whole_wherever_the_window_ends(tmp_path, monkeypatch, block, ensure_ascii):
    monkeypatch.setattr(json_stream, "_BLOCK_BYTES", block)
    text = json.dumps(
        VALUES if ensure_ascii else [v for v in VALUES if "half" not in str(v)], ensure_ascii=ensure_ascii
    )
    path = tmp_path / "a.json"
    path.write_text(text.replace(", ", " ,\r\n\t"), encoding="utf-8")
    stream = JsonStream(path)
    assert list(stream.elements()) == json.loads(text.replace(", ", " ,\r\n\t"))
    stream.check_end()


@pytest.mark.parametrize("block", [1, 5, 1000])
def test_parts_in_any_order_and_parts_without_a_known_name(tmp_path, monkeypatch, block):
    monkeypatch.setattr(json_stream, "_BLOCK_BYTES", block)
    for parts in (
        {"version": "1", "valid": [GOOD], "about": {"by": ["me"]}, "notes": [[1], "x"], "train": [GOOD, GOOD]},
        {"train": [GOOD, GOOD], "valid": [GOOD], "dev ": []},
    ):
        assert load(write_json(tmp_path / "a.json", parts)) == {"train": [GOOD, GOOD], "valid": [GOOD]}


def mistakes(text: str, drawn: random.Random) -> list[str]:
    """The text cut, with a character more, and with one less, in drawn places."""
    places = [drawn.randrange(1, len(text)) for _ in range(12)]
    wrong = [text[:n] for n in places[:4]]
    wrong += [text[:n] + drawn.choice('x}],:"{[1') + text[n:] for n in places[4:8]]
    return wrong + [text[:n] + text[n + 1 :] for n in places[8:]]


@pytest.mark.parametrize("seed", range(8))
def test_a_mistake_is_told_as_json_tells_it(tmp_path, monkeypatch, seed):
    """With line and column in the whole file, however little of it is in the window."""
    monkeypatch.setattr(json_stream, "_BLOCK_BYTES", 40)
    rows = [{"personality": ["é 😀 ."], **GOOD} for _ in range(4)]
    path, n_compared = tmp_path / "a.json", 0
    for wrong in mistakes(json.dumps(rows, ensure_ascii=False, indent=1), random.Random(seed)):
        try:
            json.loads(wrong)
            continue
        except json.JSONDecodeError as error:
            expected = f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}; mend it there"
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(UserError) as caught:
            for value in JsonStream(path).elements():
                assert value
        assert expected in str(caught.value)
        n_compared += 1
    assert n_compared > 3


def test_byte_order_marks_are_dropped_within_escaped_and_cut_in_two(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_BLOCK_BYTES", 2)
    path = tmp_path / "a.json"
    path.write_text('\ufeff[{"utterances": [{"history": ["h\ufeffi"], "candidates": ["\\ufEFFho"]}]}]' * 1)
    ((_, _), (_, dialog)) = list(json_dialogs(path))
    assert dialog["utterances"] == [{"history": ["hi"], "candidates": ["ho"]}]


def json_dialogs(path):
    from convai.data.formats import read_file

    return read_file(path)


def test_the_same_part_twice_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(f'{{"train": [{json.dumps(GOOD)}], "train": [{json.dumps(GOOD)}]}}')
    assert 'a.json: "train" is there twice; join the two, or leave one out' in error_of(path)
