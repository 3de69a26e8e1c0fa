"""What a worker trains on: the GPUs that its trainers will see, or the processor."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from service.shared import gpus
from service.shared.errors import SettingsError
from worker import device

if TYPE_CHECKING:
    from pathlib import Path

INSTALLED = (("0000:01:00.0", "NVIDIA H100", "GPU-4f2a"), ("0000:02:00.0", "NVIDIA L4", "GPU-77aa"))
BOTH = "NVIDIA H100, NVIDIA L4"


def install(monkeypatch: pytest.MonkeyPatch, driver: Path, *cards: tuple[str, str, str]) -> None:
    for bus, model, identifier in cards:
        (driver / bus).mkdir()
        (driver / bus / "information").write_text(f"Model: \t\t {model}\nIRQ: 1\nGPU UUID: \t {identifier}-99\n")
    monkeypatch.setattr(gpus, "DRIVER", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_without_a_driver_it_is_the_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path)
    assert (device.find().name, device.find().gpus) == ("CPU", 1)
    assert (device.find(3).name, device.find(3).gpus) == ("CPU", 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # of GPUs that are not there
    assert (device.find().name, device.find().gpus) == ("CPU", 1)


@pytest.mark.parametrize(
    ("visible", "wanted", "name", "count"),
    [
        (None, None, BOTH, 2),
        (None, 1, "NVIDIA H100", 1),
        ("1", None, "NVIDIA L4", 1),
        ("1,0", None, "NVIDIA L4, NVIDIA H100", 2),
        ("1,0", 1, "NVIDIA L4", 1),
        ("", None, "CPU", 1),
        ("-1", None, "CPU", 1),
        ("", 2, "CPU", 2),
        ("1,-1,0", None, "NVIDIA L4", 1),
        ("GPU-77a", None, "NVIDIA L4", 1),
        ("GPU-77aa, GPU-4f2a", None, "NVIDIA L4, NVIDIA H100", 2),
        ("MIG-1,MIG-2", None, "2 x NVIDIA H100", 2),
        ("7", None, "NVIDIA H100", 1),
    ],
)
def test_device_is_what_a_trainer_sees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str | None, wanted: int | None, name: str, count: int
) -> None:
    install(monkeypatch, tmp_path, *INSTALLED)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = device.find(wanted)
    assert (found.name, found.gpus) == (name, count)


def test_equal_gpus_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, *((f"0000:0{n}:00.0", "NVIDIA H100", f"GPU-{n}") for n in range(4)))
    assert device.find().name == "4 x NVIDIA H100"
    assert device.find(2).name == "2 x NVIDIA H100"


def test_more_gpus_than_there_are_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, *INSTALLED)
    with pytest.raises(SettingsError, match="--gpus 3: this machine shows 2"):
        device.find(3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(SettingsError, match="shows 1"):
        device.find(2)


@pytest.mark.parametrize("arguments", [["--queue", "cpu", "--gpus", "1"], ["--queue", "gpu", "--gpus", "0"]])
def test_the_number_of_gpus_is_a_number_and_for_workers_that_train(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker.app", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "belongs to --queue gpu" in done.stderr
