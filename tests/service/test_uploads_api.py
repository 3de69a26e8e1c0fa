from __future__ import annotations

import base64
import hashlib
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from service.shared.errors import UploadIncompleteError
from service.usecases import uploads as usecase
from tests.service.conftest import Api, assert_problem, served, zip_bytes
from tests.service.test_hostile_requests import raw

if TYPE_CHECKING:
    import httpx

PART = 64 * 1024
CONTENT = os.urandom(PART * 3 + 1000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def begin(api: Api, content: bytes = CONTENT, **values: Any) -> dict[str, Any]:
    body = {"filename": "pallets.zip", "bytes": len(content), "part_bytes": PART} | values
    response = api.client.post("/v1/uploads", json=body)
    assert response.status_code == 201, response.text
    upload: dict[str, Any] = response.json()
    assert response.headers["location"] == upload["urls"]["self"]
    return upload


def put(api: Api, upload: dict[str, Any], number: int, content: bytes = CONTENT, **headers: str) -> httpx.Response:
    piece = content[(number - 1) * PART :][:PART]
    return api.client.put(upload["urls"]["part"].format(number=number), content=piece, headers=headers)


def complete(api: Api, upload: dict[str, Any]) -> httpx.Response:
    return api.client.post(upload["urls"]["complete"])


def whole(api: Api, content: bytes, **values: Any) -> dict[str, Any]:
    upload = begin(api, content, **values)
    for number in range(1, upload["part_count"] + 1):
        assert put(api, upload, number, content).status_code == 200
    response = complete(api, upload)
    assert response.status_code == 200, response.text
    done: dict[str, Any] = response.json()
    return done


def stored(api: Api, folder: str = "uploads") -> list[str]:
    return api.storage.list(folder)


def staged(api: Api) -> int:
    return len(list(api.settings.staging_dir.iterdir())) if api.settings.staging_dir.exists() else 0


def test_parts_come_in_any_order_and_make_the_file(api: Api) -> None:
    upload = begin(api, sha256=SHA256)
    assert (upload["status"], upload["part_count"], upload["parts"]) == ("pending", 4, [])
    for number in (4, 2, 1):
        part = put(api, upload, number).json()
        piece = CONTENT[(number - 1) * PART :][:PART]
        assert (part["number"], part["bytes"], part["sha256"]) == (
            number,
            len(piece),
            hashlib.sha256(piece).hexdigest(),
        )
    seen = api.client.get(upload["urls"]["self"]).json()
    assert [part["number"] for part in seen["parts"]] == [1, 2, 4]
    problem = assert_problem(complete(api, upload), 409, "upload_incomplete")
    assert "1 of 4 parts" in problem["detail"]
    assert problem["detail"].endswith("missing: 3.")
    put(api, upload, 3)
    done = complete(api, upload).json()
    assert (done["status"], done["sha256"], done["bytes"]) == ("completed", SHA256, len(CONTENT))
    assert complete(api, upload).json() == done
    (key,) = stored(api, "datasets")
    assert b"".join(api.storage.get_range(key)) == CONTENT
    assert (stored(api), staged(api)) == ([], 0)
    assert_problem(put(api, upload, 1), 409, "state_conflict")


def test_a_part_that_is_sent_again_replaces_the_earlier_one(api: Api) -> None:
    upload = begin(api, sha256=SHA256)
    wrong = bytes(len(CONTENT))
    for number in range(1, 5):
        put(api, upload, number, wrong)
    problem = assert_problem(complete(api, upload), 422, "invalid_request")
    assert problem["errors"][0]["code"] == "sha256_mismatch"
    assert stored(api, "datasets") == []
    for number in range(1, 5):
        put(api, upload, number)
        put(api, upload, number)
    assert len(stored(api)) == 4
    assert complete(api, upload).json()["sha256"] == SHA256


def digest(content: bytes, name: str = "sha256") -> str:
    return base64.b64encode(hashlib.new(name, content).digest()).decode()


FIRST = CONTENT[:PART]
HEADERS: list[tuple[dict[str, str], int, str]] = [
    ({"Content-Digest": f"sha-256=:{digest(FIRST)}:"}, 200, ""),
    ({"Content-Digest": f"sha-512=:{digest(FIRST, 'sha512')}:, sha-256=:{digest(FIRST)}:"}, 200, ""),
    ({"Content-MD5": digest(FIRST, "md5")}, 200, ""),
    ({"Content-Digest": f"sha-256=:{digest(b'x')}:"}, 422, "digest_mismatch"),
    ({"Content-Digest": f"sha-512=:{digest(b'x', 'sha512')}:, sha-256=:{digest(FIRST)}:"}, 422, "digest_mismatch"),
    ({"Content-MD5": digest(b"x", "md5")}, 422, "digest_mismatch"),
    ({"Content-MD5": "AAAA"}, 422, "invalid_digest"),
    ({"Content-Digest": f"crc32c=:{digest(FIRST)}:"}, 422, "invalid_digest"),
    ({"Content-Digest": "sha-256=:AAAA:"}, 422, "invalid_digest"),
    ({"Content-Digest": "sha-256=:" + "A" * 60 + ":"}, 422, "invalid_digest"),
    ({"Content-Digest": ""}, 422, "invalid_digest"),
]


@pytest.mark.parametrize(("headers", "status", "code"), HEADERS)
def test_digests_of_a_part_are_checked(api: Api, headers: dict[str, str], status: int, code: str) -> None:
    upload = begin(api)
    response = put(api, upload, 1, **headers)
    assert response.status_code == status, response.text
    if code:
        assert response.json()["errors"][0]["code"] == code
        assert (stored(api), staged(api)) == ([], 0)
    assert put(api, upload, 1).status_code == 200


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART + 1, PART * 2])
def test_a_part_of_the_wrong_length_is_refused_announced_or_not(api: Api, size: int) -> None:
    upload = begin(api)
    url = upload["urls"]["part"].format(number=1)
    for content in (bytes(size), iter([bytes(size)])):
        problem = assert_problem(api.client.put(url, content=content), 422, "invalid_request")
        assert problem["errors"][0]["code"] == "wrong_length"
    assert (stored(api), staged(api)) == ([], 0)


