"""Lists that are short by nature are asked for page by page as all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.schemas.lists import PageQuery, cut, page_of
from service.shared.db.models import Sweep
from service.shared.errors import NotFoundError
from service.shared.states import JobState
from tests.service.conftest import Api, add_job, assert_problem

if TYPE_CHECKING:
    from service.shared.unit_of_work import Database

ITEMS = [f"item-{number}" for number in range(7)]
QUERIES = st.builds(
    PageQuery,
    after=st.none() | st.sampled_from(ITEMS),
    before=st.none() | st.sampled_from(ITEMS),
    limit=st.integers(1, 9),
    order=st.sampled_from(["asc", "desc"]),
)


def within(query: PageQuery) -> tuple[list[str], bool]:
    rows, has_more = cut(ITEMS, query.window(), lambda item: item)
    page = page_of(rows, has_more, lambda item: item, lambda item: item)
    assert (page.first_id, page.last_id) == ((page.data[0], page.data[-1]) if page.data else (None, None))
    return page.data, page.has_more


def test_pages_are_those_that_the_database_would_give(database: Database) -> None:
    with database.write() as unit:
        for item in ITEMS:
            unit.sweeps.add(Sweep(id=item, name=item, project="default", request={}))

    @given(QUERIES)
    def compare(query: PageQuery) -> None:
        with database.read() as unit:
            rows, has_more = unit.sweeps.list(**query.window())
        assert within(query) == ([row.id for row in rows], has_more)

    compare()


@pytest.mark.parametrize("cursor", ["after", "before"])
def test_an_item_that_is_not_there_begins_no_page(cursor: str) -> None:
    with pytest.raises(NotFoundError, match="no item 'gone'"):
        cut(ITEMS, PageQuery(**{cursor: "gone"}).window(), lambda item: item)


def walk(api: Api, url: str, **params: Any) -> list[Any]:
    found, after = [], {}
    while True:
        page = api.client.get(url, params={"limit": 2, **params, **after}).json()
        found += page["data"]
        if not page["has_more"]:
            return found
        after = {"after": page["last_id"]}


def test_attempts_keys_and_checkpoints_come_in_pages(api: Api) -> None:
    url = f"/v1/jobs/{add_job(api.database)}"
    for _ in range(5):
        with api.database.write() as unit:
            claimed = unit.jobs.claim("w-1")
            assert claimed is not None
            unit.attempts.finish(claimed.id, claimed.epoch, JobState.QUEUED, reason="drain")
    assert [each["attempt"] for each in walk(api, f"{url}/attempts")] == [1, 2, 3, 4, 5]
    assert [each["attempt"] for each in walk(api, f"{url}/attempts", order="desc")] == [5, 4, 3, 2, 1]
    names = [f"key {number}" for number in range(5)]
    for name in names:
        body = {"name": name, "project": "default", "scopes": ["read"]}
        assert api.client.post("/v1/api_keys", json=body).status_code == 201
    assert [each["name"] for each in walk(api, "/v1/api_keys")] == names[::-1]
    assert walk(api, f"{url}/checkpoints") == []
    for path in (f"{url}/attempts", "/v1/api_keys", f"{url}/checkpoints"):
        assert_problem(api.client.get(path, params={"after": "nope"}), 404, "not_found")
        assert_problem(api.client.get(path, params={"limit": 0}), 422, "invalid_request")
        assert_problem(api.client.get(path, params={"page": 2}), 422, "invalid_request")
