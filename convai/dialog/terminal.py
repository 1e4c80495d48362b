"""Text in and out of a chat: line editing, colours and word wrap on a terminal, plain lines elsewhere.

All text of users and models passes `printable` or `plain_line` (io/plain_text.py) before it is shown, so that none of
it can send commands to the terminal.
"""

import contextlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator

from convai.io.plain_text import printable

# The end of an unfinished reply: its last word, and a lone apostrophe before it ("i ' m" becomes "i'm").
_UNSETTLED_END = re.compile(r"\s*('\s*)?\S*$")
_STYLES = {"you": "1;32", "bot": "1;36", "note": "2"}


def settled(text: str) -> str:
    """Return the part of an unfinished reply that no further token changes: decoding joins words and punctuation."""
    end = _UNSETTLED_END.search(text)
    return text[: end.start()] if end else text


class Terminal:
    """Standard input and output of a chat. `is_interactive` says whether both are a terminal."""

    def __init__(self):
        self.is_interactive = all(stream and stream.isatty() for stream in (sys.stdin, sys.stdout))
        self.has_colors = (
            self.is_interactive and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
        )
        self.suggestion = ""  # stands in the next line to edit
        for stream in (sys.stdin, sys.stdout):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # whatever arrives is text, whatever leaves can be written
        if not self.is_interactive and hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(newline="\n")  # a carriage return within a line does not make two of it

    def lines(self) -> Iterator[str]:
        """Yield the user's lines until they end, or on a terminal Ctrl-C or Ctrl-D is pressed."""
        if not self.is_interactive:
            yield from sys.stdin or ()
            return
        from prompt_toolkit import PromptSession
        from prompt_toolkit.formatted_text import FormattedText
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.keys import Keys

        keys = KeyBindings()
        # It takes a typed or pasted "ESC [ 31 m" for a report of the mouse, and fails on it.
        keys.add(Keys.Vt100MouseEvent, eager=True)(lambda event: None)
        session: PromptSession[str] = PromptSession(key_bindings=keys, enable_suspend=True)
        label = FormattedText([("bold ansigreen" if self.has_colors else "", "you: ")])
        while True:
            try:
                line = session.prompt(label, default=self.suggestion)
            except (EOFError, KeyboardInterrupt):
                return
            self.suggestion = ""
            yield line

    def say(self, text: str, label: str = "", style: str = "") -> None:
        """Write what a command shows: a paragraph on a terminal, otherwise a line to standard error."""
        if not self.is_interactive:
            print(label + printable(text), file=sys.stderr, flush=True)
            return
        paragraph = self.paragraph(label, style)
        paragraph.grow(text)
        paragraph.end()

    def note(self, text: str) -> None:
        """Write what is not part of the chat, dimmed on a terminal."""
        self.say(text, style="note")

    def no_reply(self) -> None:
        """Answer a line that the agent does not reply to: not at all on a terminal, otherwise with an empty line.

        So with a pipe or a file there is a line on standard output for each line of input, in their order.
        """
        if not self.is_interactive:
            _write("\n")

    def paragraph(self, label: str = "", style: str = "") -> "Paragraph":
        """Begin a paragraph after `label`; without a label all of it is in that style."""
        if self.is_interactive:
            from prompt_toolkit.utils import get_cwidth

            return Paragraph(label, _STYLES.get(style, "") if self.has_colors else "", get_cwidth)
        return Paragraph(label)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[Callable[[], bool]]:
        """Within this block Ctrl-C on a terminal makes the function given true; only a second one interrupts."""
        pressed = False

        def press(*_) -> None:
            nonlocal pressed
            if pressed:
                raise KeyboardInterrupt
            pressed = True

        if not self.is_interactive:
            yield lambda: False
            return
        before = signal.signal(signal.SIGINT, press)
        try:
            with _without_echo():
                yield lambda: pressed
        finally:
            signal.signal(signal.SIGINT, before)


class Paragraph:
    """Text on standard output that may still grow, with a hanging indent below the label.

    Given `width_of`, the columns that a text takes, it breaks lines between words at the terminal's width.
    """

    def __init__(self, label: str = "", style: str = "", width_of: Callable[[str], int] | None = None):
        self.text = ""
        self.width_of = width_of
        self.indent = self.column = len(label)
        self.columns = shutil.get_terminal_size().columns
        self.style_end = "\x1b[0m" if style else ""
        _write(f"\x1b[{style}m" if style else "")
        if label:  # the style is the label's
            _write(label + self.style_end)
            self.style_end = ""

    def grow(self, text: str) -> None:
        """Write what `text` has more than was written so far, which it begins with."""
        text = printable(text)
        new, self.text = text[len(self.text) :], max(text, self.text, key=len)
        if self.width_of is None:
            return _write(new)
        for space, word in re.findall(r"( *)([^ ]+)", new):
            width = self.width_of(word)
            if self.column + len(space) + width < self.columns or self.column == self.indent:
                self.column += len(space) + width
                _write(space + word)
            else:
                self.column = self.indent + width
                _write("\n" + " " * self.indent + word)

    def end(self) -> None:
        _write(f"{self.style_end}\n")


def _write(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


@contextlib.contextmanager
def _without_echo() -> Iterator[None]:
    """Keep what is typed meanwhile out of what is written; it is read afterwards."""
    try:
        import termios
    except ImportError:  # not on Windows
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