def test_a_part_that_breaks_off_or_stalls_leaves_nothing(api: Api) -> None:
    upload = begin(api)
    path = upload["urls"]["part"].format(number=1)
    request = f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {PART}\r\nConnection: close\r\n\r\n".encode()
    raw(api, request + FIRST[:1000])
    stalled = raw(api, request + FIRST[:1000], shut=False)
    assert stalled.startswith(b"HTTP/1.1 408 ")
    refused = raw(api, request.replace(str(PART).encode(), b"9" * 15), shut=False)
    assert refused.startswith(b"HTTP/1.1 422 ")
    assert (stored(api), staged(api)) == ([], 0)
    assert put(api, upload, 1).status_code == 200


@pytest.mark.parametrize(
    ("number", "status"), [("0", 422), ("5", 404), ("-1", 422), ("9" * 30, 422), ("1e0", 422), ("x", 422)]
)
def test_parts_that_do_not_exist(api: Api, number: str, status: int) -> None:
    upload = begin(api)
    assert api.client.put(upload["urls"]["part"].format(number=number), content=b"x").status_code == status


@pytest.mark.parametrize(
    ("values", "status", "code"),
    [
        ({"bytes": 0}, 422, "greater_than_equal"),
        ({"bytes": True}, 422, "int_type"),
        ({"bytes": 2**63}, 422, "less_than_equal"),
        ({"bytes": 2**49}, 413, ""),
        ({"bytes": 10**9, "part_bytes": PART}, 422, "too_many_parts"),
        ({"part_bytes": 1}, 422, "greater_than_equal"),
        ({"sha256": "A" * 64}, 422, "string_pattern_mismatch"),
        ({"filename": ""}, 422, "string_too_short"),
        ({"other": "x"}, 422, "extra_forbidden"),
        ({"purpose": "x"}, 422, "literal_error"),
    ],
)
def test_announcements_that_cannot_be(api: Api, values: dict[str, Any], status: int, code: str) -> None:
    body = {"filename": "a.zip", "bytes": 10} | values
    response = api.client.post("/v1/uploads", json=body)
    assert response.status_code == status, response.text
    if code:
        assert response.json()["errors"][0]["code"] == code


def test_parts_grow_with_the_file(api: Api) -> None:
    small = begin(api, part_bytes=None)
    assert (small["part_bytes"], small["part_count"]) == (64 * 2**20, 1)
    with served(api.settings.model_copy(update={"max_upload_bytes": 2**41})) as large:
        upload = begin(large, part_bytes=None, bytes=2**41)
    assert upload["part_count"] <= 10_000
    assert upload["part_bytes"] % 2**20 == 0


def test_one_key_makes_one_upload_and_hostile_names_only_name(api: Api) -> None:
    body = {"filename": "../../etc/a.zip", "bytes": 10}
    first, again = (api.client.post("/v1/uploads", json=body, headers={"Idempotency-Key": "u1"}) for _ in range(2))
    assert first.json() == again.json()
    assert first.json()["filename"] == "a.zip"
    assert again.headers["idempotent-replayed"] == "true"


def test_an_upload_is_given_up(api: Api) -> None:
    upload = begin(api)
    put(api, upload, 1)
    assert api.client.delete(upload["urls"]["self"]).status_code == 204
    assert stored(api) == []
    assert_problem(api.client.delete(upload["urls"]["self"]), 404, "not_found")
    assert_problem(api.client.get(upload["urls"]["self"]), 404, "not_found")
    assert_problem(put(api, upload, 1), 404, "not_found")
    assert_problem(complete(api, upload), 404, "not_found")


def test_each_part_renews_an_upload_and_one_without_parts_expires(api: Api) -> None:
    upload, left = begin(api), begin(api)
    for number in (1, 2, 3):
        api.clock.advance(api.settings.upload_retention_s - 1)
        assert put(api, upload, number).status_code == 200
    assert_problem(put(api, left, 1), 410, "upload_expired")
    assert_problem(complete(api, left), 410, "upload_expired")
    assert api.client.get(left["urls"]["self"]).json()["status"] == "expired"
    put(api, upload, 4)
    assert complete(api, upload).status_code == 200


