"""Jobs as clients create and see them."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from sam3_lora.config import BaseName, JobConfig, Section, without_paths
from service.api.schemas.lists import Like, Read, Stored
from service.shared.db.models import Job
from service.shared.db.models.base import DEFAULT_PROJECT
from service.shared.db.repositories.usage import days_of
from service.shared.errors import invalid
from service.shared.settings import MAX_GPUS
from service.shared.states import LEASED, TERMINAL, JobAction, JobState, allowed_actions
from service.usecases.initial_adapters import InitialAdapter
from service.usecases.jobs import JobSpec
from service.usecases.queue import Place

Tag = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Tags = Annotated[list[Tag], Field(max_length=32), AfterValidator(lambda tags: list(dict.fromkeys(tags)))]
JobName = Annotated[str, Field(min_length=1, max_length=200, examples=["pallets-v3"])]
Project = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", examples=["warehouse"])]
Priority = Annotated[int, Field(ge=0, le=100)]


MaxRuntime = Annotated[int, Field(ge=60, le=30 * 86400)]
MaxAttempts = Annotated[int, Field(ge=1, le=20)]


class JobLimits(Section):
    """Bounds after which a job ends on its own."""

    max_runtime_s: MaxRuntime = 86400
    """Seconds that its attempts may run, all together."""
    max_attempts: MaxAttempts = 3
    """Attempts, if workers are lost or fail for a passing reason."""


class JobResources(Section):
    """What a job needs of the worker that takes it."""

    gpus: int = Field(1, ge=1, le=MAX_GPUS)
    """GPUs of one worker, which train together: a step takes `config.training.batch_size` images on each."""


def _no_other_id(checkpoint_id: str | None) -> str | None:
    kind = (checkpoint_id or "").partition("_")[0]
    if kind == "job":
        raise ValueError(f'this is a job: give {{"job_id": "{checkpoint_id}"}} for its best checkpoint')
    if kind == "model":
        raise ValueError('this is a model: give {"job_id": ...} with the `job_id` of the model')
    return checkpoint_id


class InitFrom(Section):
    """An earlier adapter; give one of the two."""

    checkpoint_id: Annotated[str | None, AfterValidator(_no_other_id)] = Field(None, min_length=1, max_length=64)
    """This checkpoint."""
    job_id: str | None = Field(None, min_length=1, max_length=64)
    """The best checkpoint of this job."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.checkpoint_id is None) == (self.job_id is None):
            raise ValueError("give either checkpoint_id or job_id")
        return self


def _as_object(value: Any) -> Any:
    return {"checkpoint_id": value} if isinstance(value, str) else value


InitFromGiven = Annotated[InitFrom | None, BeforeValidator(_as_object, InitFrom | str | None)]


class JobCreate(Section):
    """A training job."""

    name: JobName
    """For people; need not be unique."""
    project: Project | None = None
    """Whom the job is for: projects take turns, so that none waits behind a crowd of another's jobs. null: the project
    of the API key, else `default`."""
    base_model: BaseName = "sam3"
    """The model that is adapted."""
    dataset_id: str = Field(min_length=1, max_length=64, examples=["ds_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"])
    """Dataset to train on; it may still be processing."""
    validation_dataset_id: str | None = Field(None, min_length=1, max_length=64)
    """Dataset whose validation images (all of its images, where it has none) are the validation set; null: those of
    `dataset_id`. Categories are matched by name."""
    init_from: InitFromGiven = Field(None, examples=[{"job_id": "job_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"}])
    """An ended job's adapter to start from instead of the bare base: `{"checkpoint_id": ...}`, `{"job_id": ...}` for
    its best one, or a checkpoint's id. What is omitted of `config.lora` is taken from there."""
    config: JobConfig = JobConfig()
    """Hyper-parameters; what is omitted takes its default and is shown in `resolved`."""
    seed: int | None = Field(None, ge=0, lt=2**32)
    """Seed of everything random; null: `config.training.seed`."""
    resources: JobResources = JobResources()
    """What it needs of a worker."""
    priority: Priority = 50
    """Higher runs earlier."""
    limits: JobLimits = JobLimits()
    """Bounds after which it ends on its own."""
    tags: Tags = Field([])
    """Labels to filter lists by."""
    metadata: dict[MetadataKey, MetadataValue] = Field(default={}, max_length=16)
    """Up to 16 texts that are stored with the job."""


def without_defaults(schema: dict[str, Any]) -> None:
    for described in schema["properties"].values():
        del described["default"]


