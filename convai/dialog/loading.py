"""A dialog agent as a script's options ask for it."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from convai.dialog.agent import DialogAgent
from convai.dialog.decoding import DecodingSettings
from convai.errors import UserError
from convai.options import chosen_seed, precision_of


def load_agent(folder: Path, options: Mapping[str, Any]) -> DialogAgent:
    """Load the model in a checkpoint folder and set it up as the options say; UserError where they are out of range."""
    try:
        settings = DecodingSettings(**{field.name: options[field.name] for field in fields(DecodingSettings)})
    except ValueError as error:
        raise UserError(f"{error}; see --help.") from error
    agent = DialogAgent.load(
        folder,
        device=options["device"],
        precision=precision_of(options),
        tokenization=options["tokenization"],
        dialog_token_ids=options["dialog_token_ids"],
        max_history=options["max_history"],
        settings=settings,
        seed=chosen_seed(options),
    )
    agent.tokenizer.encode("hello")  # imports spaCy, which the first reply should not have to wait for
    return agent
