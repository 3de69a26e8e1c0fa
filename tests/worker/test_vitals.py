"""What a trainer takes of its machine: real for memory, with the driver's library replaced for GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pynvml
import pytest

from service.shared.gpus import Gpu
from worker.vitals import vitals

CHILD = "held = b'x' * 50_000_000; print('there', flush=True); input()"
PARENT = f"import subprocess, sys; held = b'x' * 100_000_000; subprocess.run([sys.executable, '-c', {CHILD!r}])"


def test_memory_is_that_of_the_process_and_its_descendants() -> None:
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    values = vitals(process.pid, [])
    assert values.keys() == {"sys/mem_used_bytes"}
    assert 150e6 < values["sys/mem_used_bytes"] < 250e6
    process.communicate(b"\n", 30)
    assert vitals(process.pid, []) == {}  # gone


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def rates(handle: str) -> SimpleNamespace:
        if handle == "MIG-1":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=87, memory=1)

    for name, function in {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 8,
        "nvmlDeviceGetHandleByIndex": str,
        "nvmlDeviceGetHandleByUUID": str,
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used={"3": 2_000, "MIG-1": 3_000}[handle]),
        "nvmlDeviceGetUtilizationRates": rates,
    }.items():
        monkeypatch.setattr(pynvml, name, function)


@pytest.mark.usefixtures("driver")
def test_gpus_are_numbered_as_the_trainer_numbers_them() -> None:
    values = vitals(os.getpid(), [Gpu("3", "NVIDIA H100"), Gpu("MIG-1", "NVIDIA H100")])
    assert {name: value for name, value in values.items() if "gpu" in name} == {
        "sys/gpu0/mem_used_bytes": 2_000,
        "sys/gpu0/utilization": 0.87,
        "sys/gpu1/mem_used_bytes": 3_000,
    }


def test_without_a_driver_there_is_nothing_to_tell_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert vitals(os.getpid(), [Gpu("0", "NVIDIA H100")]).keys() == {"sys/mem_used_bytes"}
