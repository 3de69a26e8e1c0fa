"""What may become a job, and what a new job looks like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sam3_lora.version import VERSION
from service.shared.db.models import Dataset, Job
from service.shared.errors import (
    BaseModelUnavailableError,
    DatasetInvalidError,
    InvalidRequestError,
    ServiceError,
    fault,
    invalid,
)
from service.shared.ids import new_id
from service.shared.origin import present_origin
from service.shared.queue import Task
from service.shared.states import DatasetState, JobState
from service.usecases.faults import Faults
from service.usecases.initial_adapters import InitialAdapter, start_from
from service.usecases.quotas import admit_job, refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sam3_lora.config import JobConfig
    from service.shared.db.repositories.events import NewEvent
    from service.shared.settings import Settings
    from service.shared.unit_of_work import UnitOfWork


@dataclass(frozen=True)
class JobSpec:
    """A job as a client asks for it."""

    name: str
    project: str
    base_model: str
    dataset_id: str
    validation_dataset_id: str | None
    init_from: InitialAdapter | None
    config: JobConfig
    seed: int | None
    """None: the configuration's."""
    gpus: int
    priority: int
    max_runtime_s: int
    max_attempts: int
    tags: list[str]
    metadata: dict[str, str]
    sweep_id: str | None = None
    trial: dict[str, Any] | None = None
    """The values that it tries for its sweep."""
    origin: dict[str, Any] | None = field(default_factory=present_origin)


def create_job(unit: UnitOfWork, settings: Settings, spec: JobSpec, *events: NewEvent) -> Job:
    """A new job: queued, or waiting while a dataset of it is still being checked.

    Raises:
        ServiceError: as `plan_job`.
        QuotaExceededError: if its project may have no more.
    """
    datasets = lock_datasets(unit, [spec])
    job = plan_job(unit, settings, spec, datasets)
    admit_job(unit, job)
    enqueue(unit, {job: events}, datasets)
    return job


def create_jobs(unit: UnitOfWork, settings: Settings, specs: Sequence[JobSpec]) -> list[Job | ServiceError]:
    """As `create_job`, for each spec its job or why it is refused; as many statements for all as for one."""
    datasets = lock_datasets(unit, specs)
    created: list[Job | ServiceError] = []
    for spec in specs:
        try:
            created.append(plan_job(unit, settings, spec, datasets))
        except ServiceError as error:
            created.append(error)
    over = refused(unit, [job for job in created if isinstance(job, Job)])
    created = [over.get(job.id, job) if isinstance(job, Job) else job for job in created]
    enqueue(unit, {job: [] for job in created if isinstance(job, Job)}, datasets)
    return created


def plan_job(unit: UnitOfWork, settings: Settings, spec: JobSpec, datasets: Mapping[str, Dataset]) -> Job:
    """A job that is not stored yet.

    Args:
        datasets: what `lock_datasets` found for this spec, and others.

    Raises, and if several things are wrong an InvalidRequestError that names all:
        BaseModelUnavailableError: if this installation has no weights for the base model.
        InvalidRequestError: if a dataset or the earlier adapter is not there or does not fit, or two different seeds
            were given.
        DatasetInvalidError: if a dataset did not pass its check.
    """
    faults = Faults()
    with faults.noted():
        require_weights(settings, spec.base_model, "/base_model")
    with faults.noted():
        used = usable_datasets(datasets, spec)
        if settings.require_keys:
            _require_same_project(used, spec)
    config, init_checkpoint_id = spec.config, None
    if spec.init_from is not None:
        with faults.noted():
            config, init_checkpoint_id = start_from(unit, spec.init_from, spec.base_model, config)
    with faults.noted():
        seed = _seed(spec)
    faults.tell()
    return Job(
        id=new_id("job"),
        name=spec.name,
        project=spec.project,
        base_model=spec.base_model,
        dataset_id=spec.dataset_id,
        validation_dataset_id=spec.validation_dataset_id,
        init_checkpoint_id=init_checkpoint_id,
        sweep_id=spec.sweep_id,
        trial=spec.trial,
        config=spec.config.model_dump(mode="json", exclude_unset=True),
        resolved=_resolved(config, used, seed, spec.gpus),
        seed=seed,
        gpus=spec.gpus,
        priority=spec.priority,
        max_runtime_s=spec.max_runtime_s,
        max_attempts=spec.max_attempts,
        tags=spec.tags,
        labels=spec.metadata,
        origin=spec.origin,
    )


def require_weights(settings: Settings, base_model: str, pointer: str) -> None:
    """Raise BaseModelUnavailableError, for what `pointer` names in the request, if there are none of the base model."""
    if base_model not in settings.base_models:
        raise BaseModelUnavailableError(
            f"This server has no weights for {base_model!r}: its operator must set SAM3_CHECKPOINT to the file "
            f"of official weights, or SAM3_CHECKPOINT_FROM_HUB=true. Available: {', '.join(settings.base_models)}.",
            errors=[fault(pointer, "base_model_unavailable", "no weights on this server")],
        )


