"""What a trainer reports, written to its job's rows in batches, every write fenced by the lease."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import structlog

from sam3_lora.config import without_paths
from sam3_lora.events import Event, EventType
from service.shared import tracing
from service.shared.db.repositories.events import NewEvent
from service.shared.db.repositories.metrics import StepValues
from service.shared.ids import new_id
from worker.lease import DATABASE_AWAY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.shared.db.models import Checkpoint, Job
    from service.shared.unit_of_work import Database

log = structlog.get_logger(__name__)

FLUSH_INTERVAL_S = 1.0
MAX_PENDING = 500
VITALS_INTERVAL_S = 10.0
LOG_PIECE_BYTES = 256 * 1024
MAX_STEP = 2**63 - 1  # a signed 64-bit column
# Kept as metric points and as the job's progress; a row of each in the event list would only bury the others.
NOT_LISTED = frozenset({EventType.METRICS, EventType.PROGRESS})


@dataclass(frozen=True)
class _Batch:
    """What one transaction stores: the first so many pending events, and the log up to an offset."""

    events: int
    event_id: str | None
    """Of the first of them that is listed."""
    log_offset: int


class Observer:
    """Receives a trainer's events in order."""

    def __init__(
        self,
        database: Database,
        job: Job,
        log_file: Path,
        publish: Callable[[Event], Checkpoint | None],
        publish_artifact: Callable[[Event], str | None],
        insist: Callable[[Callable[[], object]], object] = lambda write: write(),
    ) -> None:
        """Publishing makes the files of an event visible; it gives None if they are no longer there.

        Args:
            insist: has a write done that may not be left for later, such as `Lease.insist`.
        """
        self._database = database
        self._job_id, self._epoch = job.id, job.epoch
        self._publish, self._publish_artifact = publish, publish_artifact
        self._insist = insist
        self._pending: list[tuple[Event, str]] = []
        self._log_file = log_file
        self._log_offset = 0
        self._stored_log_bytes = job.log_bytes  # of all attempts
        self._unsure: _Batch | None = None
        self._flush_at = 0.0
        self._vitals_at = 0.0
        self.vitals: Callable[[], dict[str, float]] = dict
        """Further metrics, asked for every ten seconds in which the trainer reports some."""

    def __call__(self, event: Event) -> None:
        """Take one event; a checkpoint's or an artifact's is kept back until its files are published.

        Raises:
            LeaseLostError: if the job was taken away.
        """
        if event.type is EventType.CHECKPOINT:
            self._store_before_publishing()
            with tracing.span("publish_checkpoint", step=event.data.get("step"), checkpoint=event.data.get("kind")):
                checkpoint = self._publish(event)
            if checkpoint is None:
                return
            data = {name: event.data.get(name) for name in ("kind", "epoch", "step", "metric", "value")}
            event = Event(event.type, event.message, {"checkpoint_id": checkpoint.id, **data}, event.level)
        if event.type is EventType.ARTIFACT:
            self._store_before_publishing()
            with tracing.span("publish_artifact"):
                place = self._publish_artifact(event)
            if place is None:
                return
            event = Event(event.type, f"{place} is ready", {"place": place})
        if event.type is EventType.RESOLVED:
            event = replace(event, data=without_paths(event.data))
        self._pending.append((event, new_id("evt")))
        if len(self._pending) >= MAX_PENDING:
            self.flush()

    def tick(self) -> None:
        """Write what has gathered, about once a second; it is kept for later while the database is away.

        Raises:
            LeaseLostError: if the job was taken away.
        """
        if time.monotonic() >= self._flush_at:
            self.flush()

    def flush(self) -> None:
        """As `tick`, at once."""
        self._flush_at = time.monotonic() + FLUSH_INTERVAL_S
        try:
            self._store()
        except DATABASE_AWAY as error:
            log.warning("events_kept_back", events=len(self._pending), error=str(error))

    def finish(self) -> None:
        """Write all that is left, also an unfinished last line of the log.

        Raises:
            LeaseLostError: if the job was taken away.
        """
        self._store()
        while self._store(whole_lines=False):
            pass

    def _store_before_publishing(self) -> None:
        # Publishing takes time: what came before shows meanwhile. And the next attempt goes on behind a checkpoint
        # that is published, so that what led to it would be missing for good.
        self._insist(self._store)

    def _store(self, *, whole_lines: bool = True) -> bool:
        """Write what is new, once; whether there was any of the log."""
        self._make_sure()
        text, log_offset = self._new_log(whole_lines=whole_lines)
        if not self._pending and not text:
            return False
        events = [event for event, _ in self._pending]
        listed = [
            NewEvent(event.type, event.message, event.data, event.level, event_id)
            for event, event_id in self._pending
            if event.type not in NOT_LISTED
        ]
        steps = [step for event in events if event.type is EventType.METRICS for step in _step_values(event)]
        steps += self._vitals_after(steps)  # before others have to wait for this transaction
        log_bytes = self._stored_log_bytes
        self._unsure = _Batch(len(events), listed[0].id if listed else None, log_offset)
        with self._database.write() as unit:
            unit.events.append(self._job_id, self._epoch, listed)
            if steps:
                unit.metrics.add_all(self._job_id, self._epoch, steps)
            if state := _state_after(events):
                unit.attempts.report(self._job_id, self._epoch, **state)
            if text:
                log_bytes = unit.logs.append(self._job_id, self._epoch, text)
        self._note_stored(self._unsure, log_bytes)
        return bool(text)

    def _make_sure(self) -> None:
        """After a failure: whether the transaction was committed nevertheless, and only its answer was lost."""
        if (batch := self._unsure) is None:
            return
        with self._database.write() as unit:
            # Whoever has the row waits until that transaction is over, if the database is still at it.
            log_bytes = unit.jobs.get(self._job_id, lock=True).log_bytes
            is_stored = (
                log_bytes != self._stored_log_bytes
                if batch.event_id is None
                else unit.events.exists(self._job_id, batch.event_id)
            )
        self._unsure = None
        if is_stored:
            self._note_stored(batch, log_bytes)

    def _note_stored(self, batch: _Batch, log_bytes: int) -> None:
        del self._pending[: batch.events]
        self._log_offset, self._stored_log_bytes = batch.log_offset, log_bytes
        self._unsure = None

    def _vitals_after(self, steps: list[StepValues]) -> list[StepValues]:
        now = time.monotonic()
        if not steps or now < self._vitals_at:
            return []
        self._vitals_at = now + VITALS_INTERVAL_S
        return [StepValues(steps[-1].step, steps[-1].epoch, self.vitals())]

    def _new_log(self, *, whole_lines: bool = True) -> tuple[str, int]:
        """What the trainer has logged since, and the offset behind it."""
        with self._log_file.open("rb") as file:
            file.seek(self._log_offset)
            piece = file.read(LOG_PIECE_BYTES)
        newline = piece.rfind(b"\n") + 1
        if whole_lines and (newline or len(piece) < LOG_PIECE_BYTES):
            piece = piece[:newline]
        return piece.decode(errors="replace"), self._log_offset + len(piece)


def _state_after(events: list[Event]) -> dict[str, Any]:
    """The job's fields after these events."""
    state: dict[str, Any] = {}
    for event in events:
        match event.type:
            case EventType.PHASE:
                state["phase"] = str(event.data.get("phase"))
            case EventType.PROGRESS:
                state["progress"] = event.data
            case EventType.RESOLVED:
                state["resolved"] = event.data
                state["trainable"] = {
                    "parameters": event.data.get("trainable_parameters"),
                    "percent": event.data.get("trainable_percent"),
                }
    return state


def _step_values(event: Event) -> list[StepValues]:
    """What the event says of its step; nothing if that makes no sense."""
    step, values = event.data.get("step"), event.data.get("values")
    if not isinstance(step, int) or not 0 <= step <= MAX_STEP or not isinstance(values, dict):
        log.warning("metrics_malformed", data=str(event.data)[:200])
        return []
    kept = {str(name): _float(value) for name, value in values.items() if value is None or _is_number(value)}
    return [StepValues(int(step), _float(event.data.get("epoch")), kept)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _float(value: Any) -> float | None:
    """None for what is no number, or none that a double can hold."""
    try:
        return float(value) if _is_number(value) else None
    except OverflowError:
        return None
