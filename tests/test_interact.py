"""The chat on standard input: replies, commands, settings, odd text, wrong options, which model it takes."""

import io
import random
import re
import tarfile

import chat_program
import pytest
from chat_program import RANDOM_MODEL_OPTIONS, lines_of, said_of_commands
from http_server import FileServer

import interact
from convai.data.formats import find_source
from convai.io import pretrained

checkpoint = chat_program.checkpoint
chat = chat_program.chat


def test_piped_lines_are_answered_a_line_each(chat, checkpoint):
    output, notes, status = chat("hi\n\n   \nhow are\ryou?\r\nbye", *RANDOM_MODEL_OPTIONS)
    assert status == 0
    assert [bool(line) for line in lines_of(output)] == [True, False, False, True, True]
    assert "\x1b" not in output + notes
    assert notes.startswith(f"loading {checkpoint} ...\n")
    assert "- i keep bees.\n- i have two dogs.\n" in notes
    again = chat("hi\nhow are you?\nbye\n", *RANDOM_MODEL_OPTIONS)[0]  # decoding is seeded by 42
    assert lines_of(again) == [line for line in lines_of(output) if line]


@pytest.mark.parametrize("command", [*(f"/{name}" for name in interact.COMMANDS), "/sing", "/", "/set top_p 7",
                                     "/persona none", "/save", "  /help", "\x1b[1m", "\x00", " \t"])  # fmt: skip
def test_a_line_without_a_reply_is_an_empty_line(chat, command):
    output, _, status = chat(f"hi\n{command}\nhi\n", *RANDOM_MODEL_OPTIONS)
    expected = [True, False] if command == "/quit" else [True, False, True]
    assert status == 0 and [bool(line) for line in lines_of(output)] == expected


def test_a_folder_that_is_no_checkpoint_is_refused_as_that(chat, tmp_path):
    (tmp_path / "empty").mkdir()
    output, notes, status = chat("hi\n", model=tmp_path / "empty")
    assert (output, status) == ("", 2)
    assert notes.splitlines()[-1].startswith(f"error: {tmp_path / 'empty'} has no config.json")


@pytest.mark.parametrize("precision", ["--bf16", "--int8"])
def test_lower_precision_answers_too(chat, precision):
    output, _, status = chat("hi\nhow are you?\n", *RANDOM_MODEL_OPTIONS, precision)
    assert status == 0 and len(output.splitlines()) == 2


def test_seeds(chat):
    options = ("--no_personality", "--seed")
    first = chat("hi\nwhy?\n", *options, "1")[0]
    assert chat("hi\nwhy?\n", *options, "1")[0] == first
    assert chat("hi\nwhy?\n", *options, "2")[0] != first
    assert chat("hi\nwhy?\n", *options, "42")[0] == chat("hi\nwhy?\n", "--no_personality")[0]


def test_the_persona_is_drawn_afresh_unless_a_seed_is_given(chat):
    assert len({chat("/persona\n")[1] for _ in range(4)}) > 1  # of 100: alike once in a million times
    assert len({chat("/persona\n", "--seed", "5")[1] for _ in range(2)}) == 1


def test_greedy_does_not_depend_on_the_seed(chat):
    options = ("--no_personality", "--no_sample", "--seed")
    assert chat("hi\n", *options, "1") == chat("hi\n", *options, "2")


def test_settings(chat):
    output, notes, _ = chat(
        "/set temperature 0.9\n/set no_sample on\n/set top_k 2.5\n/set top_p 3\n/set heat 1\n/set min_length 30\n"
        "/set no_sample maybe\n/set max_length 5\n/set\n",
        *RANDOM_MODEL_OPTIONS,
    )
    assert output == "\n" * 9
    assert said_of_commands(notes) == [
        "temperature 0.9",
        "no_sample True",
        "top_k takes a whole number, not '2.5'",
        "top_p must be from 0 to 1, not 3.0",
        "there is no setting heat; /set lists them",
        "min_length 30 is above max_length 20",
        "no_sample is on or off, not 'maybe'",
        "max_length 5",
        "no_sample True", "max_length 5", "min_length 1", "temperature 0.9", "top_k 0", "top_p 0.9", "num_beams 1",
        "no_repeat_ngram_size 0", "length_penalty 1.0",
    ]  # fmt: skip


