"""Memory of a device: how much is free, and whether it ran out."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import psutil
import torch

CGROUPS = Path("/sys/fs/cgroup")
# limit, usage, and what of it is page cache that gives way: version 2, then version 1
CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device (torch.OutOfMemoryError) or the CPU's allocator had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_unused(device: torch.device) -> None:
    """Give back what nothing refers to any more; to be called after the handler of the error, which refers to much."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take: of its GPU, or its share of what torchrun's processes have on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = min([int(psutil.virtual_memory().available), *_free_in_container()])
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _free_in_container() -> list[int]:
    """Bytes below the container's own limit, if it has one; the machine may have more."""
    for limit, usage, statistics, reclaimable in CGROUP_FILES:
        try:
            most, used = (CGROUPS / limit).read_text().strip(), int((CGROUPS / usage).read_text())
            counts = dict(line.split() for line in (CGROUPS / statistics).read_text().splitlines())
        except (OSError, ValueError):
            continue
        return [] if most == "max" else [max(0, int(most) - used + int(counts.get(reclaimable, 0)))]
    return []
