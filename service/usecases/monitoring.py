"""What an operator's monitoring sees of the installation, the same from every API process."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from service.shared.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from service.shared.clock import Clock
    from service.shared.db.repositories.census import Held, Staff, Waiting
    from service.shared.db.repositories.tallies import Total
    from service.shared.settings import Settings
    from service.shared.states import JobState
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database

KEPT_S = 5.0
PROBED_EVERY_S = 1.0
STORAGE_ASKED_EVERY_S = 30.0


@dataclass(frozen=True)
class Sight:
    """One look into the database."""

    jobs: Mapping[JobState, int]
    oldest_due_job_s: float
    waiting: Mapping[str, Waiting]
    staff: Mapping[str, Staff]
    held: Held
    webhook_endpoints: Mapping[str, int]
    totals: Sequence[Total]


class Lookout:
    """Looks at most every few seconds, however many ask. Thread-safe."""

    def __init__(self, database: Database, settings: Settings, clock: Clock) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: tuple[Sight | None, float] | None = None

    def look(self) -> Sight | None:
        """As of the last seconds; None while the database is away."""
        with self._lock:
            now = self._clock.monotonic()
            if self._seen is None or now - self._seen[1] >= KEPT_S:
                self._seen = self._look(), now
            return self._seen[0]

    def _look(self) -> Sight | None:
        try:
            with self._database.read() as unit:
                return Sight(
                    jobs=unit.census.unfinished_jobs(),
                    oldest_due_job_s=unit.census.oldest_due_job_s(),
                    waiting=unit.census.waiting(),
                    staff=unit.census.staff(within_s=self._settings.lease_timeout_s),
                    held=unit.census.held_jobs(),
                    webhook_endpoints=unit.census.webhook_endpoints(),
                    totals=unit.tallies.totals(),
                )
        except SQLAlchemyError:
            return None


class StorageWatch:
    """Whether storage answers: asked for probes once a second, for scrapes now and then and without waiting."""

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._storage = storage
        self._clock = clock
        self._lock = threading.Lock()
        self._answer: bool | None = None
        self._asked_at: float | None = None

    def ask(self) -> bool:
        """Ask storage; all who ask within a second get one answer, since anybody may."""
        is_due = self._is_due(PROBED_EVERY_S)
        return self._look() if is_due or self._answer is None else self._answer

    def _is_due(self, every_s: float) -> bool:
        """Whether it was not asked for so long; whoever is told so asks."""
        with self._lock:
            now = self._clock.monotonic()
            if self._asked_at is not None and now - self._asked_at < every_s:
                return False
            self._asked_at = now
            return True

    def _look(self) -> bool:
        try:
            self._storage.check()
        except StorageError:
            self._answer = False
        else:
            self._answer = True
        return self._answer

    def recall(self) -> bool | None:
        """The last answer; None before the first. If that was long ago, the next scrape gets a new one."""
        if self._is_due(STORAGE_ASKED_EVERY_S):
            threading.Thread(target=self._look, name="storage-watch", daemon=True).start()
        return self._answer
