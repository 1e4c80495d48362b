"""Ours against plain reference implementations, in one run on one machine; each benchmark prints a line of JSON.

    python -m bench train hits ppl reply f1 data cost
    python -m bench train --tokenizer openai-gpt --data personachat.json --dtype bf16

Before anything is timed both sides must have computed the same numbers. The two take turns, and `ratio` is the median
over the turns of how many times as fast ours is. Weights are random, as speed does not depend on them.
"""

import importlib
import json
import logging
import sys

from bench.options import MODULE_OF, BenchOptions
from convai.errors import report_user_errors
from convai.options import OptionsParser, parser_of


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


def parser() -> OptionsParser:
    return parser_of(BenchOptions, prog="python -m bench")


if __name__ == "__main__":
    sys.exit(main())
