"""The list of a job's events: windows, filters, and queries that make no sense."""

from __future__ import annotations

import pytest

from service.shared.db.repositories.events import NewEvent
from tests.service.conftest import Api, assert_problem
from tests.service.test_logs import claimed


@pytest.fixture
def url(api: Api) -> str:
    """Events of a job: 1 and 2 are its states, 3 to 7 what its worker says."""
    lease = claimed(api.database)
    with api.database.write() as unit:
        said = [NewEvent("message", f"m{n}", level=("info", "warning")[n % 2]) for n in range(4)]
        unit.events.append(*lease, [*said, NewEvent("error", "e", {"code": "x"}, "error")])
    return f"/v1/jobs/{lease[0]}/events"


def seqs(api: Api, url: str, **query: object) -> list[int]:
    return [each["seq"] for each in api.client.get(url, params=query).raise_for_status().json()["data"]]


def test_windows_of_events(api: Api, url: str) -> None:
    assert seqs(api, url) == [1, 2, 3, 4, 5, 6, 7]
    assert seqs(api, url, order="desc", limit=2) == [7, 6]
    assert seqs(api, url, order="desc", limit=2, before=6) == [5, 4]
    assert seqs(api, url, after=2, before=5) == [3, 4]
    page = api.client.get(url, params={"after": 2, "limit": 2}).json()
    assert [(each["seq"], each["message"]) for each in page["data"]] == [(3, "m0"), (4, "m1")]
    assert (page["first_seq"], page["last_seq"], page["has_more"]) == (3, 4, True)
    rest = api.client.get(url, params={"after": 7}).json()
    assert (rest["data"], rest["first_seq"], rest["last_seq"], rest["has_more"]) == ([], None, 7, False)


def test_events_of_a_kind(api: Api, url: str) -> None:
    assert seqs(api, url, type="status") == [1, 2]
    assert seqs(api, url, type="status,error", after=1) == [2, 7]
    assert seqs(api, url, level="warning,error") == [4, 6, 7]
    assert seqs(api, url, level="warning", type="message", limit=1) == [4]
    for nothing in ("nope", "\x00", "%", "a" * 64):
        assert seqs(api, url, type=nothing) == []


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "order=up",
        "before=0",
        "level=loud",
        "level=",
        "type=",
        "nope=1",
        "type=" + "x" * 201,
        "type=" + "a," * 90,
    ],
)
def test_wrong_queries_are_refused(api: Api, url: str, query: str) -> None:
    assert_problem(api.client.get(f"{url}?{query}"), 422, "invalid_request")


def test_head_is_answered(api: Api, url: str) -> None:
    assert (api.client.head(url).status_code, api.client.head(url).content) == (200, b"")
