"""One child process of the embedded service: kept running, logged, and never left behind."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
HEALTHY_S = 60.0  # one that ran so long is started again without a longer and longer wait
LOG_BYTES, LOG_FILES = 10 * 2**20, 3


class Child:
    """A program that is started again whenever it ends; used from one thread, whose end kills it.

    What it prints goes to `logs/<name>.log` (rotated) and, prefixed, to the terminal.
    """

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], logs: Path) -> None:
        """Start the program."""
        self.name = name
        self.log = logs / f"{name}.log"
        self._command = [sys.executable, "-m", "worker.tether", "--parent", str(os.getpid()), "--", *command]
        self._environment = environment
        self._handler = logging.handlers.RotatingFileHandler(self.log, maxBytes=LOG_BYTES, backupCount=LOG_FILES)
        self._backoff_s = FIRST_BACKOFF_S
        self._restart_at: float | None = None
        self._start()

    @property
    def returncode(self) -> int | None:
        """Exit status; None while it runs."""
        return self._process.poll()

    def keep_running(self) -> None:
        """Start it again if it has ended: later each time, if it ends early."""
        status, now = self.returncode, time.monotonic()
        if status is None:
            return
        if self._restart_at is None:
            early = now - self._started_at < HEALTHY_S
            self._backoff_s = min(self._backoff_s * 2, LONGEST_BACKOFF_S) if early else FIRST_BACKOFF_S
            self._restart_at = now + self._backoff_s
            say(f"{self.name} ended with status {status}; it is started again in {self._backoff_s:g} s")
        elif now >= self._restart_at:
            self._start()

    def terminate(self) -> None:
        """Ask it to stop (SIGTERM)."""
        self._process.terminate()

    def wait(self, deadline: float) -> None:
        """Wait for its end; kill it at the deadline (of the monotonic clock)."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            say(f"{self.name} did not stop in time and is killed")
            self._process.kill()
            self._process.wait()
        self._pump.join(1)
        self._handler.close()

    def _start(self) -> None:
        # A session of its own: Ctrl-C in the terminal reaches the embedded service alone, which stops all in order.
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._started_at = time.monotonic()
        self._restart_at = None
        self._pump = threading.Thread(target=self._copy_output, args=(self._process,), daemon=True)
        self._pump.start()

    def _copy_output(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdout is None:
            raise AssertionError("it is a pipe")
        with process.stdout as output:
            for line in output:
                text = line.decode(errors="replace").rstrip("\n")
                self._handler.emit(logging.LogRecord(self.name, logging.INFO, "", 0, text, None, None))
                say(text, self.name)


def say(text: str, name: str = "serve") -> None:
    """One line on the terminal; no error where the terminal has gone."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(f"{name:<10} | {text}\n")
        sys.stdout.flush()
