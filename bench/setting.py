"""What all benchmarks share: options, a model of random weights in both forms, data, and the common part of reports.

How fast a model is does not depend on what it has learned, so random weights will do; vocabulary and data do matter.
"""

import json
import platform
import random
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bench import reference
from bench.options import BenchOptions
from convai.data.build import build_arrays
from convai.data.conversation import Dialog
from convai.data.formats import find_source
from convai.data.inputs import InputBuilder
from convai.data.store import DialogSplit, Example
from convai.device import choose_device
from convai.errors import UserError
from convai.io.pretrained import locate_checkpoint, read_config
from convai.model.loading import load_model, load_tokenizer, save_model
from convai.model.quantization import lower_precision
from convai.model.tokenization import DialogTokenizer, train_vocabulary
from convai.training.updates import TreeDataset

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
N_DIALOGS = {"train": 400, "valid": 100}  # taken of larger data: enough to draw examples from
MAX_HISTORY = 2
GPT_SIZES = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 512}
# What both sides may differ by, relative to 1 or to the value: rounding, and no more.
TOLERANCES = {"fp32": 1e-3, "bf16": 5e-2, "int8": 1e-1}


class Disagreement(Exception):
    """Ours and the reference computed different numbers, so their speeds are not to be compared."""


@dataclass
class Setting:
    """One run's options and, made when first needed, its material."""

    options: BenchOptions

    @cached_property
    def device(self) -> torch.device:
        return choose_device(self.options.device)

    @cached_property
    def dialogs(self) -> dict[str, list[Dialog]]:
        """The raw data, or their beginning."""
        splits = find_source(self.options.data).load()
        return {name: dialogs[: N_DIALOGS[name]] for name, dialogs in splits.items()}

    @cached_property
    def folder(self) -> Path:
        """A checkpoint folder of random weights, which ours and the reference both load."""
        self._temporary = tempfile.TemporaryDirectory(prefix="bench-")
        folder = Path(self._temporary.name)
        if self.options.tokenizer:
            source = locate_checkpoint(self.options.tokenizer, "--tokenizer")
            tokenizer, config = load_tokenizer(source), read_config(source)
        else:
            last = [dialog["utterances"][-1] for dialog in self.dialogs["train"]]
            texts = [text for utterance in last for text in [*utterance["history"], *utterance["candidates"]]]
            tokenizer = train_vocabulary(texts, self.options.family, 5000)
            config = GPT_SIZES | {"model_type": self.options.family, "vocab_size": len(tokenizer)}
        if self.options.small:
            config |= {"n_layer": 2, "n_embd": 32, "n_head": 2}
        tokenizer.save(folder)
        (folder / "config.json").write_text(json.dumps(config))
        torch.manual_seed(self.options.seed)
        save_model(load_model(folder, tokenizer, from_scratch=True), folder)
        return folder

    @cached_property
    def tokenizer(self) -> DialogTokenizer:
        return load_tokenizer(self.folder)

    def load_ours(self, dtype: str = "fp32") -> Any:
        model = load_model(self.folder, self.tokenizer)
        model.config.ranking_is_trained = True  # here its scores are only timed and compared
        return lower_precision(model.to(self.device).eval(), dtype)

    def load_reference(self) -> torch.nn.Module:
        return reference.load_reference_model(self.folder).to(self.device)

    @cached_property
    def splits(self) -> dict[str, DialogSplit]:
        arrays = build_arrays(self.dialogs, self.tokenizer)
        return {name: DialogSplit(arrays, name) for name in self.dialogs}

    def dataset(self, split: str, num_candidates: int | None = None, max_history: int = MAX_HISTORY) -> TreeDataset:
        config = read_config(self.folder)
        n_positions = config.get("n_positions") or config["max_position_embeddings"]
        inputs = InputBuilder(self.tokenizer, n_positions)
        return TreeDataset(self.splits[split], inputs, max_history=max_history, num_candidates=num_candidates)

    def require_training_precision(self) -> None:
        if self.options.dtype == "int8":
            raise UserError("--dtype int8 is for inference; name other benchmarks, or choose fp32 or bf16.")

    def draw(self, n_all: int, n: int) -> list[int]:
        """Return `n` of `n_all` numbers, the same in every run."""
        return random.Random(self.options.seed).sample(range(n_all), min(n, n_all))

    def autocast(self, dtype: str):
        """Return the context of training in a precision."""
        return nullcontext() if dtype == "fp32" else torch.autocast(self.device.type, DTYPES[dtype])

    def check_same(self, what: str, ours: Sequence[float], theirs: Sequence[float]) -> float:
        """Return the largest difference; Disagreement where it is more than rounding."""
        tolerance = TOLERANCES[self.options.dtype]
        differences = [abs(a - b) / max(1.0, abs(b)) for a, b in zip(ours, theirs, strict=True)]
        if not differences or not max(differences) <= tolerance:  # NaN is no agreement either
            raise Disagreement(f"{what}: {list(ours)[:5]} of ours, {list(theirs)[:5]} of the reference")
        return max(differences)

    def describe(self) -> dict[str, Any]:
        """Return what a report says of the run itself."""
        config = read_config(self.folder)
        layers = config.get("n_layer") or config["num_hidden_layers"]
        sizes = f"{layers} layers of {config.get('n_embd') or config['hidden_size']}, {config['vocab_size']} tokens"
        return {
            "dtype": self.options.dtype,
            "model": f"{config['model_type']}, {sizes}",
            "data": Path(self.options.data).name,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else cpu_name(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        }


def longest_sequence(dataset: TreeDataset) -> int:
    """Return the length of the longest sequence, one candidate each, of a data set: what plain code pads all to."""
    return max(length_alone(dataset.example(index)) for index in range(len(dataset)))


def length_alone(example: Example) -> int:
    """Return the tokens of an example with its longest candidate: <bos>, two speakers and <eos> included."""
    n_history = sum(len(turn) + 1 for turn in example.history)
    return 1 + sum(map(len, example.persona)) + n_history + 1 + max(map(len, example.candidates)) + 1


def cpu_name() -> str:
    """Return the processor's name and which instructions for short numbers it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", "").split()
    short = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{fields.get('model name', platform.machine())} ({', '.join(short)})"
