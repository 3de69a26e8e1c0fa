"""From how a trainer ended to the error of its job: exit codes, signals and limits become stable codes."""

from __future__ import annotations

import errno
import signal
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sam3_lora.child import EXIT_CONFIG, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_LEASE_LOST
from sam3_lora.errors import DatasetError, Sam3LoraError, StorageFullError
from service.shared import errors as service_errors

if TYPE_CHECKING:
    from pathlib import Path

    from sam3_lora.events import Event

EXIT_DONE = 0

# The codes that a job's error may carry; anything else the trainer says is `internal`.
CODES = frozenset(
    {
        "config_invalid",
        "dataset_invalid",
        "gpu_oom",
        "diverged",
        "nothing_trained",
        "worker_lost",
        "time_limit",
        "memory_limit",
        "base_model_unavailable",
        "storage_full",
        "adapter_invalid",
        "checkpoint_invalid",
        "internal",
    }
)


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed. `retryable`: the same job may succeed if simply run again."""

    code: str
    message: str
    hint: str = ""
    retryable: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class WorkError(Exception):
    """Work that cannot be done, and how it fails."""

    def __init__(self, code: str, message: str, hint: str = "", *, retryable: bool = False) -> None:
        super().__init__(message)
        self.failure = Failure(code, message, hint, retryable)


class SourceError(WorkError):
    """A dataset could not be brought here from where it lies; the hint says what its owner can do."""

    def __init__(self, code: str, message: str, hint: str, *, retryable: bool = False) -> None:
        super().__init__(code, message, hint, retryable=retryable)


def source_too_large(message: str) -> SourceError:
    """The failure of a dataset that is more than this installation takes."""
    hint = "Split it, or scale its images down; the operator sets the limit of bytes (SAM3_MAX_UPLOAD_BYTES)."
    return SourceError("source_too_large", message, hint)


def refuse_large(size_bytes: int, limit: int) -> None:
    """Raise SourceError for a dataset of more bytes than the limit."""
    if size_bytes > limit:
        raise source_too_large(f"The dataset is larger than {limit} bytes.")


def last_words(said: Path, most_bytes: int) -> str:
    """The end of what a process wrote into a file, on one line and without the path of the folder it worked in."""
    text = said.read_bytes()[-most_bytes:].decode(errors="replace")
    return " ".join(text.replace(str(said.parent), "").split())


def of_exit(returncode: int, error: Event | None) -> Failure:
    """The failure behind an exit that nobody asked for; `error` is the trainer's last error event, if it sent one."""
    if returncode < 0:
        return _of_signal(-returncode)
    if returncode in (EXIT_CONFIG, EXIT_FAILED) and error is not None:
        return _of_error(error)
    if returncode == EXIT_LEASE_LOST:
        return Failure("worker_lost", "the trainer stopped by itself: its worker stopped renewing it", retryable=True)
    if returncode == EXIT_INTERRUPTED:
        return Failure("worker_lost", "the trainer was interrupted from outside after saving", retryable=True)
    if returncode == EXIT_DONE:
        return Failure("internal", "the trainer ended without a result", "Report this with the job's log.")
    message = f"the trainer exited with status {returncode}"
    return Failure("internal", message, "The end of the job's log says what happened.", retryable=True)


def of_exception(error: BaseException) -> Failure:
    """The failure behind an exception of the worker itself."""
    if isinstance(error, WorkError):
        return error.failure
    if isinstance(error, StorageFullError | service_errors.StorageFullError) or getattr(error, "errno", None) in (
        errno.ENOSPC,
        errno.EDQUOT,
    ):
        return Failure("storage_full", f"no space left: {error}", "Free disk space or storage, then retry.", True)
    if isinstance(error, DatasetError):
        return Failure("dataset_invalid", error.message, error.hint)
    if isinstance(error, Sam3LoraError):
        return Failure(
            error.code if error.code in CODES else "internal", error.message, error.hint, retryable=error.retryable
        )
    if isinstance(error, MemoryError):
        return Failure("internal", "the worker ran out of memory", "Give the worker more memory.", True)
    return Failure("internal", f"{type(error).__name__}: {error}", "The worker's log has the details.", True)


def time_limit(seconds: float) -> Failure:
    return Failure(
        "time_limit",
        f"the job ran longer than its limit of {seconds:.0f} s",
        "Retry it with a higher limits.max_runtime_s: it goes on from its last checkpoint. Or train less.",
    )


def memory_limit(limit_bytes: int) -> Failure:
    return Failure(
        "memory_limit",
        f"the trainer took more memory than its limit of {limit_bytes / 2**30:.1f} GiB",
        "Lower training.num_workers or batch_size; the operator sets the limit (SAM3_TRAINER_MEMORY_BYTES).",
    )


def no_progress(seconds: float) -> Failure:
    return Failure(
        "time_limit",
        f"the trainer reported nothing for {seconds:.0f} s and was stopped",
        "The end of the job's log says where it hung.",
        retryable=True,
    )


def no_checkpoint() -> Failure:
    return Failure(
        "internal", "the trainer reported success without a best checkpoint", "Report this with the job's log."
    )


def _of_signal(number: int) -> Failure:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if number == signal.SIGKILL:
        message = "the trainer was killed (SIGKILL), most often because the machine ran out of memory"
        return Failure("internal", message, "Lower training.num_workers or batch_size, or add memory.", True)
    return Failure("internal", f"the trainer crashed ({name})", "The end of the job's log says where.", True)


def _of_error(event: Event) -> Failure:
    code = str(event.data.get("code", "internal"))
    return Failure(
        code if code in CODES else "internal",
        event.message or "the trainer failed without a message",
        str(event.data.get("hint") or ""),
        event.data.get("retryable") is True,
    )
