"""Where a run stands, and what it came to: plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from sam3_lora.events import finite


@dataclass
class Progress:
    """Where a run stands: what a checkpoint keeps besides tensors."""

    epoch: int = 0  # 0-based epoch being trained
    images_done: int = 0  # of that epoch, by all processes together
    step: int = 0  # optimiser steps so far, skipped ones included
    applied_steps: int = 0
    skipped_in_a_row: int = 0
    skipped_steps: int = 0
    best: dict[str, Any] | None = None  # value, epoch, step, evaluation
    base: dict[str, Any] | None = None  # evaluation of the untuned model
    validations_without_gain: int = 0
    train_seconds: float = 0.0
    ended: bool = False  # the last epoch is trained, evaluated and saved


@dataclass(frozen=True)
class Report:
    """The outcome of a run; `to_dict()` is `report.json` and the `result` event."""

    steps: int
    epochs: int
    stopped_early: bool
    metric: str
    best: dict[str, Any] | None
    base: dict[str, Any] | None
    trainable_parameters: int
    trainable_percent: float
    skipped_steps: int
    train_seconds: float
    peak_memory_bytes: int
    processes: int
    checkpoint: str  # of the best adapter, relative to the run directory
    notices: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        return finite(asdict(self))  # type: ignore[no-any-return]
