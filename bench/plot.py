"""Shows what the benchmarks measured, as a plot and as a table in Markdown: how many times as fast as the plain
reference, and what an example costs.

    python -m bench.plot bench/results/*.jsonl --output bench/results/speed.png

Reads the lines that `python -m bench` prints. Needs matplotlib (requirements-dev.txt).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from convai.errors import UserError, report_user_errors
from convai.options import OneLineParser, path

LABELS = {
    "train": "training, 4 candidates",
    "hits": "hits@1, 20 candidates",
    "ppl": "word perplexity",
    "reply": "a reply of 20 tokens",
    "f1-16": "replies in batches of 16",
    "f1-64": "replies in batches of 64",
    "data": "tokenizing",
}
COLOURS = {"fp32": "#33628d", "bf16": "#3a9679", "int8": "#c77b30"}


@report_user_errors
def main(arguments: Sequence[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m bench.plot", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=path, metavar="FILE", help="what `python -m bench` printed")
    parser.add_argument("--output", type=path, default="bench/results/speed.png", help="the image")
    options = parser.parse_args(arguments)
    reports = read_reports(list(map(Path, options.files)))
    print(table(reports), end="")
    figure, (left, candidates, history) = plt.subplots(1, 3, figsize=(14, 4.2), width_ratios=(2, 1.2, 1.2))
    draw_ratios(left, in_order(reports)[::-1])
    draw_cost(candidates, reports, "candidates")
    draw_cost(history, reports, "history")
    figure.suptitle(f"Against a plain implementation in the same run: {reports[0]['model']}; {reports[0]['device']}")
    figure.tight_layout()
    try:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(options.output, dpi=110)
    except OSError as error:
        raise UserError(f"--output {options.output} cannot be written ({error.strerror}).") from error


def read_reports(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the reports of all files; UserError where there are none."""
    try:
        reports = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise UserError(f"not the output of `python -m bench`: {error}.") from error
    if not all(isinstance(report, dict) and "name" in report for report in reports):
        raise UserError(f"{', '.join(map(str, paths))}: not the output of `python -m bench`.")
    if not reports:
        raise UserError(f"{paths[0]} holds no reports; run `python -m bench NAME > {paths[0]}` first.")
    return reports


def table(reports: list[dict[str, Any]]) -> str:
    """Return the benchmarks with both sides' speed, their ratio and memory beyond the model, in Markdown."""
    lines = [
        "| work | numbers | ours | reference, fp32 | ratio | memory, MB | reference's |",
        "|---|---|---|---|---|---|---|",
    ]
    for report in in_order(reports):
        ours, reference = (f"{float(f'{report[side]:.3g}'):,g}" for side in ("ours", "reference"))
        memory = [f"{report[key]:,}" if report[key] else "" for key in ("peak_mb", "reference_peak_mb")]
        cells = [
            LABELS[report["name"]],
            "" if report["name"] == "data" else report["dtype"],
            f"{ours} {report['unit']}",
            reference,
            f"{report['ratio']:.1f}",
        ]
        lines.append(f"| {' | '.join([*cells, *memory])} |")
    return "\n".join(lines) + "\n"


def in_order(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the reports of LABELS in the order of these."""
    known = [report for report in reports if report["name"] in LABELS]
    return sorted(known, key=lambda report: (list(LABELS).index(report["name"]), list(COLOURS).index(report["dtype"])))


def draw_ratios(axes, reports: list[dict[str, Any]]) -> None:
    """Draw a bar for each benchmark and precision: how many times as fast as the reference in fp32."""
    labels = [f"{LABELS[report['name']]}, {report['dtype']}" for report in reports]
    labels = [label.removesuffix(", fp32") for label in labels]
    bars = axes.barh(labels, [report["ratio"] for report in reports], color=[COLOURS[r["dtype"]] for r in reports])
    axes.bar_label(bars, [f"{report['ratio']:.1f} ×" for report in reports], padding=3)
    axes.set_xscale("log")
    axes.set_xlim(1, 3 * max((report["ratio"] for report in reports), default=1))
    axes.set_xlabel("times as fast as the reference")
    axes.spines[["top", "right"]].set_visible(False)


def draw_cost(axes, reports: list[dict[str, Any]], what: str) -> None:
    """Draw the seconds that an example takes in training, ours and the reference's, as `what` grows."""
    points = [report for report in reports if report["name"].startswith(f"cost-{what}-")]
    number = "num_candidates" if what == "candidates" else "max_history"
    points.sort(key=lambda report: report[number])
    axes.set_visible(bool(points))
    if not points:
        return
    numbers = [report[number] for report in points]
    for side, colour in (("reference", "#999999"), ("ours", COLOURS["fp32"])):
        axes.plot(numbers, [1 / report[side] for report in points], marker="o", color=colour, label=side)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(numbers, map(str, numbers), minor=False)
    axes.minorticks_off()
    axes.set_xlabel("candidates" if what == "candidates" else "exchanges of history, 4 candidates")
    axes.set_ylabel("seconds an example, forward and backward")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main())
