"""Every form of --dataset_path that is read, and every mistake in one: a UserError with file, place and remedy."""

import gzip
import json
import logging
import sys

import pytest
from conftest import make_dialogs, needs
from http_server import FileServer

from convai.data import formats
from convai.data.formats import find_source, load_for_evaluation
from convai.data.schema import KeyCheck, check_dialog
from convai.errors import UserError
from example_entry import EXAMPLE_ENTRY

TURN = {"history": ["hi"], "candidates": ["no .", "yes ."]}
GOOD = {"personality": ["i sing ."], "utterances": [TURN]}


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVAI_CACHE", str(tmp_path / "cache"))
    with FileServer() as server:
        yield server


def load(path) -> dict:
    return find_source(str(path)).load()


def write_json(path, value):
    path.write_text(json.dumps(value))
    return path


def load_text(tmp_path, *lines: str) -> list[dict]:
    """The dialogs of a ParlAI file with these lines, read as the training half of a pair."""
    path = tmp_path / "dialogs.txt"
    path.write_bytes("\n".join(lines).encode())
    return load(f"{path},{path}")["train"]


def error_of(path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


# JSON


def test_json_plain_gzipped_and_with_byte_order_mark_are_the_same(tmp_path):
    data = {"train": make_dialogs(3), "valid": make_dialogs(1)}
    plain = write_json(tmp_path / "a.json", data)
    (tmp_path / "b.bin").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "c").write_bytes(b"\xef\xbb\xbf \n" + plain.read_bytes())
    assert load(plain) == load(tmp_path / "b.bin") == load(tmp_path / "c") == data


def test_the_documented_entry_is_valid(tmp_path):
    data = {"train": [EXAMPLE_ENTRY], "valid": [EXAMPLE_ENTRY]}
    assert load(write_json(tmp_path / "a.json", data)) == data


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


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


# ParlAI text


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


# ParlAI text of named fields


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


@pytest.mark.parametrize("numbers", [[0, 1, 0, 1], [3, 4, 1, 2], [5, 7, 4, 5], [1, 2, 1, 9], [2, 3, 2, 3]])
def test_a_number_that_is_no_higher_starts_a_new_dialog(tmp_path, numbers):
    dialogs = load_text(tmp_path, *(f"{number} q\ta" for number in numbers))
    assert [len(dialog["utterances"]) for dialog in dialogs] == [2, 2]


def test_a_user_who_says_nothing_leaves_an_empty_turn(tmp_path):
    (dialog,) = load_text(tmp_path, "1 \thello , anyone ?", "2 yes\tgood")
    assert dialog["utterances"][1]["history"] == ["", "hello , anyone ?", "yes"]


# Where --dataset_path points


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


def test_the_empty_half_of_a_pair_is_named(tmp_path):
    full, empty = write_json(tmp_path / "full.json", [GOOD]), tmp_path / "empty.txt"
    empty.write_text("\n\n")
    assert f"{empty}: the valid split is empty" in error_of(f"{full},{empty}")
    assert f"{empty}: the train split is empty" in error_of(f"{empty},{full}")
