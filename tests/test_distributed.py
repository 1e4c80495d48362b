"""Several ranks, launched as users launch them: the same figures as one, and none that waits for another for ever."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, make_dialogs, tiny_config
from test_train import metrics_of, read_events

from convai.model.tokenization import train_vocabulary
from convai.training.run_folder import list_checkpoints

LAUNCHERS = {"torchrun": "torch.distributed.run", "launch": "torch.distributed.launch"}
# 26 examples in updates of 8: the last of an epoch has 2, fewer than four ranks. Seven validation examples.
OPTIONS = ["--from_scratch", "--model", "scratch", "--dataset_path", "dialogs.json", "--dataset_cache", "cache"]
OPTIONS += ["--lr", "1e-2", "--n_epochs", "2", "--valid_batch_size", "2", "--device", "cpu", "--eval_before_start"]


@pytest.fixture
def folder(tmp_path) -> Path:
    tokenizer = train_vocabulary([str(number) for number in range(300)], "gpt2", 300)
    tokenizer.save(tmp_path / "scratch")
    (tmp_path / "scratch/config.json").write_text(json.dumps(tiny_config("gpt2", len(tokenizer), n_positions=192)))
    valid = make_dialogs(4)
    valid[3]["utterances"].pop()
    (tmp_path / "dialogs.json").write_text(json.dumps({"train": make_dialogs(13), "valid": valid}))
    return tmp_path


def environment() -> dict:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC")}
    return inherited | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}


def command_of(n_ranks: int, *arguments, launcher="torchrun", script=ROOT / "train.py", launcher_options=()) -> list:
    if n_ranks == 1:
        return [sys.executable, script, *map(str, arguments)]
    # A port of its own: tests may run beside each other.
    launch = [sys.executable, "-m", LAUNCHERS[launcher], f"--nproc_per_node={n_ranks}", "--master_port", free_port()]
    return [*launch, *launcher_options, script, *map(str, arguments)]


def free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run(folder, n_ranks: int, *arguments, timeout=120, **options) -> subprocess.CompletedProcess:
    command = command_of(n_ranks, *arguments, **options)
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=timeout)


def losses_of(run_folder) -> list[float]:
    values = [value for event in read_events(run_folder) for value in event.summary.value]
    return [value.simple_value for value in values if value.tag == "training/loss"]


def split_over(n_ranks: int) -> list[str]:
    return [*OPTIONS, "--train_batch_size", 1, "--gradient_accumulation_steps", 8 // n_ranks]


COUNTING = """
import atexit, os, sys
sys.path.insert(0, {root!r})
import train
from convai.training import trainer
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
n = 0
def exchange(state, bucket):
    global n
    n += bucket.is_last()
    return allreduce_hook(state, bucket)
class Counting(trainer.DistributedDataParallel):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.register_comm_hook(None, exchange)
trainer.DistributedDataParallel = Counting
train.main()
print("exchanges of gradients:", n)
"""


@pytest.mark.parametrize(
    ("n_ranks", "launcher"),
    [(2, "launch"), pytest.param(2, "torchrun", marks=pytest.mark.slow), pytest.param(4, "torchrun")],
)
def test_several_ranks_train_and_validate_as_one(folder, n_ranks, launcher):
    (folder / "counting.py").write_text(COUNTING.format(root=str(ROOT)))
    for n, name in ((1, "one"), (n_ranks, "several")):
        script = folder / "counting.py" if n > 1 else ROOT / "train.py"
        result = run(folder, n, *split_over(n), "--output_dir", name, launcher=launcher, script=script)
        assert result.returncode == 0, result.stderr
    assert result.stdout.count("exchanges of gradients: 8\n") == n_ranks  # once per update, not per micro-batch
    assert f"update = 1 x {8 // n_ranks} accumulation x {n_ranks} ranks = 8 examples; 8 updates" in result.stderr
    assert result.stderr.count("after 8 updates:") == 1  # one rank reports
    assert len(losses_of(folder / "one")) == 8
    assert losses_of(folder / "several") == pytest.approx(losses_of(folder / "one"), rel=1e-5)
    for ours, theirs in zip(metrics_of(folder / "several"), metrics_of(folder / "one"), strict=True):
        assert ours["hits@1"] == theirs["hits@1"]
        assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-5)
    assert metrics_of(folder / "one")[-1]["hits@1"] not in (None, 0, 1)
    assert len(list(folder.glob("cache.*"))) == 1


def test_a_failure_before_training_ends_all_ranks(folder):
    (folder / "dialogs.json").write_text("{")
    started = time.monotonic()
    result = run(folder, 2, *OPTIONS)
    assert result.returncode != 0
    assert "error: dialogs.json is not JSON" in result.stderr
    assert time.monotonic() - started < 60


PATCHED = """
import os, sys
sys.path.insert(0, {root!r})
import train
from convai.training import trainer
compute, n = trainer.tree_losses, 0
def tree_losses(model, batch):
    global n
    n += model.training
    if os.environ["RANK"] == "1" and n == {n}:
        {action}
    return compute(model, batch)
