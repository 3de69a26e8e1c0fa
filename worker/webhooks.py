"""Sends webhooks: each delivery from claim to outcome, several at the same time, beside a CPU worker's other work."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import structlog

from service.shared.addresses import Receiver, check_receiver
from service.shared.db.models import WebhookDelivery
from service.shared.db.repositories.webhooks import DISABLED, Sent
from service.shared.errors import LeaseLostError, ServiceError
from service.shared.tallies import TallyName
from service.shared.webhooks import signed
from worker.connection import AddressError, PinnedConnection, address_within, any_address, public_address
from worker.work import Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.shared.db.models import WebhookEndpoint
    from service.shared.unit_of_work import UnitOfWork
    from service.shared.vault import Vault
    from worker.lease import Lease

log = structlog.get_logger(__name__)

SENDERS = 8  # of one worker
RESPONSE_BYTES, RESPONSE_KEPT = 4096, 1024
MAX_ERROR = 300


class DeliveryRunner(Runner[WebhookDelivery]):
    """Sends what one worker claims; `run_next` may be called from several threads."""

    noun = "delivery"

    def __init__(
        self,
        *places: Any,
        vault: Vault,
        on_claimed: Callable[[], None] = lambda: None,
        resolve: Callable[[str, int], str] = public_address,
        context: ssl.SSLContext | None = None,
        **me: Any,
    ) -> None:
        """As other runners.

        Args:
            on_claimed: called when there was something to send: there may be more.
            resolve: the address to connect to, of a host that the operator does not trust.
            context: whose certificates are believed; default the system's.
        """
        super().__init__(*places, **me)
        self._vault = vault
        self._on_claimed = on_claimed
        self._resolve = resolve
        self._tls = context or ssl.create_default_context()

    def _claim(self, unit: UnitOfWork) -> WebhookDelivery | None:
        return unit.deliveries.claim(self._worker_id)

    def _renew(self, unit: UnitOfWork, delivery: WebhookDelivery) -> None:
        unit.deliveries.heartbeat(delivery.id, delivery.epoch)

    def _work(self, delivery: WebhookDelivery, lease: Lease) -> None:
        self._on_claimed()
        with self._database.read() as unit:
            endpoint = unit.webhooks.find(delivery.endpoint_id)
        if endpoint is None:
            raise LeaseLostError(f"the endpoint of {delivery.id} was deleted")
        if not endpoint.enabled:  # since the delivery became due
            lease.insist(lambda: self._give_up(delivery))
            return
        sent = self._send(delivery, endpoint)
        lease.insist(lambda: self._settle(delivery, sent))
        facts = {"status": sent.status, "error": sent.error, "took_s": round(sent.duration_s, 3)}
        log.info("webhook_sent", endpoint_id=endpoint.id, type=delivery.type, **facts)

    def _settle(self, delivery: WebhookDelivery, sent: Sent) -> None:
        with self._database.write() as unit:
            ended = unit.deliveries.settle(delivery, sent, disable_after_s=self._settings.webhook_disable_after_s)
            unit.tallies.count(TallyName.DELIVERIES, "delivered" if sent.is_delivered else "failed")
        if ended.error == DISABLED:
            log.warning("webhook_endpoint_disabled", endpoint_id=delivery.endpoint_id)

    def _give_up(self, delivery: WebhookDelivery) -> None:
        with self._database.write() as unit:
            unit.deliveries.give_up(delivery)

    def _send(self, delivery: WebhookDelivery, endpoint: WebhookEndpoint) -> Sent:
        at, started = datetime.now(UTC), time.monotonic()
        outcome: dict[str, Any]
        try:
            secrets = [endpoint.secret]
            if endpoint.previous_secret_until is not None and endpoint.previous_secret_until > at:
                secrets.append(str(endpoint.previous_secret))
            headers = signed(delivery.message_id, at, delivery.body, [self._vault.open(secret) for secret in secrets])
            receiver = check_receiver(self._settings, endpoint.url)  # settings may have changed since it was accepted
            outcome = self._post(receiver, delivery.body.encode(), headers)
        except (ServiceError, AddressError) as error:
            outcome = {"error": str(error)}
        except Exception as error:  # the edge of a delivery: whatever happened is its error, and the worker goes on
            log.exception("delivery_failed")
            outcome = {"error": f"{type(error).__name__} in the worker; its log has the details."}
        return Sent(at, time.monotonic() - started, **outcome)

    def _post(self, receiver: Receiver, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
        """What the receiver answered, as far as `Sent` keeps it, or the error."""
        host, port, limit_s = receiver.host, receiver.port, self._settings.webhook_timeout_s
        late = {"error": f"{host} took longer than {limit_s:g} s."}
        deadline = time.monotonic() + limit_s
        try:
            resolve = any_address if receiver.is_trusted else self._resolve
            address = address_within(limit_s, resolve, host, port)
        except TimeoutError:
            return late
        connection = PinnedConnection(host, port, address, limit_s, self._tls if receiver.is_tls else None)
        about = {"Content-Type": "application/json", "User-Agent": "sam3-service", "Connection": "close"}
        try:
            with connection.within(deadline - time.monotonic()):
                connection.request("POST", receiver.path, body, about | headers)
                response = connection.getresponse()
                connection.check()  # a head that was cut short reads like a whole one
                found = {"status": response.status, "retry_after_s": _seconds(response.headers["Retry-After"])}
                # The status is the answer, whatever becomes of its body.
                return found | {"response": _beginning(response).decode(errors="replace")}
        except (OSError, http.client.HTTPException) as error:
            if connection.is_severed:
                return late
            return {"error": f"{host} could not be reached ({type(error).__name__}: {error})"[:MAX_ERROR]}


class Senders:
    """Threads that send what is due, each one delivery at a time; idle, they look again every `poll_interval_s`.

    A ring wakes one of them, and each that finds something wakes the next: a slow receiver keeps only its own sender.
    """

    def __init__(self, draining: threading.Event, poll_interval_s: float) -> None:
        """Nothing is begun once `draining` is set."""
        self._draining = draining
        self._poll_interval_s = poll_interval_s
        self._wake = threading.Condition()
        self._rung = False
        self._threads: Sequence[threading.Thread] = ()

    def start(self, run_next: Callable[[], bool]) -> None:
        """Begin. `run_next` sends one delivery; False if none is due."""
        self._threads = [
            threading.Thread(target=self._work, args=(run_next,), name=f"sender-{number}", daemon=True)
            for number in range(SENDERS)
        ]
        for thread in self._threads:
            thread.start()
        self.ring()

    def ring(self) -> None:
        """Wake a sender, if one is idle. Returns at once."""
        with self._wake:
            self._rung = True
            self._wake.notify()

    def close(self, timeout_s: float) -> None:
        """Wait until what is being sent has its outcome; `draining` must be set."""
        with self._wake:
            self._wake.notify_all()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self, run_next: Callable[[], bool]) -> None:
        while not self._draining.is_set():
            with self._wake:
                self._wake.wait_for(lambda: self._rung or self._draining.is_set(), self._poll_interval_s)
                self._rung = False
            try:
                while not self._draining.is_set() and run_next():
                    pass
            except Exception:  # the database is away, most often: the next look may succeed
                log.exception("sending_failed")


def _beginning(response: http.client.HTTPResponse) -> bytes:
    """What is kept of a body; not more than so much is read, however long it is."""
    received = b""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        while len(received) < RESPONSE_BYTES and (chunk := response.read1(RESPONSE_BYTES - len(received))):
            received += chunk
    return received[:RESPONSE_KEPT]


def _seconds(retry_after: str | None) -> float | None:
    """What a Retry-After header asks for, a number of seconds or a date; None if it says nothing."""
    if retry_after is None:
        return None
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        if retry_after.strip().isdecimal():
            return float(int(retry_after))
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    return None
