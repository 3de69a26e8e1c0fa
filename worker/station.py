"""One place of work: at most one job (or dataset) at a time, whoever announces it, a message or the clock."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)


class Station:
    """Works off the database while there is anything to claim.

    Idle, it looks again every `poll_interval_s`, so that lost messages cost time, never work.
    """

    def __init__(self, *kinds: Callable[[], bool], draining: threading.Event, poll_interval_s: float) -> None:
        """Nothing is begun once `draining` is set; whoever runs puts its work back then.

        Args:
            kinds: each claims and finishes one piece of work; False if nothing is due. They take turns, so that none
                keeps the others waiting, however much of it there is.
        """
        self._kinds = kinds
        self._draining = draining
        self._poll_interval_s = poll_interval_s
        self._busy = threading.Lock()
        self._rung = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="poller", daemon=True)

    def start(self) -> None:
        """Begin to poll."""
        self._poller.start()

    def ring(self) -> None:
        """Work until nothing is due; returns at once if another thread does so already. Never raises."""
        self._rung.set()
        # Looked at again after the lock is free: a ring just before that was meant for its holder, who may be done.
        while self._rung.is_set() and self._busy.acquire(blocking=False):
            try:
                while self._rung.is_set():
                    self._rung.clear()
                    self._work()
            finally:
                self._busy.release()

    def close(self, timeout_s: float) -> bool:
        """Drain and wait; whether everything has been put back in time."""
        self._draining.set()
        if not self._busy.acquire(timeout=timeout_s):
            return False
        self._busy.release()
        return True

    def _work(self) -> None:
        try:
            while self._take_turns():
                pass
        except BaseException:  # a MemoryError that leaves a Celery task stops the worker for good
            log.exception("work_failed")

    def _take_turns(self) -> bool:
        """One piece of each kind; whether there was any."""
        found = False
        for run_next in self._kinds:
            if self._draining.is_set():
                return False
            found |= run_next()
        return found

    def _poll(self) -> None:
        self.ring()
        while not self._draining.wait(self._poll_interval_s):
            self.ring()
