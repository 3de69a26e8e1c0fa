"""Query strings: nothing in them is ignored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.service.conftest import Api, add_dataset, add_job, assert_problem, body

if TYPE_CHECKING:
    from collections.abc import Iterator

PUBLIC = {"/livez", "/readyz", "/version", "/openapi.json", "/docs"}


def operations(api: Api) -> Iterator[tuple[str, str]]:
    document = api.client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in methods:
            if path not in PUBLIC:
                yield method, path.replace("{", "").replace("}", "")


def test_no_operation_takes_a_parameter_that_it_does_not_have(api: Api) -> None:
    """Whatever else is wrong with the request: a typo would do what nobody asked for."""
    taken = []
    for method, path in operations(api):
        answer = api.client.request(method, f"/v1{path}?nonsense=1")
        if answer.status_code != 422 or "/query/nonsense" not in answer.text:
            taken.append((method, path, answer.status_code))
    # Answered before anything of the request is looked at: by another's media type, or without the service behind.
    assert [each for each in taken if each[2] not in (400, 415)] == []


def test_a_parameter_that_is_ignored_elsewhere_makes_no_job(api: Api) -> None:
    wanted = body(dataset_id=add_dataset(api.database))
    answer = api.client.post("/v1/jobs?dry_run=1", json=wanted)
    problem = assert_problem(answer, 422, "invalid_request")
    assert problem["errors"] == [
        {
            "pointer": "/query/dry_run",
            "code": "extra_forbidden",
            "message": "there is no such parameter here, none",
        }
    ]
    assert api.client.get("/v1/jobs").json()["data"] == []
    job = add_job(api.database)
    problem = assert_problem(api.client.get(f"/v1/jobs/{job}/logs?follow=1"), 422, "invalid_request")
    assert problem["errors"][0]["message"] == "there is no such parameter here, only after, tail"


@pytest.mark.parametrize("query", ["dataset_id=a&dataset_id=b", "limit=1&limit=2", "metadata[k]=a&metadata[k]=b"])
def test_what_has_one_value_is_not_given_twice(api: Api, query: str) -> None:
    problem = assert_problem(api.client.get(f"/v1/jobs?{query}"), 422, "invalid_request")
    assert [each["code"] for each in problem["errors"]] == ["given_twice"]


def test_states_and_tags_may_be_given_twice(api: Api) -> None:
    both = add_job(api.database, tags=["a", "b"])
    one = add_job(api.database, tags=["a"])

    def found(query: str) -> list[str]:
        return [job["id"] for job in api.client.get(f"/v1/jobs?{query}").json()["data"]]

    assert found("tag=a") == [one, both]
    assert found("tag=a&tag=b") == found("tag=b&tag=a") == [both]
    assert found("status=queued&status=failed") == [one, both]
