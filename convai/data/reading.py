"""The reading of one file or table: as the options say, and with what is to be told of it in the end."""

from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from convai.data.compressed import Meter
from convai.data.schema import KeyCheck, Losses, logger
from convai.errors import UserError
from convai.options import ReadingOptions

Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")

AS_BY_DEFAULT = ReadingOptions()


class Reading:
    """Counts what a file holds that is unknown, lost or at fault, while its rows are read one after the other."""

    def __init__(self, where: Path | str, options: ReadingOptions = AS_BY_DEFAULT, meter: Meter | None = None):
        """`meter`, if any, is told how far the reading is."""
        self.where = where
        self.meter = meter
        self.options = options
        self.keys = KeyCheck(where)
        self.losses = Losses()
        self.n_read = 0  # rows without a fault
        self.n_bad = 0
        self.first_fault = ""

    @property
    def skips_bad_rows(self) -> bool:
        return self.options.on_bad_row == "skip"

    def attempt(
        self,
        read: Callable[Concatenate["Reading", Arguments], Found],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Found | None:
        """Return `read(self, ...)`; where it raises a UserError and bad rows are skipped, count that and return None.

        What a row that is skipped has added to the counts of lost text and unknown keys is taken back.
        """
        if not self.skips_bad_rows:
            return read(self, *args, **kwargs)
        before = self.losses.counts.copy(), self.keys.counts.copy()
        try:
            return read(self, *args, **kwargs)
        except UserError as fault:
            self.losses.counts, self.keys.counts = before
            self.n_bad += 1
            self.first_fault = self.first_fault or str(fault)
            return None

    def tell(self) -> None:
        """Say in one warning each what is unknown, lost and skipped; UserError where every row is at fault."""
        if self.n_bad and not self.n_read:
            raise UserError(f"{self.where}: all of its {self.n_bad} rows are bad; the first: {self.first_fault}")
        self.keys.tell()
        self.losses.tell(self.where)
        if self.n_bad:
            logger.warning("%s: bad rows, which are skipped: %d; the first: %s", self.where, self.n_bad,
                           self.first_fault)  # fmt: skip
