"""MLflow and Weights & Biases, through their own libraries: a run's configuration, its metrics, and how it ended.

Where they are and which key opens them, their libraries read as everywhere: from `MLFLOW_*` and `WANDB_*` variables.
Each is spoken to in a thread of its own, so that training neither waits for it nor fails with it: a tracker that cannot
be reached is reported once and left alone.
"""

from __future__ import annotations

import math
import os
import queue
import re
import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sam3_lora.config import uninstalled
from sam3_lora.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from sam3_lora.config import TrackerName

CLOSE_TIMEOUT_S = 60.0
"""How long a run that has ended waits for what is still to be sent."""
INTERRUPTED_TIMEOUT_S = 5.0
"""The same for one that was interrupted, and may be killed if it takes long."""
BEGIN_TIMEOUT_S = 30.0
"""How long after their start the first checkpoint waits for the ids under which trackers know the run."""
BATCH = 1000  # metrics that MLflow takes in one request
PARAMETERS_AT_ONCE = 100
PARAMETER_CHARACTERS = 500  # what every version of MLflow takes
PASSWORD = re.compile(r"//[^/\s@]*@")  # and user, of a URL: faults are for other people than environments are
NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")


class Ended(StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Point:
    """Values of one step, by name; the time in seconds since 1970."""

    values: Mapping[str, float]
    step: int
    epoch: int
    time: float


@dataclass(frozen=True)
class Begun:
    """What a tracker is told of a run when it begins."""

    project: str
    name: str
    config: Mapping[str, Any]
    folder: Path
    """Where it may write."""
    kept: str | None
    """Its own id of the run that this one goes on from, which it then goes on with."""


class Tracker(Protocol):
    """One tracker; everything is called from one thread, in this order, and may take long or raise."""

    def begin(self, run: Begun) -> str:
        """Return the tracker's id of the run."""

    def log(self, points: Sequence[Point]) -> None: ...

    def end(self, ended: Ended) -> None: ...


def require(names: Sequence[TrackerName]) -> None:
    """See that the libraries are there.

    Raises:
        ConfigError: naming the extra to install.
    """
    missing = uninstalled(names)
    if missing:
        raise ConfigError(
            f"output.trackers: the library of {' and '.join(missing)} is not installed",
            hint=f"pip install 'sam3-lora-service[train,{','.join(missing)}]'",
        )


class Tracking(threading.Thread):
    """A tracker in its thread. After a fault it is not spoken to again, and `fault` says why."""

    def __init__(self, name: TrackerName, run: Begun) -> None:
        super().__init__(name=f"tracker-{name}", daemon=True)
        self.tracker = name
        self.run_id = run.kept
        self.fault: str | None = None
        self._run = run
        self._begun = threading.Event()
        self._began = time.monotonic()
        self._waiting: queue.SimpleQueue[Point | Ended] = queue.SimpleQueue()
        self.start()

    def wait_for_id(self) -> str | None:
        """The tracker's id of this run; None if there is none, or not in time."""
        self._begun.wait(max(0.0, self._began + BEGIN_TIMEOUT_S - time.monotonic()))
        return self.run_id

    def log(self, point: Point) -> None:
        self._waiting.put(point)

    def end(self, ended: Ended) -> None:
        """Have what is left be sent."""
        self._waiting.put(ended)

    def wait(self, seconds: float) -> None:
        """Wait until everything is sent, or for so long."""
        self.join(seconds)
        if self.is_alive() and self.fault is None:
            self.fault = "not everything was sent before the run ended"

    def run(self) -> None:
        try:
            tracker = TRACKERS[self.tracker]()
            self.run_id = tracker.begin(self._run)
            self._begun.set()
            while True:
                points, ended = self._next()
                if points:
                    tracker.log(points)
                if ended is not None:
                    return tracker.end(ended)
        except Exception as error:  # noqa: BLE001 - libraries of others, over a network
            first = (str(error).strip().splitlines() or ["no message"])[0]
            self.fault = f"{type(error).__name__}: {PASSWORD.sub('//', first)}"
        finally:
            self._begun.set()

    def _next(self) -> tuple[list[Point], Ended | None]:
        """Everything that waits; waits for the first."""
        points: list[Point] = []
        found = self._waiting.get()
        while isinstance(found, Point):
            points.append(found)
            if self._waiting.empty():
                return points, None
            found = self._waiting.get()
        return points, found


class MLflow:
    """A run of MLflow in the experiment that is called as the project."""

    STATES: ClassVar = {Ended.FINISHED: "FINISHED", Ended.FAILED: "FAILED", Ended.INTERRUPTED: "KILLED"}

    def __init__(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # to its makers; whoever wants that says false
        from mlflow import MlflowClient

        self._client = MlflowClient()
        self._run_id = ""

    def begin(self, run: Begun) -> str:
        from mlflow.entities import Param

        if run.kept is not None:
            self._run_id = run.kept
            self._client.update_run(run.kept, status="RUNNING")
            return run.kept
        found = self._client.get_experiment_by_name(run.project)
        experiment = self._client.create_experiment(run.project) if found is None else found.experiment_id
        tags = {"mlflow.source.name": "sam3-lora"}
        self._run_id = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        parameters = [Param(name, text[:PARAMETER_CHARACTERS]) for name, text in _flat(run.config)]
        for start in range(0, len(parameters), PARAMETERS_AT_ONCE):
            self._client.log_batch(self._run_id, params=parameters[start : start + PARAMETERS_AT_ONCE])
        return self._run_id

    def log(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(NOT_IN_NAMES.sub("_", name), value, int(point.time * 1000), point.step)
            for point in points
            for name, value in {**point.values, "epoch": point.epoch}.items()
        ]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + BATCH])

    def end(self, ended: Ended) -> None:
        self._client.set_terminated(self._run_id, self.STATES[ended])


