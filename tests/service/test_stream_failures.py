"""Streams when something goes: jobs, clients, the database, the server. Nothing is lost and nobody left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
from sqlalchemy import delete
from sqlalchemy.exc import OperationalError

from service.shared.db.migrate import upgrade
from service.shared.db.models import Job
from service.shared.settings import Settings
from service.shared.unit_of_work import Database
from service.usecases import following
from tests.service.conftest import FAST_STREAMS, Api, FakeClock, FakeQueue, assert_problem, served
from tests.service.streams import broadcaster, finish, followed, frames, path_of, say
from tests.service.test_logs import claimed
from tests.stack import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_a_job_that_is_deleted_ends_its_streams(live: Api) -> None:
    lease = claimed(live.database)
    with followed(live, path_of(lease)) as stream, followed(live, path_of(lease, "logs")) as log:
        assert [next(stream).id, next(stream).id] == ["1", "2"]
        with live.database.write() as unit:
            unit.session.execute(delete(Job).where(Job.id == lease[0]))
        for each in (stream, log):
            (done,) = each
            assert (done.event, done.data) == ("done", {"status": "deleted"})
    assert_problem(live.client.get(path_of(lease), headers={"Last-Event-ID": "2"}), 404, "not_found")


def test_who_leaves_is_forgotten(live: Api) -> None:
    leases = [claimed(live.database) for _ in range(2)]
    for lease in leases:
        for what in ("events", "logs"):
            with socket.create_connection(live.address) as connection:
                connection.sendall(f"GET {path_of(lease, what)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert connection.recv(15).startswith(b"HTTP/1.1 200")
    with followed(live, path_of(leases[0])) as stream:
        next(stream)
        wait_until(lambda: broadcaster(live).followers == 1)
        assert list(broadcaster(live)._topics) == [("events", leases[0][0])]


def test_a_client_that_does_not_read_is_dropped(live: Api) -> None:
    lease = claimed(live.database)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(live.address)
        connection.sendall(f"GET {path_of(lease)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        wait_until(lambda: broadcaster(live).followers == 1)
        for _ in range(80):
            say(live.database, lease, "x" * 100_000)
        wait_until(lambda: broadcaster(live).followers == 0)


def test_no_more_streams_than_allowed(live: Api) -> None:
    lease = claimed(live.database)
    with httpx.Client(base_url=live.client.base_url, timeout=10, limits=httpx.Limits(max_connections=50)) as client:
        responses = [client.send(client.build_request("GET", path_of(lease)), stream=True) for _ in range(40)]
        wait_until(lambda: broadcaster(live).followers == 40)
        refused = client.get(path_of(lease))
        assert_problem(refused, 503, "too_many_streams")
        assert int(refused.headers["retry-after"]) > 0
        responses[0].close()
        wait_until(lambda: broadcaster(live).followers == 39)
        with client.stream("GET", path_of(lease)) as response:
            assert response.status_code == 200
        for response in responses[1:]:
            response.close()


def test_a_database_that_is_away_delays_and_loses_nothing(live: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = claimed(live.database)
    failures = threading.Semaphore(0)

    def fail() -> None:
        failures.release()
        raise OperationalError("BEGIN", {}, Exception("gone"))

    with followed(live, path_of(lease)) as stream:
        assert [next(stream).id, next(stream).id] == ["1", "2"]
        wait_until(lambda: broadcaster(live)._topics["events", lease[0]].end == 2)
        say(live.database, lease, "here")
        assert next(stream).id == "3"  # from the poller: from here on the follower reads nothing by itself
        with monkeypatch.context() as patch:
            patch.setattr(live.database, "read", fail)
            for _ in range(3):
                assert failures.acquire(timeout=10)
        say(live.database, lease, "back")
        assert next(stream).data["message"] == "back"


def test_what_fails_unexpectedly_ends_the_streams_and_the_next_ones_work(
    live: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = claimed(live.database)
    with followed(live, path_of(lease)) as stream, monkeypatch.context() as patch:
        assert [next(stream).id, next(stream).id] == ["1", "2"]
        patch.setattr(following, "_news", lambda *_: 1 / 0)
        assert list(stream) == []
    with followed(live, path_of(lease), **{"Last-Event-ID": "2"}) as stream:
        say(live.database, lease, "on")
        assert next(stream).id == "3"


@pytest.mark.parametrize("what", ["events", "logs"])
def test_a_server_that_shuts_down_ends_its_streams(settings: Settings, what: str) -> None:
    with httpx.Client(timeout=10) as client:
        with served(settings.model_copy(update=FAST_STREAMS | {"stream_heartbeat_s": 60})) as api:
            url = f"{api.client.base_url}{path_of(claimed(api.database), what)}"
            response = client.send(client.build_request("GET", url), stream=True)
            wait_until(lambda: broadcaster(api).followers == 1)
        seen = [frame.event for frame in frames(response) if frame.event]
    assert seen == (["status", "status"] if what == "events" else [])


@contextmanager
def api_process(settings: Settings, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`sam3-service api` as a process of its own, once it answers."""
    values = {"data_dir": settings.data_dir, "database_url": settings.database_url, "port": port, **FAST_STREAMS}
    environment = os.environ | {f"SAM3_{name.upper()}": str(value) for name, value in values.items()}
    process = subprocess.Popen([sys.executable, "-m", "service.cli", "api"], env=environment)
    try:
        wait_until(lambda: answers(port) or process.poll() is not None, 60)
        assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
    except httpx.TransportError:
        return False


def test_followers_miss_nothing_when_the_server_is_killed(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    upgrade(settings)
    database = Database(settings, FakeClock(), FakeQueue())
    lease, other = claimed(database), claimed(database)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    seen: list[int] = []
    connections, waiting = 0, threading.Event()

    def follow() -> None:
        """As an EventSource: come back with the last id until 204."""
        nonlocal connections
        while True:
            headers = {"Last-Event-ID": str(seen[-1])} if seen else {}
            try:
                url = f"http://127.0.0.1:{port}{path_of(lease)}"
                with httpx.stream("GET", url, headers=headers, timeout=30) as response:
                    if response.status_code == 204:
                        return
                    connections += 1
                    seen.extend(int(frame.id) for frame in frames(response) if frame.id)
            except httpx.TransportError:
                waiting.wait(0.05)

    follower = threading.Thread(target=follow)
    with api_process(settings, port) as process:
        follower.start()
        wait_until(lambda: len(seen) == 2)
        say(database, lease, *"abc")
        wait_until(lambda: len(seen) == 5)
        process.kill()
        process.wait()
    say(database, lease, *"def")
    with api_process(settings, port) as process:
        wait_until(lambda: len(seen) == 8)
        say(database, lease, "g")
        finish(database, lease)
        follower.join(30)
        assert not follower.is_alive()
        with httpx.stream("GET", f"http://127.0.0.1:{port}{path_of(other)}", timeout=30) as response:
            process.terminate()
            assert [frame.id for frame in frames(response) if frame.id] == ["1", "2"]
        assert process.wait(20) in (0, -signal.SIGTERM)
    assert seen == list(range(1, 11))
    assert connections == 2
    database.close()
