"""Dialogs in brief and their tokenized data, for the tests of what holds these."""

from pathlib import Path

import pytest
from conftest import TEXTS

from convai.data.build import build_arrays
from convai.data.store import DialogSplit
from convai.model.tokenization import train_vocabulary


@pytest.fixture(scope="module")
def tokenizer():
    """One family will do, as the store sees token ids only; with digits, by which the dialogs of the tests differ."""
    digits = [f"{n} {n}{n} reply line yes no hi ho of the other" for n in range(10)]
    return train_vocabulary([*TEXTS, *digits], "openai-gpt", 600)


def turn(*history: str, candidates=("gold .",)) -> dict:
    return {"history": list(history), "candidates": list(candidates)}


def dialog(*utterances: dict, personality=()) -> dict:
    return {"personality": list(personality), "utterances": list(utterances)}


def in_memory(tokenizer, train: list[dict], valid=()) -> dict[str, DialogSplit]:
    store = build_arrays({"train": train, "valid": list(valid)}, tokenizer)
    return {name: DialogSplit(store, name) for name in ("train", "valid")}


def bytes_of(store: Path) -> dict[str, bytes]:
    """The content of a store's files by name."""
    return {path.name: path.read_bytes() for path in store.iterdir()}


def assert_same_content(split: DialogSplit, dialogs: list[dict], tokenizer) -> None:
    def ids(texts):
        return [tokenizer.encode(text) for text in texts]

    expected = [
        (ids(dialog["personality"]), ids(utterance["history"]), ids(utterance["candidates"]))
        for dialog in dialogs
        for utterance in dialog["utterances"]
    ]
    assert [tuple(example) for example in split] == expected
