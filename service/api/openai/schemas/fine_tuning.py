"""Fine-tuning jobs as OpenAI's clients create and see them."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sam3_lora.config import BaseName, Float, JobConfig, Section, TrainingConfig
from service.api.openai.schemas.lists import Cursor, unix
from service.api.schemas.events import data_of
from service.api.schemas.job_queries import LabelledQuery
from service.api.schemas.jobs import (
    InitFromGiven,
    JobLimits,
    JobRead,
    JobResources,
    MetadataKey,
    MetadataValue,
    Priority,
    Progress,
    Project,
    Tags,
)
from service.api.schemas.lists import Read
from service.shared.db.models import Checkpoint, JobEvent, MetricPoint
from service.shared.db.repositories.job_filters import JobFilter
from service.shared.states import JobState

Status = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
# Strict clients know six states: one that a worker still holds is running, one that waits for its resumption is queued.
STATUS: dict[JobState, Status] = {
    JobState.VALIDATING_FILES: "validating_files",
    JobState.QUEUED: "queued",
    JobState.RUNNING: "running",
    JobState.PAUSING: "running",
    JobState.CANCELLING: "running",
    JobState.PAUSED: "queued",
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}
DEFAULTS = TrainingConfig().model_dump()
FileId = Annotated[str, Field(min_length=1, max_length=64, examples=["ds_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"])]
METRICS_PREFIX = "metrics_"
"""Before the id of a job in the id of the file of its metrics."""
PLACES = {
    "name": "suffix",
    "base_model": "model",
    "dataset_id": "training_file",
    "validation_dataset_id": "validation_file",
}
"""Members of a job's body, and what they are called here."""
SAME = ("config", "resources", "priority", "limits", "tags", "project", "seed", "init_from")
"""Members that are called the same."""
HYPERPARAMETERS = {
    "max_epochs": "n_epochs",
    "batch_size": "batch_size",
    "learning_rate": "learning_rate_multiplier",
}
"""Members of `config.training`, and what they are called here."""


def _auto(value: Any) -> Any:
    return None if value == "auto" else value


Epochs = Annotated[int, Field(ge=1, le=10_000)]
BatchSize = Annotated[int, Field(ge=1, le=256)]
Multiplier = Annotated[Float, Field(gt=0, le=10_000)]


class Hyperparameters(Section):
    """The three that OpenAI has; all others are in `config`. `"auto"` and null are the default."""

    n_epochs: Annotated[Epochs | None, BeforeValidator(_auto, Literal["auto"] | Epochs | None)] = None
    """Passes over the training images: `config.training.max_epochs`."""
    batch_size: Annotated[BatchSize | None, BeforeValidator(_auto, Literal["auto"] | BatchSize | None)] = None
    """Images of a step on each GPU: `config.training.batch_size`."""
    learning_rate_multiplier: Annotated[
        Multiplier | None, BeforeValidator(_auto, Literal["auto"] | Multiplier | None)
    ] = None
    """Times the default learning rate, 1e-4: `config.training.learning_rate`."""

    def training(self) -> dict[str, int | float]:
        """Those that are given, as `config.training` has them."""
        multiplier = self.learning_rate_multiplier
        learning_rate = None if multiplier is None else _rounded(multiplier * DEFAULTS["learning_rate"])
        values = {"max_epochs": self.n_epochs, "batch_size": self.batch_size, "learning_rate": learning_rate}
        return {name: value for name, value in values.items() if value is not None}


class SupervisedMethod(Section):
    hyperparameters: Hyperparameters = Hyperparameters()
    """What OpenAI has names for."""


class Method(Section):
    """How to train."""

    type: Literal["supervised"]
    """Always `supervised`."""
    supervised: SupervisedMethod = SupervisedMethod()
    """How it trains."""


