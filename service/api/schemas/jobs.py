"""Jobs as clients create and see them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from sam3_lora.config import JobConfig, Section
from service.api.schemas.datasets import choices
from service.api.schemas.lists import PageQuery, Read
from service.shared.db.models import Job, JobEvent, MetricPoint
from service.shared.states import LEASED, TERMINAL, JobState

Tag = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class JobLimits(Section):
    """Bounds after which a job ends on its own."""

    max_runtime_s: int = Field(86400, ge=60, le=30 * 86400)
    """Seconds one attempt may run."""
    max_attempts: int = Field(3, ge=1, le=20)
    """Attempts, if workers are lost or fail for a passing reason."""


class JobCreate(Section):
    """A training job."""

    name: str = Field(min_length=1, max_length=200, examples=["pallets-v3"])
    """For people; need not be unique."""
    base_model: Literal["sam3", "sam3-tiny"] = "sam3"
    """The model that is adapted."""
    dataset_id: str = Field(min_length=1, max_length=64, examples=["ds_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"])
    """Dataset to train on; it may still be processing."""
    config: JobConfig = JobConfig()
    """Hyper-parameters; what is omitted takes its default and is shown in `resolved`."""
    seed: int | None = Field(None, ge=0, lt=2**32)
    """Seed of everything random; null: `config.training.seed`."""
    priority: int = Field(50, ge=0, le=100)
    """Higher runs earlier."""
    limits: JobLimits = JobLimits()
    tags: list[Tag] = Field(default=[], max_length=32)
    """Labels to filter lists by."""
    metadata: dict[MetadataKey, MetadataValue] = Field(default={}, max_length=16)
    """Up to 16 texts that are stored with the job."""


class JobQuery(PageQuery):
    status: Annotated[str | None, choices(JobState)] = Field(None, max_length=200, examples=["queued,running"])
    """Only jobs in these states, separated by commas."""
    dataset_id: str | None = Field(None, max_length=64)
    """Only jobs on this dataset."""
    tag: str | None = Field(None, max_length=64)
    """Only jobs with this tag."""


class Progress(Read, extra="allow"):
    percent: int | float | None = None
    epoch: int | float | None = None
    epochs: int | float | None = None
    step: int | float | None = None
    steps: int | float | None = None
    eta_s: int | float | None = None
    images_per_s: int | float | None = None
    updated_at: datetime | None = None


class QueuePosition(Read):
    jobs_ahead: int | None
    """Queued jobs that will start earlier; null unless this one is queued."""


class JobWorker(Read):
    id: str
    device: str | None
    last_heartbeat_at: datetime | None


class JobFailure(Read):
    code: str
    """dataset_invalid, gpu_oom, diverged, worker_lost, time_limit, base_model_unavailable, storage_full, internal."""
    message: str
    hint: str
    retryable: bool
    attempt: int


class Usage(Read):
    gpu_seconds: float
    peak_memory_bytes: int | None


class JobUrls(Read):
    self: str
    events: str
    metrics: str
    logs: str
    checkpoints: str
    evaluation: str
    report: str
    samples: str
    dataset: str


class JobRead(Read):
    """A training job."""

    id: str
    object: Literal["job"] = "job"
    name: str
    status: JobState
    phase: str | None
    """What a running job is doing; new phases may be added."""
    status_reason: str | None
    is_terminal: bool
    allowed_actions: list[Literal["cancel"]]
    base_model: str
    dataset_id: str
    config: dict[str, Any]
    """As submitted."""
    resolved: dict[str, Any]
    """`config` with every value as used, the dataset's hash, and under `run` what the trainer reported."""
    seed: int
    priority: int
    limits: JobLimits
    tags: list[str]
    metadata: dict[str, str]
    queue: QueuePosition
    progress: Progress | None
    attempt: int
    """Times a worker has started it."""
    worker: JobWorker | None
    """The worker that has it now."""
    best: dict[str, Any] | None
    """The best checkpoint so far: `{checkpoint_id, metric, value, epoch}`."""
    result: dict[str, Any] | None
    error: JobFailure | None
    usage: Usage
    trainable: dict[str, Any] | None
    created_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    urls: JobUrls


class EventRead(Read):
    id: str
    object: Literal["job.event"] = "job.event"
    seq: int
    """Counts from 1 without gaps per job."""
    job_id: str
    attempt: int
    created_at: datetime
    type: str
    level: str
    message: str
    data: dict[str, Any]


class EventPage(Read):
    object: Literal["list"] = "list"
    data: list[EventRead]
    last_seq: int
    """Give it as `after` to get what follows."""
    has_more: bool


class MetricPointRead(Read):
    step: int
    epoch: float | None
    value: float | None
    finite: bool
    """False: the value was NaN or infinite and is shown as null."""
    created_at: datetime


class MetricsRead(Read):
    object: Literal["job.metrics"] = "job.metrics"
    job_id: str
    keys: list[str]
    last_step: int | None
    series: dict[str, list[MetricPointRead]]


def job_read(job: Job, jobs_ahead: int | None) -> JobRead:
    url = f"/v1/jobs/{job.id}"
    held = job.state in LEASED and job.worker_id is not None
    return JobRead(
        id=job.id,
        name=job.name,
        status=job.state,
        phase=job.phase,
        status_reason=job.status_reason,
        is_terminal=job.state in TERMINAL,
        allowed_actions=[] if job.state in TERMINAL or job.state is JobState.CANCELLING else ["cancel"],
        base_model=job.base_model,
        dataset_id=job.dataset_id,
        config=job.config,
        resolved=job.resolved,
        seed=job.seed,
        priority=job.priority,
        limits=JobLimits(max_runtime_s=job.max_runtime_s, max_attempts=job.max_attempts),
        tags=job.tags,
        metadata=job.labels,
        queue=QueuePosition(jobs_ahead=jobs_ahead),
        progress=None if job.progress is None else Progress(**job.progress),
        attempt=job.attempt,
        worker=_worker(job) if held else None,
        best=job.best,
        result=job.result,
        error=None if job.error is None else JobFailure(**job.error),
        usage=Usage(gpu_seconds=job.gpu_seconds, peak_memory_bytes=job.peak_memory_bytes),
        trainable=job.trainable,
        created_at=job.created_at,
        queued_at=job.queued_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        urls=JobUrls(
            self=url,
            events=f"{url}/events",
            metrics=f"{url}/metrics",
            logs=f"{url}/logs",
            checkpoints=f"{url}/checkpoints",
            evaluation=f"{url}/evaluation",
            report=f"{url}/report",
            samples=f"{url}/samples",
            dataset=f"/v1/datasets/{job.dataset_id}",
        ),
    )


def _worker(job: Job) -> JobWorker:
    return JobWorker(id=job.worker_id or "", device=job.worker_device, last_heartbeat_at=job.last_heartbeat_at)


def event_read(event: JobEvent) -> EventRead:
    return EventRead(
        id=event.id,
        seq=event.seq,
        job_id=event.job_id,
        attempt=event.attempt,
        created_at=event.created_at,
        type=event.type,
        level=event.level,
        message=event.message,
        data=event.data,
    )


def metrics_read(job_id: str, points: Sequence[MetricPoint]) -> MetricsRead:
    series: dict[str, list[MetricPointRead]] = {}
    for point in points:
        read = MetricPointRead(
            step=point.step,
            epoch=point.epoch,
            value=point.value,
            finite=point.value is not None,
            created_at=point.created_at,
        )
        series.setdefault(point.name, []).append(read)
    last_step = max((point.step for point in points), default=None)
    return MetricsRead(job_id=job_id, keys=sorted(series), last_step=last_step, series=series)
