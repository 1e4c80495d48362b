"""An inspection on the terminal: tables of figures, histograms of a line, and the first dialog in colours by speaker.

Where there are no colours, in pipes and with NO_COLOR, the same in plain text, with marks around what is a target.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from convai.data.inspection import CAN_BE_EMPTY, COMPARED, MEASURED, Inspection, PartInspection
from convai.data.lengths import ASCII_BLOCKS, BLOCKS, bins_of, drawn, quantile
from convai.data.measures import TokenMeasure
from convai.data.shown_input import ShownPart, show_input, show_text
from convai.io.plain_text import printable

MIN_BINS, MAX_BINS = 8, 24
TABLE_COLUMNS = 64  # what the table of lengths takes beside its bins
PIPE_COLUMNS = 100
SHOWN_CHARACTERS = 200  # of the longest text at most; the terminal's width decides
_STYLES = {"persona": "yellow", "user": "green", "agent": "cyan", "target": "cyan underline"}
_UNNAMED = "all"  # the name of the only part of data that name none


class Report:
    """Writes an inspection to a console."""

    def __init__(self, console: Console, inspection: Inspection):
        self.console = console
        self.inspection = inspection
        self.unit = inspection.measure.unit
        self.parts = {name or _UNNAMED: part for name, part in inspection.parts.items()}
        self.is_ascii = console.options.ascii_only

    def write(self) -> None:
        tables = [self.sizes(), self.lengths(), self.longest()]
        tables += [self.shared()] if len(self.parts) > 1 else []
        for table in tables:
            self.console.print(table)
            self.console.print()
        if "valid" not in self.parts:
            self.console.print("There is no valid part: training holds out 5 % of the conversations for it.\n")
        self.first_dialog()

    def sizes(self) -> Table:
        """Return how much there is in each part, and what is twice, unknown or empty."""
        table = self._table("", *self.parts)
        for label, cells in self._size_rows():
            table.add_row(label, *cells)
        return table

    def _size_rows(self) -> Iterator[tuple[str, list[str]]]:
        def each(value: Callable[[PartInspection], str]) -> list[str]:
            return [value(part) for part in self.parts.values()]

        yield "dialogs", each(lambda part: f"{part.n_dialogs:,}")
        yield "  said more than once", each(lambda part: _share(part.n_repeating("dialogs"), part.n_dialogs))
        yield "  without a persona", each(lambda part: _share(part.n_without_persona, part.n_dialogs))
        yield (
            "  that share theirs with others",
            each(lambda part: _share(part.n_repeating("personas"), part.n_personas)),
        )
        yield "different personas", each(lambda part: f"{part.n_different('personas'):,}")
        yield "  persona sentences", each(lambda part: f"{part.n_different('persona sentences'):,}")
        yield "replies to learn", each(lambda part: f"{part.n_replies:,}")
        yield "  said more than once", each(lambda part: _share(part.n_repeating("replies"), part.n_replies))
        yield "  that open the dialog", each(lambda part: _share(part.n_openings, part.n_replies))
        yield "candidates of a reply", each(lambda part: _range(part.candidates))
        if self.unit == "tokens":
            yield "text without a token", each(lambda part: f"{100 * part.lost_share:.2g} %")
        if limit := self.inspection.measure.max_positions:
            yield f"inputs cut to {limit:,} positions", each(lambda part: _share(part.n_cut, part.n_replies))
        for what in CAN_BE_EMPTY:
            if any(part.empty[what].n for part in self.parts.values()):
                yield f"empty {what}", each(partial(self._empty, what))

    def _empty(self, what: str, part: PartInspection) -> str:
        empty = part.empty[what]
        return f"{empty.n:,} (first: {empty.first})" if empty.n else "0"

    def lengths(self) -> Table:
        """Return quantiles and histograms; those of one kind share their bins, so that parts can be compared."""
        table = self._table(f"{self.unit} of", "", "median", "95 %", "longest", "histogram")
        n_bins = min(MAX_BINS, max(MIN_BINS, self.console.width - TABLE_COLUMNS))
        table.columns[-1].justify = "left"
        for what in MEASURED:
            counts: Counter[int] = sum((part.lengths[what].counts for part in self.parts.values()), Counter())
            if not counts:
                continue
            whole = bins_of(counts, n_bins)
            for number, (name, part) in enumerate(self.parts.items()):
                lengths = part.lengths[what]
                if lengths:
                    numbers = (lengths.quantile(0.5), lengths.quantile(0.95), lengths.max)
                    bins = whole.of(lengths.counts)
                    end = f"{whole.end - 1:,}{'+' if bins.has_rest else ''}"
                    line = f"{whole.start:,} {drawn(bins, ASCII_BLOCKS if self.is_ascii else BLOCKS)} {end}"
                    table.add_row("" if number else what, name, *(f"{n:,}" for n in numbers), line)
        return table

    def longest(self) -> Table:
        """Return where the longest of each kind is, and how it begins."""
        table = self._table("the longest of", self.unit, "where", "what")
        for column in table.columns[2:]:
            column.justify, column.no_wrap = "left", True
        table.expand, table.columns[-1].ratio = True, 1  # what does not fit is cut there
        for what in MEASURED:
            name, part = max(self.parts.items(), key=lambda item: item[1].lengths[what].max)
            lengths = part.lengths[what]
            if lengths:
                text = _visible(lengths.longest_text[:SHOWN_CHARACTERS].strip(), self.is_ascii)
                table.add_row(what, f"{lengths.max:,}", f"{name} {lengths.longest}", Text(text))
        return table

    def shared(self) -> Table:
        """Return what later parts have in common with earlier ones."""
        overlaps = self.inspection.overlaps()
        table = self._table("of these", *(f"in {one.later}, {one.earlier} has" for one in overlaps))
        for what in overlaps[0].shared:
            table.add_row(
                what if what not in COMPARED else f"different {what}", *(_of(*one.shared[what]) for one in overlaps)
            )
        return table

    def first_dialog(self) -> None:
        """Write the input of the first dialog's last reply, a line for each speaker."""
        dialog, measure = self.inspection.first, self.inspection.measure
        assert dialog is not None
        number, last = len(dialog["utterances"]), dialog["utterances"][-1]
        persona, history, candidates = dialog["personality"], last["history"], last["candidates"]
        if isinstance(measure, TokenMeasure):
            shown = show_input(measure.builder, measure.max_history, persona, history, candidates)
            cut = ", cut" if shown.was_cut else ""
            title = (f"Reply {number} of {number} in the first dialog, as the model sees it: "
                     f"{shown.n_tokens:,} of {measure.max_positions:,} positions{cut}")  # fmt: skip
            parts = shown.parts
        else:
            title = f"Reply {number} of {number} in the first dialog, and what it answers to"
            parts = show_text(measure.max_history, persona, history, candidates[-1])
        self.console.print(Text(title, style="bold"))
        self.console.print(self._dialog(parts))
        others = f", and to rank first among {len(candidates):,}" if len(candidates) > 1 else ""
        self.console.print(Text(f"The target is what the model learns to say{others}.", style="dim"))

    def _dialog(self, parts: Sequence[ShownPart]) -> Table:
        has_styles = self.console.color_system is not None and not self.console.no_color
        table = Table.grid(padding=(0, 2))
        for who, lead, text in parts:
            said = Text()
            said.append(_visible(lead, self.is_ascii), style="dim")
            said.append(" " if lead and not lead.endswith("\n") else "")
            text = _visible(text, self.is_ascii)
            said.append(text if who != "target" or has_styles else f"_{text}_", style=_STYLES[who])
            table.add_row(Text(who, style=_STYLES[who].split()[0]), said)
        return table

    def _table(self, *titles: str) -> Table:
        table = Table(box=box.SIMPLE_HEAD if not self.is_ascii else box.ASCII2, pad_edge=False, show_edge=False)
        for number, title in enumerate(titles):
            table.add_column(title, justify="right" if number else "left", no_wrap=number == 0)
        return table


def console_of(file: Any) -> Console:
    """Return a console: on a terminal with its width and colours, elsewhere plain."""
    is_terminal = file.isatty()
    return Console(file=file, width=None if is_terminal else PIPE_COLUMNS, highlight=False, markup=False, emoji=False)


def _share(n: int, of: int) -> str:
    return f"{n:,} ({100 * n / of:.3g} %)" if n and of else f"{n:,}"


def _of(n: int, of: int) -> str:
    return f"{n:,} of {of:,}" + (f" ({100 * n / of:.3g} %)" if n else "")


def _range(counts: Counter[int]) -> str:
    """Return the numbers that occur: "20", or "1 to 20, mostly 20"."""
    if not counts:
        return "-"
    lowest, highest = min(counts), max(counts)
    if lowest == highest:
        return f"{lowest}" if lowest > 1 else "the reply alone"
    return f"{lowest} to {highest}, median {quantile(counts, 0.5)}"


def _visible(text: str, is_ascii: bool) -> str:
    """Return text that cannot send commands to the terminal, its line breaks seen."""
    return printable(text.replace("\n", "\\n" if is_ascii else "↵"))
