"""Validate and draw in a child process, so that no file can crash, hang or exhaust the process that asks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sam3_lora.coco import pictures
from sam3_lora.coco.report import DatasetReport, Issue, IssueCode
from sam3_lora.coco.schema import ValidationLimits

if TYPE_CHECKING:
    from collections.abc import Callable

    from sam3_lora.coco.pictures import Picture

MODULE = "sam3_lora.coco.validate"
PREVIEW_MODULE = "sam3_lora.coco.preview"
PACKAGE_FOLDER = Path(__file__).resolve().parents[2]
# Secrets of the parent (database, broker, storage) are none of the child's business.
ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")
MAX_LINE_BYTES = 64
MAX_REPORT_BYTES = 64 * 1024 * 1024
STDERR_TAIL_BYTES = 4000


@dataclass(frozen=True, kw_only=True)
class ProcessLimits:
    """Resources of the child process."""

    memory_bytes: int = 8 * 1024**3  # address space: an annotation file of 512 MiB needs about ten times its size
    cpu_s: int = 3600
    timeout_s: float = 2 * 3600


PREVIEW_LIMITS = ProcessLimits(cpu_s=600, timeout_s=1200)


def validate_isolated(
    root: Path,
    limits: ValidationLimits | None = None,
    *,
    process_limits: ProcessLimits | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DatasetReport:
    """`validate` in a process of its own; a crash or a passed limit is a `validator_crashed` issue of the report.

    Whatever `on_progress` raises ends the child and is passed on.
    """
    process_limits = process_limits or ProcessLimits()
    with tempfile.TemporaryDirectory(prefix="validate-") as folder:
        report_file = Path(folder, "report.json")
        arguments = [str(root.resolve()), "--report", str(report_file)]
        ended = _run(MODULE, arguments, limits, process_limits, on_progress)
        if ended.returncode == 0:
            report = _read_report(report_file)
            if report is not None:
                return report
    reason = _reason(ended, process_limits)
    hint = "remove unusual or damaged files; very large datasets need higher limits"
    return DatasetReport.failed(Issue(code=IssueCode.VALIDATOR_CRASHED, message=f"validation {reason}", hint=hint))


def draw_isolated(
    root: Path,
    target: Path,
    limits: ValidationLimits | None = None,
    *,
    process_limits: ProcessLimits | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[tuple[Path, Picture]]:
    """`preview.draw` in a process of its own: the pictures in the folder `target` that were complete at its end.

    Whatever `on_progress` raises ends the child and is passed on.
    """
    arguments = [str(root.resolve()), "--output", str(target)]
    _run(PREVIEW_MODULE, arguments, limits, process_limits or PREVIEW_LIMITS, on_progress)
    return pictures.read(target)


@dataclass(frozen=True)
class _Ended:
    """How a child ended."""

    returncode: int
    stderr: str
    timed_out: bool


def _run(
    module: str,
    arguments: list[str],
    limits: ValidationLimits | None,
    process_limits: ProcessLimits,
    on_progress: Callable[[int, int], None] | None,
) -> _Ended:
    command = [
        *(sys.executable, "-m", module, *arguments),
        *("--memory-bytes", str(process_limits.memory_bytes), "--cpu-s", str(process_limits.cpu_s)),
        *("--limits", json.dumps(asdict(limits or ValidationLimits()))),
    ]
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=_environment(),
            start_new_session=True,
        )
        timed_out = _follow(process, process_limits.timeout_s, on_progress)
        stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - STDERR_TAIL_BYTES))
        return _Ended(process.returncode, stderr.read().decode(errors="replace"), timed_out)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    # Numerical libraries reserve address space for each thread.
    return kept | {"PYTHONPATH": str(PACKAGE_FOLDER), "PYTHONIOENCODING": "utf-8", "OPENBLAS_NUM_THREADS": "1"}


def _follow(process: subprocess.Popen[bytes], timeout_s: float, on_progress: Callable[[int, int], None] | None) -> bool:
    """Pass progress on until the child ends, then end its whole group; whether the time ran out."""
    timed_out = threading.Event()

    def on_timeout() -> None:
        timed_out.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(timeout_s, on_timeout)
    timer.daemon = True
    timer.start()
    try:
        assert process.stdout is not None
        while line := process.stdout.readline(MAX_LINE_BYTES):
            words = line.split()
            if on_progress is not None and len(words) == 2 and all(word.isdigit() for word in words):
                on_progress(int(words[0]), int(words[1]))
        # Not reaped yet, so that neither the timer nor the kill below can hit another process of the same id.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    finally:
        timer.cancel()
        timer.join()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    return timed_out.is_set()


def _read_report(path: Path) -> DatasetReport | None:
    try:
        if path.stat().st_size > MAX_REPORT_BYTES:
            return None
        return DatasetReport.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _reason(ended: _Ended, limits: ProcessLimits) -> str:
    returncode = ended.returncode
    if ended.timed_out:
        return f"did not end within {limits.timeout_s:g} s"
    if returncode == -signal.SIGXCPU:
        return f"used more than {limits.cpu_s} s of processor time"
    last_line = (ended.stderr.strip().splitlines() or ["no message"])[-1]
    if last_line.startswith("MemoryError"):
        return f"needed more than {limits.memory_bytes:,} bytes of memory"
    if returncode < 0:
        return f"was ended by {signal.Signals(-returncode).name}"
    return f"ended without a report (exit code {returncode}): {last_line}"
