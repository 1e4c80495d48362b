"""What merging an adapter costs in each precision: token perplexity of one checkpoint, adapter apart and merged.

    python -m bench.merging RUN/checkpoints/update-00000250 --data DIR/final.json

Four models of the same checkpoint score the same gold replies:

    fp32             merged in fp32, as the run folder holds it
    bf16 apart       base and adapter in bf16, not merged, as one would serve several adapters of one base
    bf16 merged      merged in fp32, then rounded: what --bf16 makes of the run folder
    merged in bf16   base rounded first, the adapter's product rounded and added in bf16: what merging on the fly does
"""

import json
import math
import sys
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from convai.dialog.agent import Context, DialogAgent
from convai.errors import UserError, report_user_errors
from convai.evaluation.own_evaluation import OwnEvaluation, shuffled_batches
from convai.model.decoder import DecoderModel
from convai.model.loading import load_model, load_tokenizer
from convai.model.lora import ADAPTER_CONFIG, merge_lora
from convai.model.quantization import lower_precision
from convai.options import EvaluationOptions, option, parser_of, positive_int

Question = tuple[Context, list[int]]


@dataclass(frozen=True)
class MergingOptions:
    """Options of `python -m bench.merging`."""

    description: ClassVar[str] = "What merging an adapter costs in each precision."
    checkpoint: str = option(MISSING, "a checkpoint with an adapter, RUN/checkpoints/update-N", metavar="CHECKPOINT")
    data: str = option("example", "dialogs, in any form that train.py reads", names=["--data", "--dataset_path"])
    examples: int = option(400, "replies that are scored", kind=positive_int)
    batch_size: int = option(16, "examples at once", kind=positive_int)


class Way:
    """A model of the checkpoint in one precision, merged or not."""

    def __init__(self, folder: Path, *, is_merged: bool, rounds_first: bool = False, precision: str = "bf16"):
        self.tokenizer = load_tokenizer(folder)
        model = load_model(folder, self.tokenizer, keeps_adapter=True)
        assert isinstance(model, DecoderModel), type(model)
        if rounds_first:
            lower_precision(model, precision)
        if is_merged:
            merge_lora(model.causal_lm)
        if not rounds_first:
            lower_precision(model, precision)
        self.agent = DialogAgent(model, self.tokenizer)

    def questions(self, options: MergingOptions) -> list[list[Question]]:
        """Return batches of what is scored: contexts with gold replies."""
        evaluation = OwnEvaluation(EvaluationOptions(dataset_path=options.data))
        batches = shuffled_batches(evaluation.gold_replies(), options.batch_size)
        chosen = batches[: math.ceil(options.examples / options.batch_size)]
        return [[(e.context, self.tokenizer.encode(e.gold)) for e in batch] for batch in chosen]

    def losses(self, batches: list[list[Question]]) -> Tensor:
        """Return the negative log-probability of each token of the replies, their ends included."""
        losses = []
        for batch in tqdm(batches, unit=" batches", disable=None, leave=False):
            for (_, reply), logits in zip(batch, self.agent.reply_logits(batch), strict=True):
                targets = torch.tensor([*reply, self.tokenizer.eos_id])[: len(logits)]
                losses.append(F.cross_entropy(logits.float(), targets, reduction="none"))
        return torch.cat(losses)


@report_user_errors
def main(arguments: list[str] | None = None) -> None:
    options = parser_of(MergingOptions, prog="python -m bench.merging").parse_args(arguments)
    folder = Path(options.checkpoint)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"{folder} holds no adapter; give a checkpoint of a run with --lora_rank.")
    ways = {
        "fp32": {"is_merged": True, "precision": "fp32"},
        "bf16 apart": {"is_merged": False},
        "bf16 merged": {"is_merged": True},
        "merged in bf16": {"is_merged": True, "rounds_first": True},
    }
    exact = batches = None
    for name, choices in ways.items():
        way = Way(folder, **choices)
        batches = batches or way.questions(options)
        losses = way.losses(batches)
        exact = losses if exact is None else exact
        row = {
            "way": name,
            "replies": sum(map(len, batches)),
            "token perplexity": math.exp(losses.mean()),
            "mean difference of a token's log-probability": float((losses - exact).abs().mean()),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
