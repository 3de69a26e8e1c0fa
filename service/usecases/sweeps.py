"""Parameter sweeps: many jobs alike but for some values of their configuration, and which of them did best."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.shared.errors import NotFoundError, StateConflictError
from service.shared.states import ACTIONS, TERMINAL, JobAction, JobState
from service.usecases.actions import cancel_job, delete_job

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from service.shared.db.models import Sweep
    from service.shared.db.repositories.sweeps import Trial
    from service.shared.unit_of_work import UnitOfWork


@dataclass(frozen=True)
class Span:
    """Numbers to draw from, both ends included; whole ones if both ends are."""

    least: float
    most: float
    is_logarithmic: bool

    def draw(self, rng: random.Random) -> float:
        if self.is_logarithmic:
            return math.exp(rng.uniform(math.log(self.least), math.log(self.most)))
        if isinstance(self.least, int) and isinstance(self.most, int):
            return rng.randint(self.least, self.most)
        return rng.uniform(self.least, self.most)


Choices = list[Any] | Span


def grid(parameters: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the values, the last parameter changing fastest."""
    for values in itertools.product(*parameters.values()):
        yield dict(zip(parameters, values, strict=True))


def drawn(parameters: Mapping[str, Choices], trials: int, seed: int) -> Iterator[dict[str, Any]]:
    """So many combinations, each value drawn by itself."""
    rng = random.Random(seed)
    for _ in range(trials):
        yield {
            path: choices.draw(rng) if isinstance(choices, Span) else rng.choice(choices)
            for path, choices in parameters.items()
        }


def with_values(body: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A request for a job with values set in its `config`, each at a path such as `training.learning_rate`.

    Where the request has something else than an object on the way there, it stays: no valid request has.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(body))
    for path, value in values.items():
        place: Any = changed
        *sections, key = ["config", *path.split(".")]
        for section in sections:
            place = place.setdefault(section, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[key] = value
    return changed


@dataclass(frozen=True)
class Standing:
    """How a sweep stands. `best` is the job whose best checkpoint has the highest metric so far."""

    status: JobState
    counts: dict[str, int]
    best: Trial | None


def standing(trials: Sequence[Trial]) -> Standing:
    """Summary of a sweep's jobs: it has ended when all of them have, and succeeded if one of them did."""
    states = {trial.state for trial in trials}
    measured = [trial for trial in trials if trial.best is not None and trial.best.get("value") is not None]
    best = max(measured, key=lambda trial: float((trial.best or {})["value"]), default=None)
    return Standing(_status(states), dict(Counter(str(trial.state) for trial in trials)), best)


def _status(states: set[JobState]) -> JobState:
    if states <= TERMINAL:
        order = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
        return next((state for state in order if state in states), JobState.CANCELLED)
    if len(states) == 1:
        return next(iter(states))
    has_begun = states - {JobState.QUEUED, JobState.VALIDATING_FILES}
    return JobState.RUNNING if has_begun else JobState.QUEUED


def cancel_sweep(unit: UnitOfWork, sweep_id: str) -> Sweep:
    """Cancel every job that has not ended; repeating it changes nothing.

    Raises:
        NotFoundError: if there is no such sweep.
    """
    sweep = unit.sweeps.get(sweep_id)
    # In one order by everybody, so that nobody waits for each other.
    for trial in sorted(unit.sweeps.trials([sweep_id]), key=lambda trial: trial.job_id):
        if trial.state in ACTIONS[JobAction.CANCEL]:
            with contextlib.suppress(StateConflictError, NotFoundError):  # it has ended, or is gone, meanwhile
                cancel_job(unit, trial.job_id)
    return sweep


def delete_sweep(unit: UnitOfWork, sweep_id: str) -> None:
    """Delete a sweep that has ended, with its jobs; their models stay.

    Raises:
        NotFoundError: if there is no such sweep.
        StateConflictError: if one of its jobs has not ended.
        JobInUseError: if an unfinished job starts from a checkpoint of one.
    """
    unit.sweeps.get(sweep_id)
    trials = unit.sweeps.trials([sweep_id])
    if live := [trial.job_id for trial in trials if trial.state not in TERMINAL]:
        raise StateConflictError(f"{len(live)} jobs of sweep {sweep_id} have not ended: cancel it first.")
    for trial in trials:
        delete_job(unit, trial.job_id)
    unit.sweeps.remove(sweep_id)
