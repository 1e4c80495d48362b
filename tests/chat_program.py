"""The chat run in the tests' own process on lines of input, and what it wrote."""

import io
import sys
from itertools import dropwhile
from pathlib import Path

import pytest
from conftest import TEXTS, tiny_model

import interact
from convai.model.loading import save_model
from convai.model.tokenization import train_vocabulary

PERSONA = ["i keep bees .", "i have two dogs ."]
RANDOM_MODEL_OPTIONS = ("--personality", *PERSONA, "--device", "cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny random model with room for very long replies, and no personas of its own."""
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    tokenizer = train_vocabulary([*TEXTS, "0 1"], "openai-gpt", 400)
    save_model(tiny_model(tokenizer, n_positions=4096), folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def chat(checkpoint, monkeypatch, capsys):
    """Run the program in this process on lines of input; returns its output, what it noted, and its exit status."""

    def run(text: str | bytes, *options: str, model: Path | None = checkpoint) -> tuple[str, str, int]:
        where = ["--model_checkpoint", str(model)] if model else []
        monkeypatch.setattr(sys, "argv", ["interact.py", *where, *options])
        content = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        status = 0
        try:
            interact.main()
        except SystemExit as exit_:
            status = exit_.code
        output = capsys.readouterr()
        return output.out, output.err, status

    return run


def said_of_commands(notes: str) -> list[str]:
    """The lines of standard error after the greeting, which ends with the persona at the start."""
    lines = notes.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("The agent"))
    return lines[start + 1 :] if "no persona" in lines[start] else list(dropwhile(is_fact, lines[start + 1 :]))


def is_fact(line: str) -> bool:
    return line.startswith("- ")


def lines_of(output: str) -> list[str]:
    """The lines of standard output, each of which ends with a line feed and no other character that could."""
    assert output.endswith("\n") and output.splitlines() == output[:-1].split("\n")
    return output[:-1].split("\n")
