from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

import pytest

from service.shared.db.repositories.checkpoints import CheckpointManifest
from tests.service.conftest import Api, add_job, assert_problem

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = bytes(range(256)) * 12_000  # 3,072,000 bytes: several chunks
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ETAG = f'"{SHA256}"'
NAME = "adapter_model.safetensors"


@pytest.fixture
def url(api: Api, tmp_path: Path) -> str:
    """Address of a published file."""
    add_job(api.database)
    source = tmp_path / NAME
    source.write_bytes(CONTENT)
    with api.database.write() as unit:
        job = unit.jobs.claim("w-1")
        assert job is not None
        files = {NAME: api.storage.put_file(f"jobs/{job.id}/{NAME}", source)}
        unit.checkpoints.publish(job.id, job.epoch, CheckpointManifest("best", 1, 10, "val/segm_mAP", 0.5, files))
    (checkpoint,) = api.client.get(f"/v1/jobs/{job.id}/checkpoints").json()["data"]
    (file,) = checkpoint["files"]
    assert (file["name"], file["bytes"], file["sha256"]) == (NAME, SIZE, SHA256)
    address: str = file["url"]
    return address


def test_a_whole_file_comes_with_its_hash(api: Api, url: str) -> None:
    response = api.client.get(url)
    assert (response.status_code, response.content) == (200, CONTENT)
    headers = response.headers
    assert headers["etag"] == ETAG
    assert headers["repr-digest"] == f"sha-256=:{base64.b64encode(hashlib.sha256(CONTENT).digest()).decode()}:"
    assert (headers["accept-ranges"], headers["content-length"]) == ("bytes", str(SIZE))
    assert headers["content-disposition"] == f'attachment; filename="{NAME}"'
    assert headers["x-content-type-options"] == "nosniff"


def test_head_tells_the_same_without_the_content(api: Api, url: str) -> None:
    head = api.client.head(url, headers={"Range": "bytes=0-9"})
    assert (head.status_code, head.content) == (200, b"")
    whole = api.client.get(url)
    for name in ("content-length", "etag", "repr-digest", "accept-ranges", "content-type"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize(
    ("value", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=0-", 0, SIZE),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        (f"bytes=10-{10**18}", 10, SIZE),
        ("bytes=-1", SIZE - 1, SIZE),
        (f"bytes=-{10**18}", 0, SIZE),
        ("bytes = 1000000 - 2999999", 1_000_000, 3_000_000),
        ("BYTES=5-9", 5, 10),
    ],
)
def test_one_range_is_answered_exactly(api: Api, url: str, value: str, start: int, end: int) -> None:
    response = api.client.get(url, headers={"Range": value})
    assert (response.status_code, response.content) == (206, CONTENT[start:end])
    assert response.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert response.headers["content-length"] == str(end - start)
    assert response.headers["etag"] == ETAG


@pytest.mark.parametrize(
    "value",
    [
        "bytes=",
        "bytes=-",
        "bytes=9-5",
        "bytes=a-b",
        "lines=0-9",
        "0-9",
        "bytes=0-1,5-6",
        f"bytes=-{'9' * 30}",
        "bytes=0-9;",
    ],
)
def test_other_ranges_are_ignored(api: Api, url: str, value: str) -> None:
    response = api.client.get(url, headers={"Range": value})
    assert (response.status_code, len(response.content)) == (200, SIZE)


@pytest.mark.parametrize("value", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0"])
def test_a_range_behind_the_end_is_refused(api: Api, url: str, value: str) -> None:
    response = api.client.get(url, headers={"Range": value})
    assert_problem(response, 416, "range_not_satisfiable")
    assert response.headers["content-range"] == f"bytes */{SIZE}"


def test_a_broken_download_goes_on_only_with_the_same_version(api: Api, url: str) -> None:
    same = api.client.get(url, headers={"Range": "bytes=100-", "If-Range": ETAG})
    assert (same.status_code, same.content) == (206, CONTENT[100:])
    for other in ('"other"', f"W/{ETAG}", "Mon, 01 Jan 2026 00:00:00 GMT"):
        response = api.client.get(url, headers={"Range": "bytes=100-", "If-Range": other})
        assert (response.status_code, len(response.content)) == (200, SIZE)


def test_conditions(api: Api, url: str) -> None:
    for value in (ETAG, f'"x", {ETAG}', "*", f"W/{ETAG}"):
        for method in ("GET", "HEAD"):
            response = api.client.request(method, url, headers={"If-None-Match": value, "Range": "bytes=0-1"})
            assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", ETAG)
    assert api.client.get(url, headers={"If-None-Match": '"other"'}).status_code == 200
    assert api.client.get(url, headers={"If-Match": ETAG}).status_code == 200
    assert_problem(api.client.get(url, headers={"If-Match": '"other"'}), 412, "precondition_failed")


def test_unknown_and_damaged_files_are_named(api: Api, url: str) -> None:
    assert_problem(api.client.get(url + "x"), 404, "not_found")
    key = api.storage.list("jobs")[0]
    (api.settings.storage_dir / key).write_bytes(b"short")
    assert_problem(api.client.get(url), 503, "storage_unavailable")
