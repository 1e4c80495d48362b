"""A persona from a file: sentences a line each, ParlAI's `your persona:` lines, or JSON."""

import json
from pathlib import Path

from convai.data.parlai_text import persona_sentences
from convai.data.schema import KeyCheck, kind_of
from convai.errors import UserError
from convai.io.files import read_text

_PERSONA_KEYS = frozenset({"personality"})
_ADVICE = 'a persona in JSON is a list of sentences, or one dialog with the key "personality"'


def read_persona(path: Path) -> list[str]:
    """Return the sentences of the persona in a file; UserError where it cannot be read or holds something else."""
    text = read_text(path)
    if path.suffix.lower() == ".json" or text.lstrip().startswith(("{", "[")):
        return _persona_of_json(text, path)
    return persona_sentences(text.splitlines(), str(path))


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
    if isinstance(value, dict):
        KeyCheck(path).check(value, _PERSONA_KEYS, str(path))
        if "personality" not in value:
            raise UserError(f"{path} holds no persona; {_ADVICE}. A data set is for --dataset_path.")
        value = value["personality"] or []
    if not isinstance(value, list) or not all(isinstance(sentence, str) for sentence in value):
        found = "a list of other things" if isinstance(value, list) else kind_of(value)
        raise UserError(f"{path} holds {found}; {_ADVICE}.")
    return value