class JobPatch(Section):
    """What may change of a job; what is omitted stays (RFC 7396)."""

    model_config = ConfigDict(json_schema_extra=without_defaults)

    name: JobName = ""
    """For people; need not be unique."""
    tags: Tags = Field([])
    """Replaces all tags."""
    metadata: dict[MetadataKey, MetadataValue | None] = Field(
        {}, max_length=16, examples=[{"ticket": "A-2", "old": None}]
    )
    """Merged into what is there; null removes a key."""
    priority: Priority = 50
    """Higher runs earlier; counts from the next time that the job waits in the queue."""


class RetryLimits(Section):
    """Bounds of a retry; what is omitted or null is as for the job that has ended."""

    max_runtime_s: MaxRuntime | None = None
    """Seconds that the attempts of the new job may run, all together."""
    max_attempts: MaxAttempts | None = None
    """Attempts of the new job, if workers are lost or fail for a passing reason."""


class JobRetry(Section):
    """How to retry."""

    from_scratch: bool = False
    """Train from the beginning instead of going on from the last good checkpoint."""
    limits: RetryLimits = Field(RetryLimits(), examples=[{"max_runtime_s": 172800}])
    """What is to be different about the limits, as after a `time_limit`."""


class JobClone(Section):
    """What is different about the clone."""

    overrides: dict[str, Any] = Field({}, examples=[{"name": "pallets-v4", "config": {"lora": {"rank": 16}}}])
    """Members of a new job's body, merged into those of the cloned one (RFC 7396: null means the default)."""


class Progress(Read, extra="allow"):
    """How far it is, as its trainer last reported."""

    percent: int | float | None = None
    """Steps that are done, in percent."""
    epoch: int | float | None = None
    """The present epoch, from 1."""
    epochs: int | float | None = None
    """Epochs of the whole training."""
    step: int | float | None = None
    """Optimiser steps that are done."""
    steps: int | float | None = None
    """Optimiser steps of the whole training."""
    loss: int | float | None = None
    """Of the last step; null before the first, and where it was not finite."""
    eta_s: int | float | None = None
    """Seconds of training that are left, by the speed of the last steps; what is evaluated meanwhile comes on top. null
    before the first step."""
    images_per_s: int | float | None = None
    """Images trained on in a second of training; null before the first step."""
    images_done: int | float | None = None
    """While the model is asked about images, as in `evaluating`: those it was asked about."""
    images_total: int | float | None = None
    """All that it will be asked about then."""
    updated_at: datetime | None = None
    """When the trainer told so."""


class QueuePosition(Read):
    jobs_ahead: int | None
    """Queued jobs that will start earlier, if no others arrive; null unless this one is queued. Exact for the first 200
    jobs of a project, behind them in steps of 200, and in a queue of thousands as it was a few seconds ago."""
    estimated_start_at: datetime | None
    """To the minute, from the living workers, what they are doing and how long jobs took; null without such a basis."""
    reason: str | None
    """Why it will not start as things are: no living worker checks its datasets or has its GPUs, or the project's quota
    has no room; null otherwise."""


class JobWorker(Read):
    id: str
    """The worker."""
    device: str | None
    """What it computes on; null where it did not tell."""
    last_heartbeat_at: datetime | None
    """Its last sign of life for this job."""


class JobFailure(Read):
    code: str
    """config_invalid, dataset_invalid, gpu_oom, diverged, nothing_trained, worker_lost, time_limit, memory_limit,
    base_model_unavailable, storage_full, adapter_invalid, checkpoint_invalid, internal."""
    message: str
    """What went wrong."""
    hint: str
    """What to do about it; may be empty."""
    retryable: bool
    """Whether the same job may succeed if simply run again."""
    attempt: int
    """The attempt that failed."""


class Usage(Read):
    gpu_seconds: float
    """Seconds of all attempts, times `resources.gpus`; of one that goes on, up to its last heartbeat."""
    peak_memory_bytes: int | None
    """Most memory that the trainer had on one device; null until it has told."""


class JobUrls(Read):
    self: str
    """The job."""
    html: str
    """The job's page, for people."""
    events: str
    """What has happened to it."""
    stream: str
    """The same as it happens."""
    metrics: str
    """Its curves."""
    logs: str
    """The trainer's log."""
    logs_stream: str
    """The log as it is written (SSE)."""
    checkpoints: str
    """Its saved adapters."""
    attempts: str
    """Which workers have tried it."""
    evaluation: str
    """Base against tuned."""
    report: str
    """A page about the run; 404 until it has ended."""
    samples: str
    """Sample images."""
    dataset: str
    """Its dataset."""


