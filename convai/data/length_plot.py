"""The lengths of an inspection drawn into an image: a histogram for each kind, its parts on top of each other."""

from collections import Counter
from pathlib import Path
from typing import Any

from convai.data.inspection import MEASURED, Inspection
from convai.data.lengths import bins_of
from convai.errors import UserError, disk_reason
from convai.io.files import atomic_write

N_BINS = 60
COLOURS = ("#33628d", "#c77b30", "#3a9679")


def check_plot(path: Path) -> None:
    """Raise UserError where no image of that name can be drawn."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise UserError(f"--plot needs the package matplotlib ({error}); `pip install matplotlib`, or leave it "
                        "out.") from error  # fmt: skip
    if _kind(path) not in FigureCanvasAgg.filetypes:
        raise UserError(f"--plot {path}: no image is of this kind; end its name in .png, .svg or .pdf.")


def plot_lengths(inspection: Inspection, path: Path) -> None:
    """Draw them into an image of the kind that its name says; UserError where it cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, what in zip(figure.subplots(2, 2).flat, MEASURED, strict=True):
        _draw(axes, inspection, what)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format=_kind(path), dpi=110)
    except OSError as error:
        raise UserError(f"--plot {path} cannot be written ({disk_reason(error)}).") from error


def _kind(path: Path) -> str:
    return path.suffix.lower().lstrip(".")


def _draw(axes: Any, inspection: Inspection, what: str) -> None:
    lengths = {name or "all": part.lengths[what] for name, part in inspection.parts.items() if part.lengths[what]}
    counts: Counter[int] = sum((one.counts for one in lengths.values()), Counter())
    unit = inspection.measure.unit
    axes.set_xlabel(f"{unit} of {what}")
    axes.set_ylabel("share, %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    if not counts:
        return
    whole = bins_of(counts, N_BINS)
    edges = [whole.start + whole.width * n for n in range(len(whole.heights) + 1)]
    has_rest = False
    for (name, one), colour in zip(lengths.items(), COLOURS, strict=False):
        bins = whole.of(one.counts)
        has_rest |= bins.has_rest
        shares = [100 * height / one.n for height in bins.heights]
        axes.stairs(shares, edges, color=colour, fill=len(lengths) == 1, label=f"{name}, median {one.quantile(0.5)}")
    if has_rest:
        axes.set_xlabel(f"{unit} of {what} (the last bin: {edges[-2]} to {max(counts)})")
    limit = inspection.measure.max_positions
    if what == "inputs" and limit and limit <= 2 * max(counts):
        axes.axvline(limit, color="#999999", linestyle="--", label=f"the model's {limit} positions")
    axes.legend(frameon=False)
