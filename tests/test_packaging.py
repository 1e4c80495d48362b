"""The package can be installed and used anywhere; the locks hold every package; what describes the project is valid."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from conftest import ROOT, needs

import convai

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REQUIREMENTS = {  # of each lock
    "requirements.lock": ["requirements.txt"],
    "requirements-dev.lock": [f"requirements{kind}.txt" for kind in ("", "-hub", "-gguf", "-dev")],
    "requirements-parlai.lock": ["requirements-parlai.txt"],
}
OF_PYTORCH = re.compile(r"torch|triton|nvidia-.*|cuda-.*")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(name: str) -> dict[str, str]:
    """Version of each package of a requirements file or a lock."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return {canonical(package): version for package, version in re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built offline from a copy: so the clone stays clean, and an earlier build in it does no harm."""
    needs("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT,
        folder / "source",
        ignore=shutil.ignore_patterns(
            ".*", "__pycache__", "build", "dist", "*.egg-info", "runs", "models", "dataset_cache*"
        ),
    )
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", folder, folder / "source"], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    package = {name for name in names if ".dist-info/" not in name}
    files = {path for path in (ROOT / "convai").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert package == {path.relative_to(ROOT).as_posix() for path in files}
    assert {"convai/py.typed", "convai/dialog/agent.py"} <= package
    assert wheel.name == f"transfer_learning_conv_ai-{convai.__version__}-py3-none-any.whl"


def test_the_wheel_asks_for_what_the_requirements_say(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    asked: dict[str, dict[str, str]] = {}
    for name, version, extra in re.findall(
        r'^Requires-Dist: ([\w.-]+)==([\w.]+)(?: *; (?:extra == "(\w+)"|python_version < "[\d.]+"))?$',
        metadata,
        re.MULTILINE,
    ):
        asked.setdefault(extra, {})[canonical(name)] = version
    hub, gguf = pins("requirements-hub.txt"), pins("requirements-gguf.txt")
    dev = {**hub, **gguf, **pins("requirements-dev.txt")}
    assert asked == {"": pins("requirements.txt"), "hub": hub, "gguf": gguf, "dev": dev}
    assert re.search(r"^License-File: LICENCE$", metadata, re.MULTILINE)


def test_the_package_works_in_another_folder(wheel, tmp_path):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*command, "--target", tmp_path / "site", wheel], check=True, capture_output=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    program = "import convai; from convai import DialogAgent; print(convai.__file__, DialogAgent.__module__)"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(tmp_path / "site/convai/__init__.py"), "convai.dialog.agent"]


def test_the_build_backend_is_the_pinned_one():
    assert PROJECT["build-system"]["requires"] == [f"setuptools=={pins('requirements-parlai.txt')['setuptools']}"]


@pytest.mark.parametrize("lock", REQUIREMENTS)
def test_a_lock_agrees_with_its_requirements(lock):
    asked = {name: version for file in REQUIREMENTS[lock] for name, version in pins(file).items()}
    missing = asked.items() - pins(lock).items()
    assert {name for name, _ in missing} == ({"torch"} & asked.keys()), "run scripts/lock.sh"


def test_all_locks_fit_together():
    small, large, parlai = (pins(lock) for lock in REQUIREMENTS)
    assert small.items() <= large.items()
    assert not {name for name in parlai.keys() & large.keys() if parlai[name] != large[name]}


@pytest.mark.parametrize("lock", REQUIREMENTS)
def test_everything_in_a_lock_has_hashes_and_no_address(lock):
    text = (ROOT / lock).read_text(encoding="utf-8")
    entries = re.findall(r"^(?!#)(\S+==\S+)(.*(?:\n[ ].*)*)", text, re.MULTILINE)
    assert len(entries) == len(pins(lock)) > 10
    assert not [entry for entry, rest in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", rest)]
    assert not [name for name in pins(lock) if OF_PYTORCH.fullmatch(name)]
    assert "://" not in text and not re.search(r"^\s*-", text.replace("    --hash=", ""), re.MULTILINE)


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_holds_what_its_packages_need(lock):
    """As far as the packages installed here say it, for this platform."""
    Requirement = needs("packaging.requirements").Requirement
    locked, lacking = pins(lock), set()
    for name in [*locked, "torch"]:
        try:
            texts = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        for requirement in map(Requirement, texts):
            needed = canonical(requirement.name)
            is_asked = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if is_asked and needed not in locked and not OF_PYTORCH.fullmatch(needed):
                lacking.add(f"{needed} of {name}")
    assert not lacking


def test_scripts_and_image_install_the_locks():
    test, demo, image = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("scripts/test.sh", "scripts/demo.sh", "Dockerfile")
    )
    assert f"use_environment requirements-dev.lock {' '.join(REQUIREMENTS['requirements-dev.lock'])}\n" in test
    assert 'install_lock "$PYTHON" requirements-parlai.lock\n' in test
    assert "use_environment requirements.lock requirements.txt\n" in demo
    installs = re.findall(r"pip install --no-cache-dir (.*?)(?: \\)?$", image, re.MULTILINE)
    assert installs == [
        "--require-hashes --no-deps -r /tmp/requirements.lock",
        "-r /tmp/requirements.txt",
        "--require-hashes --no-deps -r /tmp/requirements-parlai.lock",
    ]


def test_an_environment_is_taken_only_with_the_exact_versions(tmp_path):
    script = 'source "$1"; satisfies "$2" "${@:3}"'
    ours, other = tmp_path / "ours.txt", tmp_path / "other.txt"
    ours.write_text(f"# pytest\npytest=={pytest.__version__}  # why\n")
    other.write_text("pytest==0.1\n")
    command = ["bash", "-c", script, "bash", ROOT / "scripts/environment.sh", sys.executable]
    assert subprocess.run([*command, ours]).returncode == 0
    assert subprocess.run([*command, ours, other]).returncode == 1


def pythons_allowed() -> tuple[str, str]:
    """The oldest and the newest Python that the package may be installed with."""
    least, above = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["project"]["requires-python"]).groups()
    return f"3.{least}", f"3.{int(above) - 1}"


def test_the_workflow_runs_what_exists():
    workflow = needs("yaml").safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert tuple(job["strategy"]["matrix"]["python-version"]) == pythons_allowed()
    assert job["env"]["CI"] == "true"
    commands = [step["run"] for step in job["steps"] if "run" in step]
    browser, tests = commands
    assert "python -m playwright install" in browser
    assert [tests] == re.findall(r"^exec (bash \S+)$", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)
    assert (ROOT / tests.split()[1]).is_file()


@pytest.mark.parametrize(
    ("schema", "file"),
    [("github-workflows", ".github/workflows/test.yml"), ("citation-file-format", "CITATION.cff")],
)
def test_a_file_follows_its_schema(schema, file):
    needs("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(ROOT / file)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_one_version_everywhere():
    citation = needs("yaml").safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["version"] == convai.__version__
    assert re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)[0] == convai.__version__
    assert [name["family-names"] for name in citation["preferred-citation"]["authors"]] == [
        "Wolf",
        "Sanh",
        "Chaumond",
        "Delangue",
    ]


def test_the_changelog_has_the_form_it_names():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - (unreleased|\d{4}-\d\d-\d\d)", heading) for heading in headings)
