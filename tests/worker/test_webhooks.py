"""Deliveries from claim to outcome: to real receivers over TLS, good and hostile ones."""

from __future__ import annotations

import http.server
import json
import logging
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import openai
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from service.shared.states import JobState, WorkState
from service.shared.vault import Vault
from service.shared.webhooks import EventType, MessageFormat
from service.usecases.webhooks import change_endpoint, delete_endpoint, redeliver, rotate_secret, send_test
from tests.service.webhooks import add_endpoint, deliveries
from tests.worker.conftest import add_dataset, add_job
from tests.worker.receivers import HOST, answer, contexts, receiving
from worker.webhooks import SENDERS, DeliveryRunner, Senders, _seconds

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.shared.db.models import WebhookDelivery
    from service.shared.settings import Settings
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database

Handler = http.server.BaseHTTPRequestHandler
LIMIT_S = 0.6


class World:
    """A database, and a runner that reaches this machine's receivers by the name HOST."""

    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self.settings = settings.model_copy(update={"webhook_timeout_s": LIMIT_S})
        self.database = database
        self._storage = storage
        self.resolve: dict[str, Any] = {"resolve": lambda *_: "127.0.0.1"}

    def runner(self, **options: Any) -> DeliveryRunner:
        defaults = {"vault": Vault(self.settings), "context": contexts()[1], **self.resolve}
        me = {"worker_id": "w-1", "is_draining": lambda: False}
        return DeliveryRunner(self.settings, self.database, self._storage, None, **me, **(defaults | options))

    def endpoint(self, url: str, **options: Any) -> tuple[str, str]:
        return add_endpoint(self.database, self.settings, url, **options)

    def send(self, url: str, **options: Any) -> WebhookDelivery:
        """A test message to a new endpoint, after its first attempt."""
        endpoint_id, _ = self.endpoint(url)
        with self.database.write() as unit:
            send_test(unit, endpoint_id)
        assert self.runner(**options).run_next()
        [delivery] = deliveries(self.database, endpoint_id)
        assert delivery.attempt == 1
        return delivery


@pytest.fixture
def world(settings: Settings, database: Database, storage: Storage) -> World:
    return World(settings, database, storage)


def refused(delivery: WebhookDelivery) -> str:
    """Why an attempt got no answer; it is tried again."""
    assert delivery.state is WorkState.QUEUED
    assert delivery.attempts[0]["status"] is None
    return str(delivery.attempts[0]["error"])


def test_a_message_arrives_signed(world: World, storage: Storage, dataset_zip: Path) -> None:
    with receiving(lambda handler: answer(handler, 200, b"thanks")) as receiver:
        endpoint_id, secret = world.endpoint(receiver.url, events=[EventType.JOB_QUEUED])
        job_id = add_job(world.database, add_dataset(world.database, storage, dataset_zip))
        runner = world.runner()
        assert runner.run_next()
        assert not runner.run_next()
    [request] = receiver.requests
    [delivery] = deliveries(world.database, endpoint_id)
    assert request.path == "/hook?a=1"
    assert request.headers["Host"] == f"{HOST}:{receiver.port}"
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["webhook-id"] == delivery.message_id
    message = Webhook(secret).verify(request.body, request.headers)
    assert (message["type"], message["data"]["id"]) == ("job.queued", job_id)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(request.body.replace(b"job.queued", b"job.failed"), request.headers)
    assert (delivery.state, delivery.attempts[0]["status"]) == (WorkState.SUCCEEDED, 200)
    assert delivery.attempts[0]["response"] == "thanks"


def test_openais_client_reads_messages_of_its_format(world: World, storage: Storage, dataset_zip: Path) -> None:
    with receiving() as receiver:
        _, secret = world.endpoint(receiver.url, form=MessageFormat.OPENAI, events=[EventType.JOB_FAILED])
        add_job(world.database, add_dataset(world.database, storage, dataset_zip), max_attempts=1)
        with world.database.write() as unit:
            job = unit.jobs.claim("w-1")
            assert job is not None
            unit.attempts.finish(job.id, job.epoch, JobState.FAILED, error={"code": "diverged", "message": "m"})
        assert world.runner().run_next()
    [request] = receiver.requests
    client = openai.OpenAI(api_key="none", webhook_secret=secret)
    event = client.webhooks.unwrap(request.body, request.headers)
    assert event.type == "fine_tuning.job.failed"
    assert event.data.id == job.id
    assert event.id == request.headers["webhook-id"]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(request.body.replace(b"failed", b"passed"), request.headers)


