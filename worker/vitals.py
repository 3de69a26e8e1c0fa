"""What a running trainer takes of its machine, as metrics beside those of its training."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psutil
import pynvml

from worker import memory
from worker.device import handle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.shared.gpus import Gpu


def vitals(pid: int, used: Sequence[Gpu]) -> dict[str, float]:
    """By metric name; what cannot be told is left out.

    `sys/mem_used_bytes`: resident memory of the process and its descendants. Of each GPU, numbered as the trainer
    numbers them, whoever uses it: `sys/gpu0/mem_used_bytes`, and `sys/gpu0/utilization`, the share of the driver's last
    sampling period (a second at most) in which it computed, from 0 to 1.

    Args:
        pid: the trainer's, or that of the first of several.
        used: the GPUs of the job.
    """
    values = {}
    with contextlib.suppress(psutil.Error):
        descendants = psutil.Process(pid).children(recursive=True)
        values["sys/mem_used_bytes"] = float(memory.resident([pid, *(each.pid for each in descendants)]))
    return values | _of_gpus(used)


def _of_gpus(used: Sequence[Gpu]) -> dict[str, float]:
    values: dict[str, float] = {}
    if not used:
        return values
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            for number, gpu in enumerate(used):
                values[f"sys/gpu{number}/mem_used_bytes"] = float(pynvml.nvmlDeviceGetMemoryInfo(handle(gpu)).used)
                # Not told of a part of a GPU (MIG), and by some virtual ones.
                with contextlib.suppress(pynvml.NVMLError):
                    values[f"sys/gpu{number}/utilization"] = pynvml.nvmlDeviceGetUtilizationRates(handle(gpu)).gpu / 100
        finally:
            pynvml.nvmlShutdown()
    return values
