"""Sweeps as clients create and see them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from sam3_lora.config import Section
from service.api.schemas.jobs import JobName
from service.api.schemas.lists import Read
from service.shared.db.models import Sweep
from service.shared.db.repositories.sweeps import Trial
from service.shared.states import JobState
from service.usecases.sweeps import Span, standing

MAX_TRIALS = 100

Path = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,40}(\.[a-z_0-9]{1,40}){1,3}$")]
MAX_NUMBER = 1e300
Value = bool | int | float | str | list[Any] | dict[str, Any] | None


class Parameter(Section):
    """What a field of `config` is to be: one of `values`, or a number from `min` to `max`."""

    values: list[Value] = Field([], max_length=MAX_TRIALS, examples=[[8, 16, 32]])
    """Values to try."""
    min: int | float | None = Field(None, ge=-MAX_NUMBER, le=MAX_NUMBER, allow_inf_nan=False)
    """Least number to draw (method random); whole numbers are drawn where both ends are whole."""
    max: int | float | None = Field(None, ge=-MAX_NUMBER, le=MAX_NUMBER, allow_inf_nan=False)
    """Largest number to draw."""
    scale: Literal["linear", "log"] = "linear"
    """How numbers are spread; log: as many between 1e-4 and 1e-3 as between 1e-3 and 1e-2."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.values) == (self.min is not None or self.max is not None):
            raise ValueError("give either values, or min and max")
        if not self.values:
            if self.min is None or self.max is None or self.min > self.max:
                raise ValueError("min and max are given together, min not above max")
            if self.scale == "log" and self.min <= 0:
                raise ValueError("with scale log, min must be above 0")
        return self

    def choices(self) -> list[Any] | Span:
        """The same for the use case."""
        if self.values or self.min is None or self.max is None:
            return list(self.values)
        return Span(self.min, self.max, self.scale == "log")


class SweepCreate(Section):
    """Jobs that are alike but for some fields of their `config`."""

    name: JobName
    """For people; jobs are named after it and numbered."""
    job: dict[str, Any] = Field(
        examples=[{"base_model": "sam3-tiny", "dataset_id": "ds_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"}],
        json_schema_extra={"properties": {"dataset_id": {"type": "string"}}, "required": ["dataset_id"]},
    )
    """What all of them have: a body for `POST /jobs` (`name` may be left out)."""
    parameters: dict[Path, Parameter] = Field(min_length=1, max_length=8, examples=[{"lora.rank": {"values": [8, 16]}}])
    """What differs: fields of `config` by their path."""
    method: Literal["grid", "random"] = "grid"
    """grid: every combination of `values`; random: `trials` combinations, drawn."""
    trials: int | None = Field(None, ge=1, le=MAX_TRIALS)
    """Jobs of method random."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Of the drawing. It is not the jobs' seed."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.method == "random":
            if self.trials is None:
                raise ValueError("method random needs trials")
            return self
        if self.trials is not None:
            raise ValueError("method grid tries every combination: leave trials out")
        count = 1
        for path, parameter in self.parameters.items():
            if not parameter.values:
                raise ValueError(f"method grid needs values for {path}, not min and max")
            count *= len(parameter.values)
        if count > MAX_TRIALS:
            raise ValueError(f"these are {count} combinations; at most {MAX_TRIALS} are taken: use method random")
        return self


class TrialRead(Read):
    job_id: str
    """The job."""
    status: JobState
    """State of the job."""
    values: dict[str, Any]
    """What it tries: fields of `config` by their path."""
    metric: str | None
    """By which checkpoints are compared; null before the first."""
    value: float | None
    """Of its best checkpoint so far."""
    url: str
    """The job."""


class SweepRead(Read):
    """A sweep, and how its jobs stand."""

    id: str
    """Opaque."""
    object: Literal["sweep"] = "sweep"
    name: str
    """For people."""
    project: str
    """Whom its jobs are for."""
    status: JobState
    """queued or running until all jobs have ended; succeeded if one of them has."""
    is_terminal: bool
    """Whether all its jobs have ended."""
    counts: dict[str, int]
    """Jobs by status."""
    best: TrialRead | None
    """The job with the highest metric so far."""
    trials: list[TrialRead]
    """Its jobs, in the order of their creation."""
    request: dict[str, Any]
    """As submitted."""
    created_at: datetime
    """When it was created."""
    url: str
    """The sweep."""


def sweep_read(sweep: Sweep, trials: Sequence[Trial]) -> SweepRead:
    found = standing(trials)
    return SweepRead(
        id=sweep.id,
        name=sweep.name,
        project=sweep.project,
        status=found.status,
        is_terminal=found.status in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED),
        counts=found.counts,
        best=None if found.best is None else _trial_read(found.best),
        trials=[_trial_read(trial) for trial in trials],
        request=sweep.request,
        created_at=sweep.created_at,
        url=f"/v1/sweeps/{sweep.id}",
    )


def _trial_read(trial: Trial) -> TrialRead:
    best = trial.best or {}
    return TrialRead(
        job_id=trial.job_id,
        status=trial.state,
        values=trial.values,
        metric=best.get("metric"),
        value=best.get("value"),
        url=f"/v1/jobs/{trial.job_id}",
    )
