"""What a worker trains on, told without loading a training framework."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import psutil
import pynvml

DRIVER = Path("/proc/driver/nvidia/gpus")
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Device:
    """`memory_bytes`: of the GPU, for `CPU` of the machine or container; None if the driver does not tell."""

    name: str
    memory_bytes: int | None


def find() -> Device:
    """The NVIDIA GPU that a trainer will see first, or `CPU`."""
    name = _name()
    return Device(name, _machine_memory() if name == "CPU" else _gpu_memory())


def _name() -> str:
    gpus = [path.read_text() for path in sorted(DRIVER.glob("*/information"))]
    models = [match[1].strip() for text in gpus if (match := re.search(r"^Model:(.*)$", text, re.MULTILINE))]
    chosen = _first_visible()
    if not models or chosen is None:
        return "CPU"
    return models[chosen] if chosen < len(models) else models[0]


def _machine_memory() -> int:
    found = [path.read_text().strip() for path in CONTAINER_LIMITS if path.is_file()]
    return min([int(psutil.virtual_memory().total), *(int(text) for text in found if text.isdigit())])


def _gpu_memory() -> int | None:
    try:
        pynvml.nvmlInit()
        try:
            index = min(_first_visible() or 0, pynvml.nvmlDeviceGetCount() - 1)
            return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index)).total)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def _first_visible() -> int | None:
    """Number of the first GPU that CUDA_VISIBLE_DEVICES leaves; 0 where it names none by number, None for none."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen in ("", "-1"):
        return None
    first = (chosen or "0").split(",")[0]
    return int(first) if first.isdigit() else 0
