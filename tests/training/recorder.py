"""The events of a run, kept, and ways to stop it by them."""

from __future__ import annotations

from collections.abc import Callable

from sam3_lora.events import Event, EventType
from sam3_lora.training.run import Stop


class Recorder(list[Event]):
    def __call__(self, event: Event) -> None:
        assert Event.from_line(event.to_line()).type is event.type  # every event survives the line protocol
        self.append(event)

    def of(self, type_: EventType) -> list[Event]:
        return [event for event in self if event.type is type_]

    def losses(self) -> dict[int, float]:
        points = [e.data for e in self.of(EventType.METRICS) if "train/loss" in e.data["values"]]
        return {point["step"]: point["values"]["train/loss"] for point in points}


def stop_after(steps: int, recorder: Recorder, how: Stop = Stop.INTERRUPT) -> Callable[[], Stop | None]:
    return lambda: how if len(recorder.losses()) >= steps else None
