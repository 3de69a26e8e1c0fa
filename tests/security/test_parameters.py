"""Every parameter of every operation, filled with what means something elsewhere: a path, a header, a command."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.service.conftest import Api
from tests.service.conftest import api as api
from tests.service.conftest import served_api as served_api

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTILE = (
    "%0d%0aX-Evil:%201", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e", "%2F", "%5c..%5c..", "%00", "%ff%fe", "%ED%A0%80",
    "%F0%90%80", "%0a%1b[31m", "%7B%7B7*7%7D%7D", "$(id)", "';--", "a" * 3000,
)  # fmt: skip
ALSO_IN_QUERIES = ("9" * 5000, "-1", "NaN", "1e999", "[]", "{}")


def operations(api: Api) -> Iterator[tuple[str, str, list[str]]]:
    """Method, path and the names of the query's parameters."""
    for path, methods in api.client.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            query = [each["name"] for each in operation.get("parameters", []) if each["in"] == "query"]
            yield method.upper(), path, query


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: value[:30])
def test_no_hostile_parameter_of_any_operation_is_more_than_refused(api: Api, value: str) -> None:
    tried = 0
    for method, path, _ in operations(api):
        if "{" not in path:
            continue
        url = "/v1" + re.sub(r"{\w+}", value, path)
        answer = api.client.request(method, url, json={})
        tried += 1
        assert 400 <= answer.status_code < 500, (method, url, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert "x-evil" not in answer.headers
    assert tried > 40


@pytest.mark.parametrize("value", [*HOSTILE, *ALSO_IN_QUERIES], ids=lambda value: value[:30])
def test_no_hostile_query_of_any_operation_breaks_it(api: Api, value: str) -> None:
    tried = 0
    for method, path, query in operations(api):
        for name in query:
            url = "/v1" + re.sub(r"{\w+}", "job_x", path)
            answer = api.client.request(method, f"{url}?{name}={value}")
            tried += 1
            assert answer.status_code < 500, (method, url, name, answer.text)
            assert "x-evil" not in answer.headers
    assert tried > 40
