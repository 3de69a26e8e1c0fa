"""Streams: every event once and in order, whoever is killed, deleted or slow, and nobody left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import delete
from sqlalchemy.exc import OperationalError

from service.shared.db.migrate import upgrade
from service.shared.db.models import Job
from service.shared.db.repositories.events import NewEvent
from service.shared.settings import Settings
from service.shared.states import JobState
from service.shared.unit_of_work import Database
from service.usecases import following
from tests.service.conftest import Api, FakeClock, FakeQueue, assert_problem, served
from tests.service.test_logs import claimed, write
from tests.stack import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from service.usecases.following import Broadcaster

FAST = {"stream_poll_interval_s": 0.02, "stream_heartbeat_s": 0.2, "max_streams": 40, "stream_stall_timeout_s": 0.5}


@dataclass
class Frame:
    """One event of a stream; a comment is a frame of its own."""

    id: str | None = None
    event: str | None = None
    data: Any = None
    comment: str | None = None
    retry: str | None = None


def frames(response: httpx.Response) -> Iterator[Frame]:
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(":")
            fields[name or "comment"] = value.removeprefix(" ")
        elif fields:
            data = json.loads(fields.pop("data", "null"))
            yield Frame(**fields, data=data)
            fields = {}


@contextmanager
def followed(api: Api, path: str, **headers: str) -> Iterator[Iterator[Frame]]:
    """Frames of an open stream, without comments and the first `retry`."""
    with api.client.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        yield (frame for frame in frames(response) if frame.event)


def read_all(api: Api, path: str, **headers: str) -> list[Frame]:
    with followed(api, path, **headers) as stream:
        return list(stream)


def say(database: Database, lease: tuple[str, int], *messages: str) -> None:
    with database.write() as unit:
        unit.events.append(*lease, [NewEvent("message", message) for message in messages])


def finish(database: Database, lease: tuple[str, int]) -> None:
    with database.write() as unit:
        unit.attempts.finish(*lease, JobState.SUCCEEDED, result={})


@pytest.fixture
def live(settings: Settings) -> Iterator[Api]:
    """The application on each database, with short times; nobody follows when it is over."""
    with served(settings.model_copy(update=FAST)) as api:
        yield api
        wait_until(lambda: broadcaster(api).followers == 0, 10)
        wait_until(lambda: broadcaster(api)._poller is None, 10)
        assert not broadcaster(api)._topics


def broadcaster(api: Api) -> Broadcaster:
    return api.app.state.services.broadcaster


def path_of(lease: tuple[str, int], what: str = "events") -> str:
    return f"/v1/jobs/{lease[0]}/{what}/stream"


def test_a_follower_gets_what_was_and_what_comes_and_then_the_end(live: Api) -> None:
    lease = claimed(live.database)
    with followed(live, path_of(lease)) as stream:
        first = [next(stream), next(stream)]
        say(live.database, lease, "a", "b\r\nc\u2028", "d")
        later = [next(stream) for _ in range(3)]
        finish(live.database, lease)
        last, done = stream
    listed = live.client.get(f"/v1/jobs/{lease[0]}/events").json()["data"]
    events = [*first, *later, last]
    assert [frame.data for frame in events] == listed
    assert [(frame.id, frame.event) for frame in events] == [(str(each["seq"]), each["type"]) for each in listed]
    assert [frame.data["message"] for frame in later] == ["a", "b\r\nc\u2028", "d"]
    assert (done.event, done.id, done.data) == ("done", None, {"status": "succeeded"})


def test_a_stream_begins_with_the_time_to_come_back_and_shows_that_it_lives(live: Api) -> None:
    lease = claimed(live.database)
    with live.client.stream("GET", path_of(lease)) as response:
        stream = frames(response)
        assert next(stream).retry == "3000"
        assert [next(stream).id for _ in range(2)] == ["1", "2"]
        assert [next(stream).comment for _ in range(2)] == ["heartbeat", "heartbeat"]


def test_whoever_comes_back_gets_the_rest_and_after_the_end_204(live: Api) -> None:
    lease = claimed(live.database)
    say(live.database, lease, *"abc")
    finish(live.database, lease)
    path = path_of(lease)
    assert [frame.id for frame in read_all(live, path)] == ["1", "2", "3", "4", "5", "6", None]
    assert [frame.id for frame in read_all(live, path, **{"Last-Event-ID": "4"})] == ["5", "6", None]
    assert [frame.id for frame in read_all(live, f"{path}?after=5")] == ["6", None]
    assert [frame.id for frame in read_all(live, f"{path}?after=6", **{"Last-Event-ID": "5"})] == ["6", None]
    for position in ("6", "7", str(2**63 - 1)):
        response = live.client.get(path, headers={"Last-Event-ID": position})
        assert (response.status_code, response.content) == (204, b"")


def test_a_position_behind_the_end_of_a_live_job_is_its_end(live: Api) -> None:
    lease = claimed(live.database)
    with followed(live, path_of(lease), **{"Last-Event-ID": str(2**62)}) as stream:
        wait_until(lambda: broadcaster(live).followers == 1)
        say(live.database, lease, "next")
        assert next(stream).id == "3"


@pytest.mark.parametrize("value", ["-1", "abc", "1e400", str(2**63), "9" * 5000, "1.5", "NaN", "", "0x1", "1,2"])
@pytest.mark.parametrize("what", ["events", "logs"])
def test_hostile_positions_are_refused(api: Api, what: str, value: str) -> None:
    path = path_of(claimed(api.database), what)
    assert_problem(api.client.get(path, headers={"Last-Event-ID": value}), 422, "invalid_request")
    assert_problem(api.client.get(path, params={"after": value}), 422, "invalid_request")


@pytest.mark.parametrize("what", ["events", "logs"])
def test_head_opens_no_stream(live: Api, what: str) -> None:
    lease = claimed(live.database)
    response = live.client.head(path_of(lease, what))
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert live.client.head(f"/v1/jobs/job_nope/{what}/stream").status_code == 404


def test_a_log_is_followed_by_its_bytes(live: Api) -> None:
    lease = claimed(live.database)
    write(live.database, lease, "eins\r\nzwö\n", "drei\n")
    path = path_of(lease, "logs")
    with followed(live, path) as stream:
        read = [next(stream), next(stream)]
        write(live.database, lease, "\ud800 vier\n")
        read.append(next(stream))
        finish(live.database, lease)
        (done,) = stream
    whole = live.client.get(f"/v1/jobs/{lease[0]}/logs")
    assert "".join(frame.data["text"] for frame in read) == whole.text
    assert [frame.data["offset"] for frame in read] == [0, *(int(frame.id) for frame in read[:-1])]
    assert int(read[-1].id) == len(whole.content)
    assert (done.event, done.data) == ("done", {"status": "succeeded"})
    for position in range(len(whole.content)):
        rest = read_all(live, path, **{"Last-Event-ID": str(position)})[:-1]
        assert "".join(f.data["text"] for f in rest) == whole.content[position:].decode(errors="replace")
    assert live.client.get(path, params={"after": len(whole.content)}).status_code == 204


def test_a_follower_that_begins_within_a_piece_of_the_log_joins_the_others(live: Api) -> None:
    lease = claimed(live.database)
    with followed(live, path_of(lease, "logs")) as stream:
        for piece in ("abc", "def", "ghi"):
            write(live.database, lease, piece)
            assert next(stream).data["text"] == piece
        with followed(live, path_of(lease, "logs") + "?after=4") as other:
            assert [next(other).data["text"], next(other).data["text"]] == ["ef", "ghi"]
            write(live.database, lease, "jkl")
            assert next(stream).data["text"] == next(other).data["text"] == "jkl"


def test_more_than_the_poller_keeps_is_read_by_each_follower_itself(live: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PIECES_BYTES", 1000)
    monkeypatch.setattr("service.api.routes.events.PIECES_BYTES", 1000)
    lease = claimed(live.database)
    seen: list[list[int]] = []

    def follow() -> None:
        seen.append([int(frame.id) for frame in read_all(live, path_of(lease)) if frame.id])

    threads = [threading.Thread(target=follow) for _ in range(5)]
    for thread in threads:
        thread.start()
    for number in range(40):
        say(live.database, lease, *[f"{number} " + "x" * 50 * (number % 7)] * (number % 5), "x" * 2000)
    finish(live.database, lease)
    for thread in threads:
        thread.join()
    with live.database.read() as unit:
        last = unit.jobs.get(lease[0]).last_event_seq
    assert seen == [list(range(1, last + 1))] * 5


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
        with served(settings.model_copy(update=FAST | {"stream_heartbeat_s": 60})) as api:
            url = f"{api.client.base_url}{path_of(claimed(api.database), what)}"
            response = client.send(client.build_request("GET", url), stream=True)
            wait_until(lambda: broadcaster(api).followers == 1)
        seen = [frame.event for frame in frames(response) if frame.event]
    assert seen == (["status", "status"] if what == "events" else [])


@contextmanager
def api_process(settings: Settings, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`sam3-service api` as a process of its own, once it answers."""
    values = {"data_dir": settings.data_dir, "database_url": settings.database_url, "port": port, **FAST}
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
