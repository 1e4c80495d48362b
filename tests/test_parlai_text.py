"""Data in ParlAI's text format, in numbered lines or of named fields."""

import json

import pytest
from conftest import needs
from dialog_files import error_of, load, warnings_in

from convai.data.formats import find_source
from convai.errors import UserError


def load_text(tmp_path, *lines: str) -> list[dict]:
    """The dialogs of a ParlAI file with these lines, read as the training half of a pair."""
    path = tmp_path / "dialogs.txt"
    path.write_bytes("\n".join(lines).encode())
    return load(f"{path},{path}")["train"]


# Numbered lines


def test_parlai_text_with_persona_and_without_candidates(tmp_path):
    dialogs = load_text(
        tmp_path,
        "1 your persona: i have a dog .",
        "2 your persona: i like tea .",
        "3 hello !\thi there .",
        "4 any pets ?\ta dog .",
        "1 good day .\tgood evening .",
    )
    assert dialogs == [
        {
            "personality": ["i have a dog .", "i like tea ."],
            "utterances": [
                {"history": ["hello !"], "candidates": ["hi there ."]},
                {"history": ["hello !", "hi there .", "any pets ?"], "candidates": ["a dog ."]},
            ],
        },
        {"personality": [], "utterances": [{"history": ["good day ."], "candidates": ["good evening ."]}]},
    ]


def candidates_of(tmp_path, line: str) -> list[str]:
    return load_text(tmp_path, line)[0]["utterances"][0]["candidates"]


def test_the_gold_reply_becomes_the_last_candidate(tmp_path):
    assert candidates_of(tmp_path, "1 q\tgold\t\ta|gold|b") == ["a", "b", "gold"]
    assert candidates_of(tmp_path, "1 q\tgold\t0.5\ta|b") == ["a", "b", "gold"]  # not among them
    assert candidates_of(tmp_path, "1 q\tgold\t\tgold| a ||gold ") == ["a", "gold"]  # stray spaces and bars
    assert candidates_of(tmp_path, "1 q\tgold\t\t") == ["gold"]
    assert candidates_of(tmp_path, "1 q\tgold|also right\t\ta|also right") == ["a", "gold"]  # alternative replies


def test_candidates_in_the_field_of_the_reward_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"dialogs.txt, line 2: the third field is for a reward; put two tabs"):
        load_text(tmp_path, "1 q\tgold\t\ta|b", "2 q\tgold\ta|b")


def test_a_bar_is_text_in_a_file_without_candidates(tmp_path):
    lines = ["1 either | or ?\tyes | no |", "2 so ?\t|", "1 q\tthe | key\t\t"]
    first, second = load_text(tmp_path, *lines)
    assert [turn["candidates"] for turn in first["utterances"]] == [["yes | no |"], ["|"]]
    assert second["utterances"][0]["candidates"] == ["the | key"]
    # One line with candidates, and bars part alternatives in the whole file.
    assert load_text(tmp_path, *lines, "1 q\ta\t\tb|a")[1]["utterances"][0]["candidates"] == ["the"]


def test_right_replies_are_no_distractors_however_they_are_written(tmp_path):
    assert candidates_of(tmp_path, "1 q\tA cat .|a dog .\t\tthe cat!|Dog|two cats|A cat .") == ["two cats", "A cat ."]


def test_what_is_joined_or_left_out_is_counted_in_one_line(tmp_path, caplog):
    lines = ["1 partner's persona: i cook .", "2 hello ?", "3 you ?\tyes .|aye .|yea .\t0.5\tno .\tmore"]
    lines += ["4 bye", "5 hm", "1 your persona: i sing .", "2 hi\tho", "3 "]
    path = tmp_path / "a.txt"
    path.write_text("\n".join(lines))
    load(path)
    assert warnings_in(caplog) == [
        f"{path}: fields beyond the candidates, which are ignored: 1; "
        "lines of the partner's persona, which are left out: 1; lines without a reply, joined to the next turn: 1; "
        "alternatives to the first reply, which are left out: 2; "
        "lines after a dialog's last reply, which are left out: 2"
    ]
    caplog.clear()
    load_text(tmp_path, "1 your persona: i sing .", "2 hi\tho\t\ta|b", "1 a\tb")
    assert not warnings_in(caplog)


def test_a_turn_without_reply_joins_the_next_turn(tmp_path):
    lines = ["1 hello ?", "2 are you there ?\tyes .", "3 good .\t", "4 bye !\tbye .", "5 hm .", "1 hi\tho"]
    first, second = load_text(tmp_path, *lines)
    assert [turn["history"][-1] for turn in first["utterances"]] == ["hello ? are you there ?", "good . bye !"]
    assert second["utterances"] == [{"history": ["hi"], "candidates": ["ho"]}]  # what hangs over goes


def test_escaped_line_breaks_part_persona_sentences_and_lines_of_a_turn(tmp_path):
    (dialog,) = load_text(
        tmp_path, r"1 your persona: i sing .\nyour persona: i dance .\nhello !\nhow are you ?" + "\tfine ."
    )
    assert dialog["personality"] == ["i sing .", "i dance ."]
    assert dialog["utterances"] == [{"history": ["hello !\nhow are you ?"], "candidates": ["fine ."]}]


def test_the_partners_persona_is_not_the_agents_to_know(tmp_path):
    lines = ["1 partner's persona: i cook .", "2 your persona: i paint .", "3 Your persona:  ", "4 hi\thello"]
    (dialog,) = load_text(tmp_path, *lines)
    assert dialog["personality"] == ["i paint ."]
    assert dialog["utterances"][0]["history"] == ["hi"]