class FineTuningJobCreate(Section):
    """A training job. The members that OpenAI does not have are those of `POST /jobs`; clients send them as
    `extra_body`.
    """

    model: BaseName
    """The model that is adapted."""
    training_file: FileId
    """Dataset to train on; it may still be in its check."""
    validation_file: FileId | None = None
    """Dataset whose validation images (all of its images, where it has none) are the validation set; null: those of
    `training_file`."""
    suffix: str | None = Field(None, min_length=1, max_length=64, examples=["pallets-v3"])
    """The job's name; null: `ft:` and the model."""
    seed: int | None = Field(None, ge=0, lt=2**32)
    """Seed of everything random."""
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=16)
    """Up to 16 texts that are stored with the job."""
    method: Method | None = None
    """How to train; null: with the defaults."""
    hyperparameters: Hyperparameters | None = None
    """The older place of `method.supervised.hyperparameters`; give one of them."""
    integrations: list[Any] | None = Field(None, max_length=0)
    """None are offered: webhooks tell others about jobs."""
    config: JobConfig = JobConfig()
    """Hyper-parameters of this service."""
    resources: JobResources = JobResources()
    """What it needs of a worker."""
    priority: Priority = 50
    """Higher runs earlier."""
    limits: JobLimits = JobLimits()
    """Bounds after which it ends on its own."""
    tags: Tags = Field([])
    """Labels to filter lists by."""
    project: Project | None = None
    """Whom the job is for; null: the project of the API key, else `default`."""
    init_from: InitFromGiven = Field(None, examples=[{"job_id": "job_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"}])
    """An ended job's adapter to start from instead of the bare base."""

    @model_validator(mode="after")
    def _given_once(self) -> Self:
        if self.method is not None and self.hyperparameters is not None:
            raise ValueError("give hyperparameters or method.supervised.hyperparameters, not both")
        for name in self._training().keys() & self.config.training.model_fields_set:
            raise ValueError(f"give {HYPERPARAMETERS[name]} or config.training.{name}, not both")
        return self

    def as_job(self) -> dict[str, Any]:
        """The body of `POST /jobs` that asks for the same."""
        own = self.model_dump(mode="json", exclude_unset=True, include=set(SAME))
        config = own.get("config", {})
        return own | {
            "name": self.suffix or f"ft:{self.model}",
            "base_model": self.model,
            "dataset_id": self.training_file,
            "validation_dataset_id": self.validation_file,
            "metadata": self.metadata or {},
            "config": config | {"training": config.get("training", {}) | self._training()},
        }

    def _training(self) -> dict[str, int | float]:
        """What the hyperparameters, wherever they are given, set of `config.training`."""
        chosen = self.hyperparameters
        if chosen is None:
            chosen = Hyperparameters() if self.method is None else self.method.supervised.hyperparameters
        return chosen.training()


class FineTuningQuery(LabelledQuery, Cursor):
    """Which jobs."""

    def matching(self) -> JobFilter:
        """The same for the repository."""
        return JobFilter(metadata=self.metadata)


class HyperparametersRead(Read):
    n_epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images of a step on each GPU."""
    learning_rate_multiplier: float
    """Times the default learning rate, 1e-4."""


class SupervisedMethodRead(Read):
    hyperparameters: HyperparametersRead
    """As used."""


class MethodRead(Read):
    type: Literal["supervised"] = "supervised"
    """Always `supervised`."""
    supervised: SupervisedMethodRead
    """How it trains."""


class FineTuningError(Read):
    code: str
    """Stable name, as in `error` of the job of this service."""
    message: str
    """What went wrong and what to do about it."""
    param: str | None
    """`training_file` where the dataset is at fault; null otherwise."""


class NativeJob(Read):
    """The same job, as this service's own API has it."""

    status: JobState
    """Its true state: `pausing` and `cancelling` are `running` to OpenAI's clients, `paused` is `queued`."""
    phase: str | None
    """What a running job is doing; new phases may be added."""
    progress: Progress | None
    """How far it is; null until the trainer has told."""
    url: str
    """The job."""


class FineTuningJobRead(Read):
    """A training job."""

    id: str
    """Opaque; the same as in `/jobs`."""
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    """In seconds since 1970."""
    finished_at: int | None
    """When it ended, in seconds since 1970."""
    estimated_finish: int | None
    """While it trains, by its speed."""
    status: Status
    """The nearest of the states that OpenAI knows."""
    error: FineTuningError | None
    """Why it failed; null otherwise."""
    model: str
    """The model that is adapted."""
    fine_tuned_model: str | None
    """Id of the tuned model, once the job has succeeded: for `/models/{id}/predict`, and as a file its adapter."""
    organization_id: str
    """The job's project."""
    training_file: str
    """Dataset that it trains on."""
    validation_file: str | None
    """Dataset of its validation images; null: that which it trains on."""
    result_files: list[str]
    """Once it has ended: the file of its metrics, as CSV."""
    trained_tokens: int | None = None
    """Always null: images are not counted in tokens."""
    hyperparameters: HyperparametersRead
    """As used."""
    method: MethodRead
    """How it trains."""
    integrations: list[dict[str, Any]]
    """Always empty."""
    seed: int
    """Seed of everything random."""
    metadata: dict[str, str]
    """Texts that are stored with it."""
    native: NativeJob
    """The same, as this service has it."""


class NativeEvent(Read):
    type: str
    """status, phase, resolved, message, checkpoint, evaluation, result, error; new types may be added."""
    seq: int
    """Counts from 1 without gaps per job."""
    attempt: int
    """The attempt in which it happened; 0 before the first."""


class FineTuningEventRead(Read):
    """Something that has happened to a job."""

    id: str
    """Opaque."""
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    """In seconds since 1970."""
    level: Literal["info", "warn", "error"]
    """How bad it is."""
    message: str
    """For people."""
    type: Literal["message", "metrics"]
    """`metrics`: an evaluation, whose figures are in `data`."""
    data: dict[str, Any]
    """For programs; what it holds depends on `native.type`."""
    native: NativeEvent
    """The same, as this service has it."""


