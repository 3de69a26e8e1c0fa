"""Messages that webhooks bring, as receivers see them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from service.api.schemas.datasets import DatasetSummary
from service.api.schemas.jobs import JobBest
from service.api.schemas.lists import Failure, Like, Read
from service.shared.states import DatasetState, JobState, WorkState


class JobData(Read):
    """A job at the moment of the event."""

    id: str
    """The job."""
    object: Literal["job"]
    """Always `job`."""
    seq: int
    """Number of the job's last event: of two messages about a job the one with the higher number is the newer."""
    status: JobState
    """The state that it has come into."""
    name: str
    """For people."""
    project: str
    """Whom it is for."""
    base_model: str
    """The model that is adapted."""
    dataset_id: str
    """Dataset that it trains on."""
    sweep_id: str | None
    """The sweep that it belongs to."""
    attempt: int
    """Times a worker has started it."""
    best: Annotated[dict[str, Any] | None, Like(JobBest | None)]
    """The best checkpoint so far."""
    model_id: str | None
    """The tuned model, once it has succeeded."""
    error: Annotated[dict[str, Any] | None, Like(Failure | None)]
    """Why it failed; null otherwise."""
    url: str
    """Where more is said about it."""


class CheckpointData(Read):
    """A saved adapter."""

    id: str
    """The checkpoint."""
    object: Literal["checkpoint"]
    """Always `checkpoint`."""
    kind: str
    """best, epoch, or interrupt where the job was paused or moved."""
    epoch: int
    """Counts from 1."""
    step: int
    """Optimiser steps taken until then."""
    metric: str | None
    """By which checkpoints are compared."""
    value: float | None
    """Of the metric; null where it was not measured."""


class CheckpointJobData(JobData):
    """A job that has saved a checkpoint."""

    checkpoint: CheckpointData
    """The new one."""


class DatasetData(Read):
    """A dataset whose check has ended."""

    id: str
    """The dataset."""
    object: Literal["dataset"]
    """Always `dataset`."""
    status: DatasetState
    """ready, invalid or failed."""
    name: str
    """For people."""
    sha256: str | None
    """Of its archive; null if it was never fetched."""
    bytes: int
    """Size of its archive; 0 if it was never fetched."""
    summary: Annotated[dict[str, Any] | None, Like(DatasetSummary | None)]
    """How much there is and was found; null if there is no report."""
    error: Annotated[dict[str, Any] | None, Like(Failure | None)]
    """Why it failed; null otherwise."""
    url: str
    """Where more is said about it."""
    validation_url: str
    """Where the report of its check is."""


class ComparisonData(Read):
    """A comparison that has ended."""

    id: str
    """The comparison."""
    object: Literal["comparison"]
    """Always `comparison`."""
    status: WorkState
    """succeeded or failed."""
    name: str
    """For people."""
    dataset_id: str
    """The dataset."""
    models: list[str]
    """The two models; the second is judged by the first."""
    metric: str
    """What decides which is better."""
    error: Annotated[dict[str, Any] | None, Like(Failure | None)]
    """Why it failed; null otherwise."""
    url: str
    """Where more is said about it."""


class EndpointData(Read):
    """The endpoint that is tried."""

    id: str
    """The endpoint."""
    object: Literal["webhook_endpoint"]
    """Always `webhook_endpoint`."""
    project: str
    """Whose it is."""


class JobMessage(Read):
    """A job has come into a state."""

    type: Literal["job.queued", "job.started", "job.paused", "job.succeeded", "job.failed", "job.cancelled"]
    """What has happened."""
    timestamp: datetime
    """When it happened."""
    data: JobData
    """The job."""


class CheckpointMessage(Read):
    """A running job has saved a checkpoint."""

    type: Literal["job.checkpoint"]
    """Always `job.checkpoint`."""
    timestamp: datetime
    """When it happened."""
    data: CheckpointJobData
    """The job, with the checkpoint."""


class DatasetMessage(Read):
    """The check of a dataset has ended."""

    type: Literal["dataset.ready", "dataset.invalid", "dataset.failed"]
    """What has happened."""
    timestamp: datetime
    """When it happened."""
    data: DatasetData
    """The dataset."""


class ComparisonMessage(Read):
    """A comparison has ended."""

    type: Literal["comparison.succeeded", "comparison.failed"]
    """What has happened."""
    timestamp: datetime
    """When it happened."""
    data: ComparisonData
    """The comparison."""


class EndpointMessage(Read):
    """Somebody tries the endpoint."""

    type: Literal["webhook.test"]
    """Always `webhook.test`."""
    timestamp: datetime
    """When it was asked for."""
    data: EndpointData
    """The endpoint."""


class OpenAIData(Read):
    """What has changed."""

    id: str
    """The job; of `webhook.test` the endpoint."""


class OpenAIMessage(Read):
    """A job has ended, as OpenAI's clients read it: to endpoints of `format` openai."""

    id: str
    """The `webhook-id`."""
    object: Literal["event"]
    """Always `event`."""
    created_at: int
    """When it happened, in seconds since 1970."""
    type: Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled", "webhook.test"]
    """What has happened."""
    data: OpenAIData
    """Whose it is."""
