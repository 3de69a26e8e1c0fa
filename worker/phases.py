"""The phases of a trainer as spans, made of its events: the trainer itself knows nothing of traces."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sam3_lora.events import EventType
from service.shared import tracing

if TYPE_CHECKING:
    from sam3_lora.events import Event


class PhaseSpans:
    """Receives a trainer's events in order; a phase lasts until the next, by when the worker heard of them."""

    def __init__(self) -> None:
        self._phase: str | None = None
        self._since_s = 0.0
        self._epoch: float | None = None

    def __call__(self, event: Event) -> None:
        if event.type is EventType.PHASE:
            self.end()
            self._phase = str(event.data.get("phase"))
        elif event.type is EventType.PROGRESS:
            epoch = event.data.get("epoch")
            self._epoch = epoch if isinstance(epoch, int | float) else self._epoch

    def end(self) -> None:
        """The present phase is over."""
        now = time.time()
        if self._phase is not None:
            tracing.record(self._phase, self._since_s, now, epoch=self._epoch)
        self._phase, self._since_s = None, now
