"""What a training run reports while it runs: event types, phases, metric names, and the line protocol.

A run reports to a `Reporter`; the trainer process writes each event as one JSON line, which the worker
stores. The library itself never talks to a database.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

MAX_LINE_BYTES = 256 * 1024


class Phase(StrEnum):
    """What a running job is doing. Clients must accept values added later."""

    STARTING = "starting"
    DOWNLOADING_DATASET = "downloading_dataset"
    LOADING_MODEL = "loading_model"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING_CHECKPOINT = "saving_checkpoint"
    FINALIZING = "finalizing"


class EventType(StrEnum):
    """Kinds of events; `data` of each is described beside it."""

    PHASE = "phase"  # phase: Phase
    RESOLVED = "resolved"  # config: every value as used; adapted_modules, trainable_parameters, trainable_percent
    # epoch, epochs, step, steps, percent, loss; from the first step on eta_s, images_per_s; while the model is asked
    # about images, as in evaluation, images_done, images_total. Each takes the place of the one before
    PROGRESS = "progress"
    METRICS = "metrics"  # step, epoch, values: {name: number or null}
    MESSAGE = "message"  # the text is in `message`
    CHECKPOINT = "checkpoint"  # folder (relative to the run directory), kind: epoch|best, epoch, step, metric, value
    EVALUATION = "evaluation"  # model: base|tuned, epoch, step, metrics, per_category, images, notes, absent_prompts
    ARTIFACT = "artifact"  # place: a file or folder (relative to the run directory) that is complete now
    RESULT = "result"  # the run's report: steps, best, base, tuned, train_seconds, peak_memory_bytes
    ERROR = "error"  # code, hint, retryable; the text is in `message`


class Level(StrEnum):
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Event:
    """One report of a run. `data` holds JSON values only."""

    type: EventType
    message: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    level: Level = Level.INFO

    def to_line(self) -> str:
        """The event as one JSON line without its newline; non-finite numbers become null."""
        body = {"type": self.type, "level": self.level, "message": self.message, "data": finite(self.data)}
        return json.dumps(body, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str | bytes) -> Event:
        """Parse a line.

        Raises:
            ValueError: if the line is too long, not JSON, or not an event.
        """
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"event line of {len(line)} bytes exceeds {MAX_LINE_BYTES}")
        body = json.loads(line)
        if not isinstance(body, dict) or not isinstance(body.get("data"), dict):
            raise ValueError("event line is not an object with data")
        return cls(EventType(body["type"]), str(body["message"]), body["data"], Level(body["level"]))


class Reporter(Protocol):
    """Receives the events of a run, in order, in the thread that trains."""

    def __call__(self, event: Event) -> None: ...


def finite(value: Any) -> Any:
    """Copy of a JSON value with NaN and infinities replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value