def test_settings_from_the_command_line(chat):
    notes = chat("/set\n", "--num_beams", "3", "--no_repeat_ngram_size", "2", "--max_length", "7", "--no_sample")[1]
    assert {"num_beams 3", "no_repeat_ngram_size 2", "max_length 7", "no_sample True"} <= set(notes.splitlines())
    # Every beam option is used: a reply of these comes out.
    assert chat("hi\n", "--num_beams", "3", "--no_repeat_ngram_size", "2")[2] == 0


def test_persona_commands(chat):
    _, notes, _ = chat("/persona i like tea. i am tall!\n/persona none\n/persona new\n", *RANDOM_MODEL_OPTIONS)
    lines = said_of_commands(notes)
    anew = "The dialog starts anew."
    assert lines[:7] == [
        "The agent's persona:", "- i like tea.", "- i am tall!", anew, "The agent has no persona.", anew,
        "The agent's persona:",
    ]  # fmt: skip
    assert len(lines) in (12, 13) and lines[-1] == anew  # a persona of the example set has four or five facts


def test_history_and_reset(chat):
    output, notes, _ = chat("/history\nhi\n/history\n/reset\n/history\n", *RANDOM_MODEL_OPTIONS)
    reply = lines_of(output)[1]
    nothing = "Nothing has been said yet."
    assert said_of_commands(notes) == [nothing, "you: hi", f"bot: {reply}", "The dialog starts anew.", nothing]


def test_suggest_help_quit_and_unknown_commands(chat):
    output, notes, status = chat("/suggest\n/sing\n/help\n/quit\nhi\n", *RANDOM_MODEL_OPTIONS)
    suggestion, unknown, *help_lines, rest = said_of_commands(notes)
    assert suggestion and rest.startswith("Anything else is said to the agent.")
    assert [line.split()[0] for line in help_lines] == [f"/{name}" for name in interact.COMMANDS]
    assert unknown == "there is no command /sing; /help lists them"
    assert (output, status) == ("\n" * 4, 0)  # and no reply after /quit


def test_save_writes_a_readable_transcript_and_overwrites_nothing(chat, tmp_path):
    path = tmp_path / "my chat.txt"
    output, notes, _ = chat(
        f"/save {path}\n\x1b[31mred\x1b[0m\x07 \N{FOX FACE}\n/save {path}\nwhy?\n/save {path}\n/save\n/save {path}/x\n",
        *RANDOM_MODEL_OPTIONS,
    )
    _, first, _, second, *_ = lines_of(output)
    assert path.read_text(encoding="utf-8") == (
        f"The agent's persona:\n- i keep bees.\n- i have two dogs.\n\nyou: red \N{FOX FACE}\nbot: {first}\n"
    )
    assert second
    assert notes.splitlines()[-5:] == [
        "there is nothing to save: nothing has been said yet",
        f"Saved as {path}.",
        f"{path} exists already; choose another name",
        "name a file, as in /save chat.txt",
        f"{path}/x cannot be written: Not a directory",
    ]
    assert list(tmp_path.iterdir()) == [path]  # nothing left beside it


def test_a_dialog_saved_as_messages_is_read_back_as_data(chat, tmp_path):
    path = tmp_path / "chat.jsonl"
    output, notes, _ = chat(f"hi \N{FOX FACE}\nwhy ? well .\n/save {path}\n", *RANDOM_MODEL_OPTIONS)
    first, second, _ = lines_of(output)
    assert notes.splitlines()[-1] == f"Saved as {path}."
    asked = ["hi \N{FOX FACE}", "why ? well ."]
    assert find_source(str(path)).load(split_needed=False)["train"] == [
        {
            "personality": chat_program.PERSONA,
            "utterances": [
                {"history": asked[:1], "candidates": [first]},
                {"history": [asked[0], first, asked[1]], "candidates": [second]},
            ],
        }
    ]


def test_any_bytes_on_standard_input(chat):
    rng = random.Random(0)
    lines = [rng.randbytes(30).replace(b"\n", b"").replace(b"/", b"") for _ in range(50)]
    output, _, status = chat(b"\n".join([*lines, b"a" * 10_000, b"' " * 5000]), "--max_length", "3")
    assert status == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", output)
    assert output.count("\n") > 40  # a few lines hold nothing but control characters


