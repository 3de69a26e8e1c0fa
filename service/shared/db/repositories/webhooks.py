"""Webhook endpoints and their deliveries: who gets what, and how each attempt went."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, delete, func, insert, select, update
from sqlalchemy.orm import aliased

from service.shared.db.models import Base, WebhookDelivery, WebhookEndpoint
from service.shared.db.repositories.outbox import new_delivery
from service.shared.db.repositories.paging import page
from service.shared.db.repositories.work import WorkRepository
from service.shared.errors import EndpointLimitError, LeaseLostError, NotFoundError
from service.shared.states import WorkState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from service.shared.clock import Clock
    from service.shared.db.repositories.attempts import Lease

MAX_ENDPOINTS = 20  # of a project
MAX_AT_ONCE = 2  # deliveries to one endpoint: one that hangs leaves other senders to the others
ATTEMPTS_KEPT = 20
MINUTE_S, HOUR_S = 60, 3600
# Seconds before each further attempt, as https://www.standardwebhooks.com recommends.
DELAYS_S = (5, 5 * MINUTE_S, 30 * MINUTE_S, *(hours * HOUR_S for hours in (2, 5, 10, 14, 20, 24)))
MAX_TRIES = len(DELAYS_S) + 1
JITTER = 0.1
MAX_RETRY_AFTER_S = 24 * HOUR_S
SERIALIZE_CREATION = 7083251947  # key of a lock in PostgreSQL, with the project's hash added

DISABLED = {
    "code": "endpoint_disabled",
    "message": "The endpoint was disabled.",
    "hint": "Enable the endpoint, then redeliver.",
    "retryable": True,
}


class RetrySchedule:
    """When a delivery is tried again; a retry policy."""

    longest_s = max(DELAYS_S) * (1 + JITTER)

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after so many failures (1 or more)."""
        return DELAYS_S[min(failures, len(DELAYS_S)) - 1] * random.uniform(1 - JITTER, 1 + JITTER)


@dataclass(frozen=True)
class Sent:
    """How one attempt went: `status` and the beginning of the `response`, or the `error` that kept it from coming."""

    at: datetime
    duration_s: float
    status: int | None = None
    error: str | None = None
    response: str | None = None
    retry_after_s: float | None = None

    @property
    def is_delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_gone(self) -> bool:
        """Whether the receiver wants nothing more, ever."""
        return self.status == 410


class WebhookRepository:
    """Endpoints."""

    def __init__(self, session: Session, clock: Clock) -> None:
        self._session = session
        self._clock = clock

    def add(self, endpoint: WebhookEndpoint) -> WebhookEndpoint:
        """Insert a new endpoint.

        Raises:
            EndpointLimitError: if its project has as many as it may have.
        """
        if self._session.get_bind().dialect.name == "postgresql":  # SQLite has one writer anyway
            key = SERIALIZE_CREATION + func.hashtext(endpoint.project)
            self._session.execute(select(func.pg_advisory_xact_lock(key)))
        counted = select(func.count()).select_from(_endpoints(endpoint.project).subquery())
        if (self._session.scalar(counted) or 0) >= MAX_ENDPOINTS:
            raise EndpointLimitError(
                f"Project {endpoint.project!r} has {MAX_ENDPOINTS} webhook endpoints, the most it may have: delete one."
            )
        endpoint.created_at = endpoint.updated_at = self._clock.now()
        self._session.add(endpoint)
        self._session.flush()
        return endpoint

    def get(self, endpoint_id: str, *, lock: bool = False) -> WebhookEndpoint:
        """The endpoint; with `lock`, nobody else changes it until the transaction ends.

        Raises:
            NotFoundError: if there is none.
        """
        endpoint = self.find(endpoint_id, lock=lock)
        if endpoint is None:
            raise NotFoundError(f"There is no webhook endpoint {endpoint_id!r}.")
        return endpoint

    def find(self, endpoint_id: str, *, lock: bool = False) -> WebhookEndpoint | None:
        """As `get`; None if there is none."""
        query = _endpoints().where(WebhookEndpoint.id == endpoint_id).execution_options(populate_existing=lock)
        # Its key stays: whoever writes messages for it need not wait.
        return self._session.scalars(query.with_for_update(key_share=True) if lock else query).one_or_none()

    def list(
        self, *, limit: int, descending: bool, after: str | None, before: str | None, project: str | None = None
    ) -> tuple[Sequence[WebhookEndpoint], bool]:
        """One page in order of creation, and whether more follow.

        Raises:
            NotFoundError: if `after` or `before` names no endpoint.
        """
        return page(
            self._session,
            _endpoints(project),
            WebhookEndpoint,
            limit=limit,
            descending=descending,
            after=after,
            before=before,
            get=self.get,
        )

    def change(self, endpoint: WebhookEndpoint, **values: Any) -> WebhookEndpoint:
        """Set columns of an endpoint that this transaction has locked; one that is disabled loses what waits for it."""
        for name, value in (values | {"updated_at": self._clock.now()}).items():
            setattr(endpoint, name, value)
        self._session.flush()
        if not endpoint.enabled:
            waiting = update(WebhookDelivery).where(
                WebhookDelivery.endpoint_id == endpoint.id, WebhookDelivery.state == WorkState.QUEUED
            )
            ended = {"state": WorkState.FAILED, "error": DISABLED, "next_publish_at": None}
            self._session.execute(waiting.values(finished_at=self._clock.now(), **ended))
        return endpoint

    def remove(self, endpoint: WebhookEndpoint) -> None:
        """Delete an endpoint that this transaction has locked, with its deliveries; whoever sends one loses it."""
        self._session.execute(delete(WebhookEndpoint).where(WebhookEndpoint.id == endpoint.id))


