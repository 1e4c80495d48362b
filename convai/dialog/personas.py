"""Personas to draw from: those of a data set, those stored with a checkpoint, or those of the example set."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

from convai.data.example_world import example_dataset
from convai.errors import UserError
from convai.io.files import read_text

if TYPE_CHECKING:  # nothing here needs them, and the chat starts the sooner
    from convai.data.mixture import AnySplit
    from convai.model.tokenization import DialogTokenizer

N_EXAMPLE_PERSONAS = 100


def personas_of(split: AnySplit, tokenizer: DialogTokenizer) -> list[list[str]]:
    """Return the personas of a data set's dialogs, those without a sentence left out."""
    personas = [list(map(tokenizer.decode, split.persona(dialog))) for dialog in range(split.n_dialogs)]
    return [persona for persona in personas if persona]


def stored_personas(folder: Path) -> list[list[str]]:
    """Return the personas stored with a checkpoint, else those of the example set; UserError where the file is none."""
    stored = folder / "personas.json"
    personas = read_personas(stored) if stored.is_file() else example_personas()
    return [persona for persona in personas if persona]


def read_personas(path: Path) -> list[list[str]]:
    """Return the content of personas.json: a list of personas, each a list of sentences."""
    try:
        personas = json.loads(read_text(path))
    except ValueError:
        personas = None
    if not isinstance(personas, list) or not all(
        isinstance(persona, list) and all(isinstance(sentence, str) for sentence in persona) for persona in personas
    ):
        raise UserError(f"{path} must hold a JSON list of personas, each a list of sentences; mend or remove it.")
    return personas


def example_personas() -> list[list[str]]:
    dialogs = example_dataset(n_train_dialogs=N_EXAMPLE_PERSONAS, n_valid_dialogs=0, n_candidates=2)["train"]
    return [dialog["personality"] for dialog in dialogs]


def draw_persona(personas: list[list[str]], rng: random.Random, but: list[str] | None = None) -> list[str]:
    """Return one of the personas, another than `but` where there is one; none where there are none."""
    others = [persona for persona in personas if persona != but]
    return rng.choice(others or personas or [[]])
