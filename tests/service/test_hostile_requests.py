"""Requests meant to break the service: each gets a named 4xx, nothing is half-stored, and the next one works."""

from __future__ import annotations

import gzip
import json
import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.service.conftest import Api, add_dataset, assert_problem, body, upload, zip_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

VALID = json.dumps(body(dataset_id="DATASET", config={"lora": {"alpha": 16.0}}))
BOUNDARY = "b0undary"


def with_alpha(text: str) -> bytes:
    return VALID.replace("16.0", text).encode()


JSON_BODIES: dict[str, tuple[bytes, int, str]] = {
    "nan": (with_alpha("NaN"), 422, "invalid_request"),
    "infinity": (with_alpha("-Infinity"), 422, "invalid_request"),
    "1e400": (with_alpha("1e400"), 422, "invalid_request"),
    "integer of 5000 digits": (with_alpha("9" * 5000), 400, "malformed_request"),
    "integer of 400 digits": (with_alpha("9" * 400), 422, "invalid_request"),
    "lone surrogate": (VALID.replace("pallets-v1", "\\ud800").encode(), 422, "invalid_request"),
    "lone surrogate in a key": (VALID.replace('"name"', '"x\\udfff": 1, "name"').encode(), 422, "invalid_request"),
    "nul": (VALID.replace("pallets-v1", "a\\u0000b").encode(), 422, "invalid_request"),
    "key twice": (VALID.replace('"name"', '"name": "x", "name"').encode(), 400, "malformed_request"),
    "deep lists": (b"[" * 100_000, 400, "malformed_request"),
    "deep objects": (b'{"a":' * 900 + b"1" + b"}" * 900, 400, "malformed_request"),
    "not utf-8": (b'{"name": "\xff\xfe"}', 400, "malformed_request"),
    "empty": (b"", 400, "malformed_request"),
    "cut off": (VALID[:-1].encode(), 400, "malformed_request"),
    "two values": (VALID.encode() * 2, 400, "malformed_request"),
    "byte order mark": (b"\xef\xbb\xbf" + VALID.encode(), 400, "malformed_request"),
    "list": (b"[]", 422, "invalid_request"),
    "null": (b"null", 422, "invalid_request"),
    "string": (b'"x"', 422, "invalid_request"),
    "true as a number": (with_alpha("true"), 422, "invalid_request"),
    "too large": (VALID.replace("pallets-v1", "x" * 2**21).encode(), 413, "payload_too_large"),
}


def job_count(api: Api) -> int:
    return len(api.client.get("/v1/jobs").json()["data"])


@pytest.fixture
def next_request_works(api: Api) -> Iterator[Api]:
    """Whatever the test did: nothing was stored, and well-formed requests succeed afterwards."""
    before = len(api.storage.list("datasets")), job_count(api)
    yield api
    assert (len(api.storage.list("datasets")), job_count(api)) == before
    staging = api.settings.staging_dir
    assert not staging.exists() or not list(staging.iterdir())
    dataset = add_dataset(api.database)
    response = api.client.post("/v1/jobs", json=body(dataset_id=dataset))
    assert response.status_code == 201
    assert upload(api).status_code == 201


@pytest.mark.parametrize("case", JSON_BODIES)
def test_hostile_json(next_request_works: Api, case: str) -> None:
    content, status, code = JSON_BODIES[case]
    dataset = add_dataset(next_request_works.database)
    content = content.replace(b"DATASET", dataset.encode())
    headers = {"Content-Type": "application/json"}
    assert_problem(next_request_works.client.post("/v1/jobs", content=content, headers=headers), status, code)


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_json_under_another_name_is_refused(next_request_works: Api, media_type: str) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    response = next_request_works.client.post("/v1/jobs", content=VALID.encode(), headers=headers)
    assert_problem(response, 415, "unsupported_media_type")


def test_a_body_of_unknown_length_is_cut_off_at_the_cap(next_request_works: Api) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * 2**16

    headers = {"Content-Type": "application/json"}
    try:
        response = next_request_works.client.post("/v1/jobs", content=endless(), headers=headers)
    except httpx.TransportError:
        return  # the server closed the connection before it had read everything
    assert_problem(response, 413, "payload_too_large")


@pytest.mark.parametrize(
    "identifier",
    [
        "9223372036854775808",
        "-1",
        "%00",
        "a%00b",
        "..%2f..%2fetc%2fpasswd",
        "%F0%9F%92%A5",
        "%ff%fe",
        "'; DROP TABLE jobs",
    ],
)
@pytest.mark.parametrize("path", ["/v1/jobs/{}", "/v1/datasets/{}", "/v1/checkpoints/{}/files/x", "/jobs/{}/logs"])
def test_hostile_identifiers_are_not_found(api: Api, path: str, identifier: str) -> None:
    assert_problem(api.client.get(path.format(identifier)), 404, "not_found")


def test_an_endless_identifier_is_refused(api: Api) -> None:
    assert_problem(api.client.get("/v1/jobs/" + "x" * 5000), 422, "invalid_request")


@pytest.mark.parametrize("value", [str(2**63), "-2", "1e3", "NaN", "9" * 5000])
def test_hostile_query_numbers(api: Api, value: str) -> None:
    job = api.client.post("/v1/jobs", json=body(dataset_id=add_dataset(api.database))).json()["id"]
    for query in ("events?after", "metrics?after_step", "logs?tail"):
        assert_problem(api.client.get(f"/v1/jobs/{job}/{query}={value}"), 422, "invalid_request")


def form(*parts: bytes, end: bytes = b"--" + BOUNDARY.encode() + b"--\r\n") -> bytes:
    return b"".join(b"--" + BOUNDARY.encode() + b"\r\n" + part + b"\r\n" for part in parts) + end


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
    return f"Content-Disposition: {disposition}\r\n\r\n".encode() + content


