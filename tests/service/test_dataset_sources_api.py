"""Datasets that come from elsewhere, share their bytes, are looked at, and go."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from service.reconciler import Reconciler
from service.shared.dataset_files import preview_key
from service.shared.queue import Task
from service.shared.settings import Settings
from service.shared.states import DatasetState, JobState
from tests.service.conftest import Api, add_dataset, add_job, assert_problem, served, upload, zip_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

URI = {"type": "uri", "uri": "https://data.example.org/bolts.zip?sig=canary"}
PATH = {"type": "path", "path": "/data/bolts"}
SAME = zip_bytes()


@pytest.fixture(scope="module")
def open_server(served_api: Api) -> Iterator[Api]:
    allowed = {
        "dataset_uri_hosts": ("data.example.org", "other.example.org:8443"),
        "dataset_buckets": ("s3://all", "s3://some/team/a"),
        "dataset_roots": ("/data",),
    }
    with served(Settings(data_dir=served_api.settings.data_dir, **allowed)) as open_:
        yield open_


@pytest.fixture
def open_api(api: Api, open_server: Api) -> Api:
    """The service of an operator who allows a host and a folder, empty."""
    open_server.queue.rings.clear()
    return open_server


def create(api: Api, source: Any, **values: Any) -> Any:
    return api.client.post("/v1/datasets", json={"source": source} | values)


def fault(response: Any, code: str) -> str:
    problem = assert_problem(response, 422, code)
    return str(problem["errors"][0]["pointer"])


def test_sources_are_off_unless_an_operator_allows_them(api: Api) -> None:
    bucket = {"type": "uri", "uri": "s3://all/bolts.zip"}
    for source, name in (
        (URI, "SAM3_DATASET_URI_HOSTS"),
        (bucket, "SAM3_DATASET_BUCKETS"),
        (PATH, "SAM3_DATASET_ROOTS"),
    ):
        response = create(api, source)
        assert fault(response, "source_refused") == f"/source/{source['type']}"
        assert name in response.json()["detail"]
    assert api.client.get("/v1/datasets").json()["data"] == []


def test_a_dataset_of_a_uri_waits_for_a_worker_and_hides_the_signature(open_api: Api) -> None:
    response = create(open_api, URI)
    dataset = response.json()
    assert response.status_code == 201, response.text
    assert (dataset["status"], dataset["name"], dataset["bytes"], dataset["sha256"]) == (
        *("processing", "bolts.zip"),
        *(None, None),
    )
    assert dataset["source"]["uri"] == "https://data.example.org/bolts.zip"
    assert open_api.queue.rings == [(Task.INGEST, dataset["id"])]
    assert "canary" not in open_api.client.get("/v1/datasets").text


def test_the_demo_needs_nothing_of_an_operator(api: Api) -> None:
    made = api.client.post("/v1/datasets", json={"source": {"type": "demo"}})
    assert made.status_code == 201
    assert (made.json()["status"], made.json()["source"]["type"]) == ("processing", "demo")
    assert api.queue.rings == [(Task.INGEST, made.json()["id"])]


def test_a_dataset_of_a_path_is_named_as_its_folder(open_api: Api) -> None:
    dataset = create(open_api, PATH, name="mine", sha256="0" * 64).json()
    assert (dataset["name"], dataset["filename"], dataset["source"]["path"]) == ("mine", "bolts", "/data/bolts")


@pytest.mark.parametrize(
    "uri",
    [
        "http://data.example.org/a",
        "https://data.example.org:8443/a",
        "https://other.example.org/a",
        "https://data.example.org.evil.com/a",
        "https://user:pass@data.example.org/a",
        "https://data.example.org@evil.com/a",
        "https://data.example.org\\@evil.com/a",
        "https://evil.com#@data.example.org/a",
        "https://127.0.0.1/a",
        "https://[::1]/a",
        "https://[::1/a",
        "https://data.example.org:99999/a",
        "https://data.example.org/a b",
        "https://data.example.org/a\r\nX: y",
        "https:///a",
        "file:///etc/passwd",
        "s3://bucket/key",
        "s3://",
        "s3:///all/key",
        "S3://all/key",
        "s3://all//key",
        "s3://all/./key",
        "s3://all/a/../key",
        "s3://all/key\n",
        "s3://user:pass@all/key",
        "s3://all.evil/key",
        "s3://allother/key",
        "s3://some/key",
        "s3://some/team/b/key",
        "s3://some/team/ab.zip",
        "s3://some/team/",
        "s3://some",
        "ftp://data.example.org/a",
    ],
)
def test_uris_that_are_not_fetched(open_api: Api, uri: str) -> None:
    assert fault(create(open_api, {"type": "uri", "uri": uri}), "source_refused") == "/source/uri"


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://all", "all"),
        ("s3://all/", "all"),
        ("s3://all/bolts.zip", "bolts.zip"),
        ("s3://all/2026/bolts/", "bolts"),
        ("s3://all/Größe 1?#.zip", "Größe 1?#.zip"),
        ("s3://some/team/a/", "a"),
        ("s3://some/team/a/bolts.zip", "bolts.zip"),
    ],
)
def test_places_in_buckets_that_are_read(open_api: Api, uri: str, name: str) -> None:
    response = create(open_api, {"type": "uri", "uri": uri})
    assert response.status_code == 201, response.text
    dataset = response.json()
    assert (dataset["name"], dataset["source"], dataset["status"]) == (
        *(name, {"type": "uri", "uri": uri, "upload_id": None, "path": None}),
        "processing",
    )


def test_uris_that_are_fetched(open_api: Api) -> None:
    for uri in ("https://DATA.example.org/a", "https://data.example.org:443/a", "https://other.example.org:8443"):
        assert create(open_api, {"type": "uri", "uri": uri}).status_code == 201


@pytest.mark.parametrize("path", ["data", "/", "/data/../etc", "/database", "/etc/passwd", "./data/x", "//data/x"])
def test_paths_that_are_not_read(open_api: Api, path: str) -> None:
    assert fault(create(open_api, {"type": "path", "path": path}), "source_refused") == "/source/path"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/source"),
        ({"source": {}}, "/source"),
        ({"source": {"type": "s3"}}, "/source"),
        ({"source": "x"}, "/source"),
        ({"source": {"type": "uri"}}, "/source/uri"),
        ({"source": {"type": "path", "path": 1}}, "/source/path"),
        ({"source": {"type": "upload", "upload_id": "x" * 65}}, "/source/upload_id"),
        ({"source": URI | {"depth": 1}}, "/source/depth"),
        ({"source": URI, "sha256": "xyz"}, "/sha256"),
        ({"source": URI, "name": ""}, "/name"),
        ({"source": URI, "tags": []}, "/tags"),
    ],
)
def test_bodies_that_say_nothing(open_api: Api, body: Any, pointer: str) -> None:
    assert fault(open_api.client.post("/v1/datasets", json=body), "invalid_request") == pointer


def test_one_key_makes_one_dataset_of_a_source(open_api: Api) -> None:
    headers = {"Idempotency-Key": "k"}
    body = {"source": PATH}
    first, again = (open_api.client.post("/v1/datasets", json=body, headers=headers) for _ in range(2))
    assert first.json() == again.json()
    other = open_api.client.post("/v1/datasets", json={"source": URI}, headers=headers)
    assert_problem(other, 422, "idempotency_key_reused")


def check(api: Api, dataset_id: str, state: DatasetState = DatasetState.READY) -> None:
    with api.database.write() as unit:
        claimed = unit.datasets.claim("w")
        assert claimed is not None
        assert claimed.id == dataset_id
        picture = {"split": "train", "file_name": "a.jpg", "width": 4, "height": 3, "instances": 1}
        sha256 = hashlib.sha256(b"picture").hexdigest()
        api.storage.put(preview_key(str(claimed.storage_key), 0), [b"picture"], size_bytes=7)
        report = {"status": "valid", "summary": {"images": 1}, "issues": [], "stats": {}}
        preview = [picture | {"sha256": sha256, "bytes": 7}]
        unit.datasets.finish(dataset_id, claimed.epoch, state, report=report, preview=preview)


def archives(api: Api) -> list[str]:
    return [key for key in api.storage.list("datasets") if key.endswith("/archive")]


def reconciler(api: Api, **changes: Any) -> Reconciler:
    settings = api.settings.model_copy(update=changes)
    return Reconciler(settings, api.database, api.storage, api.queue, api.clock)


def test_the_same_bytes_are_stored_once_and_checked_once(api: Api) -> None:
    first = upload(api, SAME).json()
    check(api, first["id"])
    api.queue.rings.clear()
    second = upload(api, SAME, data={"name": "again"}).json()
    assert (second["status"], second["summary"], second["name"]) == ("ready", {"images": 1}, "again")
    assert second["id"] != first["id"]
    assert second["finished_at"] is not None
    assert api.queue.rings == []
    assert len(archives(api)) == 1
    assert api.client.get(second["urls"]["preview"]).json()["data"][0]["file_name"] == "a.jpg"


def test_bytes_that_were_found_wrong_are_checked_again(api: Api) -> None:
    check(api, upload(api, SAME).json()["id"], DatasetState.INVALID)
    second = upload(api, SAME).json()
    assert second["status"] == "processing"
    assert len(archives(api)) == 1


def test_shared_bytes_go_with_the_last_that_shares_them(api: Api) -> None:
    first, second = upload(api, SAME).json(), upload(api, SAME).json()
    for dataset, left in ((first, 1), (second, 0)):
        assert len(archives(api)) == 1
        assert api.client.delete(dataset["urls"]["self"]).status_code == 204
        reconciler(api).run_once()
        assert len(archives(api)) == left
    assert upload(api, SAME).status_code == 201
    assert len(archives(api)) == 1


def test_creating_and_deleting_the_same_bytes_at_once_loses_none(api: Api) -> None:
    passing = reconciler(api)
    done = threading.Event()

    def sweep() -> None:
        while not done.is_set():
            passing._purge_datasets()

    def create_and_delete(number: int) -> str | None:
        dataset = upload(api, SAME).json()
        if number % 3:
            assert api.client.delete(dataset["urls"]["self"]).status_code == 204
            return None
        return str(dataset["id"])

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    with ThreadPoolExecutor(6) as pool:
        kept = [each for each in pool.map(create_and_delete, range(36)) if each]
    done.set()
    sweeper.join()
    passing._purge_datasets()
    assert len(kept) == 12
    with api.database.read() as unit:
        keys = {str(unit.datasets.get(each).storage_key) for each in kept}
    assert keys == set(archives(api))
    for key in keys:
        assert b"".join(api.storage.get_range(key)) == SAME


def test_the_jobs_that_need_a_dataset_are_named(api: Api) -> None:
    dataset = add_dataset(api.database)
    jobs = [add_job(api.database, dataset) for _ in range(12)]
    add_job(api.database, add_dataset(api.database))
    problem = assert_problem(api.client.delete(f"/v1/datasets/{dataset}"), 409, "dataset_in_use")
    named = [job for job in jobs if job in problem["detail"]]
    assert len(named) == 10
    assert "and more" in problem["detail"]


def test_unused_datasets_go_after_their_time_if_an_operator_says_so(api: Api) -> None:
    day = 86400.0
    used, ended, unused, waiting = (upload(api, zip_bytes(bytes([n]))).json()["id"] for n in range(4))
    for dataset_id in (used, ended, unused):
        check(api, dataset_id)
    add_job(api.database, used)
    job = add_job(api.database, ended)

    def left() -> set[str]:
        return {dataset["id"] for dataset in api.client.get("/v1/datasets").json()["data"]}

    api.clock.advance(10 * day)
    api.client.post(f"/v1/jobs/{job}/cancel")
    reconciler(api).run_once()
    assert left() == {used, ended, unused, waiting}
    reconciler(api, dataset_retention_s=5 * day).run_once()
    assert left() == {used, ended, waiting}
    api.clock.advance(6 * day)
    reconciler(api, dataset_retention_s=5 * day).run_once()
    assert left() == {used, waiting}
    assert len(archives(api)) == 2


def test_expired_uploads_and_unknown_files_vanish(api: Api) -> None:
    body = {"filename": "a.zip", "bytes": 10}
    expired, alive = (api.client.post("/v1/uploads", json=body).json() for _ in range(2))
    for each in (expired, alive):
        assert api.client.put(each["urls"]["part"].format(number=1), content=b"x" * 10).status_code == 200
    orphan = f"uploads/{alive['id']}/1-part_orphan"
    api.storage.put(orphan, [b"x"], size_bytes=1)
    api.clock.advance(time.time() - api.clock.now().timestamp() + api.settings.staging_retention_s + 60)
    with api.database.write() as unit:
        unit.uploads.get(alive["id"]).expires_at = api.clock.now().replace(year=2100)
    one = reconciler(api)
    one.run_once()
    one.sweep()
    one.sweep()
    assert_problem(api.client.get(expired["urls"]["self"]), 404, "not_found")
    assert [key.split("/")[1] for key in api.storage.list("uploads")] == [alive["id"]]
    assert orphan not in api.storage.list("uploads")


def test_pictures_are_listed_and_kept_by_clients(api: Api, tmp_path: Path) -> None:
    dataset = upload(api, SAME).json()
    assert api.client.get(dataset["urls"]["preview"]).json() == {"object": "list", "data": []}
    check(api, dataset["id"])
    (picture,) = api.client.get(dataset["urls"]["preview"]).json()["data"]
    assert picture == {
        "split": "train",
        "file_name": "a.jpg",
        "width": 4,
        "height": 3,
        "instances": 1,
        "url": f"/v1/datasets/{dataset['id']}/preview/0",
    }
    response = api.client.get(picture["url"])
    assert (response.content, response.headers["content-type"]) == (b"picture", "image/webp")
    assert "immutable" in response.headers["cache-control"]
    again = api.client.get(picture["url"], headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert api.client.get(dataset["urls"]["preview"] + "?split=test").json()["data"] == []
    for query in ("?split=x", "?limit=0", "?limit=101", "?limit=NaN"):
        assert_problem(api.client.get(dataset["urls"]["preview"] + query), 422, "invalid_request")
    for number in ("1", "99"):
        assert_problem(api.client.get(f"/v1/datasets/{dataset['id']}/preview/{number}"), 404, "not_found")
    for number in ("-1", "x", str(2**63), "1e0"):
        assert_problem(api.client.get(f"/v1/datasets/{dataset['id']}/preview/{number}"), 422, "invalid_request")
    api.client.delete(dataset["urls"]["self"])
    reconciler(api).run_once()
    assert api.storage.list("datasets") == []


def test_a_job_may_wait_for_a_dataset_that_is_still_to_be_fetched(open_api: Api) -> None:
    dataset = create(open_api, PATH).json()
    job = add_job(open_api.database, dataset["id"], state=JobState.VALIDATING_FILES)
    assert_problem(open_api.client.delete(dataset["urls"]["self"]), 409, "dataset_in_use")
    assert open_api.client.get(f"/v1/jobs/{job}").json()["status"] == "validating_files"
