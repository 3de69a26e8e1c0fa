"""From claim to end, whatever the work is: what all runners of a worker share.

A claim is renewed by a `Lease` while the work is done, and every write about it is fenced: once the lease is lost
nothing more is written.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeAlias, TypedDict, TypeVar

import structlog

from service.shared import tracing
from service.shared.errors import LeaseLostError, NotFoundError
from worker import failures
from worker.failures import WorkError
from worker.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.shared.db.repositories.work import WorkRepository
    from service.shared.settings import Settings
    from service.shared.states import JobRequest
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database, UnitOfWork
    from worker.workspace import Workspace

log = structlog.get_logger(__name__)


class Claimed(Protocol):
    """A row under a lease."""

    id: Any
    epoch: Any


Row = TypeVar("Row", bound=Claimed)
Places: TypeAlias = "tuple[Settings, Database, Storage, Workspace]"
"""The positional arguments of a runner."""


class Me(TypedDict):
    """What a runner is told of its worker."""

    worker_id: str
    is_draining: Callable[[], bool]


class DrainingError(Exception):
    """The worker shuts down before the work has a result."""


class Runner(ABC, Generic[Row]):
    """Does the work of one kind that one worker claims, one piece at a time."""

    noun: ClassVar[str]
    """What a piece of work is called in the log."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storage: Storage,
        workspace: Workspace,
        *,
        worker_id: str,
        is_draining: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._workspace = workspace
        self._worker_id = worker_id
        self._is_draining = is_draining

    def run_next(self) -> bool:
        """Claim what is due first and bring it to its end, or to that of this attempt; False if nothing is due."""
        claimed_at = time.monotonic()
        with self._database.write() as unit:
            row = self._claim(unit)
        if row is None:
            return False
        facts, origin = self._told(row)
        named = {f"{self.noun}_id": row.id, "epoch": row.epoch, **facts}
        with (
            structlog.contextvars.bound_contextvars(**named),
            tracing.span(f"{self.noun}.attempt", parent=origin, kind="consumer", worker_id=self._worker_id, **named),
        ):
            try:
                with Lease(lambda: self._beat(row), self._settings, claimed_at=claimed_at, name=row.id) as lease:
                    self._work(row, lease)
            except LeaseLostError as error:
                log.warning("lease_lost", error=error.message)
        return True

    @abstractmethod
    def _claim(self, unit: UnitOfWork) -> Row | None:
        """Take the piece of work that is due first, under a new epoch."""

    def _told(self, row: Row) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """What the log and the trace say of the row besides its id and epoch, and the request that it comes from."""
        return {}, None

    @abstractmethod
    def _renew(self, unit: UnitOfWork, row: Row) -> JobRequest | None:
        """Renew the lease; what the user has asked for. Raises LeaseLostError once it is lost."""

    @abstractmethod
    def _work(self, row: Row, lease: Lease) -> None:
        """Do the work and write its end; only the loss of the lease is raised."""

    def _beat(self, row: Row) -> JobRequest | None:
        with self._database.write() as unit:
            return self._renew(unit, row)

    def _check(self, lease: Lease) -> None:
        """Raise LeaseLostError or DrainingError if the work must stop."""
        lease.check()
        if self._is_draining():
            raise DrainingError


class WorkRunner(Runner[Row]):
    """A runner of rows that are `Work`: what it makes of one are columns of the row."""

    @abstractmethod
    def _rows(self, unit: UnitOfWork) -> WorkRepository[Any]:
        """Where the work waits."""

    @abstractmethod
    def _make(self, row: Row, folder: Path, lease: Lease) -> dict[str, Any]:
        """The result, by column.

        Args:
            folder: is removed afterwards.
            lease: to be checked often (`_check`); what that raises passes through.

        Raises:
            WorkError: says how the attempt failed. Whatever else is raised fails it too.
            NotFoundError: if what the work is about was deleted, and the work with it.
        """

    def _claim(self, unit: UnitOfWork) -> Row | None:
        return self._rows(unit).claim(self._worker_id)

    def _renew(self, unit: UnitOfWork, row: Row) -> None:
        self._rows(unit).heartbeat(row.id, row.epoch)

    def _work(self, row: Row, lease: Lease) -> None:
        try:
            with self._workspace.attempt(row.id) as folder:
                result = self._make(row, folder, lease)
        except (LeaseLostError, NotFoundError):
            raise LeaseLostError(f"the lease of {row.id} was lost") from None
        except DrainingError:
            self._end(lease, lambda rows: rows.give_back(row.id, row.epoch))
        except Exception as error:  # the edge of the work: whatever happened is its error, and the worker goes on
            if not isinstance(error, WorkError):
                log.exception("work_failed")
            failure = failures.of_exception(error).to_dict()
            self._end(lease, lambda rows: rows.fail(row.id, row.epoch, failure))
        else:
            self._end(lease, lambda rows: rows.succeed(row.id, row.epoch, **result))

    def _end(self, lease: Lease, write: Callable[[WorkRepository[Any]], object]) -> None:
        def commit() -> None:
            with self._database.write() as unit:
                write(self._rows(unit))

        lease.insist(commit)
