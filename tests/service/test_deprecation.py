"""The machinery for what will go away, on operations of the tests: nothing of the API is deprecated yet."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import pytest
import structlog
from fastapi import APIRouter, Query, Request, Response

from service import main
from service.api.deprecation import Deprecation, deprecated
from service.shared.db.migrate import upgrade
from service.shared.errors import NotFoundError
from service.shared.settings import Settings
from service.usecases.access import Scope
from tests.service.conftest import Api, served
from tests.service.test_access import client, key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SINCE, SUNSET = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 7, 1, 12, tzinfo=UTC)
WHOLE = Deprecation("GET /old", SINCE, "https://example.com/new", SUNSET)
PARAMETER = Deprecation("GET /list?page", datetime(2026, 2, 1, tzinfo=UTC), "https://example.com/page")
router = APIRouter()


@router.get("/old", **deprecated(WHOLE))
def get_old() -> dict[str, int]:
    return {"n": 1}


@router.get("/old_raw", **deprecated(WHOLE))
def get_old_raw() -> Response:
    raise NotFoundError("There is nothing.")


@router.get("/list")
def get_list(request: Request, page: Annotated[int | None, Query(deprecated=True)] = None) -> Response:
    if page is not None:
        PARAMETER.note(request)
        WHOLE.note(request)
    return Response("[]")


class Routes:
    router = router


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(main, "ROUTES", (*main.ROUTES, Routes))
    settings = Settings(data_dir=tmp_path, require_keys=True)
    upgrade(settings)
    with served(settings) as found:
        yield found


def test_every_answer_of_a_deprecated_operation_says_so(api: Api) -> None:
    with client(api, key(api, "a", Scope.READ)) as ours:
        for path, status in (("/v1/old", 200), ("/old", 200), ("/v1/old_raw", 404)):
            answer = ours.get(path)
            assert answer.status_code == status
            assert answer.headers["deprecation"] == "@1767225600"
            assert answer.headers["sunset"] == "Wed, 01 Jul 2026 12:00:00 GMT"
            assert answer.headers.get_list("link") == [
                '<https://example.com/new>; rel="deprecation"; type="text/html"',
                '<https://example.com/new>; rel="sunset"; type="text/html"',
            ]
        assert "deprecation" not in ours.get("/v1/jobs").headers


def test_a_deprecated_parameter_says_so_where_it_is_given(api: Api) -> None:
    with client(api, key(api, "a", Scope.READ)) as ours:
        assert "deprecation" not in ours.get("/v1/list").headers
        answer = ours.get("/v1/list?page=1")
        assert answer.headers["deprecation"] == "@1767225600"  # the older of the two
        assert answer.headers["sunset"] == "Wed, 01 Jul 2026 12:00:00 GMT"
        assert len(answer.headers.get_list("link")) == 3


def test_the_document_says_so(api: Api) -> None:
    paths = api.client.get("/openapi.json").json()["paths"]
    old: dict[str, Any] = paths["/old"]["get"]
    assert old["deprecated"] is True
    assert {"Deprecation", "Sunset", "Link"} <= old["responses"]["200"]["headers"].keys()
    assert "deprecated" not in paths["/list"]["get"]
    [page] = paths["/list"]["get"]["parameters"]
    assert page["deprecated"] is True
    assert "Deprecation" in paths["/list"]["get"]["responses"]["200"]["headers"]
    assert "Deprecation" not in paths["/jobs"]["get"]["responses"]["200"]["headers"]


def test_each_key_is_logged_once_a_day(api: Api) -> None:
    with (
        client(api, key(api, "a", Scope.READ)) as first,
        client(api, key(api, "b", Scope.READ)) as second,
        structlog.testing.capture_logs() as logs,
    ):
        ids = [each.get("/v1/me").json()["key_id"] for each in (first, second)]
        for _ in range(3):
            first.get("/v1/old")
            second.get("/v1/old")
        api.clock.advance(86400)
        first.get("/v1/old")
    noted = [(each["what"], each["key_id"]) for each in logs if each["event"] == "deprecated_use"]
    assert noted == [("GET /old", ids[0]), ("GET /old", ids[1]), ("GET /old", ids[0])]