class InitFromRead(Read):
    checkpoint_id: str
    """The checkpoint whose adapter it starts from."""


class JobBest(Stored):
    """The best checkpoint so far."""

    checkpoint_id: str | None = None
    """The checkpoint."""
    metric: str | None = None
    """By which it is the best, named as in `config.evaluation.metric`, without the `val/` of its curve."""
    value: int | float | None = None
    """Of the metric; null for a job without validation."""
    epoch: int | None = None
    """After which it was saved, from 1."""


class JobResult(Stored):
    """What a run came to."""

    model_id: str | None = None
    """The tuned model, which may have been deleted since; null until it is made."""
    steps: int | None = None
    """Optimiser steps that were taken."""
    epochs: int | None = None
    """Epochs that were trained."""
    stopped_early: bool | None = None
    """Whether it ended before its last epoch: no epoch was better for long, or it was asked to stop."""
    metric: str | None = None
    """By which checkpoints were compared."""
    best: dict[str, Any] | None = None
    """The best checkpoint: `value`, `epoch`, `step` and its `evaluation`."""
    base: dict[str, Any] | None = None
    """Evaluation of the untuned model; null if it was not measured."""
    trainable_parameters: int | None = None
    """Numbers that were trained."""
    trainable_percent: int | float | None = None
    """The same in percent of the model's."""
    skipped_steps: int | None = None
    """Steps that were left out because their gradients were not finite."""
    train_seconds: int | float | None = None
    """Seconds of training, without validations."""
    peak_memory_bytes: int | None = None
    """Most memory on one device."""
    processes: int | None = None
    """Processes that trained together."""
    checkpoint: str | None = None
    """Where the trainer kept the best adapter in its own folder."""
    notices: list[str] | None = None
    """What should be known of the run."""


class JobTrainable(Stored):
    """What is trained."""

    parameters: int | None = None
    """Numbers that are trained."""
    percent: int | float | None = None
    """The same in percent of the model's."""


class JobRead(Read):
    """A training job."""

    id: str
    """Opaque."""
    object: Literal["job"] = "job"
    name: str
    """For people."""
    project: str
    """Whom it is for."""
    status: JobState
    """Where it stands."""
    phase: str | None
    """What a running job is doing; new phases may be added."""
    status_reason: str | None
    """Why it is in this state, or what was asked of it; null where there is nothing to say."""
    is_terminal: bool
    """Whether it has ended."""
    allowed_actions: list[JobAction]
    """What is possible in this state, besides PATCH and clone, which always are."""
    base_model: str
    """The model that is adapted."""
    init_from: InitFromRead | None
    """The adapter that it starts from; null: the bare base."""
    retry_of: str | None
    """The job that it is a retry of."""
    resumes_from: str | None
    """Job whose last good checkpoint a retry goes on from."""
    dataset_id: str
    """Dataset that it trains on."""
    validation_dataset_id: str | None
    """Dataset of its validation images; null: that which it trains on."""
    sweep_id: str | None
    """The sweep that it belongs to."""
    trial: dict[str, Any] | None
    """The values that it tries there, by path in `config`."""
    config: dict[str, Any]
    """As submitted."""
    resolved: dict[str, Any]
    """`config` with every value as used, `resources` with the images of a step on all GPUs, the dataset's hash, and
    under `run` what the trainer reported."""
    seed: int
    """Seed of everything random."""
    resources: JobResources
    """What it needs of a worker."""
    priority: int
    """Higher runs earlier."""
    limits: JobLimits
    """Bounds after which it ends on its own."""
    tags: list[str]
    """Labels to filter lists by."""
    metadata: dict[str, str]
    """Texts that are stored with it."""
    queue: QueuePosition
    """Its place in the queue."""
    progress: Progress | None
    """How far it is; null until the trainer has told."""
    attempt: int
    """Times a worker has started it."""
    worker: JobWorker | None
    """The worker that has it now."""
    best: Annotated[dict[str, Any] | None, Like(JobBest | None)]
    """The best checkpoint so far."""
    result: Annotated[dict[str, Any] | None, Like(JobResult | None)]
    """What the run came to; null unless it has succeeded."""
    error: JobFailure | None
    """Why it failed; null otherwise."""
    usage: Usage
    """What it has used."""
    trainable: Annotated[dict[str, Any] | None, Like(JobTrainable | None)]
    """What is trained; null until the trainer has told."""
    created_at: datetime
    """When it was created."""
    queued_at: datetime | None
    """When it last came into the queue; null while its datasets are being checked."""
    started_at: datetime | None
    """When a worker first took it."""
    finished_at: datetime | None
    """When it ended."""
    urls: JobUrls
    """Where to go on."""


