"""README.md and docs/ say what is so: commands run, options, links and error messages exist, tables are current.

A command is run unless a comment beside it, or on the line above, says that it needs something or takes minutes. The
commands of a document run in their order, in a clone of their own.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import ROOT, TEXTS, tiny_model

from convai.model.loading import save_model
from convai.model.tokenization import train_vocabulary

sys.path.insert(0, str(ROOT / "scripts"))
import candidate_tree
import record_chat
from option_tables import PARSERS, PLACE, with_tables

PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]
DOCUMENTS = [*PAGES, "CONTRIBUTING.md"]
TEXT_OF = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
# Capitals that stand for something that a reader would have to put in, as OWNER/NAME does.
PLACEHOLDER = re.compile(r"\b(?:REPOSITORY|RUN|HOST|OWNER|NAME|FOLDER|FILE|DATA|TRAIN|VALID|OTHER|MODEL|PERSONACHAT)\b")
LEFT_OUT = re.compile(r"# (?:.*; )?(?:needs |minutes)")


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


@pytest.fixture
def clone(tmp_path) -> Path:
    """The scripts as in a clone, a small untrained model in place of the demo's, and `python` as the running one."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for path in [*ROOT.glob("*.py"), ROOT / "bench"]:
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


def run_page(clone: Path, page: str) -> str:
    """Run a page's commands as one script; what its last command printed."""
    lines = [line for block in blocks(TEXT_OF[page], "bash") for line in commands(block, are_run=True)]
    assert lines
    return run(clone, "\n".join(lines))


def test_readme(clone):
    assert run_page(clone, "README.md").count("\n") == 2  # two replies


def test_training(clone):
    run_page(clone, "docs/train.md")
    assert (clone / "runs/pets/model.safetensors").is_file()
    assert (clone / "runs/pets/README.md").is_file()


def test_chat(clone):
    assert run_page(clone, "docs/chat.md").count("\n") == 4  # a line for each question
    answers = (clone / "answers.txt").read_text().split("\n")
    assert len(answers) == 4 and answers[1] == answers[3] == ""  # the second line was a command


def test_evaluation(clone):
    assert "F1" in run_page(clone, "docs/evaluate.md")
    assert {"hits@1", "ppl", "f1"} <= set(json.loads((clone / "figures.json").read_text())["results"])


def test_own_data(clone):
    run_page(clone, "docs/data.md")
    assert (clone / "runs/bakery/model.safetensors").is_file()
    assert (clone / "runs/deutsch/model.safetensors").is_file()


def test_benchmarks(clone):
    run_page(clone, "docs/performance.md")
    assert (clone / "small.png").is_file()


def test_library_use_in_fifteen_lines(clone):
    (block,) = blocks(TEXT_OF["docs/api.md"], "python")
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
    (clone / "use.py").write_text(block)
    printed = run(clone, "python use.py").splitlines()
    assert len(printed) == 4 and "do you have a pet ?" in printed[1]
    assert printed[3] in ("i am a pilot .", "i am a nurse .", "i like soup .")


def test_every_command_is_run_or_says_why_not():
    run_here = {"README.md", *(f"docs/{name}.md" for name in ("train", "chat", "evaluate", "data", "performance"))}
    for page in PAGES:
        to_run = [line for block in blocks(TEXT_OF[page], "bash") for line in commands(block, are_run=True)]
        assert bool(to_run) == (page in run_here), page
    readme = TEXT_OF["README.md"]
    opening = readme[: readme.index("\n## ")]
    left_out = [line for block in blocks(opening, "bash") for line in commands(block, are_run=False)]
    assert [line.split("#")[0].strip() for line in left_out] == ["bash scripts/demo.sh", "bash scripts/test.sh"]


@pytest.mark.parametrize("page", DOCUMENTS)
def test_no_command_holds_a_placeholder(page):
    for block in blocks(TEXT_OF[page], "bash"):
        for command in commands(block):
            assert not PLACEHOLDER.search(command.split("#")[0]), command


def all_blocks(language: str) -> list[str]:
    return [block for text in TEXT_OF.values() for block in blocks(text, language)]


