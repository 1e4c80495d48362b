"""The folder of a run: never taken from another run, and written on systems other than Linux, too."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import test_resume
from conftest import ROOT
from test_resume import metrics_of, run_train, updates_of

import new_model
import train
from convai.errors import UserError
from convai.training import checkpoint, run_folder
from convai.training.run_folder import checkpoint_folder, free_name, list_checkpoints

folder = test_resume.folder


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


class TestTakenFolders:
    @pytest.fixture
    def run(self, folder) -> Path:
        run_train("--output_dir", "run", "--max_updates", 2)
        return Path("run")

    def test_a_run_is_refused_with_the_ways_out_before_the_data_are_read(self, run, monkeypatch):
        before = content_of(run)
        monkeypatch.setattr(train, "get_dataset", None)
        with pytest.raises(UserError) as refusal:
            run_train("--output_dir", "run", "--max_updates", 2)
        assert str(refusal.value) == (
            "--output_dir run holds a run or a model already (metrics.jsonl): go on with it by --resume run, give "
            "another folder, or --set_aside, which renames this one to run.1."
        )
        assert content_of(run) == before

    @pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "model.safetensors", "pytorch_model.bin"])
    def test_any_part_of_a_run_or_a_model_is_refused(self, folder, name):
        Path("other").mkdir()
        Path("other", name).mkdir() if name == "checkpoints" else Path("other", name).touch()
        with pytest.raises(UserError, match=rf"--output_dir other holds a run or a model already \({name}\)"):
            run_train("--output_dir", "other")
        with pytest.raises(UserError, match=rf"other holds a run or a model already \({name}\); give another folder"):
            check_new_model("other")

    def test_other_files_are_in_nobody_s_way(self, folder):
        Path("mine").mkdir()
        Path("mine/notes.txt").write_text("mine")
        run_train("--output_dir", "mine", "--max_updates", 1)
        assert updates_of("mine") == [1] and Path("mine/notes.txt").read_text() == "mine"

    def test_set_aside_renames_the_old_one_and_says_so(self, run, caplog):
        caplog.set_level("INFO")
        before = content_of(run)
        run_train("--output_dir", "run", "--max_updates", 1, "--set_aside")
        assert caplog.messages.count("what was in run is set aside in run.1") == 1
        assert content_of(Path("run.1")) == before and updates_of("run") == [1]
        run_train("--output_dir", "run/", "--max_updates", 1, "--set_aside")
        assert content_of(Path("run.1")) == before and updates_of("run.2") == updates_of("run") == [1]

    def test_set_aside_of_the_folder_that_is_trained_on(self, run):
        run_train("--set_aside", base="--model run --output_dir run --dataset_path dialogs.json --max_updates 1")
        assert updates_of("run.1") == [2] and updates_of("run") == [1]

    def test_set_aside_waits_until_the_new_run_can_start(self, run):
        with pytest.raises(UserError, match="there is no nowhere"):
            run_train("--set_aside", base="--from_scratch --model scratch --output_dir run --dataset_path nowhere.json")
        assert updates_of("run") == [2] and not Path("run.1").exists()

    @pytest.mark.parametrize("name", [".", "../run"])
    def test_the_current_folder_cannot_be_set_aside(self, run, monkeypatch, name):
        monkeypatch.chdir(run)
        with pytest.raises(UserError, match=rf"go on with it by --resume {name}, give another folder\.$"):
            run_train("--output_dir", name)
        with pytest.raises(UserError, match=r"give another folder, as --set_aside cannot rename the current folder"):
            run_train("--output_dir", name, "--set_aside")

    def test_names_of_what_is_set_aside(self, tmp_path):
        (tmp_path / "run.1").symlink_to("nowhere")
        (tmp_path / "run.2").touch()
        assert free_name(tmp_path / "run") == tmp_path / "run.3"


class TestAutomaticResume:
    """A cluster starts the same command again and again."""

    def test_before_the_first_checkpoint_the_same_run_begins_again(self, folder):
        options = ["--output_dir", "run", "--max_updates", 2, "--eval_before_start", "--resume", "auto"]
        run_train(*options)
        whole = metrics_of("run")
        assert [record["updates"] for record in whole] == [0, 2]
        shutil.copytree("run", "finished")
        for path in (Path("run/model.safetensors"), Path("run/config.json")):
            path.unlink()
        checkpoint_folder(Path("run"), 2).rename("run/checkpoints/update-00000002.tmp")  # killed within
        Path("run/metrics.jsonl").write_text(json.dumps(whole[0]) + "\n")
        run_train(*options, "--set_aside")
        assert metrics_of("run") == whole and updates_of("run") == [2]
        assert not Path("run.1").exists() and not list(Path("run/checkpoints").glob("*.tmp"))

    @pytest.mark.parametrize("more", [["--lr", 0.5], ["--resume", ""]])
    def test_with_other_options_or_without_auto_it_is_refused(self, folder, more):
        run_train("--output_dir", "run", "--max_updates", 1)
        shutil.rmtree("run/checkpoints")
        Path("run/model.safetensors").unlink()
        Path("run/metrics.jsonl").write_text('{"updates": 0, "epoch": 0, "hits@1": 0.1, "perplexity": 9.0}\n')
        with pytest.raises(UserError, match="--output_dir run holds a run or a model already"):
            run_train("--output_dir", "run", "--max_updates", 1, "--resume", "auto", *more)

    def test_damaged_checkpoints_are_not_removed(self, folder):
        run_train("--output_dir", "run", "--max_updates", 1)
        damaged = checkpoint_folder(Path("run"), 1) / "training_state.pt"
        damaged.write_bytes(b"")
        with pytest.raises(UserError, match="holds a run or a model already"):
            run_train("--output_dir", "run", "--max_updates", 1, "--resume", "auto")
        assert damaged.exists()


def test_two_runs_of_the_same_second_have_a_folder_each(folder, monkeypatch):
    class Stopped(datetime):
        @classmethod
        def now(cls):
            return cls(2026, 4, 17, 13, 31, 38)

    monkeypatch.setattr(run_folder, "datetime", Stopped)
    for _ in range(3):
        run_train("--max_updates", 1)
    first, *others = sorted(Path("runs").iterdir())
    assert first.name.startswith("Apr17_13-31-38_") and first.name.endswith("_scratch")
    assert [path.name for path in others] == [f"{first.name}_2", f"{first.name}_3"]


def test_several_ranks_leave_an_old_run_alone_too(folder):
    run_train("--output_dir", "run", "--max_updates", 1)
    before = content_of(Path("run"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "train.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [*test_resume.OPTIONS.split(), "--output_dir", "run"]
    result = subprocess.run([*launch, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert result.stderr.count("error: --output_dir run holds a run or a model already") == 1
    assert content_of(Path("run")) == before


def check_new_model(folder: str) -> None:
    arguments = ["new_model.py", folder, "--dataset_path", "dialogs.json", "--n_layer", "1", "--n_embd", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        new_model.main.__wrapped__()


def test_a_new_model_takes_the_place_of_none_but_an_untrained_one(folder):
    check_new_model("m")
    check_new_model("m")
    assert json.loads(Path("m/config.json").read_text())["n_embd"] == 4


class TestAsOnWindows:
    @pytest.fixture
    def windows(self, folder, monkeypatch):
        """Folders cannot be opened, and only files open for writing can be forced to disk."""
        real_open, real_fsync, forced = os.open, os.fsync, []

        def open_file(path, flags, *arguments, **options):
            if os.path.isdir(path):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real_open(path, flags, *arguments, **options)

        def fsync(descriptor):
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                raise OSError(errno.EBADF, "Bad file descriptor")
            forced.append(descriptor)
            real_fsync(descriptor)

        monkeypatch.setattr(os, "open", open_file)
        monkeypatch.setattr(os, "fsync", fsync)
        return forced

    def test_checkpoints_are_written(self, windows):
        run_train("--output_dir", "run", "--max_updates", 1)
        n_files = len(list(checkpoint_folder(Path("run"), 1).iterdir()))
        assert n_files >= 5 and len(windows) >= n_files

    def test_a_checkpoint_whose_files_are_in_use_stays_with_a_warning(self, folder, monkeypatch, caplog):
        rename = Path.rename

        def refuse(path, target):
            if path.name == "update-00000001":
                raise PermissionError(errno.EACCES, "Access is denied", str(path))
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", refuse)
        run_train("--output_dir", "run", "--save_every", 1, "--n_saved", 1, "--max_updates", 3)
        assert updates_of("run") == [1, 3]
        assert "the old checkpoint run/checkpoints/update-00000001 cannot be removed (Access is denied)" in caplog.text


def test_what_a_kill_left_of_a_removal_is_in_nobody_s_way(folder):
    run_train("--output_dir", "run", "--save_every", 1, "--max_updates", 3)
    first, second, _ = list_checkpoints(Path("run"))
    for left in (first, Path("run/checkpoints/update-00000000")):
        shutil.copytree(second, f"{left}.old")
    checkpoint.remove_oldest(Path("run"), 1)
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["update-00000003"]


DEMO_PYTHON = """#!{python}
import os, sys
arguments = [{data!r} if argument == "example" else argument for argument in sys.argv[1:]]
if arguments[0] == "train.py":
    arguments += ["--max_updates", "1"]
os.execv({python!r}, [{python!r}, *arguments])
"""


def test_the_demo_works_a_second_time(folder):
    """scripts/demo.sh with less data and a single update."""
    python = Path("python")
    python.write_text(DEMO_PYTHON.format(python=sys.executable, data=str(folder / "dialogs.json")))
    python.chmod(0o755)
    for _ in range(2):
        command = ["bash", ROOT / "scripts/demo.sh", folder / "demo/"]
        environment = os.environ | {"PYTHON": str(python.resolve())}
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "hits@1 0." in done.stdout and done.stdout.split("== 3.")[1].count("\n") == 6
    assert f"what was in {folder / 'demo'} is set aside in {folder / 'demo.1'}" in done.stderr
    assert updates_of("demo") == updates_of("demo.1") == [1]
    assert {path.name.split(".")[0] for path in folder.glob("demo*")} == {"demo", "demo-untrained", "demo-cache"}
