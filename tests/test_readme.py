"""README.md says what is so: its commands run, its options, links and error messages exist, its tables are current.

A command is run unless a comment beside it, or on the line above, says that it needs something or takes minutes.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TEXTS, tiny_model

from convai.model.double_heads import save_model
from convai.model.tokenization import train_vocabulary

sys.path.insert(0, str(ROOT / "scripts"))
from option_tables import PARSERS, PLACE, with_tables

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ["README.md", "CONTRIBUTING.md"]
LEFT_OUT = re.compile(r"# (?:.*; )?(?:needs |minutes)")
SECONDS_TO_HELP = 2


def section(title: str) -> str:
    """The text from a heading of second order to the next."""
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)[1]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(block: str, are_run: bool | None = None) -> list[str]:
    """The commands of a block, continued lines joined; only those that are run, or that are not, where asked for."""
    found, is_marked_above = [], False
    for line in block.replace("\\\n", " ").splitlines():
        if line.startswith("#"):
            is_marked_above = bool(LEFT_OUT.match(line))
        elif line.strip():
            is_run = not (is_marked_above or LEFT_OUT.search(line))
            if are_run in (None, is_run):
                found.append(line)
        else:
            is_marked_above = False
    return found


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The scripts as in a clone, a small untrained model in place of the demo's, and `python` as the running one."""
    folder = tmp_path_factory.mktemp("clone")
    for path in ROOT.glob("*.py"):
        (folder / path.name).symlink_to(path)
    tokenizer = train_vocabulary([*TEXTS, "what is your job ?"], "gpt2", 400)
    save_model(tiny_model(tokenizer), folder / "models/demo")
    tokenizer.save(folder / "models/demo")
    (folder / "bin").mkdir()
    python = folder / "bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return folder


def run(clone: Path, script: str) -> str:
    """Run a script of bash as a reader of the README would; its standard output."""
    path = f"{clone / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = ["bash", "-euo", "pipefail", "-c", script]
    result = subprocess.run(
        command, cwd=clone, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{script}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def run_section(clone: Path, title: str) -> str:
    lines = [line for block in blocks(section(title), "bash") for line in commands(block, are_run=True)]
    assert lines
    return run(clone, "\n".join(lines))


def test_own_data_and_evaluation(clone):
    run_section(clone, "Your own data")
    assert (clone / "runs/bakery/model.safetensors").is_file()
    assert (clone / "runs/deutsch/model.safetensors").is_file()
    assert "F1" in run_section(clone, "Evaluate")  # on bakery.json


def test_first_steps_and_chat(clone):
    assert run_section(clone, "First steps").count("\n") >= 1
    assert run_section(clone, "Chat").count("\n") >= 1


def test_library_use_in_fifteen_lines(clone):
    (block,) = blocks(section("Use it in your own code"), "python")
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
    (clone / "use.py").write_text(block)
    printed = run(clone, "python use.py").splitlines()
    assert len(printed) == 4 and "do you have a pet ?" in printed[1]
    assert printed[3] in ("i am a pilot .", "i am a nurse .", "i like soup .")


def test_every_command_is_run_or_says_why_not():
    titles = re.findall(r"^## (.*)$", README, re.MULTILINE)
    run_here = {"First steps", "Chat", "Evaluate", "Your own data"}
    for title in titles:
        for block in blocks(section(title), "bash"):
            if title not in run_here:
                assert commands(block, are_run=True) == [], title
    opening = README[: README.index("\n## ")]
    left_out = [line for block in blocks(opening, "bash") for line in commands(block, are_run=False)]
    assert [line.split("#")[0].strip() for line in left_out] == ["bash scripts/demo.sh", "bash scripts/test.sh"]


def script_calls() -> list[tuple[str, list[str]]]:
    """(script, arguments) of every call of a script in the README, run here or not."""
    calls = []
    for block in blocks(README, "bash"):
        for command in commands(block):
            if not re.search(r"\b(python|torchrun)\b", command):
                continue
            for part in command.split(" | "):
                words = shlex.split(part, comments=True)
                script = next((word for word in words if word.removeprefix("./") in PARSERS), None)
                if script and words[0] in ("python", "torchrun"):
                    calls.append((script, words[words.index(script) + 1 :]))
    return calls


@pytest.mark.parametrize(("script", "arguments"), script_calls(), ids=lambda value: " ".join(value)[:60])
def test_options_of_every_call_exist(script, arguments):
    PARSERS[script]().parse_args(arguments)  # a mistyped option would exit


def test_launcher_options_exist():
    from torch.distributed.run import get_args_parser

    launched = [c for block in blocks(README, "bash") for c in commands(block) if c.startswith("torchrun ")]
    assert len(launched) >= 4
    for command in launched:
        get_args_parser().parse_args(shlex.split(command, comments=True)[1:])


def test_option_tables_are_those_of_the_parsers():
    assert with_tables(README) == README, "run: python scripts/option_tables.py"
    assert {match["script"] for match in PLACE.finditer(README)} == set(PARSERS)


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    for target in targets:
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        assert (ROOT / path).exists(), target
        if anchor:
            linked = (ROOT / (path or document)).read_text(encoding="utf-8")
            assert anchor in anchors(linked), target


def test_error_messages_are_those_of_the_code():
    # Without quotes and line breaks within a message, so that strings over several lines read as one.
    code = " ".join(path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.py"), *ROOT.glob("convai/**/*.py")])
    code = re.sub(r"['\"]\s*\n\s*f?['\"]", "", code)
    code = re.sub(r"\{[^{}]*\}", "...", code)
    messages = re.findall(r"^\| `([^`]+)` \|", section("When something goes wrong"), re.MULTILINE)
    assert len(messages) > 10
    for message in messages:
        parts = [part.strip(" .:-") for part in re.split(r"\.\.\.|https://|\b[LC]\b", message)]
        for part in filter(None, parts):
            assert part in code, message


@pytest.mark.parametrize("script", PARSERS)
def test_help_answers_at_once(script):
    shortest = min(seconds_to_help(script) for _ in range(3))  # of three, since other work may go on
    assert shortest < SECONDS_TO_HELP


def seconds_to_help(script: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, ROOT / script, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started