trainer.tree_losses = tree_losses
train.main()
"""


def patched_script(folder, action: str, n: int = 3) -> Path:
    """train.py with something that happens to rank 1 in its n-th micro-batch."""
    (folder / "patched.py").write_text(PATCHED.format(root=str(ROOT), action=action, n=n))
    return folder / "patched.py"


def test_an_exception_on_one_rank_ends_the_job_with_its_message(folder):
    script = patched_script(folder, 'raise RuntimeError("the dog ate it")')
    started = time.monotonic()
    result = run(folder, 2, *split_over(2), script=script)
    assert result.returncode != 0
    assert "rank 1: ERROR: RuntimeError: the dog ate it" in result.stderr
    assert time.monotonic() - started < 60


def test_a_killed_worker_comes_back_and_the_job_goes_on_where_it_was(folder):
    action = 'os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.kill(os.getpid(), 9)'
    arguments = [*split_over(2), "--save_every", 1, "--output_dir", "run"]
    script = patched_script(folder, action, n=14)  # of four an update, but one in the fourth
    result = run(folder, 2, *arguments, script=script, launcher_options=["--max-restarts=1"], timeout=200)
    assert result.returncode == 0, result.stderr
    assert re.search(r"going on after update [34] of 8", result.stderr)
    assert [path.name for path in list_checkpoints(folder / "run")][-1] == "update-00000008"
    assert run(folder, 1, *split_over(1), "--output_dir", "one").returncode == 0
    assert metrics_of(folder / "run")[-1] == pytest.approx(metrics_of(folder / "one")[-1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_leaves_a_checkpoint(folder, number):
    command = command_of(2, *split_over(2), "--n_epochs", 500, "--output_dir", "run", "--save_every", 0)
    process = subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "after 4 updates" in line:
            break
    process.send_signal(number)
    rest = process.stderr.read()
    assert process.wait() != 0
    (update,) = re.findall(r"interrupted after update (\d+); go on with: python train.py --resume run", rest)
    assert list_checkpoints(folder / "run")[-1].name == f"update-{int(update):08d}"


def test_a_rank_without_a_gpu_of_its_own_is_told_so(folder):
    result = run(folder, 2, *OPTIONS, "--device", "cuda")
    assert re.search(r"(rank 1: )?error: there is no GPU for local rank \d: this machine has \d", result.stderr)


def test_local_rank_without_a_launcher(folder):
    result = run(folder, 1, *OPTIONS, "--local-rank", 0)
    assert result.returncode == 2
    assert "error: --local_rank is set by a launcher, and there is none; start several processes with" in result.stderr


@pytest.fixture
def two_hosts():
    """Two network namespaces that can reach each other, as two machines would."""
    names, addresses = ("convai_a", "convai_b"), ("10.93.7.1", "10.93.7.2")
    commands = [f"ip netns add {name}" for name in names]
    commands += [f"ip link add veth0 netns {names[0]} type veth peer name veth0 netns {names[1]}"]
    for name, address in zip(names, addresses, strict=True):
        commands += [f"ip -n {name} addr add {address}/24 dev veth0", f"ip -n {name} link set veth0 up"]
        commands += [f"ip -n {name} link set lo up"]
    if not shutil.which("ip"):
        pytest.skip("there is no `ip` command to make network namespaces with")
    try:
        for command in commands:
            if subprocess.run(command.split(), capture_output=True).returncode:
                pytest.skip(f"network namespaces are not allowed here: {command}")
        yield names, addresses
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
def test_two_hosts(folder, two_hosts):
    names, addresses = two_hosts
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--master_addr", addresses[0],
                "--master_port", "29511"]  # fmt: skip
    processes = []
    for rank, name in enumerate(names):
        where = folder / name  # no shared folders
        shutil.copytree(folder / "scratch", where / "scratch")
        shutil.copy(folder / "dialogs.json", where)
        command = ["ip", "netns", "exec", name, sys.executable, *launcher, f"--node_rank={rank}"]
        command += [ROOT / "train.py", *map(str, split_over(2)), "--output_dir", "run"]
        variables = environment() | {"GLOO_SOCKET_IFNAME": "veth0", "TP_SOCKET_IFNAME": "veth0"}
        processes.append(subprocess.Popen(command, cwd=where, env=variables, stderr=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert run(folder, 1, *split_over(1), "--output_dir", "one").returncode == 0
    ours, theirs = metrics_of(folder / names[0] / "run"), metrics_of(folder / "one")
    assert ours[-1] == pytest.approx(theirs[-1], rel=1e-5)