@pytest.mark.parametrize("lines", [
    ["\ufeff1 your persona: i sing .\r", "2 hi\thello\r", "\r", "1 hi\thello\r", ""],
    ["1 your persona: i sing . ", "2 hi \thello  ", "   ", "", "1 hi\thello\t\t", "", ""],
    ["1 your persona: i sing .\t", "2 hi\thello\t", "1 hi\thello\t\t\t\t"],
])  # fmt: skip
def test_line_ends_byte_order_mark_blank_lines_and_trailing_space_do_not_matter(tmp_path, lines):
    turns = [{"history": ["hi"], "candidates": ["hello"]}]
    assert load_text(tmp_path, *lines) == [
        {"personality": ["i sing ."], "utterances": turns},
        {"personality": [], "utterances": turns},
    ]


def test_byte_order_marks_within_joined_files_and_strings_are_dropped(tmp_path):
    (_, second) = load_text(tmp_path, "\ufeff1 hi\tho", "\ufeff1 hi\tho\ufeff")
    assert second["utterances"] == [{"history": ["hi"], "candidates": ["ho"]}]
    dialog = {"personality": ["\ufeffi sing ."], "utterances": [{"history": ["\ufeffhi"], "candidates": ["\ufeffho"]}]}
    (tmp_path / "escaped.json").write_text(json.dumps([dialog]))
    (tmp_path / "raw.json").write_text(json.dumps([dialog], ensure_ascii=False), encoding="utf-8-sig")
    for name in ("escaped.json", "raw.json"):
        assert "\ufeff" not in str(find_source(str(tmp_path / name)).splits())


@pytest.mark.parametrize("numbers", [[0, 1, 0, 1], [3, 4, 1, 2], [5, 7, 4, 5], [1, 2, 1, 9], [2, 3, 2, 3]])
def test_a_number_that_is_no_higher_starts_a_new_dialog(tmp_path, numbers):
    dialogs = load_text(tmp_path, *(f"{number} q\ta" for number in numbers))
    assert [len(dialog["utterances"]) for dialog in dialogs] == [2, 2]


def test_a_user_who_says_nothing_leaves_an_empty_turn(tmp_path):
    (dialog,) = load_text(tmp_path, "1 \thello , anyone ?", "2 yes\tgood")
    assert dialog["utterances"][1]["history"] == ["", "hello , anyone ?", "yes"]


# Named fields


NAMED_LINES = [
    r"text:your persona: i sing .\nyour persona: i dance .\nhello !"
    + "\tlabels:hi .|hello .\tlabel_candidates:no .|hi .",
    "labels:so : so__PIPE__well\ttext:how are you ?\tepisode_done:True",
    "",
    "text:bye\teval_labels:good night\tepisode_done:False\r",
    r"text:again ?\nreally ?" + "\tid:me\timage:none",
    "text:go\tlabels:gone",
]


def test_parlai_text_of_named_fields(tmp_path, caplog):
    first, second = load_text(tmp_path, *NAMED_LINES)
    assert first == {
        "personality": ["i sing .", "i dance ."],
        "utterances": [
            {"history": ["hello !"], "candidates": ["no .", "hi ."]},
            {"history": ["hello !", "hi .", "how are you ?"], "candidates": ["so : so|well"]},
        ],
    }
    assert second["personality"] == []
    assert second["utterances"] == [
        {"history": ["bye"], "candidates": ["good night"]},
        {"history": ["bye", "good night", "again ?\nreally ? go"], "candidates": ["gone"]},
    ]
    assert set(warnings_in(caplog)) == {
        f"{tmp_path / 'dialogs.txt'}: lines without a reply, joined to the next turn: 1; "
        "alternatives to the first reply, which are left out: 1; names of fields that are ignored: id, image"
    }


def test_named_fields_are_read_as_parlai_writes_them(tmp_path):
    misc = needs("parlai.utils.misc")
    messages = [
        {"id": "x", "text": "your persona: i sing .\na | b :\tc", "labels": ("yes | no", "no"),
         "label_candidates": ["maybe", "yes | no"], "reward": 0, "episode_done": False},
        {"text": "bye", "labels": ["bye"], "episode_done": True},
        {"text": "next", "labels": ["one"], "episode_done": True},
    ]  # fmt: skip
    first, second = load_text(tmp_path, *map(misc.msg_to_str, messages))
    assert first["personality"] == ["i sing ."]
    assert first["utterances"] == [
        {"history": ["a | b :\tc"], "candidates": ["maybe", "yes | no"]},
        {"history": ["a | b :\tc", "yes | no", "bye"], "candidates": ["bye"]},
    ]
    assert second["utterances"] == [{"history": ["next"], "candidates": ["one"]}]


@pytest.mark.parametrize("line, wanted", [
    ("text:hi\tho", "line 2: in this form of ParlAI text each field is NAME:VALUE, parted by tabs; this one starts"),
    ("1 hi ; ho", "line 2: in this form of ParlAI text"),
    ("text:hi\tlabel:ho", 'line 2: the field "label" is unknown; did you mean "labels"?'),
    ("context:hi\tlabels:ho\tepisode_done:True\ntext:no reply", "dialog that ends before line 4 has no turns"),
])  # fmt: skip
def test_mistakes_in_named_fields_have_their_line(tmp_path, line, wanted):
    path = tmp_path / "a.txt"
    path.write_text(f"text:hi\tlabels:ho\n{line}\n")
    message = error_of(path)
    assert f"{path}" in message and wanted in message
