"""The chat: its text helpers, the whole program on standard input, and on a pseudo-terminal as a user meets it."""

import contextlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
from itertools import dropwhile
from pathlib import Path

import pexpect
import pytest
from conftest import ROOT, TEXTS, make_dialogs, tiny_model
from http_server import FileServer

import interact
from convai.dialog.terminal import plain_line, printable, settled
from convai.io import pretrained
from convai.model.double_heads import save_model
from convai.model.tokenization import train_vocabulary
from convai.model.word_splitting import join_punctuation

PERSONA = ["i keep bees .", "i have two dogs ."]
RANDOM_MODEL_OPTIONS = ("--personality", *PERSONA, "--device", "cpu")


# Text


@pytest.mark.parametrize(
    ("typed", "plain"),
    [
        ("  hello \t there \r\n", "hello   there"),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07text", "red text"),
        ("a\x07b\x00c\x7fd\x9b1me", "abcde"),
        ("\x1b[", "["),
        ("left\u202eright", "leftright"),
        ("fox \N{FOX FACE} 你好 e\u0301", "fox \N{FOX FACE} 你好 e\u0301"),
        ("\N{WOMAN}\u200d\N{ROCKET}", "\N{WOMAN}\u200d\N{ROCKET}"),
        ("byte \udcff", "byte \ufffd"),
        ("\ufeff /h\ufeffi", "/hi"),
    ],
)
def test_plain_line(typed, plain):
    assert plain_line(typed) == plain


@pytest.mark.parametrize(
    ("so_far", "stays"),
    [
        ("hello the", "hello"),
        ("hello there.", "hello"),  # "there ..." may come
        ("i do n", "i do"),  # "i don't"
        ("well i '", "well i"),  # "well i'm"
        ("well i ' r", "well i"),  # "well i're"
        ("hello", ""),
        ("", ""),
    ],
)
def test_settled(so_far, stays):
    assert settled(so_far) == stays


def test_what_has_settled_is_never_taken_back(tokenizer):
    """Whatever tokens follow, the reply begins with all that was shown before."""
    rng = random.Random(0)
    tricky = [tokenizer.encode(text) for text in ("'", "n't", "'s", "s", "re", "t", "do", "n", ".", "?", "i", "\u2019")]
    pieces = [
        i for i, token in enumerate(tokenizer.tokens) if token in {*"'srevlntdm", "'s", "n'", "Ġ", "Ġ'", "Ċ", "â"}
    ]
    likely = [i for ids in tricky for i in ids] + pieces
    for _ in range(5000):
        n_tokens = rng.randrange(1, 9)
        ids = [rng.choice(likely) if rng.random() < 0.8 else rng.randrange(len(tokenizer)) for _ in range(n_tokens)]
        shown = [printable(settled(tokenizer.decode(ids[:n]))) for n in range(n_tokens)]
        shown.append(printable(tokenizer.decode(ids)))
        longest = max(shown, key=len)
        assert longest == shown[-1]
        assert all(longest.startswith(text) for text in shown), shown


def test_sentences_of_a_typed_persona():
    assert interact.split_sentences("i like tea. i am 3.5 m tall! so") == ["i like tea.", "i am 3.5 m tall!", "so"]