FILE = part("file", zip_bytes(), "a.zip")
FORMS: dict[str, tuple[bytes, int]] = {
    "no end": (form(FILE, end=b""), 400),
    "cut in the file": (form(FILE)[:150], 400),
    "cut in a header": (form(FILE)[:30], 400),
    "empty": (b"", 400),
    "no parts": (form(), 422),
    "garbage": (b"\x00\xff" * 500, 400),
    "no file": (form(part("name", b"x")), 422),
    "two files": (form(FILE, FILE), 422),
    "unknown part": (form(FILE, part("labels", b"x")), 422),
    "field twice": (form(part("name", b"x"), part("name", b"y"), FILE), 422),
    "many parts": (form(*[part("name", b"x")] + [part(f"f{n}", b"") for n in range(1001)]), 422),
    "long field": (form(part("name", b"x" * 5000), FILE), 422),
    "long name": (form(part("name", b"x" * 201), FILE), 422),
    "empty name": (form(part("name", b""), FILE), 422),
    "nul in the name": (form(part("name", b"a\x00b"), FILE), 422),
    "name is not utf-8": (form(part("name", b"\xff\xfe"), FILE), 422),
    "hash is no hash": (form(part("sha256", b"xyz"), FILE), 422),
    "no disposition": (form(b"\r\n\r\nx"), 422),
    "endless header": (form(b"X-Y: " + b"z" * 100_000 + b"\r\n\r\nx"), 400),
}


@pytest.mark.parametrize("case", FORMS)
def test_hostile_forms(next_request_works: Api, case: str) -> None:
    content, status = FORMS[case]
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    response = next_request_works.client.post("/v1/datasets", content=content, headers=headers)
    assert_problem(response, status, "malformed_request" if status == 400 else "invalid_request")


@pytest.mark.parametrize(
    ("media_type", "status"),
    [
        ("application/zip", 415),
        ("application/json", 400),
        ("", 415),
        ("multipart/mixed; boundary=x", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
        ("multipart/form-data; boundary=" + "x" * 71, 400),
    ],
)
def test_an_upload_that_is_no_form_is_refused(next_request_works: Api, media_type: str, status: int) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    response = next_request_works.client.post("/v1/datasets", content=zip_bytes(), headers=headers)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("filename", ["../../etc/passwd", "C:\\data\\a.zip", "/", "x" * 500, "ü\u202e.zip"])
def test_hostile_file_names_only_name(api: Api, filename: str) -> None:
    content = form(part("file", zip_bytes(), filename))
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    dataset = api.client.post("/v1/datasets", content=content, headers=headers).json()
    assert "/" not in dataset["filename"]
    assert "\\" not in dataset["filename"]
    assert 1 <= len(dataset["filename"]) <= 200
    assert all(key.split("/")[1].startswith("ds_") for key in api.storage.list("datasets"))


def raw(api: Api, request: bytes, *, shut: bool = True) -> bytes:
    """The answer to bytes sent as they are; with `shut`, this side then sends nothing more."""
    with socket.create_connection(api.address, timeout=10) as connection:
        connection.sendall(request)
        if shut:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


def upload_head(length: int) -> bytes:
    return (
        f"POST /v1/datasets HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"Content-Length: {length}\r\nConnection: close\r\n\r\n"
    ).encode()


def test_a_connection_that_breaks_leaves_nothing(next_request_works: Api) -> None:
    raw(next_request_works, upload_head(10_000) + form(FILE))


def test_an_upload_that_stalls_is_dropped(next_request_works: Api) -> None:
    answer = raw(next_request_works, upload_head(10_000) + form(FILE)[:100], shut=False)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer


def test_an_upload_announced_too_large_is_refused_before_it_is_sent(next_request_works: Api) -> None:
    answer = raw(next_request_works, upload_head(10**15), shut=False)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_methods_and_paths_that_do_not_exist(api: Api) -> None:
    response = api.client.put("/v1/jobs")
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET, POST"
    assert api.client.request("PATCH", "/datasets/x").headers["allow"] == "GET, DELETE"
    assert api.client.put("/v1/checkpoints/a/files/b").headers["allow"] == "GET, HEAD"
    for path in ("/nope", "/v1/jobs/", "/v2/jobs", "/v1//jobs", "/v1/checkpoints/a/files/b/c"):
        assert_problem(api.client.get(path), 404, "not_found")


def test_request_ids_are_kept_if_harmless(api: Api) -> None:
    def answered(given: bytes) -> str:
        return str(api.client.get("/livez", headers=[(b"X-Request-Id", given)]).headers["x-request-id"])

    assert answered(b"abc-1.2_3") == "abc-1.2_3"
    for hostile in (b"a b", b"x" * 65, b'"}{', b"\xfc"):
        assert answered(hostile).startswith("req_")


def test_an_unexpected_exception_tells_nothing_of_the_inside(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret-canary")

    monkeypatch.setattr("service.shared.db.repositories.jobs.JobRepository.versions", explode)
    response = api.client.get("/v1/jobs/job_x")
    assert_problem(response, 500, "internal")
    assert "canary" not in response.text
    assert "RuntimeError" not in response.text
    monkeypatch.undo()
    assert_problem(api.client.get("/v1/jobs/job_x"), 404, "not_found")


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_a_compressed_body_is_refused_as_such(api: Api, encoding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    for content in (gzip.compress(b"{}"), b"{}"):
        problem = assert_problem(
            api.client.post("/v1/jobs", content=content, headers=headers), 415, "unsupported_media_type"
        )
        assert encoding in problem["detail"]
