"""Record a chat in a real terminal as an animated picture: python scripts/record_chat.py docs/chat.svg

Types the lines of SESSION into bash, in the repository with the environment active, and draws what the terminal showed
and when. Greedy replies of models/demo (scripts/demo.sh trains it). Needs pexpect and pyte: pip install pexpect pyte.

The picture holds no script: each piece of text has a style sheet's animation that shows it at its time. Where a reader
wants no motion, and in programs that know none, the last screen stands still.
"""

import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SESSION = (
    "python interact.py --model_checkpoint models/demo --no_sample \\\n"
    '    --personality "i live in cairo ." "my pet is a parrot ." "i work as a nurse ."\n',
    "hello . where do you live ?\n",
    "do you have a pet ?\n",
    "what is your job ?\n",
    "/persona i live in oslo . i have a turtle . i am a pilot .\n",
    "where do you live ?\n",
    "do you have a pet ?\n",
    "what is your job ?\n",
)
COLUMNS, ROWS = 88, 27
SECONDS_AT_MOST = 1.5  # without anything new; longer waits, as for the model to load, are cut to this
SECONDS_OF_THE_END = 6
WIDTH, HEIGHT, MARGIN = 8.4, 19, 16  # of a character and of a line, and around all, in pixels
COLOURS = {  # light, dark
    "text": ("#1f2328", "#e6edf3"),
    "green": ("#1a7f37", "#3fb950"),
    "cyan": ("#0b6a8f", "#39c5cf"),
    "note": ("#59636e", "#9198a1"),
}


class Screen(NamedTuple):
    """What the terminal showed from a time on: (character, colour, is bold) by (row, column); and the cursor's."""

    seconds: float
    cells: dict[tuple[int, int], tuple[str, str, bool]]
    cursor: tuple[int, int]


class Span(NamedTuple):
    """Characters beside each other that came and went together; `end` is None where they stay."""

    row: int
    column: int
    text: str
    colour: str
    is_bold: bool
    start: float
    end: float | None


def main() -> None:
    (path,) = sys.argv[1:]
    screens = shortened(list(replayed(typed(SESSION))))
    Path(path).write_text(picture(screens), encoding="utf-8")


def typed(lines: Sequence[str]) -> Iterator[tuple[float, bytes]]:
    """Type the lines into bash at a person's pace; yield what arrives on the screen, and when."""
    import pexpect

    own = {"PS1": "$ ", "PS2": "> ", "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", "PROMPT_TOOLKIT_NO_CPR": "1"}
    bash = pexpect.spawn(
        "bash", ["--norc", "--noprofile"], cwd=ROOT, env={**os.environ, **own}, dimensions=(ROWS, COLUMNS)
    )
    bash.delaybeforesend = None
    rng = random.Random(0)
    started = time.monotonic()

    def arriving(seconds: float, until: bytes = b"") -> Iterator[tuple[float, bytes]]:
        """Yield what arrives for so long, or until something does and nothing follows it for a moment."""
        ends, seen = time.monotonic() + seconds, b""
        while (left := ends - time.monotonic()) > 0:
            try:
                chunk = bash.read_nonblocking(4096, timeout=min(left, 0.4))
            except pexpect.TIMEOUT:
                if until and until in seen:
                    return
                continue
            seen += chunk
            yield time.monotonic() - started, chunk

    yield from arriving(5, until=b"$ ")
    for i, line in enumerate(lines):
        for character in line:
            bash.send("\r" if character == "\n" else character)
            yield from arriving(rng.uniform(0.05, 0.12) if i else 0.04)
        # The model takes seconds to load, a tiny model's reply does not.
        yield from arriving(1.6 if i else 60, until=b"" if i else b"leaves.")
    bash.close(force=True)


def replayed(chunks: Iterator[tuple[float, bytes]]) -> Iterator[Screen]:
    """Yield what a terminal shows after each of the chunks."""
    import pyte

    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    for seconds, chunk in chunks:
        stream.feed(chunk.replace(b"\x1b[2m", b"\x1b[90m"))  # pyte knows no dimmed text: grey instead
        cells = {}
        for row, columns in screen.buffer.items():
            for column, cell in columns.items():
                if cell.data.strip():
                    colour = {"green": "green", "cyan": "cyan", "brightblack": "note"}.get(cell.fg, "text")
                    cells[row, column] = (cell.data, colour, cell.bold)
        yield Screen(seconds, cells, (screen.cursor.y, screen.cursor.x))