# The program on standard input


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny random model with room for very long replies, and no personas of its own."""
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    tokenizer = train_vocabulary([*TEXTS, "0 1"], "openai-gpt", 400)
    save_model(tiny_model(tokenizer, n_positions=4096), folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def chat(checkpoint, monkeypatch, capsys):
    """Run the program in this process on lines of input; returns its output, what it noted, and its exit status."""

    def run(text: str | bytes, *options: str, model: Path | None = checkpoint) -> tuple[str, str, int]:
        where = ["--model_checkpoint", str(model)] if model else []
        monkeypatch.setattr(sys, "argv", ["interact.py", *where, *options])
        content = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        status = 0
        try:
            interact.main()
        except SystemExit as exit_:
            status = exit_.code
        output = capsys.readouterr()
        return output.out, output.err, status

    return run


def test_piped_lines_are_answered_a_line_each(chat, checkpoint):
    output, notes, status = chat("hi\n\n   \nhow are\ryou?\r\nbye", *RANDOM_MODEL_OPTIONS)
    assert status == 0
    assert [bool(line) for line in lines_of(output)] == [True, False, False, True, True]
    assert "\x1b" not in output + notes
    assert notes.startswith(f"loading {checkpoint} ...\n")
    assert "- i keep bees.\n- i have two dogs.\n" in notes
    again = chat("hi\nhow are you?\nbye\n", *RANDOM_MODEL_OPTIONS)[0]  # decoding is seeded by 42
    assert lines_of(again) == [line for line in lines_of(output) if line]


def said_of_commands(notes: str) -> list[str]:
    """The lines of standard error after the greeting, which ends with the persona at the start."""
    lines = notes.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("The agent"))
    return lines[start + 1 :] if "no persona" in lines[start] else list(dropwhile(is_fact, lines[start + 1 :]))


def is_fact(line: str) -> bool:
    return line.startswith("- ")


def lines_of(output: str) -> list[str]:
    """The lines of standard output, each of which ends with a line feed and no other character that could."""
    assert output.endswith("\n") and output.splitlines() == output[:-1].split("\n")
    return output[:-1].split("\n")


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


# Personas


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


# The program as a process


ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "NO_COLOR"},
    "TERM": "xterm-256color",
    "OMP_NUM_THREADS": "1",
    "PROMPT_TOOLKIT_NO_CPR": "1",  # pexpect does not answer where the cursor is
    "LC_ALL": "C.UTF-8",
}


def test_a_reader_that_leaves_ends_the_chat_quietly(checkpoint):
    command = [sys.executable, "interact.py", "--model", str(checkpoint), *RANDOM_MODEL_OPTIONS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, text=True, **pipes) as process:
        process.stdin.write("hi\n")
        process.stdin.flush()
        assert process.stdout.readline().strip()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("hi\n" * 3)
            process.stdin.close()
        notes = process.stderr.read()
        assert process.wait(timeout=30) == 0
    assert "Traceback" not in notes and "BrokenPipe" not in notes


TERMINAL_COMMAND = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class Session:
    """The real program on a pseudo-terminal."""

    def __init__(self, checkpoint: Path, *options: str, columns: int = 80, **environment: str):
        self.child = pexpect.spawn(
            sys.executable, ["interact.py", "--model", str(checkpoint), *RANDOM_MODEL_OPTIONS, *options], cwd=str(ROOT),
            dimensions=(24, columns), env=ENVIRONMENT | environment, encoding="utf-8", timeout=60,
        )  # fmt: skip
        self.child.delaybeforesend = None
        self.greeting = self.until_prompt()

    def until_prompt(self) -> str:
        """Return all that is written until the program waits for a line."""
        self.child.expect_exact("\x1b[?2004h")  # prompt_toolkit asks for pastes in brackets
        output = self.child.before
        self.child.expect_exact("you:")
        return output

    def say(self, text: str) -> str:
        """Type a line; return what is written after it until the next prompt."""
        self.child.send(text + "\r")
        return self.answer()

    def answer(self) -> str:
        self.child.expect_exact("\x1b[?2004l")  # the line was taken
        self.echo = self.child.before
        return self.until_prompt()

    def leave(self, key: str) -> int:
        """Press a key at the prompt; return the exit status."""
        self.child.send(key)
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus


def plain(output: str) -> str:
    return TERMINAL_COMMAND.sub("", output).replace("\r", "")


@pytest.fixture(scope="module")
def session(checkpoint):
    """One chat in colour on 80 columns for many checks, with short greedy replies."""
    session = Session(checkpoint, "--max_length", "8", "--no_sample")
    yield session
    session.child.close(force=True)


@pytest.fixture(scope="module")
def narrow_session(checkpoint):
    """One chat without colours on 40 columns, whose replies take very long."""
    session = Session(checkpoint, "--max_length", "2000", "--min_length", "2000", columns=40, NO_COLOR="1")
    yield session
    session.child.close(force=True)


def history(session: Session) -> list[str]:
    """The lines of /history, with their wrapping undone."""
    return plain(session.say("/history")).replace("\n     ", " ").splitlines()


class TestOnATerminal:
    def test_the_start_shows_model_persona_and_help(self, session, checkpoint):
        start = plain(session.greeting)
        assert f"loading {checkpoint} ...\n" in start
        assert "The agent's persona:\n- i keep bees.\n- i have two dogs.\n/help lists the commands" in start

    def test_a_reply_stands_after_its_label_in_colour(self, session):
        output = session.say("hi there")
        assert re.fullmatch(r"bot: \S.*\n", plain(output))
        assert output.startswith("\x1b[1;36mbot: \x1b[0m")

    @pytest.mark.parametrize("text", ["I \N{BLACK HEART SUIT} \N{FOX FACE}", "你好 żółw", "e\u0301te\u0301"])
    def test_unicode_and_emoji(self, session, text):
        session.say("/reset")
        assert plain(session.say(text)).startswith("bot: ")
        assert history(session)[0] == f"you: {text}"

    def test_empty_lines_are_ignored(self, session):
        session.say("/reset")
        assert plain(session.say("")) == plain(session.say("   ")) == ""
        assert history(session) == ["Nothing has been said yet."]

    @pytest.mark.parametrize(
        ("typed", "taken"),
        [
            ("\x1b[200~\x1b[41mred\x1b[0m \x1b]0;title\x07text\x1b[201~", "red text"),  # pasted
            ("\x1b[200~two\nlines\x1b[201~", "two lines"),
            ("\x16\x1b[41mquoted", "quoted"),  # Ctrl-V takes the next key as it is
            ("\x1b[41mtyped", "typed"),
            ("a\x07bc\x00", "abc"),
            ("\x1b[A\x1b[B\x1b[Dx\x1b[Cy\x1bOP\x1b[15~z", "xyz"),  # arrows and function keys
        ],
    )
    def test_control_characters_are_never_echoed_raw(self, session, typed, taken):
        session.say("/reset")
        output = session.say(typed)
        assert plain(output).startswith("bot: ")
        for written in (session.echo, output):
            assert "\x1b[41m" not in written and "\x1b]" not in written and "\x07" not in written
            assert "\x00" not in written
        assert history(session)[0] == f"you: {taken}"

    def test_bytes_that_are_no_text(self, session):
        session.say("/reset")
        os.write(session.child.child_fd, b"\xff\xfe\xf0\x9f ok\r")
        assert plain(session.answer()).startswith("bot: ")
        assert history(session)[0].endswith(" ok")

    def test_a_line_of_ten_thousand_characters(self, session):
        session.say("/reset")
        line = "do you like tea ? " * 556
        assert len(line) > 10_000
        output = session.say(f"\x1b[200~{line}\x1b[201~")
        assert plain(output).startswith("bot: ")
        assert history(session)[0] == f"you: {line.strip()}"

    def test_inputs_can_be_edited_and_recalled(self, session):
        session.say("/reset")
        session.say("hello worlt\x7fd\x01oh \x05!")  # Backspace, Ctrl-A, Ctrl-E
        session.say("\x1b[A?")  # the line before, by the arrow
        said = history(session)
        assert (said[0], said[2]) == ("you: oh hello world!", "you: oh hello world!?")

    def test_commands(self, session, tmp_path):
        session.say("/reset")
        for name in interact.COMMANDS:
            assert f"\n/{name} " in f"\n{plain(session.say('/help'))}"
        assert plain(session.say("/set temperature 0.9")) == "temperature 0.9\n"
        assert plain(session.say("/set top_p 7")) == "top_p must be from 0 to 1, not 7.0\n"
        assert plain(session.say("/sing")) == "there is no command /sing; /help lists them\n"
        assert plain(session.say("/persona")) == "The agent's persona:\n- i keep bees.\n- i have two dogs.\n"
        session.say("hi")
        path = tmp_path / "chat.txt"
        assert plain(session.say(f"/save {path}")).replace("\n", " ").strip() == f"Saved as {path}."
        assert path.read_text().splitlines()[-2:] == history(session)

    def test_a_suggestion_stands_ready_to_be_said(self, session):
        session.say("/reset")
        assert plain(session.say("/suggest")) == "Enter says this; edit it first if you like.\n"
        assert plain(session.say(" ok")).startswith("bot: ")
        assert re.fullmatch(r"you: \S.* ok", history(session)[0])

    def test_ctrl_d_leaves(self, session):
        assert session.leave("\x04") == 0


class TestLongRepliesOnANarrowTerminal:
    def test_a_reply_streams_and_ctrl_c_stops_it(self, narrow_session, tmp_path):
        """2,000 tokens take many seconds: text before the end of them has been streamed."""
        session = narrow_session
        session.child.send("hi\r")
        session.child.expect(r"bot: \S+ \S+ \S+")
        shown = session.child.after
        session.child.sendintr()
        output = plain(shown + session.until_prompt())
        assert output.endswith("...\n")
        # Wrapped between words, under the label.
        lines = output.splitlines()
        assert max(map(len, lines)) <= 40
        assert all(line.startswith("     ") for line in lines[1:])
        path = tmp_path / "chat.txt"
        session.say(f"/save {path}")
        said = path.read_text().splitlines()[-1]
        assert said.startswith("bot: ") and len(said.split()) < 1500
        assert " ".join(output.split()) == f"{' '.join(said.split())} ..."

    def test_the_chat_goes_on_after_it(self, narrow_session):
        session = narrow_session
        session.say("/set min_length 1")
        session.say("/set max_length 5")
        assert plain(session.say("and now?")).startswith("bot: ")
        assert [line[:5] for line in history(session)] == ["you: ", "bot: "] * 2

    def test_no_color_means_no_colors(self, narrow_session):
        output = narrow_session.greeting + narrow_session.say("/help")
        codes = {code for found in re.findall(r"\x1b\[([0-9;]*)m", output) for code in found.split(";")}
        assert codes <= {"", "0"}
        assert max(map(len, plain(output).splitlines())) <= 40 + len("loading ") + 200  # paths are not broken

    def test_ctrl_c_at_the_prompt_leaves(self, narrow_session):
        assert narrow_session.leave("\x03") == 0
