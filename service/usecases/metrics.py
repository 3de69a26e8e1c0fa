"""Metrics as curves: bounded, however long a job has run and however much it has reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.shared.db.repositories.metrics import LEAST_POINTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.shared.db.models import MetricPoint
    from service.shared.unit_of_work import UnitOfWork

CONSTANTS = "base/"
MOST_POINTS = 50_000  # of all series together


@dataclass(frozen=True)
class Metrics:
    constants: Sequence[MetricPoint]
    """What does not change in training: the latest value of each metric of the untuned model, at whatever step."""
    series: dict[str, Sequence[MetricPoint]]
    """Points of every metric, by step."""


def read_metrics(
    unit: UnitOfWork, job_id: str, *, names: Sequence[str], after_step: int, before_step: int | None, max_points: int
) -> Metrics:
    """Metrics of the job, all or those named; of each at most `max_points`, fewer where there are very many."""
    found = unit.metrics.series(job_id, names=names, after_step=after_step, before_step=before_step)
    room = max(LEAST_POINTS, min(max_points, MOST_POINTS // max(1, len(found))))
    return Metrics(
        constants=unit.metrics.latest(job_id, CONSTANTS, names=names),
        series={series.name: unit.metrics.points(job_id, series, room) for series in found},
    )
