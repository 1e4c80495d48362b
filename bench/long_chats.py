"""The time to a reply's first token, turn by turn in a long chat: with what was read for earlier turns, and without.

    python -m bench.long_chats --tokenizer openai-gpt --data personachat.json --dtype int8

A line of JSON for each length of history that is kept: 2 exchanges as published, 8, and the whole dialog. Both sides
must say the same in fp32. The user's turns are those of the data; weights are random, as speed does not depend on them.
"""

import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

from bench.options import BenchOptions
from bench.setting import Disagreement, Setting
from convai.data.inputs import Prompt
from convai.dialog.agent import DialogAgent
from convai.dialog.prefix_memory import PrefixMemory
from convai.errors import report_user_errors
from convai.options import DecodingSettings, option, parser_of, positive_int

HISTORIES = {"2": 2, "8": 8, "whole": 1_000_000}
N_TOKENS = 12  # of a reply; about PersonaChat's mean


@dataclass(frozen=True)
class LongChatOptions:
    """Options of `python -m bench.long_chats`."""

    description: ClassVar[str] = "The time to a reply's first token, turn by turn, with earlier readings and without."

    tokenizer: str = option("", "folder or hub name with vocabulary and config.json (default: GPT's sizes)")
    data: str = option("example", "dialogs, in any form that train.py reads", names=["--data", "--dataset_path"])
    turns: int = option(8, "of each chat", kind=positive_int)
    repeats: int = option(3, "chats that each side has, all alike; the best counts", kind=positive_int)
    dtype: str = option("fp32", "numbers that both compute with", choices=["fp32", "bf16", "int8"])
    small: bool = option(False, "2 layers of 32: to see that it runs")


class CountingMemory(PrefixMemory):
    """Counts what the model has to read."""

    def __init__(self) -> None:
        super().__init__()
        self.n_read: list[int] = []  # of each prompt

    def take(self, prompt: Prompt):
        known = self.recall(prompt)
        self.n_read.append(len(prompt.input_ids) - (known.n_tokens if known else 0))
        return known

    def recall(self, prompt: Prompt):
        return super().take(prompt)


class NoMemory(CountingMemory):
    """Counts, and knows nothing."""

    def recall(self, prompt: Prompt):
        return None


@dataclass
class Chat:
    """What one side did: seconds to the first token and tokens read, turn by turn, and what it said."""

    seconds: list[float]
    n_read: list[int]
    replies: list[str]


def chat(agent: DialogAgent, turns: Sequence[str], memory: CountingMemory) -> Chat:
    agent.memory = memory
    agent.reset()
    seconds: list[float] = []
    for turn in turns:
        times: list[float] = []
        start = time.perf_counter()
        agent.reply(turn, note_time(times))
        seconds.append(times[0] - start)
    return Chat(seconds, memory.n_read, agent.history[1::2])


def note_time(times: list[float]) -> Callable[[str], None]:
    return lambda text: times.append(time.perf_counter())


def measure(setting: Setting, options: LongChatOptions, name: str) -> dict[str, Any]:
    """Return the report for one length of history; the two sides take turns."""
    greedy = DecodingSettings(no_sample=True, max_length=N_TOKENS, min_length=N_TOKENS)
    dialog = setting.dialogs["valid"][0]
    agent = DialogAgent(
        setting.load_ours(options.dtype), setting.tokenizer, dialog["personality"], max_history=HISTORIES[name],
        settings=greedy,
    )  # fmt: skip
    said = [utterance["history"][-1] for one in setting.dialogs["valid"] for utterance in one["utterances"]]
    turns = [said[turn % len(said)] for turn in range(options.turns)]
    sides: dict[str, list[Chat]] = {"with": [], "without": []}
    for _ in range(options.repeats):
        sides["with"].append(chat(agent, turns, CountingMemory()))
        sides["without"].append(chat(agent, turns, NoMemory()))
        if options.dtype == "fp32" and sides["with"][-1].replies != sides["without"][-1].replies:
            raise Disagreement("the replies with earlier readings differ from those without")
    # The chats are all alike, so the shortest time is the one that others disturbed least.
    best = {side: [min(times) for times in zip(*(one.seconds for one in chats), strict=True)]
            for side, chats in sides.items()}  # fmt: skip
    return {
        "name": "long_chats",
        "max_history": name,
        "ratio_at_last_turn": round(best["without"][-1] / best["with"][-1], 2),
        **{f"first_token_ms_{side}": [round(1000 * seconds, 1) for seconds in times] for side, times in best.items()},
        **{f"tokens_read_{side}": chats[0].n_read for side, chats in sides.items()},
        **setting.describe(),
        "command": shlex.join(["python", "-m", "bench.long_chats", *sys.argv[1:]]),
    }


@report_user_errors
def main(arguments: list[str] | None = None) -> None:
    options = parser_of(LongChatOptions, prog="python -m bench.long_chats").parse_args(arguments)
    shared = {one.name: getattr(options, one.name) for one in fields(options) if one.name != "turns"}
    setting = Setting(BenchOptions(names=["long_chats"], **shared))
    torch.manual_seed(setting.options.seed)
    for name in HISTORIES:
        print(json.dumps(measure(setting, options, name)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