def chosen_project(asked: str | None, only: str | None) -> str:
    """The project of something new; `only`: the one that the request may use.

    Raises:
        InvalidRequestError: if it asks for another.
    """
    if only is not None and asked not in (None, only):
        message = f"the API key is for project {only!r}"
        raise invalid("/project", "other_project", message)
    return asked or only or DEFAULT_PROJECT


def job_spec(body: JobCreate, project: str | None) -> JobSpec:
    """The same for the use case; `project`: the only one that the request may create jobs of.

    Raises:
        InvalidRequestError: if it names another.
    """
    return JobSpec(
        name=body.name,
        project=chosen_project(body.project, project),
        base_model=body.base_model,
        dataset_id=body.dataset_id,
        validation_dataset_id=body.validation_dataset_id,
        init_from=None if body.init_from is None else InitialAdapter(**body.init_from.model_dump()),
        config=body.config,
        seed=body.seed,
        gpus=body.resources.gpus,
        priority=body.priority,
        max_runtime_s=body.limits.max_runtime_s,
        max_attempts=body.limits.max_attempts,
        tags=body.tags,
        metadata=body.metadata,
    )


def job_read(job: Job, place: Place | None) -> JobRead:
    """The job as clients see it; `place` is that in the queue, if it is queued."""
    url = f"/v1/jobs/{job.id}"
    held = job.state in LEASED and job.worker_id is not None
    return JobRead(
        id=job.id,
        name=job.name,
        project=job.project,
        status=job.state,
        phase=job.phase,
        status_reason=job.status_reason,
        is_terminal=job.state in TERMINAL,
        allowed_actions=allowed_actions(job.state, job.request),
        base_model=job.base_model,
        init_from=None if job.init_checkpoint_id is None else InitFromRead(checkpoint_id=job.init_checkpoint_id),
        retry_of=job.retry_of,
        resumes_from=job.resumes_from,
        dataset_id=job.dataset_id,
        validation_dataset_id=job.validation_dataset_id,
        sweep_id=job.sweep_id,
        trial=job.trial,
        config=job.config,
        resolved=_resolved(job.resolved),
        seed=job.seed,
        resources=JobResources(gpus=job.gpus),
        priority=job.priority,
        limits=JobLimits(max_runtime_s=job.max_runtime_s, max_attempts=job.max_attempts),
        tags=job.tags,
        metadata=job.labels,
        queue=QueuePosition(
            jobs_ahead=None if place is None else place.jobs_ahead,
            estimated_start_at=None if place is None else place.estimated_start_at,
            reason=None if place is None else place.reason,
        ),
        progress=None if job.progress is None else Progress(**job.progress),
        attempt=job.attempt,
        worker=_worker(job) if held else None,
        best=job.best,
        result=job.result,
        error=None if job.error is None else JobFailure(**job.error),
        usage=Usage(
            gpu_seconds=job.gpu_seconds + (_running_s(job) if held else 0.0), peak_memory_bytes=job.peak_memory_bytes
        ),
        trainable=job.trainable,
        created_at=job.created_at,
        queued_at=job.queued_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        urls=JobUrls(
            self=url,
            html=f"/ui/jobs/{job.id}",
            events=f"{url}/events",
            stream=f"{url}/events/stream",
            metrics=f"{url}/metrics",
            logs=f"{url}/logs",
            logs_stream=f"{url}/logs/stream",
            checkpoints=f"{url}/checkpoints",
            attempts=f"{url}/attempts",
            evaluation=f"{url}/evaluation",
            report=f"{url}/report",
            samples=f"{url}/samples",
            dataset=f"/v1/datasets/{job.dataset_id}",
        ),
    )


def _resolved(resolved: dict[str, Any]) -> dict[str, Any]:
    # Workers of earlier releases stored what the trainer reported as it was.
    return resolved | {"run": without_paths(resolved["run"])} if "run" in resolved else resolved


def _running_s(job: Job) -> float:
    """GPU seconds of the attempt that goes on."""
    return job.gpus * sum(seconds for _, seconds in days_of(job.attempt_started_at, job.last_heartbeat_at))


def _worker(job: Job) -> JobWorker:
    return JobWorker(id=job.worker_id or "", device=job.worker_device, last_heartbeat_at=job.last_heartbeat_at)
