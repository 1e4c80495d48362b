"""The processes of one training run ("ranks"): a single one, or those that torchrun or its like started.

torchrun and torch.distributed.launch tell each process its rank through the environment. What is sent between them goes
through ignite.distributed, which does nothing where there is but one.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import cast

import ignite.distributed as idist
import torch
import torch.distributed as dist

from convai.device import choose_device
from convai.errors import UserError, argument

# How long a rank waits for another: one of them may be tokenizing a large data set, or downloading it.
PATIENCE = timedelta(hours=2)


@contextmanager
def process_group(device_name: str, local_rank: int = -1) -> Iterator[torch.device]:
    """Join the launcher's other processes, where there are any, and yield the device of this one.

    `local_rank` is what torch.distributed.launch passes as an option; the environment's LOCAL_RANK comes first.
    """
    if "WORLD_SIZE" not in os.environ:
        if local_rank >= 0:
            raise UserError(f"{argument('local_rank')} is set by a launcher, and there is none; start several "
                            "processes with `torchrun --nproc_per_node=N train.py ...`.")  # fmt: skip
        yield choose_device(device_name)
        return
    if device_name not in ("", "cuda"):
        choose_device(device_name)  # a mistyped one is refused before each process is given a GPU of its own
    os.environ.setdefault("LOCAL_RANK", str(max(local_rank, 0)))
    is_cuda = device_name.startswith("cuda") or (not device_name and torch.cuda.is_available())
    local_rank = int(os.environ["LOCAL_RANK"])
    if is_cuda and local_rank >= torch.cuda.device_count():
        raise UserError(f"there is no GPU for local rank {local_rank}: this machine has {torch.cuda.device_count()}; "
                        f"start fewer processes, or give {argument('device')} cpu.")  # fmt: skip
    device = choose_device(f"cuda:{local_rank}" if is_cuda else device_name)
    if is_cuda:
        torch.cuda.set_device(device)
    join("nccl" if is_cuda else "gloo")
    # After an exception the group is left as it is: to leave it in order would take the other ranks.
    yield device
    # The trainer's reference cycles keep the group's threads alive until the interpreter is torn down, when they may
    # abort the process of a run that is done: free them first.
    gc.collect()
    idist.finalize()


def join(backend: str) -> None:
    """Wait for all ranks of the launcher and connect to them; ignite.distributed finds the group that this makes."""
    store, rank, n_ranks = next(dist.rendezvous("env://", timeout=PATIENCE))
    # After a restart torchrun's store may still hold the addresses of the processes that are gone (torch 2.13).
    store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=n_ranks, timeout=PATIENCE)


def is_first_rank() -> bool:
    """Whether this process is the one that writes files and reports."""
    return idist.get_rank() == 0


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of all ranks' tensors, on every rank."""
    return cast(torch.Tensor, idist.all_reduce(tensor)) if idist.get_world_size() > 1 else tensor


def from_first_rank(text: str) -> str:
    """Return the text that the first rank gives, on every rank."""
    return cast(str, idist.broadcast(text, src=0, safe_mode=True)) if idist.get_world_size() > 1 else text
