"""The child process that holds a model: started when it is first needed, asked one thing at a time, ended when idle.

Like a trainer it runs in a session of its own, dies with this worker, sees no secrets, and its output is bounded.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import structlog

from worker import tether
from worker.pipes import LineReader
from worker.supervisor import scrubbed

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)

COMMAND = (sys.executable, "-m", "sam3_lora.serving.process")
MAX_LINE_BYTES = 64 * 1024
TICK_S = 0.1


class ModelProcessError(Exception):
    """The process ended or was ended before it answered."""


class ModelProcess:
    """Used from threads that live as long as the worker, one at a time: the end of the one that starts it kills it."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: LineReader
        self._used_at = 0.0

    @property
    def pid(self) -> int | None:
        """Process id; None while it does not run."""
        return None if self._process is None else self._process.pid

    def ask(self, request: dict[str, Any], *, timeout_s: float, check: Callable[[], None]) -> dict[str, Any]:
        """The answer to a request.

        Args:
            check: called about ten times a second; what it raises ends the process and passes through.

        Raises:
            ModelProcessError: if the process ends first, or does not answer in time and is ended.
        """
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._start()
        try:
            self._send(request)
            answer = self._receive(time.monotonic() + timeout_s, check)
        except BaseException:  # it may answer later, when something else was asked
            self.close()
            raise
        self._used_at = time.monotonic()
        return answer

    def close_if_idle(self, longest_s: float) -> None:
        """End the process if nothing was asked of it for so long."""
        if self._process is not None and time.monotonic() - self._used_at > longest_s:
            log.info("idle_model_process_ended")
            self.close()

    def close(self) -> None:
        """End the process, if it runs."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._answers.abandoned.set()
        self._answers.ended.set()
        self._process.wait()
        self._answers.join()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        self._process = None

    def _start(self) -> None:
        self._process = subprocess.Popen(
            tether.command(self._command, expendable=True),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=scrubbed(os.environ) | {"PYTHONFAULTHANDLER": "1"},
            start_new_session=True,
        )
        if self._process.stdout is None:
            raise AssertionError("it is a pipe")
        self._answers = LineReader(self._process.stdout.fileno(), max_line_bytes=MAX_LINE_BYTES, max_lines=1)

    def _send(self, request: dict[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            raise AssertionError("it was started with a pipe")
        with contextlib.suppress(BrokenPipeError):  # its end is noticed next
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def _receive(self, deadline: float, check: Callable[[], None]) -> dict[str, Any]:
        while True:
            try:
                answer = json.loads(self._answers.lines.get(timeout=TICK_S))
            except queue.Empty:
                pass
            else:
                return answer if isinstance(answer, dict) else {}
            check()
            if not self._answers.is_alive() and self._answers.lines.empty():
                raise ModelProcessError("the process that holds the model ended; it may have run out of memory")
            if time.monotonic() > deadline:
                raise ModelProcessError("the process that holds the model did not answer in time")