def script_calls() -> list[tuple[str, list[str]]]:
    """(script, arguments) of every call of a script in the documents, run here or not."""
    calls = []
    for block in all_blocks("bash"):
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

    launched = [c for block in all_blocks("bash") for c in commands(block) if c.startswith("torchrun ")]
    assert len(launched) >= 4
    for command in launched:
        get_args_parser().parse_args(shlex.split(command, comments=True)[1:])


def test_option_tables_are_those_of_the_parsers():
    for page in PAGES:
        assert with_tables(TEXT_OF[page]) == TEXT_OF[page], f"{page}; run: python scripts/option_tables.py"
    shown = [match["script"] for text in TEXT_OF.values() for match in PLACE.finditer(text)]
    assert sorted(shown) == sorted(PARSERS)


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)\s]+)\)", TEXT_OF[document])
    assert targets
    for target in targets:
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / document).parent / path if path else ROOT / document
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), target


def test_the_readme_leads_to_every_page_and_shows_the_pictures():
    for page in PAGES[1:]:
        assert f"]({page})" in TEXT_OF["README.md"], page
    assert len(TEXT_OF["README.md"].splitlines()) <= 220
    for picture in ("docs/chat.svg", "docs/candidate_tree.svg"):
        assert re.search(rf"!\[[^]]+\]\({picture}\)", TEXT_OF["README.md"]), picture


@pytest.mark.parametrize("name", ["chat.svg", "candidate_tree.svg"])
def test_pictures_are_small_described_and_without_scripts(name):
    picture = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert len(picture) < 60_000
    root = ElementTree.fromstring(picture)
    kinds = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert {"title", "desc", "style"} <= set(kinds) and "script" not in kinds
    assert "prefers-color-scheme:dark" in picture and "http" not in picture.replace("http://www.w3.org/2000/svg", "")


def test_the_candidate_tree_is_drawn_as_it_is_built():
    drawn = (ROOT / "docs/candidate_tree.svg").read_text(encoding="utf-8")
    assert candidate_tree.picture() == drawn, "run: python scripts/candidate_tree.py docs/candidate_tree.svg"


def test_the_recorded_chat_shows_what_was_typed():
    def bare(text: str) -> str:  # without blanks, and what bash adds to a continued line
        return re.sub(r"[\\\s>]", "", text)

    elements = ElementTree.parse(ROOT / "docs/chat.svg").iter()
    shown = bare("".join(element.text for element in elements if element.tag.endswith("}text")))
    for line in record_chat.SESSION:
        assert bare(line) in shown
    script, *options = shlex.split(record_chat.SESSION[0].replace("\\\n", ""))[1:]
    PARSERS[script]().parse_args(options)


def test_error_messages_are_those_of_the_code():
    # Without quotes and line breaks within a message, so that strings over several lines read as one.
    code = " ".join(path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.py"), *ROOT.glob("convai/**/*.py")])
    code = re.sub(r"['\"]\s*\n\s*f?['\"]", "", code)
    code = re.sub(r"\{argument\(['\"](\w+)['\"]\)\}", r"--\1", code)  # as scripts show it
    code = re.sub(r"\{[^{}]*\}", "...", code)
    messages = re.findall(r"^\| `([^`]+)` \|", TEXT_OF["docs/troubleshooting.md"], re.MULTILINE)
    assert len(messages) > 10
    for message in messages:
        parts = [part.strip(" .:-") for part in re.split(r"\.\.\.|https://|\b[LC]\b", message)]
        for part in filter(None, parts):
            assert part in code, message


@pytest.mark.parametrize("script", PARSERS)
def test_help_answers_at_once(script):
    """Counted in what it imports rather than in seconds, which other work on the machine would stretch."""
    code = (
        f"import sys, runpy; sys.argv = [{script!r}, '--help']\n"
        f"try: runpy.run_path({script!r}, run_name='__main__')\n"
        "finally: print(sorted(sys.modules.keys() & {'torch', 'transformers', 'spacy', 'ignite', 'numpy', 'parlai'}))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0
    assert "--help" in shown.stdout and shown.stdout.splitlines()[-1] == "[]"
