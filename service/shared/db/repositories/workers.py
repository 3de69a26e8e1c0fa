"""Workers as they report themselves."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import and_, bindparam, delete, func, select

from service.shared.db.models import Job, Worker
from service.shared.db.repositories.inserts import insert_minding
from service.shared.db.repositories.times import is_within, window
from service.shared.states import LEASED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from service.shared.clock import Clock


_ALIVE = (Worker.kind == bindparam("kind"), Worker.last_seen_at.between(bindparam("since"), bindparam("until")))
# Asked all the time, and building a statement takes longer than running it.
SIZES = select(Worker.id, Worker.gpus).where(*_ALIVE)


class WorkerRepository:
    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    def beat(
        self,
        worker_id: str,
        *,
        kind: str,
        host: str,
        pid: int,
        device: str | None,
        memory_bytes: int | None = None,
        gpus: int = 1,
    ) -> None:
        """Register the worker, or note that it is alive."""
        now = self._clock.now()
        changing = {"kind": kind, "host": host, "pid": pid, "device": device}
        changing |= {"memory_bytes": memory_bytes, "gpus": gpus, "last_seen_at": now}
        statement = insert_minding(self._session, Worker).values(id=worker_id, started_at=now, **changing)
        self._session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changing))

    def remove(self, worker_id: str) -> None:
        """Forget a worker that has shut down."""
        self._session.execute(delete(Worker).where(Worker.id == worker_id))

    def count_alive(self, kind: str, *, within_s: float) -> int:
        """Workers of a kind that gave a sign of life within so many seconds."""
        query = select(func.count()).where(Worker.kind == kind, self._lives(within_s))
        return self._session.scalar(query) or 0

    def alive(self, *, within_s: float) -> Sequence[tuple[Worker, str | None]]:
        """Living workers of all kinds, the oldest first, with the job that each has, if it trains one."""
        held = and_(Job.worker_id == Worker.id, Job.state.in_(LEASED))
        query = select(Worker, Job.id).outerjoin(Job, held).where(self._lives(within_s))
        return [
            (worker, job_id) for worker, job_id in self._session.execute(query.order_by(Worker.started_at, Worker.id))
        ]

    def sizes(self, kind: str, *, within_s: float) -> dict[str, int]:
        """GPUs of the living workers of a kind, by their ids."""
        since, until = window(self._clock.now(), seconds=within_s)
        rows = self._session.execute(SIZES, {"kind": kind, "since": since, "until": until})
        return {worker_id: gpus for worker_id, gpus in rows}  # noqa: C416 - dict() of rows has no type

    def devices(self, kind: str, *, within_s: float) -> Sequence[tuple[str, int, int, int]]:
        """Devices of the living workers of a kind that say what they have: name, bytes of memory, GPUs, workers."""
        query = (
            select(Worker.device, Worker.memory_bytes, Worker.gpus, func.count())
            .where(Worker.kind == kind, self._lives(within_s))
            .where(Worker.device.is_not(None), Worker.memory_bytes.is_not(None))
            .group_by(Worker.device, Worker.memory_bytes, Worker.gpus)
            .order_by(Worker.device, Worker.memory_bytes, Worker.gpus)
        )
        return [
            (str(device), int(memory or 0), gpus, count) for device, memory, gpus, count in self._session.execute(query)
        ]

    def forget_silent(self, after_s: float) -> None:
        """Remove workers that have been silent for longer."""
        since = self._clock.now() - timedelta(seconds=after_s)
        self._session.execute(delete(Worker).where(Worker.last_seen_at < since))

    def _lives(self, within_s: float) -> ColumnElement[bool]:
        return is_within(Worker.last_seen_at, self._clock.now(), seconds=within_s)