def shortened(screens: list[Screen]) -> list[Screen]:
    """Return the screens that differ from the one before, from second 0 on, waits cut to SECONDS_AT_MOST."""
    kept, now = [screens[0]._replace(seconds=0.0)], 0.0
    before = screens[0]
    for screen in screens[1:]:
        if (screen.cells, screen.cursor) != (before.cells, before.cursor):
            now += min(screen.seconds - before.seconds, SECONDS_AT_MOST)
            kept.append(screen._replace(seconds=now))
            before = screen
    return kept


def spans(screens: list[Screen]) -> list[Span]:
    """Return all that was ever on the screen, what came and went together as one."""
    lives = []  # (row, start, end, column, cell)
    open_since: dict[tuple[int, int], tuple[float, tuple]] = {}
    for screen in [*screens, None]:
        for place, (start, cell) in list(open_since.items()):
            if screen is None or screen.cells.get(place) != cell:
                lives.append((place[0], start, screen.seconds if screen else None, place[1], cell))
                del open_since[place]
        for place, cell in (screen.cells if screen else {}).items():
            open_since.setdefault(place, (screen.seconds, cell))
    lives.sort(key=lambda life: (life[0], life[1], life[2] is None, life[2] or 0, life[3]))
    found: list[Span] = []
    for row, start, end, column, (character, colour, is_bold) in lives:
        last = found[-1] if found else None
        gap = column - last.column - len(last.text) if last else 0
        group = (row, start, end, colour, is_bold)
        if last and gap in (0, 1) and group == (last.row, last.start, last.end, last.colour, last.is_bold):
            found[-1] = last._replace(text=last.text + " " * gap + character)  # a blank between words is nobody's
            continue
        found.append(Span(row, column, character, colour, is_bold, start, end))
    return found


def picture(screens: list[Screen]) -> str:
    """Return the screens as an animated SVG that begins anew when it has ended."""
    total = screens[-1].seconds + SECONDS_OF_THE_END
    n_rows = 1 + max(row for screen in screens for row, _ in screen.cells)
    width, height = round(COLUMNS * WIDTH + 2 * MARGIN), n_rows * HEIGHT + 2 * MARGIN

    def percent(seconds: float) -> str:
        return f"{100 * seconds / total:.2f}%"

    names: dict[tuple[float, float | None], str] = {}
    texts, rules = [], []
    for span in spans(screens):
        life = span.start, span.end
        if life not in names:
            names[life] = f"t{len(names)}"
            gone = f"{percent(span.end)},to{{visibility:hidden}}" if span.end is not None else ""
            shown = f"{percent(span.start)}{{visibility:visible}}"
            rules.append(f"@keyframes {names[life]}{{0%{{visibility:hidden}}{shown}{gone}}}")
            rules.append(f".{names[life]}{{animation-name:{names[life]}{';visibility:hidden' if gone else ''}}}")
        classes = " ".join([names[life], *([span.colour] if span.colour != "text" else []), *["b"][: span.is_bold]])
        x, y = MARGIN + span.column * WIDTH, MARGIN + span.row * HEIGHT + 14
        length = f' textLength="{len(span.text) * WIDTH:.4g}"' if len(span.text) > 1 else ""
        texts.append(f'<text class="{classes}" x="{x:.4g}" y="{y:.4g}"{length}>{escape(span.text, quote=False)}</text>')
    steps, at = [], ""
    for screen in screens:
        row, column = screen.cursor
        before, at = at, f"translate({column * WIDTH:.4g}px,{row * HEIGHT}px)"
        if at != before:
            steps.append(f"{percent(screen.seconds)}{{transform:{at}}}")
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in COLOURS.items()) for i in (0, 1))
    colours = "".join(f".{name}{{fill:var(--{name})}}" for name in COLOURS if name != "text")
    style = f"""
:root{{{light}--ground:#f6f8fa;--edge:#d1d9e0}}
@media (prefers-color-scheme:dark){{:root{{{dark}--ground:#0d1117;--edge:#3d444d}}}}
text,.cursor{{fill:var(--text);animation:{total:.2f}s step-end infinite}}
text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre}}
{colours}.b{{font-weight:bold}}
.cursor{{opacity:.6;transform:{at};animation-name:cursor}}
@media (prefers-reduced-motion:reduce){{text,.cursor{{animation:none}}}}
@keyframes cursor{{{"".join(steps)}}}
{"".join(rules)}
"""
    said = [line.strip() for line in SESSION]
    description = f"{len(said) - 2} questions to two personas, each answered as that persona would."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-labelledby="title desc">\n'
        f'<title id="title">A chat in a terminal</title>\n<desc id="desc">{description}</desc>\n'
        f"<style>{style}</style>\n"
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8" fill="var(--ground)" '
        'stroke="var(--edge)"/>\n'
        f'<rect class="cursor" x="{MARGIN}" y="{MARGIN}" width="{WIDTH}" height="17"/>\n'
        + "\n".join(texts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    main()
