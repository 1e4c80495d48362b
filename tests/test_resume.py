"""Runs that are interrupted, killed or out of luck, and go on: whole runs of train.py, most of them in this process."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, make_dialogs, tiny_config
from safetensors.torch import load_file

import train
from convai.errors import UserError
from convai.model.tokenization import train_vocabulary
from convai.options import training_parser
from convai.training import trainer
from convai.training.resume import check_readable, resolve_options
from convai.training.run_folder import checkpoint_folder, list_checkpoints

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a model to train from scratch, with dropout, and 12 dialogs (24 examples)."""
    monkeypatch.chdir(tmp_path)
    tokenizer = train_vocabulary([str(number) for number in range(300)], "gpt2", 300)
    tokenizer.save(tmp_path / "scratch")
    config = tiny_config("gpt2", len(tokenizer), embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)
    (tmp_path / "scratch/config.json").write_text(json.dumps(config))
    data = {"train": make_dialogs(12), "valid": make_dialogs(4)}
    (tmp_path / "dialogs.json").write_text(json.dumps(data))
    return tmp_path


# An update of 8 examples, three an epoch, six in all.
OPTIONS = "--from_scratch --model scratch --dataset_path dialogs.json --gradient_accumulation_steps 2 --lr 1e-2"
OPTIONS += " --n_epochs 2 --valid_batch_size 8 --dataset_cache cache --device cpu"


def options(*more, base: str = OPTIONS) -> list[str]:
    return [*base.split(), *map(str, more)]


def run_train(*more, base: str = OPTIONS) -> None:
    train.train(resolve_options(training_parser(), options(*more, base=base)), CPU)


def metrics_of(run) -> list[dict]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def same_weights(one, other) -> bool:
    one, other = (load_file(Path(path, "model.safetensors")) for path in (one, other))
    return all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


def updates_of(run) -> list[int]:
    return [int(path.name.removeprefix("update-")) for path in list_checkpoints(Path(run))]


@pytest.fixture
def at_update(monkeypatch):
    """Makes something happen when the loss of an update is computed, counted from the start of the process."""

    def arrange(number: int, action) -> None:
        n_batches = 0
        compute = trainer.tree_losses

        def tree_losses(model, batch):
            nonlocal n_batches
            n_batches += model.training
            if n_batches == 2 * number and model.training:  # two micro-batches an update
                action()
            return compute(model, batch)

        monkeypatch.setattr(trainer, "tree_losses", tree_losses)

    yield arrange
    monkeypatch.undo()


def send(number: signal.Signals):
    return lambda: os.kill(os.getpid(), number)


def test_checkpoints_are_kept_and_removed(folder):
    run_train("--output_dir", "run", "--save_every", 1, "--n_saved", 2)
    assert updates_of("run") == [5, 6]
    assert sorted(path.name for path in Path("run/checkpoints").iterdir()) == ["update-00000005", "update-00000006"]
    run_train("--output_dir", "epochs", "--save_every", 0)
    assert updates_of("epochs") == [3, 6]
    assert same_weights("run/checkpoints/update-00000006", "epochs/checkpoints/update-00000006")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("update", [2, 3])  # within an epoch, and at its end, before the validation
def test_a_signal_ends_the_run_after_its_update_and_it_goes_on_as_if_nothing_had_been(
    folder, at_update, number, status, update, monkeypatch, caplog
):
    run_train("--output_dir", "whole")
    at_update(update, send(number))
    with pytest.raises(SystemExit) as left, caplog.at_level("INFO"):
        run_train("--output_dir", "run")
    assert left.value.code == status
    assert f"interrupted after update {update}; go on with: python train.py --resume run" in caplog.text
    assert updates_of("run") == [update]
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    run_train(base="--resume run --device cpu")
    assert updates_of("run")[-1] == 6
    assert same_weights("run/checkpoints/update-00000006", "whole/checkpoints/update-00000006")
    assert same_weights("run", "whole")
    assert metrics_of("run") == metrics_of("whole")


def test_a_signal_during_validation_ends_at_once_and_the_validation_is_made_up_for(folder, monkeypatch):
    run_train("--output_dir", "whole")
    compute = train.tree_losses

    def tree_losses(model, batch):
        if not model.training:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute(model, batch)

    monkeypatch.setattr(train, "tree_losses", tree_losses)
    with pytest.raises(SystemExit) as left:
        run_train("--output_dir", "run")
    assert left.value.code == 143
    assert updates_of("run") == [3] and not Path("run/metrics.jsonl").exists()
    monkeypatch.setattr(train, "tree_losses", compute)
    run_train(base="--resume run --device cpu")
    assert metrics_of("run") == metrics_of("whole")
    assert same_weights("run", "whole")


