"""What an evaluation shows while it goes, prints and writes: our figures beside the published ones."""

import errno
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from convai.errors import UserError, argument
from convai.io.files import write_text
from convai.options import EvaluationOptions

FIGURES = {
    "hits@1": ["hits@1", "hits@5", "hits@10"],
    "ppl": ["ppl", "ppl_all_pieces", "token_ppl", "n_words", "n_words_skipped", "n_tokens"],
    "f1": ["f1"],
}
FINAL_LINES = {"hits@1": "FINAL Hits@1{label}: {:.3f}", "ppl": "FINAL PPL{label}: {:.2f}", "f1": "FINAL F1: {:.4f}"}
PUBLISHED = {  # hits@1 in per cent, word perplexity, F1 in per cent
    "published recipe": ("> 79", "20.5", "16.5"),
    "released model": ("71.5", "-", "-"),
    "published recipe, one GPU": ("75.0-76.1", "20.7", "16.59"),
    "competition entry, validation": ("82.1", "17.51", "19.09"),
    "best found anywhere": ("90.3", "-", "21.99"),
}
# A file whose folder cannot be written, or that is mounted by itself, can only be written in its place.
CANNOT_BE_REPLACED = (errno.EACCES, errno.EPERM, errno.EBUSY, errno.EROFS)


class Ranking(NamedTuple):
    """What hits@k was ranked by, and among which distractors: figures by other means are not to be compared."""

    by: str  # one of options.RANKINGS
    distractors: str  # "drawn (KIND)", "given" with the data, or, where examples differ, "drawn (KIND) and given"
    n_distractors: tuple[int, int] | None = None  # the fewest and the most of an example; None: unknown

    @classmethod
    def of(cls, by: str, n_distractors: Sequence[int], n_drawn_for: int, drawn_by: str) -> "Ranking":
        """Sum up the examples: each one's number of distractors, for how many they were drawn, and of which kind."""
        drawn = f"drawn ({drawn_by})"
        kind = "given" if not n_drawn_for else drawn if n_drawn_for == len(n_distractors) else f"{drawn} and given"
        return cls(by, kind, (min(n_distractors), max(n_distractors)))

    @property
    def is_as_published(self) -> bool:
        """Whether the figure may stand beside the published ones: by the head, distractors given or drawn at random."""
        return self.by == "head" and ("drawn" not in self.distractors or "(random)" in self.distractors)

    @property
    def label(self) -> str:
        fewest, most = self.n_distractors or (None, None)
        number = "" if fewest is None else f"{fewest} " if fewest == most else f"{fewest}-{most} "
        return f"by {self.by}, {number}{self.distractors} distractors"

    def facts(self) -> dict[str, Any]:
        """Return what is written beside the figures."""
        return {"ranked_by": self.by, "distractors": self.distractors, "n_distractors": self.n_distractors}


class Result(NamedTuple):
    """The figures of one metric, over `n_done` of `n_total` examples where it was interrupted, or why it has none."""

    figures: dict[str, float]
    n_done: int
    n_total: int
    interrupted: bool
    refusal: str = ""
    ranking: Ranking | None = None  # of hits@k

    @classmethod
    def refused(cls, reason: str) -> "Result":
        return cls({}, 0, 0, False, reason)


def run(eval_type: str, n_total: int, steps: Iterator[dict[str, float]]) -> Result:
    """Take all `steps`, each of which returns the figures so far, behind a progress bar; Ctrl-C ends them early."""
    latest: dict[str, float] = {"n_examples": 0}
    interrupted = False
    bar_style: dict[str, Any] = {"ncols": 100, "mininterval": 0.2 if sys.stderr.isatty() else 30}
    with tqdm(total=n_total, desc=eval_type, unit=" examples", **bar_style) as bar:
        try:
            for latest in steps:
                name = headline(eval_type, latest)
                bar.set_postfix({name: f"{latest[name]:.4g}"}, refresh=False)
                bar.update(int(latest["n_examples"]) - bar.n)
        except KeyboardInterrupt:
            interrupted = True
    return Result(latest, int(latest["n_examples"]), n_total, interrupted)


