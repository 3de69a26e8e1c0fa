"""What a worker trains on, told without loading a training framework."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pynvml

from service.shared import gpus
from service.shared.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.shared.gpus import Gpu

CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Device:
    """`memory_bytes`: of the smallest GPU, for `CPU` of the machine or container; None if the driver does not tell.

    `gpus`: what a job may use, for `CPU` a number of processes.
    """

    name: str
    memory_bytes: int | None
    gpus: int


def find(wanted: int | None = None) -> Device:
    """The NVIDIA GPUs that trainers will use, or `CPU`.

    Args:
        wanted: so many of the GPUs that trainers will see, the first of them (None: all); without GPUs so many
            processes on the CPU (None: one).

    Raises:
        SettingsError: if there are fewer.
    """
    found = gpus.visible()
    if not found:
        return Device("CPU", _machine_memory(), wanted or 1)
    if wanted is not None and wanted > len(found):
        raise SettingsError(f"--gpus {wanted}: this machine shows {len(found)} ({gpus.VISIBLE} chooses which)")
    used = found[:wanted]
    return Device(_name(used), _gpu_memory(used), len(used))


def _name(used: Sequence[Gpu]) -> str:
    models = [gpu.model for gpu in used]
    parts = [(models.count(model), model) for model in dict.fromkeys(models)]
    return ", ".join(model if count == 1 else f"{count} x {model}" for count, model in parts)


def _machine_memory() -> int:
    found = [path.read_text().strip() for path in CONTAINER_LIMITS if path.is_file()]
    return min([int(psutil.virtual_memory().total), *(int(text) for text in found if text.isdigit())])


def _gpu_memory(used: Sequence[Gpu]) -> int | None:
    try:
        pynvml.nvmlInit()
        try:
            return min(int(pynvml.nvmlDeviceGetMemoryInfo(handle(gpu)).total) for gpu in used)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def handle(gpu: Gpu) -> object:
    """What the driver's library knows it by, between `nvmlInit` and `nvmlShutdown`."""
    if not gpu.name.isdigit():
        return pynvml.nvmlDeviceGetHandleByUUID(gpu.name)
    return pynvml.nvmlDeviceGetHandleByIndex(min(int(gpu.name), pynvml.nvmlDeviceGetCount() - 1))
