"""Metrics of jobs as clients see them."""

import csv
import io
from datetime import datetime
from itertools import chain
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.schemas.lists import Read
from service.shared.db.models import MetricPoint
from service.shared.db.repositories.metrics import LEAST_POINTS
from service.usecases.metrics import Metrics

COLUMNS = ("name", "step", "epoch", "value", "finite", "created_at")


class MetricsQuery(BaseModel):
    """Which points, and in which form."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    keys: str | None = Field(None, min_length=1, max_length=4000, examples=["train/loss,val/segm_mAP"])
    """Only these metrics, separated by commas."""
    after_step: int = Field(-1, ge=-1, lt=2**63)
    """Only points of later steps."""
    before_step: int | None = Field(None, ge=0, lt=2**63)
    """Only points of earlier steps."""
    max_points: int = Field(1000, ge=LEAST_POINTS, le=10_000)
    """Most points of each series. A longer one keeps its first and last point, and of each of as many equal ranges of
    steps as there is room for the lowest, the highest and one that is not finite. With very many series there are
    fewer: an answer has at most about 50,000."""
    format: Literal["json", "csv"] | None = None
    """Goes before `Accept`."""


class MetricPointRead(Read):
    step: int
    """Optimiser step after which it was measured."""
    epoch: float | None
    """Epoch in which it was measured, from 1."""
    value: float | None
    """Null where it was not finite or not defined."""
    finite: bool
    """False: the value was NaN or infinite and is shown as null."""
    created_at: datetime
    """When it was written down."""


class MetricsRead(Read):
    object: Literal["job.metrics"] = "job.metrics"
    job_id: str
    """The job."""
    keys: list[str]
    """Names of all metrics in this answer."""
    last_step: int | None
    """Give it as `after_step` to get what follows."""
    series: dict[str, list[MetricPointRead]]
    """Points of each metric in the order of their steps."""
    constants: dict[str, float | None]
    """Latest values of the untuned model's metrics, `base/...`: lines to compare the others with, whatever steps were
    asked for."""


def metrics_read(job_id: str, metrics: Metrics) -> MetricsRead:
    constants = {point.name: point.value for point in metrics.constants}
    return MetricsRead(
        job_id=job_id,
        keys=sorted({*metrics.series, *constants}),
        last_step=max((points[-1].step for points in metrics.series.values()), default=None),
        series={name: [_point_read(point) for point in points] for name, points in metrics.series.items()},
        constants=constants,
    )


def metrics_csv(metrics: Metrics) -> str:
    """One row for each point of the series; the value of one that is not finite is empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for point in chain.from_iterable(metrics.series.values()):
        read = _point_read(point)
        finite = "true" if read.finite else "false"
        writer.writerow((point.name, read.step, read.epoch, read.value, finite, read.created_at.isoformat()))
    return text.getvalue()


def _point_read(point: MetricPoint) -> MetricPointRead:
    return MetricPointRead(
        step=point.step,
        epoch=point.epoch,
        value=point.value,
        finite=point.value is not None,
        created_at=point.created_at,
    )