class WeightsAndBiases:
    """A run of Weights & Biases; `step` is the axis, so that a resumed run may repeat some."""

    EXIT_CODES: ClassVar = {Ended.FINISHED: 0, Ended.FAILED: 1, Ended.INTERRUPTED: 255}

    def begin(self, run: Begun) -> str:
        import wandb

        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.kept,
            resume="allow",
            config=dict(run.config),
            dir=str(run.folder),
            settings=wandb.Settings(console="off", silent=True, finish_timeout=CLOSE_TIMEOUT_S),
        )
        self._run.define_metric("*", step_metric="step")
        return str(self._run.id)

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log({**point.values, "epoch": point.epoch, "step": point.step})

    def end(self, ended: Ended) -> None:
        self._run.finish(exit_code=self.EXIT_CODES[ended])


TRACKERS: dict[TrackerName, type[Tracker]] = {"mlflow": MLflow, "wandb": WeightsAndBiases}


class Trackers:
    """All trackers of a run."""

    def __init__(self, names: Sequence[TrackerName], project: str, name: str, folder: Path) -> None:
        require(names)
        self._names, self._project, self._name, self._folder = names, project, name, folder
        self._running: list[Tracking] = []
        self._told: set[str] = set()

    def begin(self, config: Mapping[str, Any], kept: Mapping[str, str]) -> None:
        """Start them; `kept` are the ids of the run that this one goes on from, as `ids` gave them."""
        for name in self._names:
            run = Begun(self._project, self._name, config, self._folder, kept.get(name))
            self._running.append(Tracking(name, run))

    def ids(self) -> dict[str, str]:
        """What each calls this run; waits a while for those that have just begun."""
        found = {each.tracker: each.wait_for_id() for each in self._running}
        return {tracker: run_id for tracker, run_id in found.items() if run_id is not None}

    def log(self, values: Mapping[str, float | None], *, step: int, epoch: int) -> None:
        known = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        for each in self._running:
            if each.fault is None:
                each.log(Point(known, step, epoch, time.time()))

    def end(self, ended: Ended) -> None:
        """Have what is left be sent; returns when that is done, or has taken too long."""
        deadline = time.monotonic() + (INTERRUPTED_TIMEOUT_S if ended is Ended.INTERRUPTED else CLOSE_TIMEOUT_S)
        for each in self._running:
            each.end(ended)
        for each in self._running:
            each.wait(max(0.0, deadline - time.monotonic()))

    def faults(self) -> Iterator[str]:
        """What went wrong since the last call, for people."""
        for each in self._running:
            if each.fault is not None and each.tracker not in self._told:
                self._told.add(each.tracker)
                yield f"no more metrics go to {each.tracker}: {each.fault}"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)
