"""Which of transformers' causal language models read candidate trees: every type is tried, as at load (see probe.py).

    python -m bench.backbones --output docs/backbones.md

Prints a table in Markdown, or writes it between the marks of a page. What is tried is a tiny model of a type's default
config; where all of its layers are of one kind, also models in which other kinds take turns with it.
"""

import copy
import inspect
import math
import multiprocessing
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from convai.errors import UserError, report_user_errors
from convai.io.files import read_text, write_text
from convai.options import option, parser_of, path, positive_int

SEEDS = (0, 1, 2)
MARKS = ("<!-- backbones: python -m bench.backbones -->\n", "<!-- end of backbones -->\n")


@dataclass(frozen=True)
class BackboneOptions:
    """Options of `python -m bench.backbones`."""

    description: ClassVar[str] = "Try which of transformers' causal language models read candidate trees."
    types: list[str] = option([], "model types to try (default: all)", nargs="+", metavar="TYPE")
    output: str = option("", "page to write the table into, between its marks", kind=path, metavar="PAGE")
    limit: int = option(60, "seconds that a type may take", kind=positive_int)


class Report(NamedTuple):
    """What came out for a type."""

    name: str
    verdict: str  # exact, wrong, fails, cannot be built
    difference: float = math.nan
    remark: str = ""


@report_user_errors
def main(arguments: Sequence[str] | None = None) -> None:
    options = parser_of(BackboneOptions, prog="python -m bench.backbones").parse_args(arguments)
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if unknown := [name for name in options.types if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]:
        raise UserError(f"transformers has no causal language model of type {unknown[0]!r}.")
    if options.output:  # before the minutes that it takes
        replaced(read_text(Path(options.output)), "")
    reports = []
    for report in try_types(options.types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), options.limit):
        reports.append(report)
        print(f"{report.name}: {report.verdict} {report.remark}", file=sys.stderr, flush=True)
    text = table(reports, transformers.__version__)
    if options.output:
        write_text(Path(options.output), replaced(read_text(Path(options.output)), text))
    else:
        print(text, end="")


def replaced(page: str, text: str) -> str:
    """Return a page with `text` between its marks; UserError where it has none."""
    before, start, rest = page.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (start and end):
        raise UserError(f"the page has no place for the table; put there: {' '.join(mark.strip() for mark in MARKS)}")
    return f"{before}{start}{text}{end}{after}"


def try_types(names: Sequence[str], limit: int) -> Iterator[Report]:
    """Try one type after the other, each within `limit` seconds, in a process that may crash."""
    context = multiprocessing.get_context("spawn")
    process = None
    for name in names:
        if process is None:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            ours.recv()  # imports are over
        ours.send(name)
        report = Report(name, "cannot be built", remark=f"not in {limit} s")
        try:
            if ours.poll(limit):
                yield ours.recv()
                continue
        except EOFError:
            report = Report(name, "cannot be built", remark="its process ended")
        process.kill()
        process.join()
        process = None
        yield report
    if process is not None:
        process.kill()


def _work(connection: Connection) -> None:
    """Try the types whose names come in, and send back what came out."""
    import torch
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    torch.set_num_threads(1)  # on models this tiny, threads only wait for each other
    connection.send(None)
    while True:
        connection.send(try_type(connection.recv()))


def try_type(name: str) -> Report:
    """Try a type's default config."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from convai.model import probe
    from convai.model.tiny_config import tiny_copy

    for settings in (CONFIG_MAPPING[name], lambda: completed(CONFIG_MAPPING[name]())):
        outcome = "cannot be built"
        try:
            tiny = tiny_copy(settings())
            probe.random_model(tiny, 0)
            outcome = "fails"
            verdict = probe.try_out(tiny, SEEDS)
            break
        except Exception as error:  # whatever a family's code raises
            failure = Report(name, outcome, remark=probe.failure(error))
    else:
        return failure
    if verdict.wrong:
        return Report(name, "fails" if math.isnan(verdict.difference) else "wrong", verdict.difference, verdict.wrong)
    others = ", ".join(f"`{kind}`" for kind in refused_layers(tiny))
    remarks = [f"refused with layers {others}"] if others else []
    if verdict.difference > probe.TINY_TOLERANCE:
        remarks.append("rounding: its own two attentions differ as much without trees")
    return Report(name, "exact", verdict.difference, "; ".join(remarks))


def completed(settings: Any) -> Any:
    """Return settings with what default configs leave open and real ones do not."""
    n_heads = getattr(settings, "num_attention_heads", None)
    defaults = {"num_key_value_heads": n_heads, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
    if isinstance(n_heads, int) and isinstance(width := getattr(settings, "hidden_size", None), int):
        defaults["head_dim"] = width // n_heads
    if isinstance(n_layers := getattr(settings, "num_hidden_layers", None), int):
        defaults["layer_types"] = ["full_attention"] * n_layers
    for key, value in defaults.items():
        if getattr(settings, key, value) is None:
            setattr(settings, key, value)
    return settings


def refused_layers(tiny: Any) -> list[str]:
    """Return the kinds of layers, of those that a type's code names and its default config lacks, that are refused."""
    from transformers import AutoModelForCausalLM
    from transformers.configuration_utils import ALLOWED_ATTN_LAYER_TYPES

    from convai.model import probe

    text = tiny.get_text_config(decoder=True)
    own = getattr(text, "layer_types", None)
    if not own or len(set(own)) > 1:
        return []
    code = inspect.getsource(inspect.getmodule(AutoModelForCausalLM._model_mapping[type(tiny)]))
    refused = []
    for kind in ALLOWED_ATTN_LAYER_TYPES:
        if kind in own or not re.search(rf"[\"']{kind}[\"']", code):
            continue
        mixed = copy.deepcopy(tiny)
        text = mixed.get_text_config(decoder=True)
        text.layer_types = [kind if layer % 2 else one for layer, one in enumerate(own)]
        for key in ("sliding_window", "attention_chunk_size"):
            if hasattr(text, key):
                setattr(text, key, getattr(text, key) or 16)
        try:
            if probe.try_out(mixed).wrong:
                refused.append(kind)
        except Exception:
            refused.append(kind)
    return refused


def table(reports: Sequence[Report], version: str) -> str:
    """Return what came out in Markdown: counts, what can be used, what is refused and why, and what was not tried."""
    of = {verdict: [one for one in reports if one.verdict == verdict] for verdict in ("exact", "wrong", "fails")}
    unbuilt = [one for one in reports if one.verdict == "cannot be built"]
    n_exact, n_wrong, n_fails = map(len, of.values())
    lines = [
        f"Of {len(reports)} types of causal language models in transformers {version}, {n_exact} are exact, {n_wrong}",
        f"would be wrong and {n_fails} fail; of {len(unbuilt)} no tiny model could be built.",
        "",
        "| model_type | verdict | largest difference | |",
        "|---|---|---|---|",
    ]
    for verdict, said in (("exact", "exact"), ("wrong", "refused: wrong"), ("fails", "refused: fails")):
        for one in of[verdict]:
            difference = "" if math.isnan(one.difference) else f"{one.difference:.0e}"
            lines.append(f"| {one.name} | {said} | {difference} | {one.remark.replace('|', '/')} |")
    lines += [f"| {one.name} | cannot be built | | {one.remark.replace('|', '/')} |" for one in unbuilt]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
