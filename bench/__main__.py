"""Ours against plain reference implementations, in one run on one machine; each benchmark prints a line of JSON.

    python -m bench train hits ppl reply f1 data cost
    python -m bench train --tokenizer openai-gpt --data personachat.json --dtype bf16

Before anything is timed both sides must have computed the same numbers. The two take turns, and `ratio` is the median
over the turns of how many times as fast ours is. Weights are random, as speed does not depend on them.
"""

import argparse
import importlib
import json
import logging
import sys

from convai.errors import report_user_errors
from convai.options import OneLineParser, add_device_option, non_negative_int, positive_int

MODULE_OF = {"train": "training", "hits": "scoring", "ppl": "scoring", "reply": "replies", "f1": "replies",
             "data": "data", "cost": "cost"}  # fmt: skip


@report_user_errors
def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    import transformers

    from bench.setting import Setting

    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # it would report an interrupt beside our own line
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    setting = Setting(options)
    for name in options.names:
        benchmark = getattr(importlib.import_module(f"bench.{MODULE_OF[name]}"), name)
        for report in benchmark(setting):
            print(json.dumps(report | setting.describe()), flush=True)


def parser() -> argparse.ArgumentParser:
    own = OneLineParser(prog="python -m bench", description=__doc__.split("\n")[0])
    own.add_argument("names", nargs="+", choices=MODULE_OF, metavar="NAME", help=", ".join(MODULE_OF))
    own.add_argument(
        "--tokenizer",
        default="",
        metavar="MODEL",
        help="folder or hub name with vocabulary and config.json (default: a vocabulary learned from the example set, "
        "and GPT's sizes)",
    )
    own.add_argument("--family", choices=["openai-gpt", "gpt2"], default="openai-gpt", help="of that default")
    own.add_argument(
        "--data", "--dataset_path", dest="data", default="example", help="dialogs, in any form that train.py reads"
    )
    own.add_argument("--examples", type=non_negative_int, default=0, help="per turn (default: some for each benchmark)")
    own.add_argument(
        "--reference_examples",
        type=non_negative_int,
        default=0,
        help="of the slow reference per turn, except in training (default: some for each benchmark)",
    )
    own.add_argument("--batch_size", type=positive_int, default=4, help="training examples per forward pass")
    own.add_argument("--repeats", type=positive_int, default=3, help="turns that each side is timed")
    own.add_argument(
        "--personachat_size", action="store_true", help="data: as many dialogs as PersonaChat has, made of those given"
    )
    own.add_argument("--dtype", choices=["fp32", "bf16", "int8"], default="fp32", help="of ours; int8: not in training")
    own.add_argument("--small", action="store_true", help="2 layers of 32: to see that it runs")
    own.add_argument("--seed", type=int, default=42, help="of weights and of the choice of examples")
    add_device_option(own)
    return own


if __name__ == "__main__":
    sys.exit(main())
