"""A run's validations, kept in metrics.jsonl: which of them was the best, and how many have passed since."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convai.io.files import write_text

METRICS_FILE = "metrics.jsonl"
SIGN = {"hits@1": 1, "perplexity": -1}  # times a figure: the greater, the better


def read_validations(run: Path) -> list[dict]:
    """Return the records of RUN/metrics.jsonl, the oldest first; none where there is no file. Raises ValueError."""
    path = run / METRICS_FILE
    return list(map(json.loads, path.read_text(encoding="utf-8-sig").splitlines())) if path.is_file() else []


def deciding_metrics(records: Sequence[dict], best_metric: str) -> list[str]:
    """Return the metrics that decide, `best_metric` first: those that every record has, as a null says nothing."""
    order = [best_metric, *(SIGN.keys() - {best_metric})]
    return [metric for metric in order if all(record.get(metric) is not None for record in records)]


def best_of(records: Sequence[dict], best_metric: str) -> dict:
    """Return the best of some validations; the other metric breaks ties of `best_metric`, and then the earlier wins."""
    metrics = deciding_metrics(records, best_metric)

    def merits(record: dict) -> list[float]:
        values = [SIGN[metric] * record[metric] for metric in metrics]
        return [-math.inf if math.isnan(value) else value for value in values]

    return max(records, key=merits)


def after_an_update(records: Sequence[dict]) -> list[dict]:
    """Return the validations whose weights can be kept: not the one before the first update."""
    return [record for record in records if record["updates"] > 0]


def with_sources_apart(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return an evaluator's metrics, those of single data sets, "perplexity/NAME", under "sources", by NAME."""
    told: dict[str, Any] = {name: value for name, value in metrics.items() if "/" not in name}
    for full_name, value in metrics.items():
        metric, slash, source = full_name.partition("/")
        if slash:
            told.setdefault("sources", {}).setdefault(source, {"hits@1": None})[metric] = value
    return told


def shown(hits: float | None) -> str:
    """Return hits@1 as it is printed, "-" where it says nothing."""
    return "-" if hits is None else f"{hits:.3f}"


class ValidationHistory:
    """The validations of a run that goes on."""

    def __init__(self, best_metric: str, run: Path, update: int = 0):
        """Read what `run` holds up to `update`; what came after it will come again."""
        self.metric = best_metric
        self.path = run / METRICS_FILE
        self.records = [record for record in read_validations(run) if record["updates"] <= update]

    def rewrite(self) -> None:
        """Take what came after `update` out of the file."""
        write_text(self.path, "".join(map(_json_line, self.records)))

    def append(self, updates: int, epoch: int, metrics: dict[str, Any], to_file: bool) -> None:
        self.records.append({"updates": updates, "epoch": epoch, **metrics})
        if to_file:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_json_line(self.records[-1]))

    def has(self, update: int) -> bool:
        return any(record["updates"] == update for record in self.records)

    def is_best(self, metrics: dict[str, Any]) -> bool:
        """Whether these figures would be better than all so far; those before the first update do not count."""
        return best_of([*after_an_update(self.records), metrics], self.metric) is metrics

    @property
    def n_since_best(self) -> int:
        """How many validations in a row have brought nothing better."""
        learned = after_an_update(self.records)
        if not learned:
            return 0
        best = best_of(learned, self.metric)
        return len(learned) - 1 - next(n for n, record in enumerate(learned) if record is best)

    @property
    def deciding_metric(self) -> str:
        """The metric that decides which validation is the best, before the other breaks ties."""
        return deciding_metrics(after_an_update(self.records), self.metric)[0]


def _json_line(record: dict) -> str:
    return json.dumps(record) + "\n"
