"""Webhooks sent by a real worker process: killed in the midst, told to stop, and busy with something else."""

from __future__ import annotations

import http.server
import threading
from typing import TYPE_CHECKING, Any

from standardwebhooks import Webhook

from service.shared.queue import CeleryQueue, Task
from service.shared.states import DatasetState, WorkState
from service.shared.unit_of_work import Database
from service.shared.webhooks import EventType
from service.usecases.webhooks import send_test
from tests.service.webhooks import KEY, add_endpoint, deliveries
from tests.worker.conftest import add_dataset, add_job, both_databases
from tests.worker.receivers import Receiver, answer, receiving
from tests.worker.test_worker_process import (  # noqa: F401 - fixtures
    NEVER_S,
    Workers,
    reconciling,
    ringer,
    wait_until,
    workers,
)

if TYPE_CHECKING:
    from pathlib import Path

    from service.shared.settings import Settings
    from service.shared.storage import Storage

Handler = http.server.BaseHTTPRequestHandler


class Slow:
    """Answers only once it is allowed to."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def __call__(self, handler: Handler) -> None:
        self.over.wait(60)
        answer(handler)


def known(settings: Settings, receiver: Receiver) -> tuple[Settings, str, dict[str, Any]]:
    """Settings that let the receiver be sent to, its URL, and the same for worker processes."""
    place = f"127.0.0.1:{receiver.port}"
    values = {"webhook_private_hosts": place, "secret_key": KEY}
    changed = settings.model_copy(update=values | {"webhook_private_hosts": (place,)})
    return changed, f"http://{place}/hook", values


@both_databases
def test_a_killed_worker_delivers_again_with_the_same_id(
    workers: Workers,  # noqa: F811
    settings: Settings,
    database: Database,
    storage: Storage,
    ringer: CeleryQueue,  # noqa: F811
    redis_url: str,
    dataset_zip: Path,
) -> None:
    slow = Slow()
    with receiving(slow, tls=False) as receiver:
        changed, url, values = known(settings, receiver)
        endpoint_id, secret = add_endpoint(database, changed, url, events=[EventType.JOB_QUEUED])
        job_id = add_job(database, add_dataset(database, storage, dataset_zip))
        worker = workers.start("cpu", broker_url=redis_url, **values)
        wait_until(lambda: receiver.requests)
        worker.kill()
        worker.wait()
        slow.over.set()
        with reconciling(settings, storage, ringer):
            workers.start("cpu", broker_url=redis_url, poll_interval_s=NEVER_S, **values)
            wait_until(lambda: deliveries(database, endpoint_id)[0].state is WorkState.SUCCEEDED, 40)
    first, again = receiver.requests
    assert first.headers["webhook-id"] == again.headers["webhook-id"]
    assert first.body == again.body
    assert Webhook(secret).verify(again.body, again.headers)["data"]["id"] == job_id
    [delivery] = deliveries(database, endpoint_id)
    assert "worker was lost" in delivery.attempts[0]["error"]
    assert delivery.attempts[1]["status"] == 204


def test_only_a_ring_is_needed_and_a_stop_lets_an_answer_come(
    workers: Workers,  # noqa: F811
    settings: Settings,
    database: Database,
    ringer: CeleryQueue,  # noqa: F811
    redis_url: str,
    tmp_path: Path,
) -> None:
    slow = Slow()
    slow.over.set()
    with receiving(slow, tls=False) as receiver:
        changed, url, values = known(settings, receiver)
        worker = workers.start("cpu", broker_url=redis_url, poll_interval_s=NEVER_S, log_level="DEBUG", **values)
        with database.read() as unit:
            assert unit.webhooks.find("whe_none") is None
        endpoint_id, secret = add_endpoint(database, changed, url)

        def post() -> None:
            with database.write() as unit:
                delivery = send_test(unit, endpoint_id)
            assert ringer.ring(Task.DELIVER, delivery.id)

        post()
        wait_until(lambda: deliveries(database, endpoint_id)[0].state is WorkState.SUCCEEDED)
        slow.over.clear()
        post()
        wait_until(lambda: len(receiver.requests) == 2)
        worker.terminate()
        threading.Timer(1, slow.over.set).start()
        worker.wait(15)
    assert [each.state for each in deliveries(database, endpoint_id)] == [WorkState.SUCCEEDED] * 2
    log = (tmp_path / "cpu-0.log").read_text()
    assert "webhook_sent" in log
    assert not any(canary in log for canary in (secret.removeprefix("whsec_"), KEY))


def test_a_receiver_that_hangs_keeps_no_dataset_waiting(
    workers: Workers,  # noqa: F811
    settings: Settings,
    database: Database,
    storage: Storage,
    ringer: CeleryQueue,  # noqa: F811
    redis_url: str,
    dataset_zip: Path,
) -> None:
    slow = Slow()
    with receiving(slow, tls=False) as receiver:
        changed, url, values = known(settings, receiver)
        endpoint_id, _ = add_endpoint(database, changed, url)
        workers.start("cpu", broker_url=redis_url, poll_interval_s=NEVER_S, webhook_timeout_s=60, **values)
        for _ in range(4):
            with database.write() as unit:
                delivery = send_test(unit, endpoint_id)
            ringer.ring(Task.DELIVER, delivery.id)
        wait_until(lambda: receiver.requests)
        dataset_id = add_dataset(database, storage, dataset_zip, ready=False)
        ringer.ring(Task.INGEST, dataset_id)

        def is_ready() -> bool:
            with database.read() as unit:
                return unit.datasets.get(dataset_id).state is DatasetState.READY

        wait_until(is_ready, 30)
        assert len(receiver.requests) <= 2
        slow.over.set()
        wait_until(lambda: len([d for d in deliveries(database, endpoint_id) if d.type == "dataset.ready"]) == 1)
