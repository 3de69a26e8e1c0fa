"""Read what an untrusted child process prints, in bounded memory and without ever waiting for it for good."""

from __future__ import annotations

import os
import queue
import select
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHUNK_BYTES = 64 * 1024
POLL_S = 0.1
MAX_CHUNKS_AFTER_END = 64  # more than a pipe holds
LOG_FULL = b"\n[the log is full: the rest was dropped]\n"


class LineReader(threading.Thread):
    """Queues the complete lines of a pipe; `is_alive()` until its end.

    A line that is too long is dropped whole. While the queue is full the pipe fills up and holds the writer back.
    """

    def __init__(self, descriptor: int, *, max_line_bytes: int, max_lines: int) -> None:
        super().__init__(name="trainer-events", daemon=True)
        self.lines: queue.Queue[bytes] = queue.Queue(max_lines)
        self.ended = threading.Event()
        """Set once the child is gone: what still lies in the pipe is read, and nobody else is waited for."""
        self.abandoned = threading.Event()
        """Set once nobody takes lines any more."""
        self._descriptor = descriptor
        self._max_line_bytes = max_line_bytes
        self.start()

    def run(self) -> None:
        for line in self._split():
            while not self.abandoned.is_set():
                try:
                    self.lines.put(line, timeout=POLL_S)
                    break
                except queue.Full:
                    continue

    def _split(self) -> Iterator[bytes]:
        rest, too_long = b"", False
        for chunk in _chunks(self._descriptor, self.ended):
            *lines, tail = chunk.split(b"\n")
            for line in lines:
                whole, rest = rest + line, b""
                if not too_long and len(whole) <= self._max_line_bytes:
                    yield whole
                too_long = False
            rest += tail
            if len(rest) > self._max_line_bytes:
                rest, too_long = b"", True


class LogCopier(threading.Thread):
    """Appends a pipe to a file up to a size, then reads on and drops, so that the writer never blocks."""

    def __init__(self, descriptor: int, log: Path, *, max_bytes: int) -> None:
        super().__init__(name="trainer-log", daemon=True)
        self.ended = threading.Event()
        self._descriptor = descriptor
        self._log = log
        self._left = max_bytes
        self.start()

    def run(self) -> None:
        with self._log.open("ab", buffering=0) as output:
            for chunk in _chunks(self._descriptor, self.ended):
                if self._left:
                    self._write(output.fileno(), chunk)

    def _write(self, output: int, chunk: bytes) -> None:
        kept = chunk[: self._left]
        self._left -= len(kept)
        try:
            os.write(output, kept if self._left else kept + LOG_FULL)
        except OSError:  # a full disk must not stop the reading
            self._left = 0


def _chunks(descriptor: int, ended: threading.Event) -> Iterator[bytes]:
    """What the pipe yields, until its end, or until it is silent after `ended` (somebody else may hold it open)."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    left = MAX_CHUNKS_AFTER_END
    while left:
        closing = ended.is_set()
        if poller.poll(0 if closing else POLL_S * 1000):
            chunk = os.read(descriptor, CHUNK_BYTES)
            if not chunk:
                return
            yield chunk
            left -= closing
        elif closing:
            return
