"""Holding on to claimed work: heartbeats from a thread of their own, and the knowledge of when they are too old."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from typing import TYPE_CHECKING, TypeVar

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from service.shared.errors import LeaseLostError, StorageError
from service.shared.states import JobRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from service.shared.settings import Settings

log = structlog.get_logger(__name__)

T = TypeVar("T")
DATABASE_AWAY = (OperationalError, InterfaceError, PoolTimeoutError)
RETRY_S = 0.5
STORAGE_RETRY_S = 5.0


class Lease:
    """Renews a claim until left; a context manager.

    The lease counts as lost when the database says so, and also `self_fence_s` after the last renewal that
    succeeded: by then the work may soon be given to somebody else.
    """

    def __init__(
        self, beat: Callable[[], JobRequest | None], settings: Settings, *, claimed_at: float, name: str
    ) -> None:
        """Start at the time (of the monotonic clock) just before the claim.

        Args:
            beat: renews once and returns what the user has asked for; raises LeaseLostError once it is lost.
        """
        self._beat = beat
        self._interval_s = settings.heartbeat_interval_s
        self._valid_s = settings.self_fence_s
        self._storage_retry_s = settings.storage_retry_s
        self._slack_s = settings.kill_grace_s
        self._renewed_at = claimed_at
        self._refused = threading.Event()
        self._left = threading.Event()
        self._renewing = threading.Lock()
        context = contextvars.copy_context()  # that of the work, whose ids its log lines carry
        self._thread = threading.Thread(target=context.run, args=(self._keep,), name=f"lease-{name}", daemon=True)
        self.name = name
        self.request: JobRequest | None = None
        """What the user asked for, as of the last renewal."""
        self.on_renewed: Callable[[], None] | None = None
        """Called after each renewal, in the lease's thread."""

    @property
    def is_lost(self) -> bool:
        return self._refused.is_set() or time.monotonic() - self._renewed_at > self._valid_s

    def check(self) -> None:
        """Raise LeaseLostError if the lease is lost."""
        if self.is_lost:
            raise LeaseLostError(f"the lease of {self.name} is lost or was not renewed for {self._valid_s:g} s")

    def insist(self, write: Callable[[], T]) -> T:
        """The result of `write`, tried again while the database is away and the lease holds, and for
        `storage_retry_s` while storage is away.

        Raises:
            LeaseLostError: once it is lost.
            StorageError: if storage does not come back in time, or before the job is cancelled.
        """
        give_up_at = time.monotonic() + self._storage_retry_s
        while True:
            self.check()
            try:
                return write()
            except DATABASE_AWAY as error:
                log.warning("write_failed", work=self.name, error=str(error))
                time.sleep(RETRY_S)
            except StorageError as error:
                # Of a job that is to be cancelled nothing is needed any more.
                if time.monotonic() > give_up_at or self.request is JobRequest.CANCEL:
                    raise
                log.warning("storage_failed", work=self.name, error=error.message)
                time.sleep(min(STORAGE_RETRY_S, self._storage_retry_s))

    @contextlib.contextmanager
    def passed_on(self, renew: Callable[[], None]) -> Iterator[None]:
        """Call `renew` after each renewal, in the lease's thread, while this context lasts; no call outlasts it."""
        self.on_renewed = renew
        try:
            yield
        finally:
            with self._renewing:
                self.on_renewed = None

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join(self._interval_s)

    def _keep(self) -> None:
        while not self._left.wait(self._interval_s):
            asked_at = time.monotonic()
            try:
                self.request = self._beat()
            except LeaseLostError:
                self._refused.set()
                return
            except SQLAlchemyError as error:
                log.warning("heartbeat_failed", work=self.name, error=str(error))
                continue
            # Counted from before the question: the database may have answered any time since.
            self._renewed_at = asked_at
            # A late answer gives the trainer no new lease: it would count its time from too late a start.
            with self._renewing:
                if self.on_renewed is not None and time.monotonic() - asked_at <= self._slack_s:
                    self.on_renewed()