class DeliveryRepository(WorkRepository[WebhookDelivery]):
    """Deliveries. Whoever locks both locks the endpoint first."""

    def post(self, endpoint_id: str, kind: str, message_id: str, body: str) -> WebhookDelivery:
        """A new delivery, due at once."""
        values = new_delivery(endpoint_id, message_id, kind, body, self._clock.now())
        self._session.execute(insert(Base.metadata.tables[WebhookDelivery.__tablename__]), [values])
        return self.get(values["id"])

    def get(self, delivery_id: str, *, lock: bool = False) -> WebhookDelivery:
        """The delivery; with `lock`, nobody else changes it until the transaction ends.

        Raises:
            NotFoundError: if there is none, or it was forgotten.
        """
        # Beside its endpoint, which says whose it is.
        query = select(WebhookDelivery).join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        query = query.where(WebhookDelivery.id == delivery_id)
        query = query.with_for_update(of=WebhookDelivery).execution_options(populate_existing=True) if lock else query
        delivery = self._session.scalars(query).one_or_none()
        if delivery is None:
            raise NotFoundError(f"There is no webhook delivery {delivery_id!r}; they are kept for some time only.")
        return delivery

    def list(
        self,
        endpoint_id: str,
        *,
        limit: int,
        descending: bool,
        after: str | None,
        before: str | None,
        states: Sequence[WorkState] = (),
    ) -> tuple[Sequence[WebhookDelivery], bool]:
        """One page of an endpoint's deliveries in order of creation, and whether more follow.

        Raises:
            NotFoundError: if `after` or `before` names no delivery.
        """
        query = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id)
        if states:
            query = query.where(WebhookDelivery.state.in_(states))
        return page(
            self._session,
            query,
            WebhookDelivery,
            limit=limit,
            descending=descending,
            after=after,
            before=before,
            get=self.get,
        )

    def claim(self, worker_id: str, **noted: Any) -> WebhookDelivery | None:
        """Take the delivery that has been due for longest, under a new `epoch`; None if there is none.

        Those of endpoints to which `MAX_AT_ONCE` are being sent already, by anybody, wait. Claims at the same time on
        PostgreSQL may exceed that by a few.
        """
        now, sending = self._clock.now(), aliased(WebhookDelivery)
        busy = select(sending.endpoint_id).where(sending.state == WorkState.RUNNING).group_by(sending.endpoint_id)
        busy = busy.having(func.count() >= MAX_AT_ONCE)
        due = (WebhookDelivery.state == WorkState.QUEUED, WebhookDelivery.not_before <= now)
        chosen = self._session.scalar(
            select(WebhookDelivery.id)
            .where(*due, WebhookDelivery.endpoint_id.not_in(busy))
            .order_by(WebhookDelivery.not_before, WebhookDelivery.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if chosen is None:
            return None
        taken = {"worker_id": worker_id, "epoch": WebhookDelivery.epoch + 1, "hb_seq": 0, "next_publish_at": None}
        return self._update(WebhookDelivery.id == chosen, *due, state=WorkState.RUNNING, **taken, **noted)

    def settle(self, delivery: WebhookDelivery, sent: Sent, *, disable_after_s: float) -> WebhookDelivery:
        """End an attempt: delivered, due again later, or failed; and note on the endpoint how it went.

        An endpoint that is gone, or has only failed for so long, is disabled.

        Raises:
            LeaseLostError: if the delivery's epoch no longer holds it (also when its endpoint was deleted).
        """
        webhooks = WebhookRepository(self._session, self._clock)
        endpoint = webhooks.find(delivery.endpoint_id, lock=True)
        if endpoint is None:
            raise LeaseLostError(f"the endpoint of {delivery.id} was deleted")
        row = self._fenced(delivery.id, delivery.epoch, **self._logged(delivery, sent))
        if sent.is_delivered:
            endpoint.failing_since = None
            return self._fenced(row.id, row.epoch, error=None, **self._ended(WorkState.SUCCEEDED))
        endpoint.failing_since = endpoint.failing_since or sent.at
        if endpoint.enabled:
            failing_s = (self._clock.now() - endpoint.failing_since).total_seconds()
            if sent.is_gone:
                webhooks.change(endpoint, enabled=False, disabled_reason="The receiver answered 410 Gone.")
            elif failing_s >= disable_after_s:
                reason = f"Every delivery has failed for {failing_s / 86400:.1f} days."
                webhooks.change(endpoint, enabled=False, disabled_reason=reason)
        if not endpoint.enabled:
            return self.give_up(row)
        values = self._after_failure(row, _failure(sent))
        if values.get("not_before") is not None and sent.retry_after_s is not None:
            asked = self._clock.now() + timedelta(seconds=min(sent.retry_after_s, MAX_RETRY_AFTER_S))
            values["not_before"] = values["next_publish_at"] = max(values["not_before"], asked)
        return self._fenced(row.id, row.epoch, **values)

    def give_up(self, delivery: WebhookDelivery) -> WebhookDelivery:
        """End a claimed delivery whose endpoint is disabled.

        Raises:
            LeaseLostError: if the delivery's epoch no longer holds it.
        """
        return self._fenced(delivery.id, delivery.epoch, error=DISABLED, **self._ended(WorkState.FAILED))

    def reap(self, lease: Lease) -> WebhookDelivery:
        """Take a delivery away from a worker that has stopped renewing: due again, or failed. It may have arrived.

        Raises:
            StateConflictError: if the lease was renewed or ended meanwhile.
        """
        row = super().reap(lease)
        sent = Sent(self._clock.now(), 0.0, error="The worker was lost before the receiver had answered.")
        return self._update(WebhookDelivery.id == row.id, **self._logged(row, sent)) or row

    def redeliver(self, delivery: WebhookDelivery) -> WebhookDelivery:
        """Make a delivery due now, with all its tries again; one that is being sent stays as it is."""
        now = self._clock.now()
        again = {"state": WorkState.QUEUED, "lost_attempts": 0, "error": None, "finished_at": None}
        rests = (WebhookDelivery.id == delivery.id, WebhookDelivery.state != WorkState.RUNNING)
        return self._update(*rests, **again, not_before=now, next_publish_at=now) or delivery

    def forget(self, older_than_s: float) -> None:
        """Delete deliveries that ended longer ago."""
        since = self._clock.now() - timedelta(seconds=older_than_s)
        self._session.execute(delete(WebhookDelivery).where(WebhookDelivery.finished_at < since))

    @staticmethod
    def _logged(delivery: WebhookDelivery, sent: Sent) -> dict[str, Any]:
        entry = {
            "number": delivery.attempt + 1,
            "at": sent.at.isoformat(),
            "duration_s": round(sent.duration_s, 3),
            "status": sent.status,
            "error": sent.error,
            "response": sent.response,
        }
        return {"attempt": delivery.attempt + 1, "attempts": [*delivery.attempts, entry][-ATTEMPTS_KEPT:]}


def _endpoints(project: str | None = None) -> Select[WebhookEndpoint]:
    """Where every search for endpoints begins: those of a project; None: of all."""
    query = select(WebhookEndpoint)
    return query if project is None else query.where(WebhookEndpoint.project == project)


def _failure(sent: Sent) -> dict[str, Any]:
    message = sent.error or f"The receiver answered with status {sent.status}."
    hint = "The attempts say more. Once the receiver is well again, redeliver."
    return {"code": "not_delivered", "message": message, "hint": hint, "retryable": True}
