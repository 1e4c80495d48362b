"""Data files made and read, what was warned of, and the error where one cannot be read."""

import json
import logging

import pytest

from convai.data.formats import find_source
from convai.errors import UserError

TURN = {"history": ["hi"], "candidates": ["no .", "yes ."]}
GOOD = {"personality": ["i sing ."], "utterances": [TURN]}


def load(path) -> dict:
    return find_source(str(path)).load()


def write_json(path, value):
    path.write_text(json.dumps(value))
    return path


def error_of(path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
