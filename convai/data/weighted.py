r"""Several sources in one `--dataset_path`, each with a weight: as text, or as a small JSON file.

    ours.jsonl + b.json*2 + hub:OWNER/NAME*0.5
    {"sources": {"ours.jsonl": 1, "b.json": 2, "hub:OWNER/NAME": 0.5}}

The weight is how often a source's training examples are seen an epoch. Paths in a file are relative to it. What is
there as a file is that file, whatever its name: a source whose own name has " + " in it is named in a JSON file.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from convai.data.schema import kind_of
from convai.data.tables import HUB_PREFIX
from convai.errors import UserError, argument
from convai.io.download import is_url
from convai.io.files import read_text

EXAMPLE, PERSONACHAT = "example", "personachat"
_PLUS = re.compile(r"(?:^|\s+)\+(?:\s+|$)")
_WEIGHT = re.compile(r"(?P<path>.+?)\s*\*\s*(?P<weight>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)", re.IGNORECASE)
_FILE_OF_SOURCES = re.compile(rb'\s*\{\s*"sources"\s*:')


class WeightedSource(NamedTuple):
    """One source of several."""

    path: str  # as --dataset_path takes it
    weight: float
    name: str  # short, and unlike the others'


def weighted_sources(dataset_path: str) -> list[WeightedSource]:
    """Return the sources that a `--dataset_path` joins; none where it is a single one without a weight.

    Raises UserError for a file of sources, or a weight, that is none.
    """
    if _is_file_of_sources(dataset_path):
        return _of_file(Path(os.path.expanduser(dataset_path)))
    texts = parts_of(dataset_path)
    found = [_of_text(text) for text in texts]
    if _is_there(dataset_path) or (len(found) == 1 and found[0] == (texts[0], 1.0)):
        return []
    return _named(found, dataset_path)


def parts_of(dataset_path: str) -> list[str]:
    """Return what stands between the plus signs of a `--dataset_path`, weights included."""
    return [part.strip() for part in _PLUS.split(dataset_path)]


def without_weight(text: str) -> str:
    """Return what stands before a source's weight, if there is one."""
    match = _WEIGHT.fullmatch(text)
    return match["path"] if match else text


def _is_there(path: str) -> bool:
    """Whether a path, or each one of a pair, is there as it is written."""
    return all(os.path.exists(os.path.expanduser(part.strip())) for part in path.split(","))


def _of_text(text: str) -> tuple[str, float]:
    match = None if _is_there(text) else _WEIGHT.fullmatch(text)
    return (match["path"], float(match["weight"])) if match else (text, 1.0)


def _is_file_of_sources(path: str) -> bool:
    file_name = os.path.expanduser(path)
    if not os.path.isfile(file_name):  # unlike Path's, it takes any name, however long
        return False
    try:
        with open(file_name, "rb") as file:
            return bool(_FILE_OF_SOURCES.match(file.read(1000).removeprefix(b"\xef\xbb\xbf")))
    except OSError:
        return False  # whoever reads it says what is wrong


def _of_file(path: Path) -> list[WeightedSource]:
    try:
        content = json.loads(read_text(path), object_pairs_hook=_pairs)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}; mend it "
                        "there.") from error  # fmt: skip
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}, a file of sources, cannot be read ({error}); mend it.") from error
    if [key for key, _ in content] != ["sources"]:
        raise UserError(f'{path}: a file of sources has the key "sources" and no other.')
    sources = content[0][1]
    if not isinstance(sources, _Pairs):
        raise UserError(f'{path}, key "sources" must be an object of paths and weights, not {kind_of(sources)}.')
    return _named([(_relative_to(path.parent, name), weight) for name, weight in sources], str(path))


class _Pairs(list[tuple[str, Any]]):
    """What an object of JSON holds, a key that stands there twice included."""


def _pairs(pairs: list[tuple[str, Any]]) -> _Pairs:
    return _Pairs(pairs)


def _relative_to(folder: Path, path: str) -> str:
    """Return a path of a file of sources as seen from here: TRAIN,VALID part by part, names and URLs as they are."""
    if path in (EXAMPLE, PERSONACHAT) or path.startswith(HUB_PREFIX):
        return path
    parts = [path] if os.path.exists(folder / os.path.expanduser(path)) else path.split(",")
    return ",".join(part if is_url(part) else str(folder / os.path.expanduser(part)) for part in map(str.strip, parts))


def _named(found: Iterable[tuple[str, Any]], where: str) -> list[WeightedSource]:
    found = list(found)
    place = f"{argument('dataset_path')} {where}"
    for path, weight in found:
        if not path or path == "*":
            raise UserError(f"{place}: one of its sources has no name; give PATH or PATH*WEIGHT between plus signs "
                            f'("{PERSONACHAT}" is PersonaChat).')  # fmt: skip
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise UserError(f"{place}: the weight of {path} must be a number above 0, not {json.dumps(weight)}.")
        if _is_file_of_sources(path):
            raise UserError(f"{place}: {path} is a file of sources itself; name those instead.")
    if not found:
        raise UserError(f"{place} names no source; give at least one.")
    paths = [path for path, _ in found]
    if again := [path for path, n in Counter(paths).items() if n > 1]:
        raise UserError(f"{place}: {again[0]} is named twice; name it once, with the sum of the weights.")
    n_of_name = Counter(map(short_name, paths))
    names = [short_name(path) if n_of_name[short_name(path)] == 1 else path for path in paths]
    return [WeightedSource(path, float(weight), name) for (path, weight), name in zip(found, names, strict=True)]


def short_name(path: str) -> str:
    """Return a source's name without the folders that it is in."""
    return path if path.startswith(HUB_PREFIX) else ",".join(Path(part.strip()).name for part in path.split(","))
