"""Memory of a device: how much is free, and whether it ran out."""

from __future__ import annotations

import gc

import psutil
import torch


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device (torch.OutOfMemoryError) or the CPU's allocator had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_unused(device: torch.device) -> None:
    """Give back what nothing refers to any more; to be called after the handler of the error, which refers to much."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