def test_signals_act_as_ever_afterwards(folder):
    run_train("--output_dir", "run", "--max_updates", 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("more", [["--fp16", "O2"], ["--bf16"], ["--gradient_checkpointing", "--num_workers", "1"]])
def test_resuming_is_exact_in_other_modes_too(folder, at_update, more, monkeypatch):
    run_train("--output_dir", "whole", *more)
    at_update(4, send(signal.SIGTERM))
    with pytest.raises(SystemExit):
        run_train("--output_dir", "run", *more)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    run_train(base="--resume run/checkpoints/update-00000004 --device cpu")
    assert same_weights("run/checkpoints/update-00000006", "whole/checkpoints/update-00000006")


def test_gradient_checkpointing_changes_nothing(folder):
    run_train("--output_dir", "plain")
    run_train("--output_dir", "checkpointed", "--gradient_checkpointing")
    assert same_weights("plain", "checkpointed")


def test_auto_goes_on_with_the_newest_run_of_the_same_options(folder, caplog):
    caplog.set_level("INFO")
    run_train("--resume", "auto", "--max_updates", 2)
    assert "no earlier run with these options has a checkpoint" in caplog.text
    (run,) = Path("runs").iterdir()
    run_train("--output_dir", "runs/other", "--max_updates", 3)
    caplog.clear()
    run_train("--resume", "auto", "--max_updates", 2)
    assert f"going on after update 2 of 2, from {run}" in caplog.text
    assert sorted(Path("runs").iterdir()) == [run, Path("runs/other")]


def test_a_finished_run_stays_as_it_is(folder):
    run_train("--output_dir", "run")
    before = metrics_of("run"), Path("run/model.safetensors").read_bytes()
    run_train(base="--resume run --device cpu")
    assert before == (metrics_of("run"), Path("run/model.safetensors").read_bytes())


def test_a_restart_by_the_launcher_resumes(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert resolve_options(training_parser(), []).resume == "auto"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert resolve_options(training_parser(), []).resume == ""


class TestRefusals:
    @pytest.fixture
    def run(self, folder):
        run_train("--output_dir", "run", "--max_updates", 4, "--save_every", 2)
        assert updates_of("run") == [2, 3, 4]
        return folder / "run"

    def test_other_options_are_named(self, run):
        with pytest.raises(UserError) as refusal:
            run_train(base="--resume run --lr 0.5 --seed 1")
        assert str(refusal.value) == (
            "--resume run: it was trained with --lr 0.01, not 0.5, --seed 42, not 1; leave these options out to go on "
            "with the run, or, to train on with others from its weights, give --model run --output_dir OTHER instead "
            "of --resume."
        )
        run_train(base="--lr 0.5 --seed 1 --model run --output_dir other --dataset_path dialogs.json --max_updates 1")

    def test_updates_may_be_split_otherwise_but_keep_their_size(self, run):
        run_train(base="--resume run --train_batch_size 2 --gradient_accumulation_steps 4 --device cpu")
        with pytest.raises(UserError, match="update size 8, not 16"):
            run_train(base="--resume run --train_batch_size 8 --device cpu")

    def test_other_data(self, run):
        Path("dialogs.json").write_text(json.dumps({"train": make_dialogs(9), "valid": make_dialogs(4)}))
        with pytest.raises(UserError, match="examples 24, not 18"):
            run_train(base="--resume run --device cpu")

    @pytest.mark.parametrize("file", ["model.safetensors", "training_state.pt"])
    @pytest.mark.parametrize("size", [0, 100, 0.9])
    def test_a_truncated_checkpoint(self, run, file, size, caplog):
        path = checkpoint_folder(run, 4) / file
        content = path.read_bytes()
        path.write_bytes(content[: int(size * len(content)) if size == 0.9 else size])
        with pytest.raises(UserError, match=f"{file} is damaged"):
            run_train(base=f"--resume {path.parent} --device cpu")
        with caplog.at_level("INFO"):
            run_train(base="--resume run --device cpu")
        assert f"{file} is damaged" in caplog.text and "going on after update 3 of 4" in caplog.text

    def test_no_readable_checkpoint(self, run):
        for folder in list_checkpoints(run):
            (folder / "model.safetensors").write_bytes(b"")
        with pytest.raises(UserError, match="there is no readable checkpoint in run/checkpoints; start the run anew"):
            run_train(base="--resume run --device cpu")

    @pytest.mark.parametrize("folder_name", ["nowhere", "scratch"])
    def test_no_run(self, run, folder_name):
        with pytest.raises(UserError, match=f"--resume {folder_name} is not the folder of a run"):
            run_train(base=f"--resume {folder_name}")

    def test_a_pickle_that_runs_code_is_refused(self, run):
        class Malicious:
            def __reduce__(self):
                return open, ("pwned", "w")

        for content in (pickle.dumps(Malicious()), None):
            path = checkpoint_folder(run, 4) / "training_state.pt"
            if content is None:
                torch.save({"optimizer": Malicious()}, path)
            else:
                path.write_bytes(content)
            # A bare pickle is no archive of tensors, so it is not even looked at.
            with pytest.raises(UserError, match=r"could run code; it is not opened|mmap can only be used with files"):
                run_train(base=f"--resume {path.parent} --device cpu")
        assert not Path("pwned").exists()


class TestMisfortunes:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_loss_that_is_no_number(self, folder, monkeypatch, value):
        compute, n = trainer.tree_losses, 0

        def tree_losses(model, batch):
            nonlocal n
            n += model.training
            token_losses, *others = compute(model, batch)
            return token_losses * (value if n == 7 else 1), *others

        monkeypatch.setattr(trainer, "tree_losses", tree_losses)
        message = (
            rf"update 4: the loss is {value} .* try a lower --lr, .*update-00000003 is intact: go on with --resume"
        )
        with pytest.raises(UserError, match=message):
            run_train("--output_dir", "run")

    @pytest.mark.parametrize(
        "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
                  RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
    )  # fmt: skip
    def test_out_of_memory_says_what_lowers_it(self, folder, at_update, error):
        def fail():
            raise error

        at_update(2, fail)
        with pytest.raises(UserError, match="out of memory; lower --train_batch_size and raise --gradient_acc"):
            run_train("--output_dir", "run")

    @pytest.fixture
    def small_disk(self, folder):
        disk = folder / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=768k", "tmpfs", disk], capture_output=True).returncode:
            pytest.skip("a file system of limited size cannot be mounted here")
        yield disk
        subprocess.run(["umount", "--lazy", disk], check=True)

    def test_a_full_disk_leaves_the_earlier_checkpoints(self, folder, small_disk):
        with pytest.raises(UserError, match=r"cannot be written \(.*No space left on device.*\); the checkpoint .* is"):
            run_train("--output_dir", "disk/run", "--save_every", 1, "--n_saved", 100, "--n_epochs", 10)
        run, (*_, last) = Path("disk/run"), updates_of("disk/run")
        for checkpoint in list_checkpoints(run):
            check_readable(checkpoint)
        assert not list(run.glob("**/*.tmp"))
        run_train("--output_dir", "whole", "--n_epochs", 10, "--save_every", 1, "--n_saved", 100)
        assert same_weights(checkpoint_folder(run, last), checkpoint_folder(Path("whole"), last))

    def test_a_full_disk_leaves_no_broken_cache(self, folder, small_disk, caplog):
        with pytest.raises(OSError), open(small_disk / "filler", "wb", buffering=0) as file:
            while file.write(bytes(1024)):
                pass
        run_train("--output_dir", "run", "--dataset_cache", "disk/cache", "--max_updates", 1)
        assert "the data lie in temporary files this time" in caplog.text
        assert [path.name for path in small_disk.iterdir()] == ["filler"]

    def test_a_run_folder_that_cannot_be_written(self, folder):
        Path("file").touch()
        with pytest.raises(UserError, match=r"the run folder file/run cannot be written \(Not a directory\)"):
            run_train("--output_dir", "file/run")


def kill_and_resume(folder: Path, n_kills: int, n_epochs: int, seed: int) -> None:
    """Kill a run that writes a checkpoint after every update at random moments, and go on until it is done."""
    rng = random.Random(seed)
    base = options("--n_epochs", n_epochs, "--save_every", 1, "--n_saved", 2, "--output_dir", "run")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command, n_killed = [sys.executable, str(ROOT / "train.py")], 0
    while True:
        arguments = ["--resume", "run", "--device", "cpu"] if n_killed else base
        process = subprocess.Popen([*command, *arguments], cwd=folder, env=environment, stderr=subprocess.PIPE)
        if n_killed < n_kills:
            for line in process.stderr:
                if b"run folder:" in line or b"going on after" in line:
                    break
            deadline = time.monotonic() + 10
            while not list_checkpoints(folder / "run") and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 1.5 / n_kills + 0.1))
            process.kill()
            n_killed += 1
        stderr = process.stderr.read().decode()
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL, stderr
        for checkpoint in list_checkpoints(folder / "run"):
            check_readable(checkpoint)
    assert n_killed == n_kills
    run_train(*base[len(OPTIONS.split()) :], "--output_dir", "whole")
    assert same_weights(checkpoint_folder(Path("run"), 3 * n_epochs), checkpoint_folder(Path("whole"), 3 * n_epochs))
    assert same_weights("run", "whole")
    assert metrics_of("run") == metrics_of("whole")


def test_three_kills(folder):
    kill_and_resume(folder, 3, 20, seed=1)


@pytest.mark.slow
def test_twenty_kills(folder):
    kill_and_resume(folder, 20, 60, seed=2)
