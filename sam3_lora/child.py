"""What the processes that a worker starts have in common: how they speak, fence themselves and fail.

stdin    lease: one byte after each renewal; silence longer than --lease-timeout, or EOF, ends the process at once
         (exit 12), so that no two processes ever do the same work
stdout   one event per line (`sam3_lora.events`); everything else that prints goes to stderr
exit     0 done, 2 configuration, 10 failed with an `error` event, 11 interrupted, 12 lease lost
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import time
from typing import Any

from sam3_lora.errors import ConfigError, Sam3LoraError
from sam3_lora.events import Event, EventType, Level

EXIT_CONFIG, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_LEASE_LOST = 2, 10, 11, 12


class LineReporter:
    """Writes events to a file descriptor, one JSON line each, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)
        self._lock = threading.RLock()
        self._is_open = True

    def __call__(self, event: Event) -> None:
        with self._lock:
            if self._is_open:
                self._file.write(event.to_line() + "\n")

    def close_with(self, event: Event) -> bool:
        """Write the last event, unless another thread has done so; whatever is reported later is dropped."""
        with self._lock:
            was_open = self._is_open
            self(event)
            self._is_open = False
        return was_open


def begin(lease_timeout_s: float | None) -> LineReporter:
    """Watch the lease, if there is one, and have standard output carry events alone, and standard error the log."""
    if lease_timeout_s is not None:
        threading.Thread(target=_watch_lease, args=(lease_timeout_s,), daemon=True).start()
    events = os.dup(1)
    os.dup2(2, 1)  # libraries that print must not write between the events
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return LineReporter(events)


def error_event(error: Exception) -> Event:
    if isinstance(error, Sam3LoraError):
        data: dict[str, Any] = {"code": error.code, "hint": error.hint, "retryable": error.retryable}
        if isinstance(error, ConfigError):
            data["errors"] = error.errors
        return Event(EventType.ERROR, error.message, data, Level.ERROR)
    text = f"{type(error).__name__}: {error}"
    return Event(EventType.ERROR, text, {"code": "internal", "hint": "", "retryable": True}, Level.ERROR)


def _watch_lease(timeout_s: float) -> None:
    """Exit when no byte came for `timeout_s` on the monotonic clock, or at the end of stdin."""
    deadline = time.monotonic() + timeout_s
    while True:
        ready, _, _ = select.select([0], [], [], max(0.0, deadline - time.monotonic()))
        if not ready or not os.read(0, 4096):
            os._exit(EXIT_LEASE_LOST)  # at once: no handler, no flush may keep it alive
        deadline = time.monotonic() + timeout_s
