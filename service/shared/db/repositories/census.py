"""How much of everything there is now, for whoever watches the installation: numbers of all projects, never rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, case, func, literal, literal_column, or_, select, text, union_all

from service.shared.db.models import (
    Comparison,
    Dataset,
    Export,
    Job,
    Prediction,
    WebhookDelivery,
    WebhookEndpoint,
    Worker,
)
from service.shared.db.repositories.datasets import UNFINISHED
from service.shared.db.repositories.times import is_within
from service.shared.queue import KINDS
from service.shared.states import LEASED, LIVE, JobState, WorkState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import Session

    from service.shared.clock import Clock

WORK: dict[str, type[Prediction | Export | Comparison]] = {
    "prediction": Prediction,
    "export": Export,
    "comparison": Comparison,
}


@dataclass(frozen=True)
class Waiting:
    """Work of one kind that nobody has claimed."""

    number: int
    oldest_s: float
    """How long the first of it could have been claimed; 0 if none is due."""


@dataclass(frozen=True)
class Staff:
    """Workers of one kind: those alive, their GPUs, and when any of that kind was last heard of."""

    alive: int
    gpus: int
    last_seen_at: datetime | None


@dataclass(frozen=True)
class Held:
    """The jobs that workers hold."""

    gpus: int
    """That they need together."""
    stalest_s: float
    """Longest time since one of these workers renewed its lease."""


class CensusRepository:
    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    def unfinished_jobs(self) -> dict[JobState, int]:
        """Jobs by state, of those that have not ended."""
        query = select(Job.state, func.count()).where(Job.state.in_(LIVE)).group_by(Job.state)
        return dict.fromkeys(LIVE, 0) | {state: number for state, number in self._session.execute(query)}  # noqa: C416

    def waiting(self) -> Mapping[str, Waiting]:
        """By kind of work, all but jobs."""
        now = self._clock.now()
        unchecked = and_(UNFINISHED, Dataset.worker_id.is_(None))
        parts = [_waiting("dataset", Dataset, unchecked, Dataset.created_at, now)]
        parts += [
            _waiting(kind, model, model.state == WorkState.QUEUED, model.created_at, now)
            for kind, model in WORK.items()
        ]
        # Every delivery has a time before which it is not sent, and thousands may wait for a receiver that is away.
        due = (WebhookDelivery.state == WorkState.QUEUED, WebhookDelivery.not_before <= now)
        oldest = select(func.min(WebhookDelivery.not_before)).where(*due).scalar_subquery()
        number = select(func.count()).where(WebhookDelivery.state == WorkState.QUEUED).scalar_subquery()
        parts.append(select(literal("delivery").label("kind"), number.label("number"), oldest.label("oldest")))
        return {
            kind: Waiting(number, _age_s(oldest, now))
            for kind, number, oldest in self._session.execute(union_all(*parts))
        }

    def oldest_due_job_s(self) -> float:
        """Seconds that the job which has been queued longest, of those that are due, could have been claimed."""
        now = self._clock.now()
        # In words that the index's condition is also written in: a bound value would keep SQLite from using it.
        queued = (text("state = 'queued'"), or_(Job.not_before.is_(None), Job.not_before <= now))
        query = select(_due_at(Job.queued_at, Job.not_before)).where(*queued).order_by(Job.queued_at).limit(1)
        return _age_s(self._session.scalar(query), now)

    def staff(self, *, within_s: float) -> dict[str, Staff]:
        """Workers by kind; alive are those that gave a sign of life within so many seconds."""
        lives = is_within(Worker.last_seen_at, self._clock.now(), seconds=within_s)
        alive, gpus = func.sum(case((lives, 1), else_=0)), func.sum(case((lives, Worker.gpus), else_=0))
        query = select(Worker.kind, alive, gpus, func.max(Worker.last_seen_at)).group_by(Worker.kind)
        found = {kind: Staff(int(alive), int(gpus), at) for kind, alive, gpus, at in self._session.execute(query)}
        return {kind: found.get(kind, Staff(0, 0, None)) for kind in KINDS}

    def held_jobs(self) -> Held:
        """What workers hold."""
        query = select(func.coalesce(func.sum(Job.gpus), 0), func.min(Job.last_heartbeat_at))
        gpus, beat_at = self._session.execute(query.where(Job.state.in_(LEASED))).one()
        return Held(int(gpus), _age_s(beat_at, self._clock.now()))

    def webhook_endpoints(self) -> dict[str, int]:
        """Endpoints by how they are: working, failing (since their last success), disabled (by their owner) or
        given_up (disabled by the service).
        """
        how = case(
            (WebhookEndpoint.disabled_reason.is_not(None), "given_up"),
            (WebhookEndpoint.enabled.is_(False), "disabled"),
            (WebhookEndpoint.failing_since.is_not(None), "failing"),
            else_="working",
        )
        query = select(how.label("how"), func.count()).group_by(literal_column("how"))
        names = ("working", "failing", "disabled", "given_up")
        return dict.fromkeys(names, 0) | {name: number for name, number in self._session.execute(query)}  # noqa: C416


def _waiting(
    kind: str, model: Any, waits: ColumnElement[bool], since: Any, now: datetime
) -> Select[str, int, datetime]:
    due = or_(model.not_before.is_(None), model.not_before <= now)
    oldest = func.min(case((due, _due_at(since, model.not_before))))
    return select(literal(kind).label("kind"), func.count().label("number"), oldest.label("oldest")).where(waits)


def _due_at(since: Any, not_before: Any) -> ColumnElement[datetime]:
    return case((not_before > since, not_before), else_=since)


def _age_s(at: datetime | None, now: datetime) -> float:
    return 0.0 if at is None else max(0.0, (now - at).total_seconds())
