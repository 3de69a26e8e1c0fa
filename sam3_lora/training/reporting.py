"""What a run tells while it runs: progress, metrics and messages, to the reporter, log, TensorBoard and trackers."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from sam3_lora.events import Event, EventType, Level, Phase, Reporter, finite
from sam3_lora.training.trackers import Trackers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sam3_lora.config import TrackerName
    from sam3_lora.training.trackers import Ended

log = logging.getLogger("sam3_lora.training")
PROGRESS_INTERVAL_S = 0.5
RECENT_STEPS = 50  # steps that speed and ETA are estimated from
METRICS_FILE = "metrics.jsonl"  # beside the log: one line per point
METRIC_POINTS = 2000  # per run and metric: longer runs report means of several steps


class RunReporter:
    """Sends the events of one run and writes its logs, below `folder` (None: writes nothing)."""

    def __init__(
        self,
        reporter: Reporter,
        folder: Path | None,
        *,
        tensorboard: bool = False,
        trackers: Sequence[TrackerName] = (),
        project: str = "",
        run_name: str | None = None,
    ) -> None:
        self._trackers = None
        if folder is not None and trackers:
            self._trackers = Trackers(trackers, project, run_name or folder.resolve().name, folder / "logs")
        self._report = reporter
        self._handler = None if folder is None else _log_to(folder / "logs")
        self._board = None if folder is None or not tensorboard else _summary_writer(folder / "logs")
        self._last_progress = -math.inf
        self._durations: deque[tuple[float, int]] = deque(maxlen=RECENT_STEPS)
        self._phase: Phase | None = None
        self._place: dict[str, float | None] = {}  # in the training, and its speed, as last reported
        self._pending: list[dict[str, float]] = []
        self._file = None if folder is None else folder / "logs" / METRICS_FILE
        self.points: list[dict[str, Any]] = []  # every reported metric by step, as in the file

    def begin(self, *, epoch: int, epochs: int, step: int, steps: int) -> None:
        """Tell where the run starts: after `step`, with the `points` of the part before it."""
        self._place = _place(epoch, epochs, step, steps, loss=None)
        if self._file is not None:
            self._file.write_text("".join(json.dumps(point) + "\n" for point in self.points), encoding="utf-8")

    def track(self, config: Mapping[str, Any], kept: Mapping[str, str]) -> None:
        """Have the trackers begin; `kept` is the `tracked` of the run that this one goes on from."""
        if self._trackers is not None:
            self._trackers.begin(config, kept)

    def tracked(self) -> dict[str, str]:
        """Ids of this run, by tracker."""
        return {} if self._trackers is None else self._trackers.ids()

    def phase(self, phase: Phase) -> None:
        if phase is not self._phase:
            self._phase = phase
            self._report(Event(EventType.PHASE, phase.replace("_", " ").capitalize(), {"phase": phase}))

    def message(self, text: str, level: Level = Level.INFO) -> None:
        log.log(logging.WARNING if level is Level.WARNING else logging.INFO, text)
        self._report(Event(EventType.MESSAGE, text, level=level))

    def event(self, type_: EventType, data: dict[str, Any], message: str = "") -> None:
        if message:
            log.info(message)
        self._report(Event(type_, message, data))

    def step(
        self, values: dict[str, float], *, epoch: int, epochs: int, step: int, steps: int, images: int, seconds: float
    ) -> None:
        """Report one optimiser step (1-based `step` and `epoch`)."""
        self._durations.append((seconds, images))
        speed = sum(n for _, n in self._durations) / max(1e-9, sum(s for s, _ in self._durations))
        self._pending.append({**values, "images_per_s": images / max(1e-9, seconds)})
        if step % max(1, math.ceil(steps / METRIC_POINTS)) == 0 or step == steps:
            keys = self._pending[-1]
            means = {f"train/{k}": sum(p[k] for p in self._pending) / len(self._pending) for k in keys}
            self.metrics(means, step=step, epoch=epoch)
            self._pending.clear()
        mean_s = sum(s for s, _ in self._durations) / len(self._durations)
        times = {"eta_s": round(mean_s * (steps - step), 1), "images_per_s": round(speed, 3)}
        self._place = {**_place(epoch, epochs, step, steps, values["loss"]), **times}
        self._progress(always=step == steps)

    def asked(self, done: int, total: int) -> None:
        """Report that the model was asked about so many images."""
        self._progress({"images_done": done, "images_total": total}, always=done == total)

    def _progress(self, asked: dict[str, int] | None = None, *, always: bool) -> None:
        """Report all that is known, as only the last report shows: training's speed also while it pauses."""
        now = time.monotonic()
        if always or now - self._last_progress >= PROGRESS_INTERVAL_S:
            self._last_progress = now
            self._report(Event(EventType.PROGRESS, data={**self._place, **(asked or {})}))

    def metrics(self, values: Mapping[str, float | None], *, step: int, epoch: int) -> None:
        clean = finite(dict(values))
        self._report(Event(EventType.METRICS, data={"step": step, "epoch": epoch, "values": clean}))
        point = {"step": step, "epoch": epoch, **clean}
        self.points.append(point)
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(point) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(name, value, step)
        if self._trackers is not None:
            self._trackers.log(clean, step=step, epoch=epoch)
            self._tell_faults(self._trackers)

    def _tell_faults(self, trackers: Trackers) -> None:
        for fault in trackers.faults():
            self.message(fault, Level.WARNING)

    def close(self, ended: Ended) -> None:
        """Close everything that is written to, and tell the trackers how the run ended."""
        if self._trackers is not None:
            self._trackers.end(ended)
            self._tell_faults(self._trackers)
        if self._board is not None:
            self._board.close()
        if self._handler is not None:
            logging.getLogger("sam3_lora").removeHandler(self._handler)
            self._handler.close()


def _place(epoch: int, epochs: int, step: int, steps: int, loss: float | None) -> dict[str, float | None]:
    percent = round(100 * step / max(1, steps), 2)
    return {"epoch": epoch, "epochs": epochs, "step": step, "steps": steps, "percent": percent, "loss": loss}


def _log_to(folder: Path) -> logging.Handler:
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "training.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("sam3_lora")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    return handler


def _summary_writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
