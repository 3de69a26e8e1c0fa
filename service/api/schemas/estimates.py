"""Estimates as clients see them."""

from typing import Any, Literal

from pydantic import Field

from service.api.schemas.lists import Read
from service.usecases.estimates import Forecast


class Memory(Read):
    """Bytes of one training step at its worst moment on one GPU, for a batch of `batch` there."""

    peak: int
    """All of it together."""
    weights: int
    """The base model's weights."""
    adapters: int
    """With gradients and optimiser state."""
    activations: int
    """What the step computes and keeps until it is done."""
    batch: dict[str, Any] = Field(examples=[{"images": 2, "queries": 22, "positives": 4, "objects": 8}])
    """Assumed: two categories and four objects in each image. Where a step does not fit, a run computes it in smaller
    passes."""


class DeviceFit(Read):
    device: str
    """Name of the device."""
    memory_bytes: int
    """Of each GPU; of a CPU's machine."""
    needed_bytes: int
    """The peak with a margin, and what a process has beside its tensors: on each GPU; on a CPU of all processes."""
    gpus: int
    """That each of these workers has."""
    workers: int
    """Living workers with such a device."""
    fits: bool
    """Whether memory and GPUs suffice."""


class Adapted(Read):
    modules: int
    """Modules that get an adapter."""
    components: list[str]
    """Parts of the model that these are in."""
    trainable_parameters: int
    """Numbers that are trained."""
    total_parameters: int
    """Numbers of the model, with the adapters."""
    trainable_percent: float
    """Trained ones in percent of all."""


class EstimateRead(Read):
    """What a job would take. `pending`: a worker is still working out what is null; ask again with the same body."""

    id: str
    """The same for all that ask for the same."""
    object: Literal["job.estimate"] = "job.estimate"
    status: Literal["ready", "pending"]
    """Whether the numbers are there."""
    resolved: dict[str, Any]
    """As of a job: every value as used."""
    adapted: Adapted | None
    """What would be trained."""
    memory: Memory | None
    """What a training step would need."""
    devices: list[DeviceFit]
    """Of the living workers that tell; empty while pending."""
    fits: bool | None
    """Whether it fits on any of them; null where none is known."""
    expected_seconds: float | None
    """Of training and validation, from the GPU time that jobs on the same base took for each image and epoch; as if
    several GPUs divided it evenly."""
    expected_seconds_reason: str | None
    """Why it is null."""


def estimate_read(forecast: Forecast) -> EstimateRead:
    numbers = forecast.numbers
    devices = [
        DeviceFit(
            device=fit.device,
            memory_bytes=fit.memory_bytes,
            needed_bytes=fit.needed_bytes,
            gpus=fit.gpus,
            workers=fit.workers,
            fits=fit.fits,
        )
        for fit in forecast.fits
    ]
    return EstimateRead(
        id=forecast.estimate_id,
        status="pending" if numbers is None else "ready",
        resolved=forecast.job.resolved,
        adapted=None if numbers is None else Adapted(**{name: numbers[name] for name in Adapted.model_fields}),
        memory=None if numbers is None else Memory(**numbers["peak_memory_bytes"], batch=numbers["batch"]),
        devices=devices,
        fits=any(fit.fits for fit in devices) if devices else None,
        expected_seconds=forecast.expected_s,
        expected_seconds_reason=forecast.reason,
    )
