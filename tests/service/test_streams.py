"""Streams: every event once and in order, from wherever a client begins."""

from __future__ import annotations

import threading

import pytest

from service.usecases import following
from tests.service.conftest import Api, assert_problem
from tests.service.streams import broadcaster, finish, followed, frames, path_of, read_all, say
from tests.service.test_logs import claimed, write
from tests.stack import wait_until


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
