"""A persona from a file: sentences a line each, ParlAI's `your persona:` lines, JSON, or a character card."""

import json
from pathlib import Path

from convai.data.character_card import PNG_SIGNATURE, card_text_of_png, is_card, persona_of_card
from convai.data.parlai_text import persona_sentences
from convai.data.schema import KeyCheck, kind_of
from convai.errors import UserError, argument, disk_reason
from convai.io.files import read_text

_PERSONA_KEYS = frozenset({"personality"})
_ADVICE = 'a persona in JSON is a list of sentences, or one dialog with the key "personality", or a character card'


def read_persona(path: Path) -> list[str]:
    """Return the sentences of the persona in a file; UserError where it cannot be read or holds something else."""
    if _is_png(path):
        return _persona_of_json(card_text_of_png(path), path)
    text = read_text(path)
    if path.suffix.lower() == ".json" or text.lstrip().startswith(("{", "[")):
        return _persona_of_json(text, path)
    return persona_sentences(text.splitlines(), str(path))


def _is_png(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE
    except OSError as error:
        raise UserError(f"{path} cannot be read: {disk_reason(error)}.") from error


def _persona_of_json(text: str, path: Path) -> list[str]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"at line {error.lineno}, column {error.colno}"
        raise UserError(f"{path} is not JSON: {error.msg} {place}; {_ADVICE}.") from error
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} holds no persona ({error}); {_ADVICE}.") from error
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0]  # a data file of one dialog
    if is_card(value):
        return persona_of_card(value, path)
    if isinstance(value, dict):
        KeyCheck(path).check(value, _PERSONA_KEYS, str(path))
        if "personality" not in value:
            raise UserError(f"{path} holds no persona; {_ADVICE}. A data set is for {argument('dataset_path')}.")
        value = value["personality"] or []
    if not isinstance(value, list) or not all(isinstance(sentence, str) for sentence in value):
        found = "a list of other things" if isinstance(value, list) else kind_of(value)
        raise UserError(f"{path} holds {found}; {_ADVICE}.")
    return value
