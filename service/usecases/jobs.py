"""What may become a job, and what a new job looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.shared.db.models import Dataset, Job
from service.shared.errors import BaseModelUnavailableError, DatasetInvalidError, InvalidRequestError, NotFoundError
from service.shared.ids import new_id
from service.shared.queue import Task
from service.shared.states import DatasetState, JobState
from service.version import VERSION

if TYPE_CHECKING:
    from sam3_lora.config import JobConfig
    from service.shared.settings import Settings
    from service.shared.unit_of_work import UnitOfWork


@dataclass(frozen=True)
class JobSpec:
    """A job as a client asks for it; `seed` None means the configuration's."""

    name: str
    base_model: str
    dataset_id: str
    config: JobConfig
    seed: int | None
    priority: int
    max_runtime_s: int
    max_attempts: int
    tags: list[str]
    metadata: dict[str, str]


def create_job(unit: UnitOfWork, settings: Settings, spec: JobSpec) -> Job:
    """A new job: queued, or waiting while its dataset is still being checked.

    Raises:
        BaseModelUnavailableError: if this installation has no weights for the base model.
        InvalidRequestError: if there is no such dataset, or two different seeds were given.
        DatasetInvalidError: if the dataset did not pass its check.
    """
    if spec.base_model not in settings.base_models:
        raise BaseModelUnavailableError(
            f"This server has no weights for {spec.base_model!r}: its operator must set SAM3_CHECKPOINT to the file "
            f"of official weights, or SAM3_CHECKPOINT_FROM_HUB=true. Available: {', '.join(settings.base_models)}.",
            errors=[_fault("/base_model", "base_model_unavailable", "no weights on this server")],
        )
    dataset = _usable_dataset(unit, spec.dataset_id)
    seed = _seed(spec)
    waiting = dataset.state is DatasetState.PROCESSING
    job = Job(
        id=new_id("job"),
        name=spec.name,
        state=JobState.VALIDATING_FILES if waiting else JobState.QUEUED,
        base_model=spec.base_model,
        dataset_id=dataset.id,
        config=spec.config.model_dump(mode="json", exclude_unset=True),
        resolved=_resolved(spec, dataset, seed),
        seed=seed,
        priority=spec.priority,
        max_runtime_s=spec.max_runtime_s,
        max_attempts=spec.max_attempts,
        tags=spec.tags,
        labels=spec.metadata,
    )
    unit.jobs.add(job)
    if not waiting:
        unit.ring_after_commit(Task.TRAIN, job.id)
    return job


def _usable_dataset(unit: UnitOfWork, dataset_id: str) -> Dataset:
    try:
        dataset = unit.datasets.get(dataset_id, lock=True)
    except NotFoundError as error:
        fault = _fault("/dataset_id", "dataset_not_found", "no such dataset")
        raise InvalidRequestError(error.message, errors=[fault]) from None
    if dataset.state in (DatasetState.INVALID, DatasetState.FAILED):
        raise DatasetInvalidError(
            f"Dataset {dataset.id} is {dataset.state}: see /v1/datasets/{dataset.id}/validation, correct the data and "
            "upload it again.",
            errors=[_fault("/dataset_id", "dataset_invalid", f"the dataset is {dataset.state}")],
        )
    return dataset


def _seed(spec: JobSpec) -> int:
    configured = spec.config.training.seed
    given = "seed" in spec.config.training.model_fields_set
    if spec.seed is not None and given and spec.seed != configured:
        message = f"seed is {spec.seed} but config.training.seed is {configured}: give one of them"
        raise InvalidRequestError(message, errors=[_fault("/seed", "conflicting_seed", message)])
    return configured if spec.seed is None else spec.seed


def _resolved(spec: JobSpec, dataset: Dataset, seed: int) -> dict[str, Any]:
    config = spec.config.model_dump(mode="json")
    config["training"]["seed"] = seed
    return {"config": config, "dataset_sha256": dataset.sha256, "service_version": VERSION}


def _fault(pointer: str, code: str, message: str) -> dict[str, str]:
    return {"pointer": pointer, "code": code, "message": message}
