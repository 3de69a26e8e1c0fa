"""What a browser is told with every answer, and what a page of another site can do to the API in it: nothing."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from typing import TYPE_CHECKING

import httpx
import pytest

from service.api import documentation
from service.api.middleware import SAFETY_HEADERS
from service.shared.db.migrate import upgrade
from service.shared.settings import Settings
from tests.service.conftest import Api, add_dataset, add_job, assert_problem, body, served, upload, zip_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MULTIPART = {"files": {"file": ("a.zip", zip_bytes(), "application/zip")}}


def answers(api: Api) -> Iterator[httpx.Response]:
    """Of every kind: made by routes, by errors before and behind them, streamed, partial, empty."""
    job = add_job(api.database)
    for path in ("/livez", "/version", "/openapi.json", "/metrics", "/docs", "/v1/jobs", f"/v1/jobs/{job}", "/nope"):
        yield api.client.get(path)
    tag = api.client.get(f"/v1/jobs/{job}").headers["etag"]
    yield api.client.get(f"/v1/jobs/{job}", headers={"If-None-Match": tag})
    yield api.client.get(f"/v1/jobs/{job}/logs", headers={"Accept": "text/plain"})
    yield api.client.head(f"/v1/jobs/{job}/events/stream")
    yield api.client.post("/v1/jobs", json={})
    yield api.client.put("/v1/jobs")
    yield api.client.options("/v1/jobs", headers={"Origin": "https://a.example"})
    yield api.client.get("/livez", headers={"Host": "evil.example"})
    yield upload(api)
    yield api.client.post("/v1/jobs", json=body(dataset_id=add_dataset(api.database)))


def test_every_answer_tells_browsers_to_run_and_frame_nothing(api: Api) -> None:
    seen = set()
    for answer in answers(api):
        seen.add(answer.status_code)
        for name, value in SAFETY_HEADERS.items():
            if name == "Content-Security-Policy" and answer.url.path == "/docs":
                assert answer.headers[name] == documentation.POLICY
            else:
                assert answer.headers.get_list(name) == [value], answer.url
    assert {200, 201, 304, 404, 405, 421, 422} <= seen


def test_no_cookie_is_set_and_none_is_asked_for(api: Api) -> None:
    for answer in answers(api):
        assert "set-cookie" not in answer.headers
    document = api.client.get("/openapi.json").json()
    parameters = [
        each
        for path in document["paths"].values()
        for operation in path.values()
        for each in operation.get("parameters", [])
    ]
    assert parameters
    assert {each["in"] for each in parameters} == {"path", "query", "header"}


def test_no_answer_lets_another_origin_read_it(api: Api) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
    for path in ("/v1/jobs", "/openapi.json", "/livez"):
        for answer in (api.client.get(path, headers=asked), api.client.options(path, headers=asked)):
            assert not [name for name in answer.headers if name.startswith("access-control-")]


FOREIGN = {
    "another origin": {"Origin": "https://evil.example"},
    "another port": {"Origin": "http://127.0.0.1:1"},
    "an origin that is hidden": {"Origin": "null"},
    "an origin that cannot be read": {"Origin": "http://[::1"},
    "another site": {"Sec-Fetch-Site": "cross-site"},
    "a sibling": {"Sec-Fetch-Site": "same-site"},
}


@pytest.mark.parametrize("case", FOREIGN)
def test_without_keys_pages_of_other_sites_change_nothing(api: Api, case: str) -> None:
    job = add_job(api.database)
    for answer in (
        api.client.post("/v1/datasets", headers=FOREIGN[case], **MULTIPART),  # no browser asks before it sends this
        api.client.post(f"/v1/jobs/{job}/cancel", headers=FOREIGN[case]),
        api.client.delete(f"/v1/jobs/{job}", headers=FOREIGN[case]),
    ):
        assert_problem(answer, 403, "foreign_site")
    assert api.client.get("/v1/datasets").json()["data"] != []  # the job's own alone
    assert api.client.get(f"/v1/jobs/{job}").json()["status"] == "queued"


def test_without_keys_the_apis_own_page_and_programs_change_what_they_like(api: Api) -> None:
    host, port = api.address
    for headers in (
        {"Origin": f"http://{host}:{port}", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {},
    ):
        assert api.client.post("/v1/datasets", headers=headers, **MULTIPART).status_code == 201


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "a.b", "[::1"]
)
def test_without_keys_a_name_that_another_may_have_given_is_refused(api: Api, host: str) -> None:
    for path in ("/v1/jobs", "/livez", "/docs"):
        assert_problem(api.client.get(path, headers={"Host": host}), 421, "misdirected_request")


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "sam3.localhost", "10.0.0.7", "[::1]:8000", "box"])
def test_without_keys_names_of_this_machine_are_answered(api: Api, host: str) -> None:
    assert api.client.get("/v1/jobs", headers={"Host": host}).status_code == 200


@contextlib.contextmanager
def served_with(folder: Path, **values: object) -> Iterator[Api]:
    settings = Settings(data_dir=folder, **values)
    upgrade(settings)
    with served(settings) as api:
        yield api


@pytest.mark.parametrize(
    "values", [{"public_hosts": "sam3.example.org"}, {"allow_unauthenticated_network": True}, {"require_keys": True}]
)
def test_where_names_are_known_or_keys_are_asked_for_any_may_be_used(tmp_path: Path, values: dict[str, object]) -> None:
    with served_with(tmp_path, **values) as api:
        answer = api.client.get("/v1/jobs", headers={"Host": "SAM3.example.org"})
        assert answer.status_code == (401 if "require_keys" in values else 200)


def test_the_documentation_runs_one_release_and_one_line_and_nothing_else(api: Api) -> None:
    answer = api.client.get("/docs")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", answer.text, re.DOTALL)
    allowed = []
    for attributes, text in scripts:
        source = re.search(r'src="([^"]+)" integrity="sha384-[\w+/]{64}" crossorigin="anonymous"', attributes)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        allowed.append(source[1] if source else f"'sha256-{digest}'")
    assert policy["script-src"].split() == allowed
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in policy["script-src"]
    assert_problem(api.client.get("/redoc"), 404, "not_found")
