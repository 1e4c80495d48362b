"""The agent's persona: from sentences, from files of every form, stored with the checkpoint, from a data set."""

import json
import os

import chat_program
import pytest
from chat_program import is_fact, said_of_commands
from conftest import make_dialogs

from convai.model.word_splitting import join_punctuation

checkpoint = chat_program.checkpoint
chat = chat_program.chat


def personas_shown(notes: str) -> list[str]:
    """The facts that commands showed."""
    return [line[2:] for line in said_of_commands(notes) if is_fact(line)]


def test_personality_from_sentences_and_from_a_file(chat, tmp_path):
    assert personas_shown(chat("/persona\n", "--personality", "i ski.", " ", "i\tswim.")[1]) == ["i ski.", "i swim."]
    (tmp_path / "persona.txt").write_text("i ski .\n\n i swim .\n")
    assert personas_shown(chat("/persona\n", "--personality", str(tmp_path / "persona.txt"))[1]) == [
        "i ski.",
        "i swim.",
    ]
    assert said_of_commands(chat("/persona\n", "--no_personality")[1]) == ["The agent has no persona."]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("persona.json", '["i ski .", "i swim ."]'),
        ("persona.json", '\ufeff{"personality": ["i ski .", "i swim ."], "utterances": []}'),
        ("persona.txt", ' [{"personality": ["i ski .", "\ufeffi swim ."]}]'),
        ("persona.txt", "1 your persona: i ski .\n2 Your persona: i swim .\n3 partner's persona: i cook .\n"),
        ("persona.txt", "your persona: i ski .\r\n\r\nyour persona: i swim .\r\n"),
        ("persona.txt", "\ufeff1 your persona: i ski .\n2 your persona: i swim .\n3 hello\thi\n4 so\n1 hi\tho\n"),
        (
            "persona.txt",
            "text:your persona: i ski .\\nyour persona: i swim .\\nhi\tlabels:ho\ntext:so\tepisode_done:True\n",
        ),
        ("persona", "\ufeffi ski .\ni swim .\n"),
    ],
)
def test_every_form_of_a_persona_file(chat, tmp_path, monkeypatch, name, content):
    (tmp_path / name).write_text(content)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (str(tmp_path / name), f"~/{name}"):
        assert personas_shown(chat("/persona\n", "--personality", path)[1]) == ["i ski.", "i swim."]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "i ski .", "a.json is not JSON: Expecting value at line 1, column 1; a persona in JSON is a list"),
        ("a.txt", '["i ski .",]', "a.txt is not JSON"),
        (
            "a.json",
            '[["i ski ."], ["i swim ."]]',
            "a.json holds a list of other things; a persona in JSON is a list of",
        ),
        ("a.json", '"i ski ."', "a.json holds a string; a persona in JSON is a list of sentences, or one dialog"),
        ("a.json", '{"persona": ["i ski ."]}', 'the key "persona" is unknown; did you mean "personality"?'),
        ("a.json", '{"train": []}', "a.json holds no persona; a persona in JSON is a list"),
        ("a.json", '{"personality": null}', "--personality holds no sentence"),
        ("a.json", '{"personality": "i ski ."}', "a.json holds a string; a persona in JSON"),
        ("a.txt", "1 partner's persona: i cook .", "--personality holds no sentence"),
        ("a.txt", "text:hi\tlabels:ho", "--personality holds no sentence"),
        (
            "a.txt",
            "1 your persona: a\n2 q\tr\n1 your persona: b\n",
            "a.txt: with 'b' another dialog starts",
        ),
        ("a.txt", "text:your persona: a\tepisode_done:True\ntext:your persona: b", "with 'b' another dialog starts"),
    ],
)
def test_files_that_hold_no_persona_are_refused_in_one_line(chat, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    _, notes, status = chat("", "--personality", str(tmp_path / name))
    assert status == 2 and message in notes and notes.count("\n") == 1


def test_typed_sentences_may_be_parlai_s_lines(chat):
    notes = chat("/persona\n", "--personality", "your persona: i ski .", "i swim .")[1]
    assert personas_shown(notes) == ["i ski.", "i swim."]


def test_a_data_set_of_one_dialog_has_a_persona_to_chat_with(chat, tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(make_dialogs(1)))
    notes = chat("/persona\n", "--dataset_path", str(tmp_path / "one.json"), "--dataset_cache", "")[1]
    assert personas_shown(notes) == [join_punctuation(text) for text in make_dialogs(1)[0]["personality"]]


def test_personas_stored_with_the_checkpoint(chat, checkpoint, tmp_path):
    for path in checkpoint.iterdir():
        os.link(path, tmp_path / path.name)
    (tmp_path / "personas.json").write_text(json.dumps([["i am the only one."], []]))
    notes = chat("/persona\n/persona new\n", model=tmp_path)[1]
    assert personas_shown(notes) == ["i am the only one."] * 2


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1]", '[["a", 2]]'])
def test_malformed_stored_personas_are_refused(chat, checkpoint, tmp_path, content):
    for path in checkpoint.iterdir():
        os.link(path, tmp_path / path.name)
    (tmp_path / "personas.json").write_text(content)
    _, notes, status = chat("", model=tmp_path)
    assert status == 2 and "personas.json must hold a JSON list of personas" in notes.splitlines()[-1]


def test_personas_of_a_data_set(chat, tmp_path):
    dialogs = {"train": make_dialogs(1), "valid": make_dialogs(2)[1:]}
    (tmp_path / "data.json").write_text(json.dumps(dialogs))
    notes = chat("/persona\n", "--dataset_path", str(tmp_path / "data.json"), "--dataset_cache", "")[1]
    assert personas_shown(notes) == [join_punctuation(text) for text in make_dialogs(1)[0]["personality"]]