def test_concurrent_parts_and_completions_make_one_file(api: Api) -> None:
    upload = begin(api, sha256=SHA256)
    numbers = [1, 2, 3, 4] * 4
    random.shuffle(numbers)
    with ThreadPoolExecutor(8) as pool:
        assert {each.status_code for each in pool.map(lambda number: put(api, upload, number), numbers)} == {200}
    assert len(stored(api)) == 4
    barrier = threading.Barrier(4)

    def race(_: int) -> httpx.Response:
        barrier.wait()
        return complete(api, upload)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(race, range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert {answer.json()["sha256"] for answer in answers} == {SHA256}
    assert len(stored(api, "datasets")) == 1
    assert stored(api) == []


def test_a_part_replaced_while_the_whole_is_made_is_noticed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = begin(api)
    for number in range(1, 5):
        put(api, upload, number)
    original = api.storage.put

    def put_and_change(key: str, chunks: Any, **options: Any) -> Any:
        result = original(key, chunks, **options)
        monkeypatch.undo()
        assert put(api, upload, 2, bytes(len(CONTENT))).status_code == 200
        return result

    monkeypatch.setattr(api.storage, "put", put_and_change)
    with pytest.raises(UploadIncompleteError, match="complete it again"):
        usecase.complete_upload(api.database, api.storage, upload["id"])
    assert stored(api, "datasets") == []
    assert complete(api, upload).json()["sha256"] != SHA256


def test_a_part_damaged_in_storage_is_named(api: Api) -> None:
    upload = begin(api)
    for number in range(1, 5):
        put(api, upload, number)
    key = next(key for key in stored(api) if "/3-" in key)
    api.storage.put(key, [bytes(PART)], size_bytes=PART)
    problem = assert_problem(complete(api, upload), 503, "storage_unavailable")
    assert "Part 3" in problem["detail"]
    put(api, upload, 3)
    assert complete(api, upload).json()["sha256"] == SHA256


def test_a_complete_upload_becomes_datasets(api: Api) -> None:
    content = zip_bytes()
    upload = whole(api, content)
    body = {"source": {"type": "upload", "upload_id": upload["id"]}, "sha256": upload["sha256"]}
    response = api.client.post("/v1/datasets", json=body, headers={"Idempotency-Key": "d1"})
    dataset = response.json()
    assert response.status_code == 201, response.text
    assert (dataset["name"], dataset["sha256"], dataset["bytes"]) == ("pallets.zip", upload["sha256"], len(content))
    assert dataset["source"]["upload_id"] == upload["id"]
    assert api.client.post("/v1/datasets", json=body, headers={"Idempotency-Key": "d1"}).json() == dataset
    second = api.client.post("/v1/datasets", json=body | {"name": "again"}).json()
    assert (second["name"], second["id"] != dataset["id"]) == ("again", True)
    assert len(stored(api, "datasets")) == 1
    assert api.client.delete(upload["urls"]["self"]).status_code == 204
    assert len(stored(api, "datasets")) == 1


def test_an_upload_without_a_dataset_takes_its_file_along(api: Api) -> None:
    upload = whole(api, zip_bytes())
    assert len(stored(api, "datasets")) == 1
    api.client.delete(upload["urls"]["self"])
    assert stored(api, "datasets") == []


def test_uploads_that_cannot_become_datasets(api: Api) -> None:
    def refused(upload_id: str, **values: Any) -> str:
        body = {"source": {"type": "upload", "upload_id": upload_id}} | values
        problem = assert_problem(api.client.post("/v1/datasets", json=body), 422, "invalid_request")
        return f"{problem['errors'][0]['pointer']} {problem['errors'][0]['code']}"

    done = whole(api, zip_bytes())
    assert refused("upload_x") == "/source/upload_id upload_not_found"
    assert refused(begin(api)["id"]) == "/source/upload_id upload_incomplete"
    assert refused(done["id"], sha256="0" * 64) == "/sha256 sha256_mismatch"
    assert refused("") == "/source/upload_id string_too_short"
    api.clock.advance(api.settings.upload_retention_s)
    assert refused(done["id"]) == "/source/upload_id upload_expired"


def test_uploads_whose_ids_were_lost_are_found(api: Api) -> None:
    made = [api.client.post("/v1/uploads", json={"filename": f"{n}.zip", "bytes": 10}).json() for n in range(3)]
    first = api.client.get("/v1/uploads?limit=2").json()
    rest = api.client.get("/v1/uploads", params={"limit": 2, "after": first["last_id"]}).json()
    listed = first["data"] + rest["data"]
    assert ([each["id"] for each in listed], rest["has_more"]) == ([each["id"] for each in made[::-1]], False)
    for each in listed:
        whole = api.client.get(each["url"]).json()
        assert {name: whole[name] for name in each if name != "url"} == {k: v for k, v in each.items() if k != "url"}
    assert api.client.delete(listed[0]["url"]).status_code == 204
    assert len(api.client.get("/v1/uploads").json()["data"]) == 2
