"""The outbox: messages about what happened are written by the transaction that makes it happen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, insert, select

from service.shared.db.models import Base, WebhookDelivery, WebhookEndpoint
from service.shared.ids import new_id
from service.shared.states import WorkState
from service.shared.webhooks import (
    OF_COMPARISON,
    OF_DATASET,
    OF_JOB,
    OPENAI_NAMES,
    EventType,
    MessageFormat,
    checkpoint_data,
    comparison_data,
    dataset_data,
    job_data,
    message,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sqlalchemy.orm import Session

    from service.shared.clock import Clock
    from service.shared.db.models import Checkpoint, Comparison, Dataset, Job

NEW_DELIVERIES = insert(Base.metadata.tables[WebhookDelivery.__tablename__])
ENDPOINT = Base.metadata.tables[WebhookEndpoint.__tablename__].c
# Asked by every transaction in which something happens, and so of the table, which is faster than the class. The lock
# keeps an endpoint from being deleted before the messages for it are committed, which could not be stored then: nothing
# else may fail for that.
WANTED = (
    select(ENDPOINT.id, ENDPOINT.project, ENDPOINT.format, ENDPOINT.events)
    .where(ENDPOINT.project.in_(bindparam("projects", expanding=True)), ENDPOINT.enabled)
    .order_by(ENDPOINT.id)
    .with_for_update(read=True, key_share=True)
)


class Outbox:
    """Notes events; `store` turns them into deliveries at the end of the transaction, when their rows are final."""

    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock
        self._noted: list[tuple[EventType, str, datetime, Callable[[], dict[str, Any]]]] = []

    def note_job(self, job: Job) -> None:
        """The job has come into its state."""
        if job.state in OF_JOB:
            state, seq = job.state, job.last_event_seq
            self._note(OF_JOB[state], job.project, lambda: job_data(job, state, seq))

    def note_checkpoint(self, job: Job, checkpoint: Checkpoint) -> None:
        """The running job has a new checkpoint."""
        data = {"checkpoint": checkpoint_data(checkpoint)}
        state, seq = job.state, job.last_event_seq
        self._note(EventType.JOB_CHECKPOINT, job.project, lambda: job_data(job, state, seq) | data)

    def note_dataset(self, dataset: Dataset) -> None:
        """The dataset's check may have ended."""
        if dataset.state in OF_DATASET:
            self._note(OF_DATASET[dataset.state], dataset.project, lambda: dataset_data(dataset))

    def note_comparison(self, comparison: Comparison) -> None:
        """The comparison may have ended."""
        if comparison.state in OF_COMPARISON:
            self._note(OF_COMPARISON[comparison.state], comparison.project, lambda: comparison_data(comparison))

    def store(self) -> str | None:
        """Write a delivery for each endpoint that wants an event; the id of one of them, if there are any."""
        if not self._noted:
            return None
        noted, self._noted = self._noted, []
        endpoints = self._session.execute(WANTED, {"projects": sorted({project for _, project, _, _ in noted})}).all()
        rows = []
        for kind, project, at, data_of in noted:
            wanting = [row for row in endpoints if row.project == project and _gets(kind, row.events, row.format)]
            if not wanting:
                continue
            message_id, data = new_id("msg"), data_of()
            bodies = {form: message(form, message_id, kind, at, data) for form in {row.format for row in wanting}}
            rows += [new_delivery(row.id, message_id, kind, bodies[row.format], self._clock.now()) for row in wanting]
        if not rows:
            return None
        self._session.execute(NEW_DELIVERIES, rows)
        return str(rows[0]["id"])

    def _note(self, kind: EventType, project: str, data_of: Callable[[], dict[str, Any]]) -> None:
        self._noted.append((kind, project, self._clock.now(), data_of))


def new_delivery(endpoint_id: str, message_id: str, kind: str, body: str, at: datetime) -> dict[str, Any]:
    """The columns of a delivery that is due at once."""
    return {
        "id": new_id("whd"),
        "state": WorkState.QUEUED,
        "epoch": 0,
        "lost_attempts": 0,
        "hb_seq": 0,
        "next_publish_at": at,
        "not_before": at,
        "created_at": at,
        "endpoint_id": endpoint_id,
        "message_id": message_id,
        "type": kind,
        "body": body,
        "attempt": 0,
        "attempts": [],
    }


def _gets(kind: EventType, events: list[str], form: MessageFormat) -> bool:
    return kind in events and (form is not MessageFormat.OPENAI or kind in OPENAI_NAMES)
