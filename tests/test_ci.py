"""What continuous integration promises: nothing is skipped for want of a package, and ParlAI's commands are tried."""

import re

import pytest
from conftest import ROOT, needs


def test_what_is_not_installed_is_skipped_but_fails_in_ci(monkeypatch):
    assert needs("json").loads("1") == 1
    for value in ("", "false"):
        monkeypatch.setenv("CI", value)
        with pytest.raises(pytest.skip.Exception, match="no_such_package cannot be imported"):
            needs("no_such_package")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no_such_package cannot be imported"):
        needs("no_such_package")


def test_no_test_skips_a_package_by_itself():
    word = "importor" + "skip"
    assert not [path.name for path in (ROOT / "tests").glob("*.py") if word in path.read_text(encoding="utf-8")]


def test_ci_says_that_it_is_and_tries_parlai():
    assert re.search(r"^export CI=true\b", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert "exec bash scripts/test.sh\n" in (ROOT / ".ci/run").read_text()
    assert "bash scripts/check_parlai.sh\n" in (ROOT / "scripts/test.sh").read_text()


def test_parlai_is_tried_in_the_environment_that_the_readme_makes():
    readme, script = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "scripts/check_parlai.sh"))
    commands = re.findall(r"^pip install .*$", script, re.MULTILINE)
    assert commands == re.findall(r"^(pip install .*?) +#", readme, re.MULTILINE)
    assert len(commands) == 2
