"""Workers as they report themselves."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from service.shared.db.models import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from service.shared.clock import Clock


ALIVE = select(func.count()).where(Worker.kind == bindparam("kind"), Worker.last_seen_at >= bindparam("since"))


class WorkerRepository:
    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    def beat(
        self, worker_id: str, *, kind: str, host: str, pid: int, device: str | None, memory_bytes: int | None = None
    ) -> None:
        """Register the worker, or note that it is alive."""
        now = self._clock.now()
        dialect = postgresql if self._session.get_bind().dialect.name == "postgresql" else sqlite
        changing = {"kind": kind, "host": host, "pid": pid, "device": device}
        changing |= {"memory_bytes": memory_bytes, "last_seen_at": now}
        statement = dialect.insert(Worker).values(id=worker_id, started_at=now, **changing)
        self._session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changing))

    def remove(self, worker_id: str) -> None:
        """Forget a worker that has shut down."""
        self._session.execute(delete(Worker).where(Worker.id == worker_id))

    def count_alive(self, kind: str, *, within_s: float) -> int:
        """Workers of a kind that gave a sign of life within so many seconds."""
        since = self._clock.now() - timedelta(seconds=within_s)
        return self._session.scalar(ALIVE, {"kind": kind, "since": since}) or 0

    def devices(self, kind: str, *, within_s: float) -> Sequence[tuple[str, int, int]]:
        """Devices of the living workers of a kind that say what they have: name, bytes of memory, workers."""
        since = self._clock.now() - timedelta(seconds=within_s)
        query = (
            select(Worker.device, Worker.memory_bytes, func.count())
            .where(Worker.kind == kind, Worker.last_seen_at >= since)
            .where(Worker.device.is_not(None), Worker.memory_bytes.is_not(None))
            .group_by(Worker.device, Worker.memory_bytes)
            .order_by(Worker.device, Worker.memory_bytes)
        )
        return [(str(device), int(memory or 0), count) for device, memory, count in self._session.execute(query)]

    def forget_silent(self, after_s: float) -> None:
        """Remove workers that have been silent for longer."""
        since = self._clock.now() - timedelta(seconds=after_s)
        self._session.execute(delete(Worker).where(Worker.last_seen_at < since))
