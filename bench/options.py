"""Options of `python -m bench`."""

from dataclasses import MISSING, dataclass
from typing import ClassVar

from convai.options import DeviceOptions, non_negative_int, option, positive_int

MODULE_OF = {"train": "training", "hits": "scoring", "ppl": "scoring", "reply": "replies", "f1": "replies",
             "data": "data", "cost": "cost"}  # fmt: skip


@dataclass(frozen=True)
class WorkOptions:
    """What is measured, and on what."""

    names: list[str] = option(MISSING, ", ".join(MODULE_OF), nargs="+", choices=list(MODULE_OF), metavar="NAME")
    tokenizer: str = option(
        "",
        "folder or hub name with vocabulary and config.json (default: a vocabulary learned from the example set, "
        "and GPT's sizes)",
        metavar="MODEL",
    )
    family: str = option("openai-gpt", "kind of model for that default", choices=["openai-gpt", "gpt2"])
    data: str = option("example", "dialogs, in any form that train.py reads", names=["--data", "--dataset_path"])
    examples: int = option(0, "examples per turn; 0: some for each benchmark", kind=non_negative_int)
    reference_examples: int = option(
        0,
        "examples of the slow reference per turn, except in training; 0: some for each benchmark",
        kind=non_negative_int,
    )
    batch_size: int = option(4, "training examples per forward pass", kind=positive_int)
    repeats: int = option(3, "turns that each side is timed", kind=positive_int)
    personachat_size: bool = option(False, "data: as many dialogs as PersonaChat has, made of those given")
    dtype: str = option(
        "fp32", "numbers that ours computes with; int8: not in training", choices=["fp32", "bf16", "int8"]
    )
    small: bool = option(False, "2 layers of 32: to see that it runs")
    seed: int = option(42, "random seed for weights and for the choice of examples", kind=int)


@dataclass(frozen=True)
class BenchOptions(DeviceOptions, WorkOptions):
    """Options of `python -m bench`."""

    description: ClassVar[str] = (
        "Ours against plain reference implementations, in one run on one machine; each benchmark prints a line of JSON."
    )
