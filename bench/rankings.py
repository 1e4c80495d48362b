"""hits@1 of checkpoints by every way to rank candidates, from one pass over the data for each checkpoint.

    python -m bench.rankings RUN [RUN ...] --data DIR/final.json --bf16

The figures are those of convai_evaluation.py with `--rank_by`; those by a head that has never been trained are left
out.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from typing import Any, ClassVar

from tqdm import tqdm

from convai.dialog.agent import DialogAgent
from convai.errors import report_user_errors
from convai.evaluation.metrics import gold_rank
from convai.evaluation.own_evaluation import GoldReply, OwnEvaluation, shuffled_batches
from convai.options import (
    RANKINGS,
    DeviceOptions,
    EvaluationOptions,
    option,
    parser_of,
    positive_int,
)
from convai.options.shared import PrecisionOptions


@dataclass(frozen=True)
class RankedOptions:
    """What is ranked."""

    models: list[str] = option(MISSING, "folders or hub names of checkpoints", nargs="+", metavar="MODEL")
    data: str = option("example", "dialogs, in any form that train.py reads", names=["--data", "--dataset_path"])
    batch_size: int = option(16, "examples at once", kind=positive_int)


@dataclass(frozen=True)
class RankingsOptions(PrecisionOptions, DeviceOptions, RankedOptions):
    """Options of `python -m bench.rankings`."""

    description: ClassVar[str] = "hits@1 of checkpoints by every way to rank candidates."


def rank(agent: DialogAgent, examples: Sequence[GoldReply], batch_size: int) -> dict[str, float]:
    """Return hits@1, from 0 to 1, by each way that the model's head allows."""
    ways = [by for by in RANKINGS if "head" not in by or agent.model.config.ranking_is_trained]
    hits = dict.fromkeys(ways, 0)
    for part in tqdm(shuffled_batches(examples, batch_size), unit=" batches", disable=None, leave=False):
        scored = agent.rank_batch_by([(example.context, example.candidates) for example in part], ways)
        for by, rows in scored.items():
            hits[by] += sum(gold_rank(e.candidates, row, e.gold) == 1 for e, row in zip(part, rows, strict=True))
    return {by: n / len(examples) for by, n in hits.items()}


def row_of(model: str, options: RankingsOptions) -> dict[str, Any]:
    """Return a checkpoint's figures, with the standard error of hits@1 by the head, or, without one, by pmi."""
    agent = DialogAgent.load(model, device=options.device, precision=options.precision)
    evaluation = OwnEvaluation(EvaluationOptions(dataset_path=options.data))
    examples = evaluation.examples_to_rank(agent)
    figures = rank(agent, examples, options.batch_size)
    share = figures.get("head", figures["pmi"])
    error = math.sqrt(share * (1 - share) / len(examples))
    return {"model": model, "examples": len(examples), **figures, "standard error": error}


@report_user_errors
def main(arguments: list[str] | None = None) -> None:
    options = parser_of(RankingsOptions, prog="python -m bench.rankings").parse_args(arguments)
    for model in options.models:
        print(json.dumps(row_of(model, options)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
