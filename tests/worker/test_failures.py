"""How a trainer ends, and the code its job gets."""

from __future__ import annotations

import errno

import pytest

from sam3_lora import errors
from sam3_lora.events import Event, EventType
from service.shared import errors as service_errors
from worker import failures


def reported(code: str, *, retryable: bool = False) -> Event:
    return Event(EventType.ERROR, "said", {"code": code, "hint": "do", "retryable": retryable})


@pytest.mark.parametrize(
    ("returncode", "error", "code", "retryable"),
    [
        (10, reported("gpu_oom"), "gpu_oom", False),
        (10, reported("diverged"), "diverged", False),
        (10, reported("base_model_unavailable"), "base_model_unavailable", False),
        (10, reported("storage_full", retryable=True), "storage_full", True),
        (10, reported("nothing_trained"), "nothing_trained", False),
        (10, reported("new_code"), "internal", False),
        (10, Event(EventType.ERROR, "", {}), "internal", False),
        (10, None, "internal", True),
        (2, reported("config_invalid"), "config_invalid", False),
        (11, None, "worker_lost", True),
        (12, None, "worker_lost", True),
        (0, None, "internal", False),
        (1, reported("gpu_oom"), "internal", True),
        (-9, None, "internal", True),
        (-11, None, "internal", True),
        (-64, None, "internal", True),
        (255, None, "internal", True),
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
        (errors.ConfigError("odd"), "config_invalid", False),
        (service_errors.StorageError("away"), "internal", True),
        (MemoryError(), "internal", True),
        (RuntimeError("bug"), "internal", True),
    ],
)
def test_exceptions_of_the_worker(error: Exception, code: str, retryable: bool) -> None:
    failure = failures.of_exception(error)
    assert (failure.code, failure.retryable) == (code, retryable)