def test_ctrl_c_while_reading_a_pipe_is_an_interruption(chat, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(interact.Chat, "run", interrupt)
    _, notes, status = chat("hi\n", *RANDOM_MODEL_OPTIONS)
    assert status == 130 and notes.endswith("interrupted\n")


def test_byte_order_marks_do_not_reach_the_model(chat):
    plain = chat("what now ?\nand then ?\n", *RANDOM_MODEL_OPTIONS)[0]
    assert chat("\ufeffwhat now ?\n\ufeffand then\ufeff ?\n", *RANDOM_MODEL_OPTIONS)[0] == plain
    output, notes, _ = chat("\ufeff/persona\n", *RANDOM_MODEL_OPTIONS)
    assert output == "\n" and notes.count("The agent's persona:") == 2


def test_what_the_vocabulary_cannot_spell_is_noted(chat):
    _, notes, _ = chat("hello\nпривет , как дела ?\n", "--personality", "живу в москве", "i ski .")
    assert [line for line in notes.splitlines() if "cannot spell" in line] == [
        "The model's vocabulary cannot spell this: 'живу в москве' is mostly unknown to it.",
        "The model's vocabulary cannot spell this: 'привет , как дела ?' is mostly unknown to it.",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--personality", "i ski.", "--no_personality"], "contradict each other"),
        (["--personality", " "], "--personality holds no sentence"),
        (["--personality", "personas/nobody.txt"], "there is no file personas/nobody.txt"),
        (["--personality", "nobody.json"], "there is no file nobody.json"),
        (["--top_p", "1.5"], "argument --top_p: '1.5' is not a number from 0 to 1"),
        (["--temperature", "0.001"], "temperature must be from 0.01 to 100, not 0.001"),
        (["--min_length", "30"], "min_length 30 is above max_length 20"),
        (["--seed", "-1"], "argument --seed: '-1' is not a whole number"),
        (["--bf16", "--int8"], "argument --int8: not allowed with argument --bf16"),
        *((["--device", name], f"--device {name} cannot be used") for name in ("foo", "cuda:99", "meta", "cpu:x")),
        (["--tokenization", "bert"], "was trained with --tokenization spacy"),
    ],
)
def test_wrong_options_are_refused_in_one_line(chat, options, message):
    output, notes, status = chat("hi\n", *options)
    last = notes.splitlines()[-1]
    assert (output, status) == ("", 2)
    assert last.startswith("error: ") and message in last


# Which model


def test_the_checkpoint_wins_over_the_model(chat, checkpoint):
    assert chat("hi\n", "--model", "gpt2", *RANDOM_MODEL_OPTIONS)[2] == 0
    assert chat("hi\n", "--model", str(checkpoint), *RANDOM_MODEL_OPTIONS, model=None)[2] == 0


@pytest.mark.parametrize("option", ["--model", "--model_checkpoint"])
@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2-medium"])
def test_a_merely_pretrained_model_is_refused(chat, option, name):
    _, notes, status = chat("hi\n", option, name, model=None)
    assert status == 2
    assert notes.startswith(f"error: {name} is only pre-trained") and "--model_checkpoint" in notes
    assert notes.count("\n") == 1


def test_the_released_model_is_fetched_once(chat, checkpoint, tmp_path, monkeypatch):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(checkpoint, arcname=".")
    monkeypatch.setenv("CONVAI_CACHE", str(tmp_path))
    with FileServer() as server:
        server.files["/gpt_personachat_cache.tar.gz"] = archive.getvalue()
        monkeypatch.setattr(pretrained, "RELEASED_MODEL_URL", server.url("/gpt_personachat_cache.tar.gz"))
        replies = [chat("hi\n", *RANDOM_MODEL_OPTIONS, *model, model=None) for model in ([], ["--model", "openai-gpt"])]
    assert [status for _, _, status in replies] == [0, 0]
    assert replies[0][0] == replies[1][0] == chat("hi\n", *RANDOM_MODEL_OPTIONS)[0]
    assert len(server.requests) == 1


def test_without_a_network_the_released_model_is_missing_with_advice(chat, tmp_path, monkeypatch):
    with FileServer() as server:
        url = server.url("/gpt_personachat_cache.tar.gz")
    monkeypatch.setenv("CONVAI_CACHE", str(tmp_path))  # and the server is gone
    monkeypatch.setattr(pretrained, "RELEASED_MODEL_URL", url)
    _, notes, status = chat("hi\n", model=None)
    assert status == 2
    for needed in (url, "connection refused", "bash scripts/demo.sh", "--model_checkpoint"):
        assert needed in notes.splitlines()[-1]
