"""What a job would take, before it is created: its configuration, memory and time."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from sam3_lora.version import VERSION
from service.shared.errors import EstimateFailedError, invalid
from service.shared.queue import Task
from service.shared.states import DatasetState
from service.usecases.idempotency import fingerprint
from service.usecases.jobs import lock_datasets, plan_job
from service.usecases.queue import GPU

if TYPE_CHECKING:
    from service.shared.db.models import Dataset, Estimate, Job
    from service.shared.settings import Settings
    from service.shared.unit_of_work import UnitOfWork
    from service.usecases.jobs import JobSpec

ESTIMATED = ("lora", "dataset", "training")
"""Sections of a configuration that memory and adapted modules depend on."""


@dataclass(frozen=True)
class Fit:
    """Whether the job fits on the living workers with such a device and so many GPUs; bytes are of one GPU."""

    device: str
    memory_bytes: int
    needed_bytes: int
    gpus: int
    workers: int
    fits: bool


@dataclass(frozen=True)
class Forecast:
    """What is known of a job that might be created. `numbers` is None until a worker has worked them out."""

    estimate_id: str
    job: Job
    numbers: dict[str, Any] | None
    fits: list[Fit]
    expected_s: float | None
    reason: str | None
    """Why no time can be expected."""


def forecast(unit: UnitOfWork, settings: Settings, spec: JobSpec, *, asked: bool = False) -> Forecast:
    """What a job would take; asks the workers for what only they can work out.

    Args:
        asked: this request has asked them already, so that a failure is its answer and nothing to try again.

    Raises:
        InvalidRequestError and others: as `plan_job`; also if the configuration does not fit the base model.
        EstimateFailedError: if it could not be worked out.
    """
    datasets = lock_datasets(unit, [spec])
    job = plan_job(unit, settings, spec, datasets)
    config = job.resolved["config"]
    question = {"base": job.base_model, "version": VERSION, **{name: config[name] for name in ESTIMATED}}
    estimate_id = fingerprint(question)
    if asked:
        estimate = unit.estimates.get(estimate_id)
    else:
        estimate = unit.estimates.ask(estimate_id, base_model=job.base_model, config=config)
    if estimate.result is None and estimate.error is None:
        unit.ring_after_commit(Task.ESTIMATE, estimate_id)
    numbers = _numbers(estimate)
    expected_s, reason = _expected_time(unit, job, datasets[spec.dataset_id])
    fits = [] if numbers is None else _fits(unit, settings, numbers["needed_bytes"], job.gpus)
    return Forecast(estimate_id, job, numbers, fits, expected_s, reason)


def is_answered(unit: UnitOfWork, estimate_id: str) -> bool:
    """Whether a forecast would now say more, or why it cannot."""
    estimate = unit.estimates.get(estimate_id)
    return estimate.result is not None or estimate.error is not None


def _numbers(estimate: Estimate) -> dict[str, Any] | None:
    if estimate.error is None:
        return estimate.result
    message = str(estimate.error["message"])
    if estimate.error["code"] == "config_invalid":
        raise invalid("/config", "does_not_fit", message)
    raise EstimateFailedError(f"The estimate failed: {message} {estimate.error['hint']}")


def _fits(unit: UnitOfWork, settings: Settings, needed_bytes: dict[str, int], gpus: int) -> list[Fit]:
    fits = []
    for device, memory_bytes, has, workers in unit.workers.devices(GPU, within_s=settings.lease_timeout_s):
        # The processes of a job share the memory of a CPU's machine.
        needed = gpus * needed_bytes["cpu"] if device == "CPU" else needed_bytes["cuda"]
        fits.append(Fit(device, memory_bytes, needed, has, workers, needed <= memory_bytes and gpus <= has))
    return fits


def _expected_time(unit: UnitOfWork, job: Job, dataset: Dataset) -> tuple[float | None, str | None]:
    """Seconds of training and validation, from the GPU time of an image in the jobs that succeeded last."""
    if dataset.state is not DatasetState.READY:
        return None, "the dataset is still being checked"
    paces = unit.queue.seconds_per_image(job.base_model)
    if not paces:
        return None, f"no job on {job.base_model} has succeeded here yet"
    training = job.resolved["config"]["training"]
    images = ((dataset.report or {}).get("summary") or {}).get("images") or 0
    seconds = median(paces) * images * training["max_epochs"] / job.gpus
    return min(seconds, training["max_seconds"] or seconds, float(job.max_runtime_s)), None