def enqueue(unit: UnitOfWork, jobs: Mapping[Job, Sequence[NewEvent]], datasets: Mapping[str, Dataset]) -> None:
    """Store new jobs on datasets that are locked and usable, each with these events after its first."""
    for job in jobs:
        used = [datasets[dataset_id] for dataset_id in (job.dataset_id, job.validation_dataset_id) if dataset_id]
        waiting = any(dataset.state is DatasetState.PROCESSING for dataset in used)
        job.state = JobState.VALIDATING_FILES if waiting else JobState.QUEUED
    unit.jobs.add_all(jobs)
    for job in jobs:
        if job.state is JobState.QUEUED:
            unit.ring_after_commit(Task.TRAIN, job.id)


class OnDatasets(Protocol):
    """What trains on one dataset, and may validate on another: a job, or a spec of one."""

    @property
    def dataset_id(self) -> str: ...

    @property
    def validation_dataset_id(self) -> str | None: ...


def lock_datasets(unit: UnitOfWork, users: Iterable[OnDatasets]) -> dict[str, Dataset]:
    """Those of their datasets that there are, by id: they stay as they are until the transaction ends."""
    wanted = {dataset_id for user in users for dataset_id in (user.dataset_id, user.validation_dataset_id)}
    return unit.datasets.lock_shared([dataset_id for dataset_id in wanted if dataset_id is not None])


def usable_datasets(datasets: Mapping[str, Dataset], user: OnDatasets) -> list[Dataset]:
    """The datasets of a job, training first.

    Raises:
        InvalidRequestError: if there is no such dataset, or both are the same, or both are wrong.
        DatasetInvalidError: if one did not pass its check.
    """
    faults, used = Faults(), []
    with faults.noted():
        used.append(usable_dataset(datasets, user.dataset_id, "/dataset_id"))
    if user.validation_dataset_id is not None:
        with faults.noted():
            if user.validation_dataset_id == user.dataset_id:
                message = "a model is not measured on what it was trained on: leave it out to hold out a part"
                named = [fault("/validation_dataset_id", "same_dataset", message)]
                raise InvalidRequestError(f"validation_dataset_id is dataset_id: {message}", errors=named)
            used.append(usable_dataset(datasets, user.validation_dataset_id, "/validation_dataset_id"))
    faults.tell()
    return used


def usable_dataset(datasets: Mapping[str, Dataset], dataset_id: str, pointer: str) -> Dataset:
    """One of the datasets, which `pointer` into the request names.

    Raises:
        InvalidRequestError, DatasetInvalidError: as `usable_datasets`.
    """
    dataset = datasets.get(dataset_id)
    if dataset is None:
        faults = [fault(pointer, "dataset_not_found", "no such dataset")]
        raise InvalidRequestError(f"There is no dataset {dataset_id!r}.", errors=faults)
    if dataset.state is DatasetState.INVALID:
        raise DatasetInvalidError(
            f"Dataset {dataset.id} is invalid: see /v1/datasets/{dataset.id}/validation, correct the data and "
            "upload it again.",
            errors=[fault(pointer, "dataset_invalid", "the dataset is invalid")],
        )
    if dataset.state is DatasetState.FAILED:  # it has no report
        error = dataset.error or {"message": "nothing is known of why.", "hint": "Create it again."}
        raise DatasetInvalidError(
            f"Dataset {dataset.id} could not be checked: {error['message']} {error['hint']}".rstrip(),
            errors=[fault(pointer, "dataset_invalid", f"the dataset's check failed: {error['message']}")],
        )
    return dataset


def _require_same_project(used: Sequence[Dataset], spec: JobSpec) -> None:
    """A job shows its data: whoever may see the one may see the other. A key of all projects could mix them."""
    for dataset in used:
        if dataset.project != spec.project:
            pointer = "/dataset_id" if dataset.id == spec.dataset_id else "/validation_dataset_id"
            raise invalid(
                pointer, "other_project", f"the dataset is of project {dataset.project!r}: make the job there"
            )


def _seed(spec: JobSpec) -> int:
    configured = spec.config.training.seed
    given = "seed" in spec.config.training.model_fields_set
    if spec.seed is not None and given and spec.seed != configured:
        message = f"seed is {spec.seed} but config.training.seed is {configured}: give one of them"
        raise InvalidRequestError(message, errors=[fault("/seed", "conflicting_seed", message)])
    return configured if spec.seed is None else spec.seed


def _resolved(config: JobConfig, datasets: Sequence[Dataset], seed: int, gpus: int) -> dict[str, Any]:
    values, training = config.model_dump(mode="json"), config.training
    step = {"gpus": gpus, "images_per_step": gpus * training.batch_size * training.gradient_accumulation_steps}
    values["training"]["seed"] = seed
    hashes = dict(zip(("dataset_sha256", "validation_dataset_sha256"), (d.sha256 for d in datasets), strict=False))
    return {"config": values, "resources": step, **hashes, "service_version": VERSION}
