"""Logs: stored up to their limit, read whole, resumed, page by page, and from the end."""

from __future__ import annotations

import pytest

from service.shared.db.repositories.logs import LogRepository
from service.shared.states import JobState
from service.shared.unit_of_work import Database
from service.usecases import logs as usecase
from tests.service.conftest import Api, add_job, assert_problem

PIECES = ["one\ntwo\n", "", "thr\ud800ee\n", "fünf\nsix"]
TEXT = "one\ntwo\nthr\ufffdee\nfünf\nsix"
LOG = TEXT.encode()


def claimed(database: Database) -> tuple[str, int]:
    """Id and epoch of a new running job."""
    add_job(database)
    with database.write() as unit:
        job = unit.jobs.claim("w-1")
    assert job is not None
    return job.id, job.epoch


def write(database: Database, lease: tuple[str, int], *pieces: str) -> None:
    for piece in pieces:
        with database.write() as unit:
            unit.logs.append(*lease, piece)


@pytest.fixture
def lease(api: Api) -> tuple[str, int]:
    """A running job whose log is `LOG`."""
    lease = claimed(api.database)
    write(api.database, lease, *PIECES)
    return lease


@pytest.fixture
def url(lease: tuple[str, int]) -> str:
    return f"/v1/jobs/{lease[0]}/logs"


def test_any_part_can_be_read(database: Database) -> None:
    lease = claimed(database)
    write(database, lease, *PIECES)
    with database.read() as unit:
        assert unit.logs.size(lease[0]) == len(LOG)
        assert unit.jobs.get(lease[0]).log_bytes == len(LOG)
        for start in range(len(LOG) + 2):
            for end in range(start, len(LOG) + 2):
                assert unit.logs.read(lease[0], start, end) == LOG[start:end]
        assert unit.logs.read("job_nope") == b""
        assert unit.logs.size("job_nope") == 0


def test_the_last_lines_are_found(database: Database) -> None:
    for pieces in (PIECES, [*PIECES, "\n"], ["\n\n\n"], ["x"], []):
        lease = claimed(database)
        write(database, lease, *pieces)
        with database.read() as unit:
            log = unit.logs.read(lease[0]).decode()
            lines = log.removesuffix("\n").split("\n") if log else []
            for count in range(1, len(lines) + 2):
                tail = unit.logs.read(lease[0], unit.logs.tail_offset(lease[0], count)).decode()
                assert tail.removesuffix("\n") == "\n".join(lines[-count:])


