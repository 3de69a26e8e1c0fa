"""Metric points of jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from sam3_lora.events import finite
from service.shared.db.models import MetricPoint
from service.shared.db.repositories.fencing import write_fenced

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from service.shared.clock import Clock


class MetricRepository:
    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    def add(
        self, job_id: str, epoch: int, *, step: int, values: Mapping[str, float | None], training_epoch: float | None
    ) -> None:
        """Store one value per metric name at a step; values already there for that step are replaced.

        Raises:
            LeaseLostError: if `epoch` no longer holds the job.
        """
        now = self._clock.now()
        write_fenced(self._session, job_id, epoch, updated_at=now)
        rows: list[dict[str, Any]] = [
            {
                "job_id": job_id,
                "name": name,
                "step": step,
                "epoch": training_epoch,
                "value": finite(value),
                "created_at": now,
            }
            for name, value in values.items()
        ]
        if not rows:
            return
        dialect = postgresql if self._session.get_bind().dialect.name == "postgresql" else sqlite
        statement = dialect.insert(MetricPoint)
        replaced = {name: statement.excluded[name] for name in ("epoch", "value", "created_at")}
        self._session.execute(
            statement.on_conflict_do_update(index_elements=["job_id", "name", "step"], set_=replaced), rows
        )

    def list(
        self, job_id: str, *, names: Sequence[str] = (), after_step: int = -1, max_points: int
    ) -> Sequence[MetricPoint]:
        """Points by name and step; of each series at most about `max_points`, evenly thinned, its last one kept."""
        chosen = [MetricPoint.job_id == job_id, MetricPoint.step > after_step]
        if names:
            chosen.append(MetricPoint.name.in_(names))
        numbered = (
            select(
                MetricPoint.name,
                MetricPoint.step,
                func.row_number().over(partition_by=MetricPoint.name, order_by=MetricPoint.step).label("number"),
                func.count().over(partition_by=MetricPoint.name).label("total"),
            )
            .where(*chosen)
            .subquery()
        )
        stride = (numbered.c.total + max_points - 1) // max_points
        kept = or_((numbered.c.number - 1) % stride == 0, numbered.c.number == numbered.c.total)
        query = (
            select(MetricPoint)
            .join(numbered, (MetricPoint.name == numbered.c.name) & (MetricPoint.step == numbered.c.step))
            .where(MetricPoint.job_id == job_id, kept)
            .order_by(MetricPoint.name, MetricPoint.step)
        )
        return self._session.scalars(query).all()