class CheckpointMetrics(Read, extra="allow"):
    """What was measured at the checkpoint's step: validation metrics under their own names (`val/segm_mAP`), and what
    OpenAI's name fits. Losses are not measured on validation images, and there are no tokens to be accurate about.
    """

    step: int
    """Optimiser steps taken until then."""
    train_loss: float | None
    """Of that step; null where it was not kept."""
    valid_loss: float | None = None
    """Always null."""
    valid_mean_token_accuracy: float | None = None
    """Always null."""
    full_valid_loss: float | None = None
    """Always null."""
    full_valid_mean_token_accuracy: float | None = None
    """Always null."""
    train_mean_token_accuracy: float | None = None
    """Always null."""


class NativeCheckpoint(Read):
    kind: str
    """best, epoch, or interrupt where the job was paused or moved."""
    epoch: int
    """Counts from 1."""
    url: str
    """Its files, with where they are downloaded."""


class FineTuningCheckpointRead(Read):
    """A saved adapter."""

    id: str
    """Opaque; the same as in `/checkpoints`."""
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    """When it was published, in seconds since 1970."""
    fine_tuning_job_id: str
    """The job."""
    fine_tuned_model_checkpoint: str
    """The id again: to start another job from (`init_from`)."""
    step_number: int
    """Optimiser steps taken until then."""
    metrics: CheckpointMetrics
    """What was measured."""
    native: NativeCheckpoint
    """The same, as this service has it."""


def fine_tuning_job_read(job: JobRead) -> FineTuningJobRead:
    training = DEFAULTS | job.resolved["config"].get("training", {})
    hyperparameters = HyperparametersRead(
        n_epochs=training["max_epochs"],
        batch_size=training["batch_size"],
        learning_rate_multiplier=_rounded(training["learning_rate"] / DEFAULTS["learning_rate"]),
    )
    return FineTuningJobRead(
        id=job.id,
        created_at=unix(job.created_at),
        finished_at=None if job.finished_at is None else unix(job.finished_at),
        estimated_finish=_estimated_finish(job),
        status=STATUS[job.status],
        error=_error(job),
        model=job.base_model,
        fine_tuned_model=(job.result or {}).get("model_id"),
        organization_id=job.project,
        training_file=job.dataset_id,
        validation_file=job.validation_dataset_id,
        result_files=[METRICS_PREFIX + job.id] if job.is_terminal and job.started_at is not None else [],
        hyperparameters=hyperparameters,
        method=MethodRead(supervised=SupervisedMethodRead(hyperparameters=hyperparameters)),
        integrations=[],
        seed=job.seed,
        metadata=job.metadata,
        native=NativeJob(status=job.status, phase=job.phase, progress=job.progress, url=job.urls.self),
    )


def event_read(event: JobEvent) -> FineTuningEventRead:
    message = event.message or " ".join([event.type, str(event.data.get("phase", ""))]).strip()
    level: Literal["info", "warn", "error"] = "info"
    if event.level in ("warning", "error"):
        level = "warn" if event.level == "warning" else "error"
    return FineTuningEventRead(
        id=event.id,
        created_at=unix(event.created_at),
        level=level,
        message=message,
        type="metrics" if event.type == "evaluation" else "message",
        data=data_of(event),
        native=NativeEvent(type=event.type, seq=event.seq, attempt=event.attempt),
    )


def checkpoint_read(checkpoint: Checkpoint, points: list[MetricPoint]) -> FineTuningCheckpointRead:
    """`points`: of its job, at its step."""
    values = {point.name: point.value for point in points}
    validation = {name: value for name, value in values.items() if name.startswith("val/")}
    return FineTuningCheckpointRead(
        id=checkpoint.id,
        created_at=unix(checkpoint.created_at),
        fine_tuning_job_id=checkpoint.job_id,
        fine_tuned_model_checkpoint=checkpoint.id,
        step_number=checkpoint.step,
        metrics=CheckpointMetrics(step=checkpoint.step, train_loss=values.get("train/loss"), **validation),
        native=NativeCheckpoint(kind=checkpoint.kind, epoch=checkpoint.epoch, url=f"/v1/checkpoints/{checkpoint.id}"),
    )


def _estimated_finish(job: JobRead) -> int | None:
    progress = job.progress
    if job.status is not JobState.RUNNING or progress is None or progress.eta_s is None or progress.updated_at is None:
        return None
    return unix(progress.updated_at) + round(progress.eta_s)


def _error(job: JobRead) -> FineTuningError | None:
    if job.error is None:
        return None
    is_of_data = job.error.code == "dataset_invalid" and job.validation_dataset_id is None
    param = "training_file" if is_of_data else None
    return FineTuningError(code=job.error.code, message=f"{job.error.message} {job.error.hint}".strip(), param=param)


def _rounded(value: float) -> float:
    """Without the noise of the last binary digits."""
    return float(f"{value:.12g}")