def test_what_goes_beyond_the_limit_is_dropped_with_one_note(database: Database) -> None:
    lease = claimed(database)
    limit = database._settings.max_log_bytes
    write(database, lease, "ü" * (limit // 2 - 1) + "x", "üü", "dropped")
    with database.read() as unit:
        log = unit.logs.read(lease[0])
        assert unit.logs.size(lease[0]) == unit.jobs.get(lease[0]).log_bytes == len(log)
    assert limit < len(log) < limit + 100
    assert log.decode().count("log limit reached") == 1
    assert log.endswith(b"were dropped]\n")


def test_a_raised_limit_leaves_no_gap(database: Database) -> None:
    lease = claimed(database)
    for limit, text in ((10, "0123456789abc"), (10, "dropped"), (1000, "after")):
        with database.write() as unit:
            LogRepository(unit.session, limit).append(*lease, text)
    with database.read() as unit:
        log = unit.logs.read(lease[0])
        assert len(log) == unit.logs.size(lease[0])
    assert log.startswith(b"0123456789\n[")
    assert log.endswith(b"]\nafter")


def test_the_whole_log_and_its_end_are_text(api: Api, url: str) -> None:
    whole = api.client.get(url)
    assert (whole.content, whole.headers["content-type"]) == (LOG, "text/plain; charset=utf-8")
    assert whole.headers["content-length"] == str(len(LOG))
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert api.client.get(f"{url}?tail=2").text == "fünf\nsix"
    assert api.client.get(f"{url}?tail=100000").content == LOG
    assert api.client.get(f"{url}?after=4").content == LOG[4:]
    assert api.client.get(f"{url}?after={2**62}").content == b""
    assert_problem(api.client.get(f"{url}?after=1&tail=1"), 422, "invalid_request")
    empty = api.client.get(f"/v1/jobs/{add_job(api.database)}/logs")
    assert (empty.status_code, empty.content) == (200, b"")


def test_head_tells_the_length(api: Api, url: str) -> None:
    for query, size in (("", len(LOG)), ("?tail=1", 3)):
        head = api.client.head(url + query)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(size))
    assert api.client.head("/v1/jobs/job_nope/logs").status_code == 404


def test_a_reader_that_comes_back_goes_on_where_it_was(api: Api, url: str, lease: tuple[str, int]) -> None:
    first = api.client.get(url, headers={"Range": "bytes=0-9"})
    assert (first.status_code, first.content) == (206, LOG[:10])
    assert first.headers["content-range"] == f"bytes 0-9/{len(LOG)}"
    etag = first.headers["etag"]
    assert api.client.get(url, headers={"If-None-Match": etag}).status_code == 304
    at_end = {"Range": f"bytes={len(LOG)}-", "If-Range": etag}
    unsatisfied = api.client.get(url, headers=at_end)
    assert_problem(unsatisfied, 416, "range_not_satisfiable")
    assert unsatisfied.headers["content-range"] == f"bytes */{len(LOG)}"
    write(api.database, lease, " more")
    grown = api.client.get(url, headers=at_end)
    assert (grown.status_code, grown.content) == (206, b" more")
    assert grown.headers["etag"] != etag
    assert api.client.get(url, headers={"If-None-Match": etag}).status_code == 200


@pytest.mark.parametrize("tag", ['"other-5"', '"{job}-999"', '"{job}-x"', 'W/"{job}-5"', "{job}-5", '"{job}--1"'])
def test_the_tag_of_another_log_brings_all_of_it(api: Api, url: str, lease: tuple[str, int], tag: str) -> None:
    headers = {"Range": "bytes=5-", "If-Range": tag.format(job=lease[0])}
    response = api.client.get(url, headers=headers)
    assert (response.status_code, response.content) == (200, LOG)


def test_pages_hold_every_character_once(
    api: Api, url: str, lease: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.routes.logs.PIECE_BYTES", 9)
    read, offset, pages = "", 0, 0
    headers = {"Accept": "text/plain;q=0.5, application/json"}
    while True:
        page = api.client.get(url, params={"after": offset}, headers=headers).json()
        assert page["offset"] == offset
        read, offset, pages = read + page["data"], page["next_offset"], pages + 1
        if not page["data"]:
            break
    assert (read, pages) == (TEXT, 3)  # two pieces, one, and nothing
    assert not page["is_complete"]
    with api.database.write() as unit:
        unit.attempts.finish(*lease, JobState.SUCCEEDED)
    assert not api.client.get(url, params={"after": 0}, headers=headers).json()["is_complete"]
    assert api.client.get(url, params={"after": offset}, headers=headers).json()["is_complete"]
    tail = api.client.get(url, params={"tail": 1}, headers=headers).json()
    assert (tail["data"], tail["offset"], tail["is_complete"]) == ("six", len(LOG) - 3, True)


def test_a_long_log_is_sent_piece_by_piece(api: Api, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usecase, "PIECE_BYTES", 5)
    assert api.client.get(url).content == LOG
    assert api.client.get(url, headers={"Range": "bytes=3-20"}).content == LOG[3:21]


@pytest.mark.parametrize("accept", ["*/*", "", "text/*", "image/png", "application/json;q=0", ",;=,q=", "x" * 5000])
def test_other_accept_headers_get_text(api: Api, url: str, accept: str) -> None:
    response = api.client.get(url, headers={"Accept": accept})
    assert (response.status_code, response.content) == (200, LOG)
