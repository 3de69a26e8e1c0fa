"""What may become a job, and what a new job looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.shared.db.models import Dataset, Job
from service.shared.errors import BaseModelUnavailableError, DatasetInvalidError, InvalidRequestError, NotFoundError
from service.shared.ids import new_id
from service.shared.queue import Task
from service.shared.states import DatasetState, JobState
from service.usecases.initial_adapters import InitialAdapter, fault, start_from
from service.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def create_job(unit: UnitOfWork, settings: Settings, spec: JobSpec, *events: NewEvent) -> Job:
    """A new job: queued, or waiting while a dataset of it is still being checked.

    Raises:
        ServiceError: as `plan_job`.
    """
    job, datasets = plan_job(unit, settings, spec)
    return enqueue(unit, job, datasets, *events)


def plan_job(unit: UnitOfWork, settings: Settings, spec: JobSpec) -> tuple[Job, list[Dataset]]:
    """A job that is not stored yet, and its datasets, locked.

    Raises:
        BaseModelUnavailableError: if this installation has no weights for the base model.
        InvalidRequestError: if a dataset or the earlier adapter is not there or does not fit, or two different seeds
            were given.
        DatasetInvalidError: if a dataset did not pass its check.
    """
    if spec.base_model not in settings.base_models:
        raise BaseModelUnavailableError(
            f"This server has no weights for {spec.base_model!r}: its operator must set SAM3_CHECKPOINT to the file "
            f"of official weights, or SAM3_CHECKPOINT_FROM_HUB=true. Available: {', '.join(settings.base_models)}.",
            errors=[fault("/base_model", "base_model_unavailable", "no weights on this server")],
        )
    datasets = usable_datasets(unit, spec.dataset_id, spec.validation_dataset_id)
    config, init_checkpoint_id = spec.config, None
    if spec.init_from is not None:
        config, init_checkpoint_id = start_from(unit, spec.init_from, spec.base_model, config)
    seed = _seed(spec)
    job = Job(
        id=new_id("job"),
        name=spec.name,
        project=spec.project,
        base_model=spec.base_model,
        dataset_id=spec.dataset_id,
        validation_dataset_id=spec.validation_dataset_id,
        init_checkpoint_id=init_checkpoint_id,
        config=spec.config.model_dump(mode="json", exclude_unset=True),
        resolved=_resolved(config, datasets, seed, spec.gpus),
        seed=seed,
        gpus=spec.gpus,
        priority=spec.priority,
        max_runtime_s=spec.max_runtime_s,
        max_attempts=spec.max_attempts,
        tags=spec.tags,
        labels=spec.metadata,
    )
    return job, datasets


def enqueue(unit: UnitOfWork, job: Job, datasets: Sequence[Dataset], *events: NewEvent) -> Job:
    """Store a new job on datasets that are locked and usable, with these events after its first."""
    waiting = any(dataset.state is DatasetState.PROCESSING for dataset in datasets)
    job.state = JobState.VALIDATING_FILES if waiting else JobState.QUEUED
    unit.jobs.add(job, *events)
    if not waiting:
        unit.ring_after_commit(Task.TRAIN, job.id)
    return job


def usable_datasets(unit: UnitOfWork, training_id: str, validation_id: str | None) -> list[Dataset]:
    """The datasets of a job, training first, locked.

    Raises:
        InvalidRequestError: if there is no such dataset, or both are the same.
        DatasetInvalidError: if one did not pass its check.
    """
    pointers = {training_id: "/dataset_id"}
    if validation_id is not None:
        if validation_id == training_id:
            message = "a model is not measured on what it was trained on: leave it out to hold out a part"
            faults = [fault("/validation_dataset_id", "same_dataset", message)]
            raise InvalidRequestError(f"validation_dataset_id is dataset_id: {message}", errors=faults)
        pointers[validation_id] = "/validation_dataset_id"
    # Locked in one order by everybody, so that nobody waits for each other.
    found = {dataset_id: _usable_dataset(unit, dataset_id, pointers[dataset_id]) for dataset_id in sorted(pointers)}
    return [found[dataset_id] for dataset_id in pointers]


def _usable_dataset(unit: UnitOfWork, dataset_id: str, pointer: str) -> Dataset:
    try:
        dataset = unit.datasets.get(dataset_id, lock=True)
    except NotFoundError as error:
        faults = [fault(pointer, "dataset_not_found", "no such dataset")]
        raise InvalidRequestError(error.message, errors=faults) from None
    if dataset.state in (DatasetState.INVALID, DatasetState.FAILED):
        raise DatasetInvalidError(
            f"Dataset {dataset.id} is {dataset.state}: see /v1/datasets/{dataset.id}/validation, correct the data and "
            "upload it again.",
            errors=[fault(pointer, "dataset_invalid", f"the dataset is {dataset.state}")],
        )
    return dataset


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
