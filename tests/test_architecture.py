"""The plan of the house: rooms import one way, published names are there, no file or function grows too long."""

import ast
import importlib
from pathlib import Path

import pytest
from conftest import ROOT

# Each room may import from those before it, and from itself.
ROOMS = ["errors", "options", "device", "io", "model", "data", "dialog", "evaluation", "training", "serve"]
SIBLINGS = {"evaluation", "training", "serve"}  # none needs another
MODULES = sorted((ROOT / "convai").rglob("*.py"))
SCRIPTS = sorted(ROOT.glob("*.py"))
TOOLS_AND_TESTS = sorted(path for folder in ("bench", "scripts", "tests") for path in (ROOT / folder).glob("*.py"))
SOURCES = [*MODULES, *SCRIPTS, *TOOLS_AND_TESTS]


def imported(path: Path) -> set[str]:
    """The dotted names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "convai" and len(parts) > 1 and parts[1] in ROOMS else None


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "__init__.py"], ids=relative)
def test_rooms_import_one_way(path):
    own = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    allowed = set(ROOMS[: ROOMS.index(own) + 1])
    if own in SIBLINGS:
        allowed -= SIBLINGS - {own}
    found = {room_of(name) for name in imported(path)} - {None}
    assert found <= allowed, f"{relative(path)} imports from {sorted(found - allowed)}"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_the_package_imports_no_script(path):
    scripts = {script.stem for script in SCRIPTS} | {"bench", "scripts", "tests"}
    assert not {name.split(".")[0] for name in imported(path)} & scripts


def test_only_training_needs_ignite_and_only_evaluation_parlai():
    for package, room in (("ignite", "training"), ("parlai", "evaluation")):
        users = {room_of(".".join(path.relative_to(ROOT).parts)) for path in MODULES
                 if any(name.split(".")[0] == package for name in imported(path))}  # fmt: skip
        assert users == {room}


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("utils", ["get_dataset", "download_pretrained_model", "make_logdir", "PERSONACHAT_URL", "HF_FINETUNED_MODEL"]),
        ("train", ["SPECIAL_TOKENS", "build_input_from_segments", "get_data_loaders", "train"]),
        ("convai_evaluation", ["TransformerAgent"]),
        ("example_entry", ["EXAMPLE_ENTRY"]),
    ],
)
def test_published_names_import_as_published(module, names):
    found = importlib.import_module(module)
    assert all(hasattr(found, name) for name in names)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_file_and_no_function_is_too_long_to_read(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{relative(path)}: {node.name} has {length} lines"