def test_after_a_rotation_both_secrets_verify_until_the_day_is_over(world: World) -> None:
    with receiving() as receiver:
        endpoint_id, old = world.endpoint(receiver.url)
        vault = Vault(world.settings)
        with world.database.write() as unit:
            new = vault.open(rotate_secret(unit, vault, endpoint_id).secret)
            send_test(unit, endpoint_id)
        world.runner().run_next()
        with world.database.write() as unit:
            endpoint = unit.webhooks.get(endpoint_id, lock=True)
            unit.webhooks.change(endpoint, previous_secret_until=datetime.now(UTC))
            send_test(unit, endpoint_id)
        world.runner().run_next()
    during, after = receiver.requests
    assert len(during.headers["webhook-signature"].split()) == 2
    for secret in (old, new):
        Webhook(secret).verify(during.body, during.headers)
    Webhook(new).verify(after.body, after.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(old).verify(after.body, after.headers)


def test_a_redelivery_has_the_same_id_and_body(world: World) -> None:
    with receiving() as receiver:
        delivery = world.send(receiver.url)
        with world.database.write() as unit:
            redeliver(unit, delivery.id)
        world.runner().run_next()
    first, again = receiver.requests
    assert again.headers["webhook-id"] == first.headers["webhook-id"]
    assert again.body == first.body
    [ended] = deliveries(world.database, delivery.endpoint_id)
    assert (ended.state, ended.attempt) == (WorkState.SUCCEEDED, 2)


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_other_answers_are_tried_again(world: World, status: int) -> None:
    with receiving(lambda handler: answer(handler, status, b"no")) as receiver:
        delivery = world.send(receiver.url)
    assert delivery.state is WorkState.QUEUED
    assert (delivery.attempts[0]["status"], delivery.attempts[0]["response"]) == (status, "no")


def test_a_receiver_that_is_gone_is_asked_no_more(world: World) -> None:
    with receiving(lambda handler: answer(handler, 410)) as receiver:
        delivery = world.send(receiver.url)
        assert not world.runner().run_next()
    assert delivery.state is WorkState.FAILED
    with world.database.read() as unit:
        assert not unit.webhooks.get(delivery.endpoint_id).enabled


def test_a_redirect_is_not_followed(world: World) -> None:
    with receiving() as inner, receiving(lambda handler: answer(handler, 307, Location=inner.url)) as receiver:
        delivery = world.send(receiver.url)
    assert delivery.attempts[0]["status"] == 307
    assert delivery.state is WorkState.QUEUED
    assert inner.requests == []


@pytest.mark.parametrize("as_date", [False, True])
def test_a_receiver_says_when_to_come_again(world: World, as_date: bool) -> None:
    value = format_datetime(datetime.now(UTC) + timedelta(seconds=700), usegmt=True) if as_date else "700"
    with receiving(lambda handler: answer(handler, 429, Retry_After=value)) as receiver:
        delivery = world.send(receiver.url)
    assert delivery.not_before is not None
    assert 690 < (delivery.not_before - datetime.now(UTC)).total_seconds() <= 701


@pytest.mark.parametrize("value", ["soon", "-5", "", "1e9", "9" * 5000, "Mon, 99 Foo 2026", "²"])
def test_what_no_receiver_should_say_means_nothing(value: str) -> None:
    assert _seconds(value) is None


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while True:
        handler.wfile.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")


def test_of_an_endless_body_little_is_read(world: World) -> None:
    started = time.monotonic()
    with receiving(endless) as receiver:
        delivery = world.send(receiver.url)
    assert time.monotonic() - started < LIMIT_S + 2
    assert delivery.state is WorkState.SUCCEEDED
    assert delivery.attempts[0]["response"] == "x" * 1024


def test_receivers_that_stall_or_trickle_are_left_in_time(world: World) -> None:
    over = threading.Event()

    def stall(_: Handler) -> None:
        over.wait(20)

    def trickle_head(handler: Handler) -> None:
        while not over.wait(0.02):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")

    def continue_for_ever(handler: Handler) -> None:
        while not over.wait(0.02):
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    for behave in (stall, trickle_head, continue_for_ever):
        over.clear()
        with receiving(behave) as receiver:
            started = time.monotonic()
            delivery = world.send(receiver.url)
            took_s = time.monotonic() - started
            over.set()
        assert "longer than 0.6 s" in refused(delivery) or "TimeoutError" in refused(delivery)
        assert took_s < LIMIT_S + 1


def test_an_answer_counts_though_its_body_trickles(world: World) -> None:
    over = threading.Event()

    def trickle(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not over.wait(0.05):
            handler.wfile.write(b"b")

    with receiving(trickle) as receiver:
        delivery = world.send(receiver.url)
        over.set()
    assert (delivery.state, delivery.attempts[0]["status"]) == (WorkState.SUCCEEDED, 200)
    assert set(delivery.attempts[0]["response"]) == {"b"}


def test_a_server_that_never_shakes_hands_is_left_in_time(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        error = refused(world.send(f"https://{HOST}:{silent.getsockname()[1]}/"))
    assert time.monotonic() - started < LIMIT_S + 1
    assert "longer than" in error or "timed out" in error


def test_the_certificate_must_be_the_hosts(world: World) -> None:
    with receiving() as receiver:
        other = world.send(f"https://other.example.org:{receiver.port}/")
        unknown = world.send(receiver.url, context=ssl.create_default_context())
    assert "CERTIFICATE_VERIFY_FAILED" in refused(other)
    assert "CERTIFICATE_VERIFY_FAILED" in refused(unknown)
    assert receiver.requests == []


def answering(*answers: list[str]) -> Callable[..., Any]:
    """A resolver that gives one answer after the other, and the last one for ever."""
    left = list(answers)

    def getaddrinfo(_host: str, port: int, **_: Any) -> list[Any]:
        found = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    return getaddrinfo


def test_a_name_that_takes_long_to_look_up_is_left_in_time(world: World) -> None:
    over = threading.Event()

    def resolve(*_: object) -> str:
        over.wait(20)
        return "127.0.0.1"

    world.resolve = {"resolve": resolve}
    started = time.monotonic()
    assert "longer than 0.6 s" in refused(world.send(f"https://{HOST}/"))
    assert time.monotonic() - started < LIMIT_S + 1
    over.set()


@pytest.mark.parametrize(
    "found",
    [
        ["127.0.0.1"],
        ["169.254.169.254"],
        ["10.1.2.3"],
        ["fe80::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::a9fe:a9fe"],
        ["8.8.8.8", "192.168.0.1"],
    ],
)
def test_a_name_that_means_a_private_address_is_not_connected_to(
    world: World, monkeypatch: pytest.MonkeyPatch, found: list[str]
) -> None:
    world.resolve = {}
    connected: list[object] = []
    monkeypatch.setattr(socket, "create_connection", lambda *given, **_: connected.append(given))
    monkeypatch.setattr(socket, "getaddrinfo", answering(found))
    assert "not public" in refused(world.send(f"https://{HOST}/"))
    assert connected == []


def test_a_name_that_changes_its_meaning_gains_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.resolve = {}
    connected: list[str] = []

    def connect(address: tuple[str, int], *_: object) -> socket.socket:
        connected.append(address[0])
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(socket, "getaddrinfo", answering(["8.8.8.8"], ["127.0.0.1"]))
    assert "ConnectionRefusedError" in refused(world.send(f"https://{HOST}/"))
    assert connected == ["8.8.8.8"]  # what was checked, though the name means something else by now
    assert "not public" in refused(world.send(f"https://{HOST}/"))
    assert connected == ["8.8.8.8"]


def test_a_proxy_of_the_environment_is_not_asked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with receiving() as receiver:
        assert world.send(receiver.url).state is WorkState.SUCCEEDED


def test_plain_http_needs_the_operators_word_when_it_is_sent(world: World) -> None:
    world.resolve = {}
    with receiving(tls=False) as receiver:
        trusting = world.settings.model_copy(update={"webhook_private_hosts": (f"127.0.0.1:{receiver.port}",)})
        distrusting, world.settings = world.settings, trusting
        assert world.send(f"http://127.0.0.1:{receiver.port}/x").state is WorkState.SUCCEEDED
        endpoint_id, _ = world.endpoint(f"http://127.0.0.1:{receiver.port}/x")
        with world.database.write() as unit:
            send_test(unit, endpoint_id)
        world.settings = distrusting
        world.runner().run_next()
    assert len(receiver.requests) == 1
    assert "https only" in refused(deliveries(world.database, endpoint_id)[0])


def test_an_endpoint_that_is_deleted_or_disabled_meanwhile_ends_it(world: World) -> None:
    arrived, over = threading.Event(), threading.Event()

    def wait(handler: Handler) -> None:
        arrived.set()
        over.wait(20)
        answer(handler)

    world.settings = world.settings.model_copy(update={"webhook_timeout_s": 20})
    with receiving(wait) as receiver:
        endpoint_id, _ = world.endpoint(receiver.url)
        with world.database.write() as unit:
            send_test(unit, endpoint_id)
        sending = threading.Thread(target=world.runner().run_next)
        sending.start()
        assert arrived.wait(10)
        with world.database.write() as unit:
            delete_endpoint(unit, endpoint_id)
        over.set()
        sending.join()
        assert deliveries(world.database, endpoint_id) == []
        endpoint_id, _ = world.endpoint(receiver.url)
        with world.database.write() as unit:
            send_test(unit, endpoint_id)

        def disable() -> None:
            with world.database.write() as unit:
                change_endpoint(unit, world.settings, endpoint_id, {"enabled": False})

        world.runner(on_claimed=disable).run_next()
    [delivery] = deliveries(world.database, endpoint_id)
    assert (delivery.state, delivery.error and delivery.error["code"]) == (WorkState.FAILED, "endpoint_disabled")
    assert len(receiver.requests) == 1


def test_a_secret_that_cannot_be_read_is_named(world: World) -> None:
    other = world.settings.model_copy(update={"secret_key": "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="})
    with receiving() as receiver:
        assert "another key" in refused(world.send(receiver.url, vault=Vault(other)))
    assert receiver.requests == []


def test_a_slow_receiver_keeps_only_its_own_senders(world: World) -> None:
    over, draining = threading.Event(), threading.Event()
    world.settings = world.settings.model_copy(update={"webhook_timeout_s": 30})

    def behave(handler: Handler) -> None:
        if handler.path == "/slow":
            over.wait(20)
        answer(handler)

    senders = Senders(draining, poll_interval_s=60)
    with receiving(behave) as receiver:
        slow, _ = world.endpoint(f"https://{HOST}:{receiver.port}/slow")
        quick, _ = world.endpoint(f"https://{HOST}:{receiver.port}/quick", project="other")
        with world.database.write() as unit:
            for endpoint_id in [slow] * SENDERS + [quick] * 5:
                send_test(unit, endpoint_id)
        senders.start(world.runner(on_claimed=senders.ring).run_next)
        deadline = time.monotonic() + 10
        while any(each.state is not WorkState.SUCCEEDED for each in deliveries(world.database, quick)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not over.is_set()
        assert sum(request.path == "/slow" for request in receiver.requests) <= 2
        over.set()
        draining.set()
        senders.close(10)
    assert not any(each.state is WorkState.RUNNING for each in deliveries(world.database, slow))


def test_nothing_secret_is_logged_or_kept(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with receiving(lambda handler: answer(handler, 500)) as receiver:
        endpoint_id, secret = world.endpoint(f"{receiver.url}&token=canary")
        with world.database.write() as unit:
            send_test(unit, endpoint_id)
        world.runner().run_next()
    [delivery] = deliveries(world.database, endpoint_id)
    key = (world.settings.data_dir / "secret.key").read_text()
    kept = caplog.text + json.dumps(delivery.attempts) + delivery.body + repr(delivery)
    for canary in (secret.removeprefix("whsec_"), key, "canary"):
        assert canary not in kept
