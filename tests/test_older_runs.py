"""A run of an older version, kept in tests/fixtures: it is scored as it was then, and goes on as it would have gone on.

It was made before its code became a package, by train.py with six epochs over its dialogs.json; of its checkpoints only
the one after update 10 is kept, and of what came after it the validations.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

OLDER_RUN = Path(__file__).with_name("fixtures") / "run_of_0_1"


def run_script(script: str, *arguments, cwd: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / script, *arguments]
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def folder(tmp_path) -> Path:
    return shutil.copytree(OLDER_RUN, tmp_path / "older")


def test_an_older_run_is_scored_as_it_was(folder):
    run_script("convai_evaluation.py", "--model_checkpoint", "run", "--dataset_path", "dialogs.json", "--no_sample",
               "--eval_type", "hits@1", "ppl", "f1", "--output", "figures.json", cwd=folder)  # fmt: skip
    results = json.loads((folder / "figures.json").read_text())["results"]
    expected = json.loads((folder / "expected_figures.json").read_text())
    for metric, figures in expected.items():
        # What newer versions say beside the figures, such as what was ranked by, is not compared.
        assert {name: results[metric][name] for name in figures} == pytest.approx(figures, rel=1e-5)


def test_an_older_run_goes_on_as_it_would_have(folder):
    run_script("train.py", "--resume", "run", cwd=folder)
    expected = (folder / "expected_metrics.jsonl").read_text().splitlines()
    records = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(records) == len(expected) == 6
    for record, wanted in zip(records, expected, strict=True):
        assert json.loads(record) == pytest.approx(json.loads(wanted), rel=1e-4)
    assert sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())[-1] == "update-00000036"
