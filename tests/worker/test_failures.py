"""How a trainer ends, and the code its job gets."""

from __future__ import annotations

import errno

import pytest

from sam3_lora import errors
from sam3_lora.events import Event, EventType
from service.shared import errors as service_errors
from worker import device, failures


def reported(code: str, *, retryable: bool = False) -> Event:
    return Event(EventType.ERROR, "said", {"code": code, "hint": "do", "retryable": retryable})


@pytest.mark.parametrize(
    ("returncode", "error", "code", "retryable"),
    [
        (10, reported("gpu_oom"), "gpu_oom", False),
        (10, reported("diverged"), "diverged", False),
        (10, reported("base_model_unavailable"), "base_model_unavailable", False),
        (10, reported("storage_full", retryable=True), "storage_full", True),
        (10, reported("nothing_trained"), "internal", False),
        (10, Event(EventType.ERROR, "", {}), "internal", False),
        (10, None, "internal", False),
        (2, reported("config_invalid"), "internal", False),
        (11, None, "worker_lost", True),
        (12, None, "worker_lost", True),
        (0, None, "internal", False),
        (1, reported("gpu_oom"), "internal", False),
        (-9, None, "internal", True),
        (-11, None, "internal", True),
        (-64, None, "internal", True),
        (255, None, "internal", False),
    ],
)
def test_exits(returncode: int, error: Event | None, code: str, retryable: bool) -> None:
    failure = failures.of_exit(returncode, error)
    assert (failure.code, failure.retryable) == (code, retryable)
    assert failure.message
    assert failure.code in failures.CODES


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "storage_full", True),
        (errors.StorageFullError("full"), "storage_full", True),
        (service_errors.StorageFullError("full"), "storage_full", True),
        (errors.DatasetError("bad", hint="fix"), "dataset_invalid", False),
        (errors.BaseModelError("gated"), "base_model_unavailable", False),
        (errors.ConfigError("odd"), "internal", False),
        (service_errors.StorageError("away"), "internal", True),
        (MemoryError(), "internal", True),
        (RuntimeError("bug"), "internal", True),
    ],
)
def test_exceptions_of_the_worker(error: Exception, code: str, retryable: bool) -> None:
    failure = failures.of_exception(error)
    assert (failure.code, failure.retryable) == (code, retryable)


def test_device_without_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(device, "DRIVER", tmp_path)
    assert device.find().name == "CPU"


@pytest.mark.parametrize(
    ("visible", "name"),
    [
        (None, "NVIDIA H100"),
        ("1", "NVIDIA L4"),
        ("1,0", "NVIDIA L4"),
        ("", "CPU"),
        ("-1", "CPU"),
        ("GPU-4f2a", "NVIDIA H100"),
        ("7", "NVIDIA H100"),
    ],
)
def test_device_is_the_first_that_a_trainer_sees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object, visible: str | None, name: str
) -> None:
    from pathlib import Path

    driver = Path(str(tmp_path))
    for bus, model in (("0000:01:00.0", "NVIDIA H100"), ("0000:02:00.0", "NVIDIA L4")):
        (driver / bus).mkdir()
        (driver / bus / "information").write_text(f"Model: \t\t {model}\nIRQ: 1\n")
    monkeypatch.setattr(device, "DRIVER", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device.find().name == name
