from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

import pytest

from service.shared.clock import SystemClock
from service.shared.queue import (
    CLOSE_TIMEOUT_S,
    CROWD,
    SILENCE_AFTER_FAILURE_S,
    BackgroundQueue,
    CeleryQueue,
    Task,
    celery_app,
)
from service.shared.settings import Settings
from tests.service.conftest import FakeClock
from tests.stack import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def queue(tmp_path: Path, redis_url: str) -> Iterator[CeleryQueue]:
    queue = CeleryQueue(Settings(data_dir=tmp_path, broker_url=redis_url), SystemClock())
    yield queue
    queue.close()


def test_a_ring_reaches_the_queue_of_its_kind_with_the_id_alone(queue: CeleryQueue) -> None:
    assert (queue.depth(Task.TRAIN), queue.depth(Task.INGEST)) == (0, 0)
    assert queue.ring(Task.TRAIN, "job_1")
    assert queue.ring(Task.TRAIN, "job_2")
    assert queue.ring(Task.INGEST, "ds_1")
    assert (queue.depth(Task.TRAIN), queue.depth(Task.INGEST)) == (2, 1)
    with queue._app.connection_for_write() as connection:
        message = json.loads(connection.default_channel.client.lindex("cpu", 0))
    assert message["headers"]["task"] == "worker.ingest"
    assert "ds_1" in message["headers"]["argsrepr"]


@pytest.mark.parametrize("url", ["redis+socket:///nowhere/broker.sock", "redis://127.0.0.1:1/0"])
def test_a_broker_that_is_down_costs_no_time_and_raises_nothing(tmp_path: Path, url: str) -> None:
    clock = FakeClock()
    queue = CeleryQueue(Settings(data_dir=tmp_path, broker_url=url), clock)
    started = time.monotonic()
    assert not queue.ring(Task.TRAIN, "job_1")
    assert queue.depth(Task.TRAIN) is None
    assert time.monotonic() - started < 3
    started = time.monotonic()
    assert not queue.ring(Task.TRAIN, "job_1")
    assert time.monotonic() - started < 0.05
    clock.advance(SILENCE_AFTER_FAILURE_S)
    assert not queue.ring(Task.TRAIN, "job_1")
    queue.close()


def test_a_broker_that_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        queue = CeleryQueue(Settings(data_dir=tmp_path, broker_url=url), SystemClock())
        started = time.monotonic()
        assert not queue.ring(Task.TRAIN, "job_1")
        assert time.monotonic() - started < 5
        queue.close()


def test_a_ring_works_again_once_the_broker_is_back(tmp_path: Path) -> None:
    from tests.servers import redis_server

    folder = tmp_path / "v"
    folder.mkdir()
    clock = FakeClock()
    with redis_server(folder) as url:
        queue = CeleryQueue(Settings(data_dir=tmp_path, broker_url=url), clock)
        assert queue.ring(Task.TRAIN, "job_1")
    assert not queue.ring(Task.TRAIN, "job_2")
    clock.advance(SILENCE_AFTER_FAILURE_S)
    with redis_server(folder):
        assert queue.ring(Task.TRAIN, "job_3")
        queue.close()


def fetch_all_but(queue: CeleryQueue, left: int) -> None:
    with queue._app.connection_for_write() as connection:
        connection.default_channel.client.ltrim("gpu", 0, left - 1)


def test_a_crowd_of_announcements_grows_no_further_until_workers_fetch_some(queue: CeleryQueue) -> None:
    assert queue.announce(Task.TRAIN, [f"job_{number}" for number in range(CROWD + 20)]) == CROWD
    assert queue.ring(Task.TRAIN, "job_that_wakes_nobody_more")
    assert queue.depth(Task.TRAIN) == CROWD
    assert queue.ring(Task.INGEST, "ds_1")
    assert queue.depth(Task.INGEST) == 1  # each task for itself
    fetch_all_but(queue, 10)
    assert queue.ring(Task.TRAIN, "job_again", "job_and_another")
    assert queue.depth(Task.TRAIN) == 12


def test_requests_do_not_wait_for_a_broker_that_hangs(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        queue = BackgroundQueue(CeleryQueue(Settings(data_dir=tmp_path, broker_url=url), SystemClock()))
        started = time.monotonic()
        assert all(queue.ring(Task.TRAIN, f"job_{number}") for number in range(100))
        assert time.monotonic() - started < 0.5
        queue.close()
        assert time.monotonic() - started < CLOSE_TIMEOUT_S + 1


def test_what_was_rung_in_the_background_is_sent_before_the_end(queue: CeleryQueue) -> None:
    background = BackgroundQueue(queue)
    for number in range(20):
        background.ring(Task.TRAIN, f"job_{number}")
    background.close()
    assert queue.depth(Task.TRAIN) == 20


def test_what_a_crowd_kept_in_the_background_is_sent_once_workers_fetch(queue: CeleryQueue) -> None:
    background = BackgroundQueue(queue)
    for number in range(CROWD + 30):
        background.ring(Task.TRAIN, f"job_{number}")
    background.ring(Task.INGEST, "ds_1")
    wait_until(lambda: queue.depth(Task.INGEST) == 1)
    assert queue.depth(Task.TRAIN) == CROWD
    fetch_all_but(queue, 1)
    wait_until(lambda: queue.depth(Task.TRAIN) == 31)
    background.ring(Task.TRAIN, "job_last")
    wait_until(lambda: queue.depth(Task.TRAIN) == 32)
    background.close()


def test_what_a_broker_that_is_down_did_not_take_is_not_rung_later(queue: CeleryQueue) -> None:
    """The reconciler tells it instead: by then others may have done the work."""
    clock = FakeClock()
    queue._clock = clock
    queue._silent_until = clock.monotonic() + SILENCE_AFTER_FAILURE_S
    background = BackgroundQueue(queue)
    background.ring(Task.TRAIN, "job_1")
    wait_until(lambda: not background._waiting[Task.TRAIN])
    clock.advance(SILENCE_AFTER_FAILURE_S)
    background.ring(Task.TRAIN, "job_2")
    wait_until(lambda: queue.depth(Task.TRAIN) == 1)
    background.close()


def test_both_sides_share_options_that_never_lose_or_repeat_by_themselves(tmp_path: Path) -> None:
    conf = celery_app(Settings(data_dir=tmp_path)).conf
    assert conf.task_acks_late
    assert not conf.task_reject_on_worker_lost
    assert conf.worker_prefetch_multiplier == 1
    assert conf.worker_cancel_long_running_tasks_on_connection_loss is False
    assert conf.broker_connection_max_retries is None
    assert conf.broker_transport_options["visibility_timeout"] > 30 * 86400 - 1
    assert conf.accept_content == ["json"]
    assert conf.result_backend is None
