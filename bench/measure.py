"""Interleaved timing of two or more ways to do the same work, and the memory that each takes.

Speeds of one machine drift (other processes, turbo clocks), so the ways take turns and are compared turn by turn.
"""

import ctypes
import gc
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

MEGABYTE = 1_000_000


class Measurement(NamedTuple):
    """What one way of doing the work achieved."""

    rates: list[float]  # examples a second, one for each turn
    peak_mb: float | None  # memory in use at most, beyond what was in use before; None where it cannot be read

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def compare(ways: Mapping[str, Callable[[], int]], repeats: int) -> dict[str, Measurement]:
    """Time each way `repeats` times, in turns; each returns how many examples it has processed."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            before = reset_peak_memory()
            start = time.perf_counter()
            n_examples = work()
            synchronize()
            rates[name].append(n_examples / (time.perf_counter() - start))
            if before is not None:
                peaks[name].append((peak_memory() - before) / MEGABYTE)
    return {name: Measurement(rates[name], max(peaks[name], default=None)) for name in ways}


def ratio(ours: Measurement, other: Measurement) -> float:
    """Return the median over the turns of how many times as fast ours was."""
    return statistics.median(a / b for a, b in zip(ours.rates, other.rates, strict=True))


def synchronize() -> None:
    """Wait for the GPU, whose work goes on after a call has returned."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak_memory() -> int | None:
    """Start a new peak and return the bytes in use now: of the GPU, else of this process; None where unknown."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _resident_bytes("VmRSS")
    except OSError:  # not Linux, or not allowed
        return None


def return_freed_memory() -> None:
    """Give back to the system what was freed, or it would hide how much is used next. With glibc only."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


def peak_memory() -> int:
    """Return the most bytes in use since `reset_peak_memory`."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident_bytes("VmHWM")


def anonymous_memory() -> int | None:
    """Return the bytes of this process's own memory, files mapped into it left out; None where unknown."""
    return _resident_bytes("RssAnon") if Path("/proc/self/status").exists() else None


class Peak:
    """The most memory that this process and those that it started had at one time, beyond what it had at first."""

    resident_mb: int | None = None  # files that are mapped, and what new processes import, included
    own_mb: int | None = None  # the processes' own memory


@contextmanager
def peak_of_processes(every_s: float = 0.05) -> Iterator[Peak]:
    """Watch memory while the block runs; the figures are there after it, None where they cannot be read."""
    peak, is_done = Peak(), threading.Event()
    if not Path("/proc/self/task").exists():
        yield peak
        return
    return_freed_memory()
    first = most = _memory_of_processes()

    def watch() -> None:
        nonlocal most
        while not is_done.wait(every_s):
            most = tuple(map(max, most, _memory_of_processes()))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        is_done.set()
        watcher.join()
        peak.resident_mb, peak.own_mb = (round((m - f) / MEGABYTE) for m, f in zip(most, first, strict=True))


def _memory_of_processes() -> tuple[int, ...]:
    """Return the bytes (resident, own) of this process and all below it."""
    pids, sums = [os.getpid()], [0, 0]
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            pids += [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
                     for child in (task / "children").read_text().split()]  # fmt: skip
        except OSError:  # it has ended
            continue
        fields = dict(line.split(":", 1) for line in status.splitlines())
        for n, key in enumerate(("VmRSS", "RssAnon")):
            sums[n] += 1024 * int(fields.get(key, "0").split()[0])
    return tuple(sums)


def cpu_seconds() -> float:
    """Return the processor time of this process and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _resident_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def large_product(device: torch.device, dtype: torch.dtype, size: int, repeats: int = 20) -> Callable[[], int]:
    """Return a function that computes large square matrix products and returns their floating-point operations.

    What it achieves is what a model could at best. `compare` takes it in turns with the model, as the speed drifts.
    """
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = a @ b

    def work() -> int:
        for _ in range(repeats):
            torch.mm(a, b, out=product)
        return repeats * 2 * size**3

    return work
