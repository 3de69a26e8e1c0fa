"""New jobs from old ones: a retry goes on where an ended job stopped, a clone begins anew with changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sam3_lora.config import JobConfig
from service.shared.db.models import Checkpoint, Job
from service.shared.db.repositories.events import NewEvent
from service.shared.errors import NotFoundError
from service.shared.ids import new_id
from service.shared.origin import present_origin
from service.shared.states import JobAction
from service.usecases.actions import check_allowed
from service.usecases.jobs import enqueue, lock_datasets, usable_datasets
from service.usecases.quotas import admit_job

if TYPE_CHECKING:
    from service.shared.unit_of_work import UnitOfWork

BEST = "best"
INHERITED = (
    "name",
    "project",
    "base_model",
    "dataset_id",
    "validation_dataset_id",
    "init_checkpoint_id",
    "config",
    "seed",
    "gpus",
    "priority",
    "max_runtime_s",
    "max_attempts",
    "tags",
    "labels",
)


def retry_job(
    unit: UnitOfWork,
    job_id: str,
    *,
    from_scratch: bool,
    max_runtime_s: int | None = None,
    max_attempts: int | None = None,
) -> Job:
    """A new job like one that failed or was cancelled, going on from its last good checkpoint unless `from_scratch`.

    Where it left none, from that of the job that it was itself to go on from. A limit that is None stays as it was.

    Raises:
        NotFoundError: if there is no such job.
        StateConflictError: if it has not failed or been cancelled.
        InvalidRequestError, DatasetInvalidError: if its dataset can no longer be used.
        QuotaExceededError: if its project may have no more.
    """
    asked = unit.jobs.get(job_id)
    check_allowed(asked, JobAction.RETRY)  # before its datasets are looked at
    datasets = lock_datasets(unit, [asked])  # before jobs, as everybody does
    usable_datasets(datasets, asked)
    ended = unit.jobs.get(job_id, lock=True, shared=True)
    check_allowed(ended, JobAction.RETRY)
    checkpoint = None if from_scratch else _last_checkpoint(unit, ended)
    inherited = {name: getattr(ended, name) for name in INHERITED}
    limits = {"max_runtime_s": max_runtime_s, "max_attempts": max_attempts}
    job = Job(
        id=new_id("job"),
        retry_of=ended.id,
        resumes_from=None if checkpoint is None else checkpoint.job_id,
        origin=present_origin(),
        resolved={name: value for name, value in ended.resolved.items() if name != "run"},
        **inherited | {name: limit for name, limit in limits.items() if limit is not None},
    )
    if checkpoint is None:
        where, data = "training begins anew", {}
    else:
        where = f"training goes on from checkpoint {checkpoint.id} after step {checkpoint.step}"
        data = {"checkpoint_id": checkpoint.id, "epoch": checkpoint.epoch, "step": checkpoint.step}
    event = NewEvent("message", f"Retry of {ended.id}: {where}", {"retry_of": ended.id, **data})
    admit_job(unit, job)
    enqueue(unit, {job: [event]}, datasets)
    return job


def as_submitted(job: Job) -> dict[str, Any]:
    """The request that would create the same job."""
    seed_of_config = JobConfig.model_validate(job.config).training.seed
    return {
        "name": job.name,
        "project": job.project,
        "base_model": job.base_model,
        "dataset_id": job.dataset_id,
        "validation_dataset_id": job.validation_dataset_id,
        "init_from": job.init_checkpoint_id,
        "config": job.config,
        "seed": None if job.seed == seed_of_config else job.seed,
        "resources": {"gpus": job.gpus},
        "priority": job.priority,
        "limits": {"max_runtime_s": job.max_runtime_s, "max_attempts": job.max_attempts},
        "tags": job.tags,
        "metadata": job.labels,
    }


def merged(value: Any, patch: Any) -> Any:
    """`value` with the patch applied: objects are merged, null removes a member (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    target = dict(value) if isinstance(value, dict) else {}
    for key, inner in patch.items():
        if inner is None:
            target.pop(key, None)
        else:
            target[key] = merged(target.get(key), inner)
    return target


def _last_checkpoint(unit: UnitOfWork, job: Job) -> Checkpoint | None:
    """The newest checkpoint that training can go on from."""
    for checkpoint in unit.checkpoints.list(job.id):
        if checkpoint.kind != BEST:
            return checkpoint
    if job.resumes_from is None:
        return None
    try:
        earlier = unit.jobs.get(job.resumes_from, lock=True, shared=True)
    except NotFoundError:
        return None
    return _last_checkpoint(unit, earlier)
