"""Data: from JSON to token ids and to a store on disk, each utterance once, against every string one by one."""

import gc
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench import reference
from bench.enlarge import PERSONACHAT_DIALOGS, enlarged
from bench.measure import MEGABYTE, anonymous_memory, compare, cpu_seconds, peak_of_processes
from bench.scoring import summary
from bench.setting import MAX_HISTORY, Disagreement, Setting
from convai.data.build import build_arrays
from convai.data.conversation import Dialog
from convai.data.formats import find_source
from convai.data.inputs import InputBuilder
from convai.data.store import open_store
from convai.model.loading import load_tokenizer
from convai.training.updates import TreeDataset
from utils import get_dataset

N_REOPENINGS = 5
N_LOADED = 2_000  # examples that the loader's memory is watched over


def data(setting: Setting) -> list[dict[str, Any]]:
    """Measure tokenizing, then the way from the file to the store, opening it again, and reading examples."""
    splits = load_splits(setting)
    n_dialogs = sum(map(len, splits.values()))
    n_theirs = min(n_dialogs, setting.options.reference_examples or 100)
    # From both ends, so that a short and a long split are in it.
    part = {"train": splits["train"][: max(1, n_theirs // 2)], "valid": splits["valid"][: max(1, n_theirs // 2)]}
    encode = reference.plain_encoder(setting.tokenizer)
    check_ids(setting, part, encode)
    n_unique = 0

    def ours() -> int:
        nonlocal n_unique
        store = build_arrays(splits, load_tokenizer(setting.folder))  # a fresh one, whose caches are empty
        n_unique = len(store.utterances)
        return n_dialogs

    def plainly() -> int:
        reference.tokenize_strings(part, reference.plain_encoder(setting.tokenizer))
        return sum(map(len, part.values()))

    measured = compare({"ours": ours, "reference": plainly}, setting.options.repeats)
    report = {
        "name": "data",
        **summary(measured),
        "unit": "dialogs/s",
        "strings": count_strings(splits),
        "unique": n_unique,
        "seconds": round(n_dialogs / measured["ours"].rate, 2),
        "examples": n_dialogs,
        "reference_examples": sum(map(len, part.values())),
    }
    return [report, {"name": "data-cache", **cache_facts(setting, splits)}]


def load_splits(setting: Setting) -> dict[str, list[Dialog]]:
    """Return the data given, or as many dialogs made out of them as PersonaChat has."""
    splits = find_source(setting.options.data).load()
    if not setting.options.personachat_size:
        return splits
    return {name: enlarged(splits["train"], n, setting.options.seed) for name, n in PERSONACHAT_DIALOGS.items()}


def check_ids(setting: Setting, splits: dict, encode) -> None:
    """Compare the token ids of each string by both ways."""
    for dialogs in splits.values():
        for text in strings_of(dialogs[:20]):
            if setting.tokenizer.encode(text) != encode(text):
                raise Disagreement(f"token ids of {text!r}: {setting.tokenizer.encode(text)} and {encode(text)}")


def cache_facts(setting: Setting, splits: dict[str, list[Dialog]]) -> dict[str, float]:
    """Return seconds and memory from a JSON file to the cache, its size, how fast it opens, what reading it takes."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        file, prefix = Path(folder) / "data.json", str(Path(folder) / "cache")
        file.write_text(json.dumps(splits), encoding="utf-8")
        file_mb = file.stat().st_size / MEGABYTE
        splits.clear()
        gc.collect()
        return {
            "file_mb": round(file_mb, 1),
            **in_a_fresh_process(building_facts, setting.folder, file, prefix),
            **in_a_fresh_process(reading_facts, setting.folder, file, prefix, setting.options.seed),
        }


def building_facts(tokenizer_folder: Path, file: Path, prefix: str) -> dict[str, float | None]:
    """Return seconds and memory from a file to the store, its size, and how fast it opens again."""
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.encode("what is imported late … is imported now")
    start, cpu_start = time.perf_counter(), cpu_seconds()
    with peak_of_processes() as peak:
        get_dataset(tokenizer, str(file), prefix)
    prepare_s, prepare_cpu_s = time.perf_counter() - start, cpu_seconds() - cpu_start
    (store,) = (path for path in file.parent.glob(f"{Path(prefix).name}.*") if path.is_dir())
    seconds = []
    for _ in range(N_REOPENINGS):
        start = time.perf_counter()
        open_store(store)
        seconds.append(time.perf_counter() - start)
    return {
        "prepare_s": round(prepare_s, 2),
        "prepare_cpu_s": round(prepare_cpu_s, 2),
        "prepare_peak_mb": peak.resident_mb,
        "prepare_own_mb": peak.own_mb,
        "cache_mb": round(sum(path.stat().st_size for path in store.iterdir()) / MEGABYTE, 2),
        "reopen_ms": round(1000 * min(seconds), 2),
    }


def reading_facts(tokenizer_folder: Path, file: Path, prefix: str, seed: int) -> dict[str, float]:
    """Return the milliseconds from file and cache to the splits, and the memory that reading examples adds."""
    tokenizer = load_tokenizer(tokenizer_folder)
    before, start = anonymous_memory(), time.perf_counter()
    splits = get_dataset(tokenizer, str(file), prefix)
    seconds = time.perf_counter() - start
    dataset = TreeDataset(splits["train"], InputBuilder(tokenizer, 512), max_history=MAX_HISTORY, num_candidates=4)
    for index in random.Random(seed).choices(range(len(dataset)), k=N_LOADED):
        dataset[index]
    added = (anonymous_memory() - before) / MEGABYTE if before is not None else None
    return {"open_with_hash_ms": round(1000 * seconds, 1), "loader_mb": added and round(added, 1)}


def in_a_fresh_process(function: Callable, *arguments) -> Any:
    """Return the function's result from a process whose memory nothing has used before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def strings_of(value) -> list[str]:
    """Return the texts in nested lists and dicts, one after the other."""
    if isinstance(value, str):
        return [value]
    children = value.values() if isinstance(value, dict) else value
    return [text for child in children for text in strings_of(child)]


def count_strings(splits: dict) -> int:
    return sum(len(strings_of(dialog)) for dialogs in splits.values() for dialog in dialogs)
