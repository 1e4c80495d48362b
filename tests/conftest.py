"""Small, seeded, offline material that the tests share: vocabularies, checkpoints and dialogs built on the spot."""

import importlib
import json
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest
import torch

from convai.errors import speak_of_options
from convai.model.config import ModelConfig
from convai.model.double_heads import DoubleHeadsModel
from convai.model.loading import save_model
from convai.model.tokenization import DialogTokenizer, train_vocabulary

# What fails in an assertion of these is told in as much detail as in the tests' own.
pytest.register_assert_rewrite("chat_program", "dialog_files", "parlai_evaluations", "tokenized_dialogs")
# A shell ignores Ctrl-C on behalf of what it starts in the background, and so would all processes of these tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
speak_of_options()  # as the scripts do, whose messages users see
torch.set_num_threads(1)  # on models this tiny, threads only wait for each other

ROOT = Path(__file__).resolve().parents[1]
# Real dialogs and vocabularies, for those who have them; no promise is tested only there.
DEVELOPMENT_DATA = Path(os.environ.get("CONVAI_DEVELOPMENT_DATA", ROOT.parent / "shared"))


def needs(package: str) -> ModuleType:
    """Return a package that only some tests need; where it is not installed they are skipped, but in CI they fail."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        cannot_run(f"{package} cannot be imported ({error})")


def cannot_run(reason: str) -> NoReturn:
    """Skip a test, or a module of tests, that this machine lacks something for; CI must have it, so there it fails."""
    if os.environ.get("CI", "").lower() in ("", "0", "false"):
        pytest.skip(reason, allow_module_level=True)
    pytest.fail(f"{reason}; in CI nothing that can be tested is skipped", pytrace=False)


TEXTS = [
    "hello ! how are you doing today ?",
    "i'm great , thanks for asking . i just came back from the market .",
    "do you have any pets at home ?",
    "yes , i have two cats and they don't like each other .",
    "what do you do for a living ?",
    "i teach music at a small school near the river .",
    "i can't sing at all , but i play the drums .",
    "my favorite season is autumn .",
]


@pytest.fixture(scope="session", params=["openai-gpt", "gpt2"])
def family(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def tokenizer(family) -> DialogTokenizer:
    return train_vocabulary([*TEXTS, *map(str, range(100))], family, 400)


def tiny_config(family: str, vocab_size: int, **changes) -> dict:
    """The content of a config.json for two layers of width 16, without dropout."""
    no_dropout = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop", "summary_first_dropout"), 0.0)
    own = {"afn": "gelu"} if family == "openai-gpt" else {"activation_function": "gelu_new"}
    sizes = {"vocab_size": vocab_size, "n_positions": 128, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return {"model_type": family, **sizes, **own, **no_dropout, **changes}


def tiny_model(tokenizer: DialogTokenizer, seed: int = 0, **changes) -> DoubleHeadsModel:
    """A model of random weights, large enough that different inputs give clearly different logits."""
    torch.manual_seed(seed)
    model = DoubleHeadsModel(ModelConfig.from_dict(tiny_config(tokenizer.family, len(tokenizer), **changes)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def checkpoint(tmp_path, tokenizer) -> Path:
    """A folder with a tiny model of random weights and its vocabulary."""
    folder = tmp_path / "checkpoint"
    save_model(tiny_model(tokenizer), folder)
    tokenizer.save(folder)
    return folder


def make_dialogs(n_dialogs: int, n_candidates: int = 4) -> list[dict]:
    """Dialogs of two exchanges in the PersonaChat form; dialog d's sentences differ from the others' by its number."""
    dialogs = []
    for d in range(n_dialogs):
        turns = [TEXTS[0], f"{TEXTS[1]} {d}", TEXTS[2], f"{TEXTS[3]} {d}"]
        others = [(d + k) % n_dialogs for k in range(1, n_candidates)]
        utterances = [
            {"history": turns[:1], "candidates": [*(f"{TEXTS[1]} {other}" for other in others), turns[1]]},
            {"history": turns[:3], "candidates": [*(f"{TEXTS[3]} {other}" for other in others), turns[3]]},
        ]
        dialogs.append({"personality": [f"{TEXTS[7]} {d}", TEXTS[6]], "utterances": utterances})
    return dialogs


@pytest.fixture
def dataset_file(tmp_path) -> Path:
    """A PersonaChat JSON file of 12 training and 4 validation dialogs."""
    path = tmp_path / "dialogs.json"
    path.write_text(json.dumps({"train": make_dialogs(12), "valid": make_dialogs(4)}))
    return path


def pytest_collection_modifyitems(items) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no GPU"))


@pytest.fixture
def full_disk(monkeypatch):
    """Files for downloads and unpacked members lie on a full disk (Linux has one ready)."""
    if not Path("/dev/full").exists():
        cannot_run("there is no /dev/full")
    real_open = Path.open

    def open_full(path, mode="r", *args, **kwargs):
        return real_open(Path("/dev/full"), "wb") if mode in ("ab", "xb") else real_open(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_full)
