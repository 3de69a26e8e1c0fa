"""Metric points of jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import case, func, select, text

from sam3_lora.events import finite
from service.shared.db.models import MetricPoint
from service.shared.db.models.base import UtcDateTime
from service.shared.db.models.jobs import Name
from service.shared.db.repositories.fencing import write_fenced

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import Session

    from service.shared.clock import Clock

UPSERT = """
    INSERT INTO metric_points (job_id, name, step, epoch, value, created_at) {}
    ON CONFLICT (job_id, name, step) DO UPDATE
    SET epoch = excluded.epoch, value = excluded.value, created_at = excluded.created_at
"""
UPSERT_ROWS = UPSERT.format("VALUES (?, ?, ?, ?, ?, ?)")
UPSERT_ARRAYS = text(
    UPSERT.format("""
        SELECT :job_id, unnest(CAST(:names AS text[])), unnest(CAST(:steps AS bigint[])),
            unnest(CAST(:epochs AS double precision[])), unnest(CAST(:values AS double precision[])), :now
    """)
)
SLICE_POINTS = 100_000
LEAST_POINTS = 5  # the first, the last, and of one bucket the lowest, the highest and one that is not finite


@dataclass(frozen=True)
class StepValues:
    """Values by metric name at one step, and how many epochs of training that was after."""

    step: int
    epoch: float | None
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class Series:
    """Where the points of one metric lie, of those that were asked for."""

    name: str
    points: int
    not_finite: int
    first_step: int
    last_step: int


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
        self.add_all(job_id, epoch, [StepValues(step, training_epoch, values)])

    def add_all(self, job_id: str, epoch: int, steps: Sequence[StepValues]) -> None:
        """As `add`, of many steps at once; of a step that is named twice the later values stay.

        Raises:
            LeaseLostError: if `epoch` no longer holds the job.
        """
        now = self._clock.now()
        write_fenced(self._session, job_id, epoch, updated_at=now)
        rows: dict[tuple[str, int], tuple[float | None, float | None]] = {}
        stored: dict[str, str] = {}
        for each in steps:
            for name, value in each.values.items():
                if name not in stored:
                    stored[name] = Name.stored(name)
                rows[stored[name], each.step] = (finite(each.epoch), finite(value))
        if rows:
            self._upsert(job_id, rows, now)

    def _upsert(
        self, job_id: str, rows: Mapping[tuple[str, int], tuple[float | None, float | None]], now: datetime
    ) -> None:
        """One statement for PostgreSQL, one prepared statement for SQLite: there is nothing a worker writes more of."""
        connection = self._session.connection()
        if connection.dialect.name == "postgresql":
            names, steps = zip(*rows, strict=True)
            epochs, values = zip(*rows.values(), strict=True)
            columns = {"names": list(names), "steps": list(steps), "epochs": list(epochs), "values": list(values)}
            connection.execute(UPSERT_ARRAYS, {"job_id": job_id, "now": now, **columns})
        else:
            to_text = UtcDateTime().bind_processor(connection.dialect)
            assert to_text is not None  # SQLite keeps times as text
            at = to_text(now)
            connection.exec_driver_sql(UPSERT_ROWS, [(job_id, *key, *row, at) for key, row in rows.items()])

    def series(
        self, job_id: str, *, names: Sequence[str] = (), after_step: int = -1, before_step: int | None = None
    ) -> Sequence[Series]:
        """The job's series, by name, with what of them lies between the steps."""
        chosen = [MetricPoint.job_id == job_id, MetricPoint.step > after_step]
        if before_step is not None:
            chosen.append(MetricPoint.step < before_step)
        if names:
            chosen.append(MetricPoint.name.in_(names))
        count = func.count()
        query = select(
            MetricPoint.name,
            count,
            count - func.count(MetricPoint.value),
            func.min(MetricPoint.step),
            func.max(MetricPoint.step),
        )
        rows = self._session.execute(query.where(*chosen).group_by(MetricPoint.name).order_by(MetricPoint.name))
        return [Series(*row) for row in rows]

    def points(self, job_id: str, series: Series, max_points: int) -> Sequence[MetricPoint]:
        """Points of a series by step, at most `max_points` (and no fewer than `LEAST_POINTS`).

        A longer series keeps its first and its last point, and of each of as many equal ranges of steps as there is
        room for the lowest, the highest and one that is not finite: no peak and no NaN is thinned away.
        """
        chosen = [
            MetricPoint.job_id == job_id,
            MetricPoint.name == series.name,
            MetricPoint.step.between(series.first_step, series.last_step),
        ]
        if series.points > max_points:
            chosen.append(MetricPoint.step.in_(sorted(self._kept_steps(chosen, series, max_points))))
        return self._session.scalars(select(MetricPoint).where(*chosen).order_by(MetricPoint.step)).all()

    def latest(self, job_id: str, prefix: str, *, names: Sequence[str] = ()) -> Sequence[MetricPoint]:
        """The last point of each metric whose name begins so."""
        chosen = [MetricPoint.job_id == job_id, MetricPoint.name.startswith(prefix, autoescape=True)]
        if names:
            chosen.append(MetricPoint.name.in_(names))
        query = select(MetricPoint).where(*chosen).order_by(MetricPoint.name, MetricPoint.step)
        return list({point.name: point for point in self._session.scalars(query)}.values())

    def at_steps(self, job_id: str, steps: Collection[int]) -> Sequence[MetricPoint]:
        """Points of every metric at these steps."""
        return self._session.scalars(
            select(MetricPoint).where(MetricPoint.job_id == job_id, MetricPoint.step.in_(steps))
        ).all()

    def _kept_steps(self, chosen: list[ColumnElement[bool]], series: Series, max_points: int) -> set[int]:
        buckets = max(1, (max_points - 2) // (3 if series.not_finite else 2))
        width = -(-(series.last_step - series.first_step + 1) // buckets)
        bucket = (MetricPoint.step - series.first_step) // width
        lows: dict[int, tuple[float, int]] = {}
        highs: dict[int, tuple[float, int]] = {}
        odd: dict[int, int] = {}
        # A slice may end within a bucket: what each of them has found there is compared.
        for part in self._slices(chosen, series):
            for number, low, low_step, high, high_step, odd_step in self._session.execute(_extremes(part, bucket)):
                if low is not None:
                    lows[number] = min(lows.get(number, (low, low_step)), (low, low_step))
                    highs[number] = max(highs.get(number, (high, high_step)), (high, high_step))
                if odd_step is not None:
                    odd.setdefault(number, odd_step)
        ends = {series.first_step, series.last_step}
        return ends | {step for _, step in (*lows.values(), *highs.values())} | set(odd.values())

    def _slices(self, chosen: list[ColumnElement[bool]], series: Series) -> Iterator[list[ColumnElement[bool]]]:
        """Conditions that cut a series into parts of `SLICE_POINTS`: SQLite keeps in memory what it sorts."""
        step: int | None = series.first_step
        while step is not None:
            rest = [*chosen, MetricPoint.step >= step]
            step = self._session.scalar(
                select(MetricPoint.step).where(*rest).order_by(MetricPoint.step).offset(SLICE_POINTS).limit(1)
            )
            yield rest if step is None else [*rest, MetricPoint.step < step]


def _extremes(chosen: list[ColumnElement[bool]], bucket: ColumnElement[int]) -> Select[Any]:
    """By bucket: its number, lowest and highest value, each with a step, and a step whose value is not finite."""
    numbered = select(bucket.label("bucket"), MetricPoint.step, MetricPoint.value).where(*chosen).subquery()
    low, high = (each(numbered.c.value).over(partition_by=numbered.c.bucket) for each in (func.min, func.max))
    points = select(numbered, low.label("low"), high.label("high")).subquery().c
    return select(
        points.bucket,
        points.low,
        func.min(case((points.value == points.low, points.step))),
        points.high,
        func.min(case((points.value == points.high, points.step))),
        func.min(case((points.value.is_(None), points.step))),
    ).group_by(points.bucket, points.low, points.high)
