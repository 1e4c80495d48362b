"""Data: from JSON to token ids and to a store on disk, each utterance once, against every string one by one."""

import tempfile
import time
from pathlib import Path
from typing import Any

from bench import reference
from bench.measure import compare
from bench.scoring import summary
from bench.setting import Disagreement, Setting
from formats import find_source
from store import build_arrays, read_store, write_store
from tokenization import load_tokenizer

N_REOPENINGS = 5


def data(setting: Setting) -> list[dict[str, Any]]:
    """Measure the tokenizing of the whole data, then the size of the store and how long it takes to open it again."""
    splits = find_source(setting.options.data).load()
    n_dialogs = sum(map(len, splits.values()))
    n_theirs = min(n_dialogs, setting.options.reference_examples or 100)
    # From both ends, so that a short and a long split are in it.
    part = {"train": splits["train"][: max(1, n_theirs // 2)], "valid": splits["valid"][: max(1, n_theirs // 2)]}
    encode = reference.plain_encoder(setting.tokenizer)
    check_ids(setting, part, encode)
    built: dict = {}

    def ours() -> int:
        built.update(build_arrays(splits, load_tokenizer(setting.folder)))  # a fresh one, whose caches are empty
        return n_dialogs

    def plainly() -> int:
        reference.tokenize_strings(part, reference.plain_encoder(setting.tokenizer))
        return sum(map(len, part.values()))

    measured = compare({"ours": ours, "reference": plainly}, setting.options.repeats)
    return [
        {"name": "data", **summary(measured), "unit": "dialogs/s", "strings": count_strings(splits),
         "unique": len(built["utterance_ends"]), "seconds": round(n_dialogs / measured["ours"].rate, 2),
         "examples": n_dialogs, "reference_examples": sum(map(len, part.values())), **store_facts(built)}
    ]  # fmt: skip


def check_ids(setting: Setting, splits: dict, encode) -> None:
    """Compare the token ids of each string by both ways."""
    for dialogs in splits.values():
        for text in strings_of(dialogs[:20]):
            if setting.tokenizer.encode(text) != encode(text):
                raise Disagreement(f"token ids of {text!r}: {setting.tokenizer.encode(text)} and {encode(text)}")


def store_facts(arrays: dict) -> dict[str, float]:
    """Return the size of the store of these arrays on disk and the milliseconds to open it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "store"
        write_store(path, arrays)
        seconds = []
        for _ in range(N_REOPENINGS):
            start = time.perf_counter()
            read_store(path)
            seconds.append(time.perf_counter() - start)
        return {"cache_mb": round(path.stat().st_size / 1e6, 2), "reopen_ms": round(1000 * min(seconds), 1)}


def strings_of(value) -> list[str]:
    """Return the texts in nested lists and dicts, one after the other."""
    if isinstance(value, str):
        return [value]
    children = value.values() if isinstance(value, dict) else value
    return [text for child in children for text in strings_of(child)]


def count_strings(splits: dict) -> int:
    return sum(len(strings_of(dialog)) for dialogs in splits.values() for dialog in dialogs)
