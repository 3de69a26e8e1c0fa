from __future__ import annotations

import base64
import hashlib
import io
import shutil
import subprocess
import zipfile
from datetime import timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update

from service.shared.db.models import Checkpoint
from service.shared.db.repositories.checkpoints import CheckpointManifest
from service.shared.zip_layout import ZipLayout, members_of, reader_of
from tests.service.conftest import Api, add_job, assert_problem

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = bytes(range(256)) * 12_000  # 3,072,000 bytes: several chunks
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ETAG = f'"{SHA256}"'
NAME = "adapter_model.safetensors"


@pytest.fixture
def checkpoint(api: Api, tmp_path: Path) -> dict[str, Any]:
    """A published checkpoint of two files."""
    add_job(api.database)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / NAME).write_bytes(CONTENT)
    (folder / "adapter_config.json").write_bytes(b"{}")
    members = members_of(folder)
    with api.database.write() as unit:
        job = unit.jobs.claim("w-1")
        assert job is not None
        manifest = CheckpointManifest(
            *("best", 1, 10, "val/segm_mAP", 0.5),
            files={m.name: api.storage.put_file(f"jobs/{job.id}/{m.name}", folder / m.name) for m in members},
            crc32={m.name: m.crc32 for m in members},
            archive_sha256=ZipLayout(members).sha256(reader_of(folder)),
        )
        unit.checkpoints.publish(job.id, job.epoch, manifest)
    (found,) = api.client.get(f"/v1/jobs/{job.id}/checkpoints").json()["data"]
    assert api.client.get(f"/v1/checkpoints/{found['id']}").json() == found
    return dict(found)


@pytest.fixture
def url(checkpoint: dict[str, Any]) -> str:
    """Address of its large file."""
    file = checkpoint["files"][1]
    assert (file["name"], file["bytes"], file["sha256"]) == (NAME, SIZE, SHA256)
    return str(file["url"])


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
    own = {"date", "x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in own} == {
        k: v for k, v in whole.headers.items() if k not in own
    }


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


def test_only_the_very_same_version_matches(api: Api, url: str) -> None:
    assert_problem(api.client.get(url, headers={"If-Match": f"W/{ETAG}"}), 412, "precondition_failed")
    assert api.client.get(url, headers={"If-Match": "*"}).status_code == 200
    assert api.client.get(url, headers={"If-Match": f'"x", {ETAG}'}).status_code == 200


def test_dates_are_conditions_where_there_are_no_tags(api: Api, url: str) -> None:
    modified = api.client.get(url).headers["last-modified"]
    later = format_datetime(api.clock.now() + timedelta(days=1), usegmt=True)
    earlier = format_datetime(api.clock.now() - timedelta(days=1), usegmt=True)

    def status(**headers: str) -> int:
        return api.client.get(url, headers={k.replace("_", "-"): v for k, v in headers.items()}).status_code

    assert [status(If_Modified_Since=date) for date in (earlier, modified, later, "yesterday")] == [200, 304, 304, 200]
    assert [status(If_Unmodified_Since=date) for date in (earlier, modified, later, "x")] == [412, 200, 200, 200]
    assert status(If_None_Match='"other"', If_Modified_Since=later) == 200  # the tag decides
    assert status(If_Match=ETAG, If_Unmodified_Since=earlier) == 200
    assert status(Range="bytes=5-9", If_Range=modified) == 206
    assert status(Range="bytes=5-9", If_Range=later) == 200


def test_the_archive_is_the_same_at_every_download_and_goes_on_where_one_broke_off(
    api: Api, checkpoint: dict[str, Any]
) -> None:
    archive = checkpoint["archive"]
    whole = api.client.get(archive["url"])
    assert (whole.status_code, whole.headers["content-type"]) == (200, "application/zip")
    assert (len(whole.content), hashlib.sha256(whole.content).hexdigest()) == (archive["bytes"], archive["sha256"])
    assert whole.headers["content-length"] == str(archive["bytes"])
    with zipfile.ZipFile(io.BytesIO(whole.content)) as opened:
        assert opened.testzip() is None
        assert opened.read(NAME) == CONTENT
    for start in (0, 1, 40, 70, 2000, archive["bytes"] - 1):
        headers = {"Range": f"bytes={start}-", "If-Range": whole.headers["etag"]}
        rest = api.client.get(archive["url"], headers=headers)
        assert (rest.status_code, rest.content) == (206, whole.content[start:])
    head = api.client.head(archive["url"])
    assert (head.headers["content-length"], head.headers["etag"]) == (str(archive["bytes"]), f'"{archive["sha256"]}"')


@pytest.mark.parametrize("program", ["curl", "wget", "aria2c"])
def test_downloaders_finish_what_they_began(api: Api, checkpoint: dict[str, Any], tmp_path: Path, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    url = f"http://{api.address[0]}:{api.address[1]}{checkpoint['archive']['url']}"
    whole, part = api.client.get(url).content, tmp_path / "archive.zip"
    part.write_bytes(whole[:1_000_000])
    command = {
        "curl": ["curl", "-sS", "-f", "-C", "-", "-o", str(part), url],
        "wget": ["wget", "-q", "-c", "-O", str(part), url],
        "aria2c": ["aria2c", "-q", "-c", "-x4", "-k1M", "--allow-overwrite", "-d", str(tmp_path), "-o", part.name, url],
    }[program]
    subprocess.run(command, check=True, timeout=60)
    assert hashlib.sha256(part.read_bytes()).hexdigest() == checkpoint["archive"]["sha256"]


def test_a_checkpoint_of_an_older_version_has_no_archive(api: Api, checkpoint: dict[str, Any]) -> None:
    with api.database.write() as unit:
        unit.session.execute(update(Checkpoint).values(archive_sha256=None))
    assert api.client.get(f"/v1/checkpoints/{checkpoint['id']}").json()["archive"] is None
    assert_problem(api.client.get(checkpoint["archive"]["url"]), 404, "not_found")


def test_unknown_and_damaged_files_are_named(api: Api, url: str) -> None:
    assert_problem(api.client.get(url + "x"), 404, "not_found")
    archive = url.replace(f"files/{NAME}", "archive")
    assert_problem(api.client.get(archive.replace("ckpt_", "ckpt_0")), 404, "not_found")
    (key,) = (key for key in api.storage.list("jobs") if key.endswith(NAME))
    for damage in ("short", None):
        file = api.settings.storage_dir / key
        file.unlink() if damage is None else file.write_text(damage)
        for address in (url, archive):
            assert_problem(api.client.get(address), 503, "storage_unavailable")