def headline(eval_type: str, figures: Mapping[str, float]) -> str:
    """Return the figure that stands for a metric: where the published perplexity is not defined, that of all pieces."""
    return "ppl_all_pieces" if eval_type == "ppl" and "ppl" not in figures else eval_type


def print_final_line(eval_type: str, result: Result) -> None:
    """Print the line that the published script ended with."""
    if not result.figures.get("n_examples"):
        print(f"{eval_type}: interrupted before anything was scored")
        return
    partial = f" (partial: {result.n_done} of {result.n_total} examples)" if result.interrupted else ""
    # By the head it is the published script's figure, and its line.
    label = f" ({result.ranking.label})" if result.ranking and not result.ranking.is_as_published else ""
    name = headline(eval_type, result.figures)
    label = " (all pieces)" if name == "ppl_all_pieces" else label
    print(FINAL_LINES[eval_type].format(result.figures[name], label=label) + partial, flush=True)


def print_table(results: Mapping[str, Result], data: str) -> None:
    """Print our figures beside the published ones."""
    ours = {name: value for result in results.values() for name, value in result.figures.items()}

    def cell(name: str, scale: float) -> str:
        return f"{scale * ours[name]:.2f}" if name in ours else "-"

    ranking = next((result.ranking for result in results.values() if result.ranking), None)
    is_published = ranking is None or ranking.is_as_published  # the others' hits@1 are all by a head
    hits = cell("hits@1", 100) if is_published else "-"
    is_partial = any(result.interrupted for result in results.values())
    n_examples = max(result.n_done for result in results.values())
    rows = {"this run" + (" (partial)" if is_partial else ""): (hits, cell("ppl", 1), cell("f1", 100))}
    print(f"\n{'':32}{'hits@1 %':>12}{'word ppl':>12}{'F1 %':>12}")
    for label, cells in (rows | PUBLISHED).items():
        print(f"{label:32}" + "".join(f"{value:>12}" for value in cells))
    print(f"this run: {n_examples} examples of {data}; published: ConvAI2's 7,801, 20 candidates each")
    if "hits@5" in ours:
        label = f" ({ranking.label})" if ranking else ""
        print(
            f"hits@1{label} {cell('hits@1', 100)} %, hits@5 {cell('hits@5', 100)} %, hits@10 {cell('hits@10', 100)} %"
        )
    if "token_ppl" in ours:
        if "ppl" not in ours:
            print("the published word perplexity is defined for the vocabularies of GPT and GPT-2 only")
        print(f"word perplexity over all pieces of a word: {cell('ppl_all_pieces', 1)}")
        print(
            f"words scored: {ours['n_words']:.0f}, skipped, as the dictionary lacks them: {ours['n_words_skipped']:.0f}"
        )
        print(f"token perplexity (per BPE token; not to be compared with those per word): {cell('token_ppl', 1)}")


def check_output(path: str) -> None:
    """Refuse an --output that cannot be written before hours are spent."""
    if not path:
        return
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        open(path, "a").close()
    except OSError as error:
        reason = f"{argument('output')} {path} cannot be written ({error.strerror})"
        raise UserError(f"{reason}; choose another file.") from error


def write_results(args: EvaluationOptions, results: Mapping[str, Result], data: str) -> None:
    """Write options, figures and the published figures to `--output`."""
    content = {
        "data": data,
        "options": vars(args),
        "partial": any(result.interrupted for result in results.values()),
        "results": {
            name: {"n_total": result.n_total}
            | ({"refusal": result.refusal} if result.refusal else {})
            | (result.ranking.facts() if result.ranking else {})
            | {key: value if math.isfinite(value) else None for key, value in result.figures.items()}
            for name, result in results.items()
        },
        "published": {
            label: dict(zip(("hits@1 %", "word ppl", "F1 %"), cells, strict=True)) for label, cells in PUBLISHED.items()
        },
    }
    path, text = Path(args.output), json.dumps(content, indent=2) + "\n"
    try:
        write_text(path.resolve() if path.is_file() else path, text)  # where it is a link, it stays one
    except OSError as error:
        if error.errno not in CANNOT_BE_REPLACED:
            raise
        path.write_text(text, encoding="utf-8")
