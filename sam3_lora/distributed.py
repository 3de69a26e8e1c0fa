"""The processes of one run under `torchrun` or `training.launch`: who this one is, and what they tell each other.

Everything but `World` and `join` is torch.distributed's. A process alone is a world of size 1, in which every method
is the identity, so that callers need not ask.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
# The others wait this long for one that saves, evaluates or computes in smaller passes after running out of memory.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """One process among `size`; `rank` 0 writes files and reports."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the processes of this machine: which GPU

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def add(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def highest(self, value: int) -> int:
        """The largest value that any process gave."""
        if self.size == 1:
            return value
        shared = torch.tensor(value)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared)

    def gather(self, value: T) -> list[T]:
        """What every process gave, by rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]  # all are filled now

    def share(self, count: int) -> Iterator[tuple[int | None, int]]:
        """Divide `count` pieces of work: as (this process's next piece or None, pieces done by all after this round).

        Every process gets the same number of rounds, so that all may talk to each other in each.
        """
        for first in range(0, count, self.size):
            own = first + self.rank
            yield (own if own < count else None), min(first + self.size, count)

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join(listener: socket.socket | None = None) -> Iterator[World]:
    """Join the processes that `torchrun` started together, alone without it; inside another `join`, the same world.

    Communication goes over NCCL between GPUs and over Gloo between CPUs. A process joins once in its life, since the
    addresses of the first time are still in `torchrun`'s store the second time: for several runs, join around them.

    Args:
        listener: in the leading process, the socket at `torchrun`'s address, where it then serves what would otherwise
            be an agent's store; it is given away.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    if dist.is_initialized():
        yield _world()
        return
    store = None if listener is None else _serve_store(listener)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield _world()
    finally:
        dist.destroy_process_group()
        del store  # kept so far: its end is that of its server


def _serve_store(listener: socket.socket) -> object:
    """The store of the processes' addresses; it is served as long as this is kept."""
    host, port = listener.getsockname()
    serve = dist.TCPStore  # type: ignore[attr-defined]  # it is there, if not by name
    return serve(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach(), timeout=TIMEOUT
    )


def _world() -> World:
    return World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
