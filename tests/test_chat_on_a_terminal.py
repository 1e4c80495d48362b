"""The chat as a process: on a pseudo-terminal as a user meets it, and before a reader that leaves."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import chat_program
import pexpect
import pytest
from chat_program import RANDOM_MODEL_OPTIONS
from conftest import ROOT

import interact

checkpoint = chat_program.checkpoint


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
