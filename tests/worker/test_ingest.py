from __future__ import annotations

import hashlib
import io
import json
import shutil
import threading
from typing import TYPE_CHECKING, Any

import obstore
import pytest
from PIL import Image

from sam3_lora.coco import isolation
from service.shared.clock import SystemClock
from service.shared.dataset_files import preview_key
from service.shared.db.models import Dataset
from service.shared.db.repositories.quotas import Limits
from service.shared.ids import new_id
from service.shared.object_stores import open_bucket
from service.shared.queue import Task
from service.shared.settings import Settings
from service.shared.states import DatasetState, JobState
from service.shared.storage import Storage
from service.shared.unit_of_work import Database
from tests.coco.datasets import write_roboflow
from tests.worker.conftest import RecordingQueue, add_dataset, add_job, both_databases, job_of, zip_folder
from tests.worker.test_download import CONTENT, HOST, https_server, send
from worker import sources
from worker.ingest import IngestRunner
from worker.sources import DEMO_CONCEPTS, DEMO_TRAIN, DEMO_VALID
from worker.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def run(settings: Settings, database: Database, storage: Storage) -> Iterator[Any]:
    """Checks datasets until none is due."""
    workspace = Workspace(settings.data_dir / "workspace")
    draining = threading.Event()

    def until_done(**changes: Any) -> None:
        changed = settings.model_copy(update=changes)
        runner = IngestRunner(changed, database, storage, workspace, worker_id="w-1", is_draining=draining.is_set)
        while runner.run_next():
            pass

    yield until_done
    workspace.close()


def read(database: Database, dataset_id: str) -> Dataset:
    with database.read() as unit:
        return unit.datasets.get(dataset_id)


def add_source(database: Database, **source: str) -> str:
    with database.write() as unit:
        dataset = Dataset(id=new_id("ds"), name="d", filename="d", source=source, sha256="", size_bytes=0)
        return unit.datasets.add(dataset).id


@both_databases
def test_a_dataset_is_checked_drawn_and_its_jobs_go_on(
    run: Any, database: Database, storage: Storage, queue: RecordingQueue, dataset_zip: Path
) -> None:
    dataset_id = add_dataset(database, storage, dataset_zip, ready=False)
    job_id = add_job(database, dataset_id, state=JobState.VALIDATING_FILES)
    run()
    dataset = read(database, dataset_id)
    assert dataset.state is DatasetState.READY
    assert dataset.report is not None
    assert (dataset.report["summary"]["images"], dataset.report["status"]) == (16, "valid")
    assert job_of(database, job_id).state is JobState.QUEUED
    assert (Task.TRAIN, job_id) in queue.rings
    assert dataset.preview is not None
    assert [each["split"] for each in dataset.preview] == ["train"] * 12 + ["validation"] * 4
    for number, each in enumerate(dataset.preview):
        content = b"".join(storage.get_range(preview_key(str(dataset.storage_key), number)))
        assert (len(content), hashlib.sha256(content).hexdigest()) == (each["bytes"], each["sha256"])
        assert Image.open(io.BytesIO(content)).format == "WEBP"


def test_a_preview_that_crashes_costs_only_the_pictures(
    run: Any, database: Database, storage: Storage, dataset_zip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "PREVIEW_MODULE", "no.such.module")
    dataset_id = add_dataset(database, storage, dataset_zip, ready=False)
    run()
    dataset = read(database, dataset_id)
    assert (dataset.state, dataset.preview) == (DatasetState.READY, [])


def test_a_folder_is_packed_the_same_each_time_and_checked(
    run: Any, database: Database, storage: Storage, tmp_path: Path
) -> None:
    write_roboflow(tmp_path / "roots" / "bolts")
    (tmp_path / "roots" / "bolts" / "train" / "link.jpg").symlink_to("/etc/passwd")
    ids = [add_source(database, type="path", path=str(tmp_path / "roots" / "bolts"))]
    run(dataset_roots=(tmp_path / "roots",))
    shutil.copytree(tmp_path / "roots" / "bolts", tmp_path / "roots" / "copy", symlinks=True)
    ids.append(add_source(database, type="path", path=str(tmp_path / "roots" / "copy")))
    run(dataset_roots=(tmp_path / "roots",))
    first, second = (read(database, dataset_id) for dataset_id in ids)
    assert [first.state, second.state] == [DatasetState.READY] * 2
    assert first.sha256 == second.sha256
    assert first.storage_key == second.storage_key
    assert len([key for key in storage.list("datasets") if key.endswith("/archive")]) == 1


def test_the_demo_is_drawn_and_the_same_each_time(run: Any, database: Database, storage: Storage) -> None:
    ids = [add_source(database, type="demo")]
    run()
    ids.append(add_source(database, type="demo"))
    run()
    first, second = (read(database, dataset_id) for dataset_id in ids)
    assert [first.state, second.state] == [DatasetState.READY] * 2
    assert first.sha256 == second.sha256
    assert first.report is not None
    assert first.report["summary"]["images"] == DEMO_TRAIN + DEMO_VALID
    assert [each["name"] for each in first.report["stats"]["per_category"]] == list(DEMO_CONCEPTS)
    assert first.report["issues"] == []


def test_an_archive_is_copied_and_its_hash_checked(
    run: Any, database: Database, storage: Storage, tmp_path: Path, dataset_zip: Path
) -> None:
    path = tmp_path / "a.zip"
    shutil.copy(dataset_zip, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    good = add_source(database, type="path", path=str(path), sha256=digest)
    bad = add_source(database, type="path", path=str(path), sha256="0" * 64)
    run(dataset_roots=(tmp_path,))
    assert (read(database, good).state, read(database, good).sha256) == (DatasetState.READY, digest)
    failed = read(database, bad)
    assert failed.state is DatasetState.FAILED
    assert failed.error is not None
    assert (failed.error["code"], failed.error["retryable"]) == ("sha256_mismatch", False)
    assert "with that sha256" in failed.error["hint"]
    assert len([key for key in storage.list("datasets") if key.endswith("/archive")]) == 1


def test_an_archive_that_exceeds_the_quota_is_not_kept(
    run: Any, database: Database, storage: Storage, tmp_path: Path, dataset_zip: Path
) -> None:
    path = tmp_path / "a.zip"
    shutil.copy(dataset_zip, path)
    dataset_id = add_source(database, type="path", path=str(path))
    with database.write() as unit:
        unit.quotas.set("default", Limits(max_stored_bytes=path.stat().st_size - 1))
    run(dataset_roots=(tmp_path,))
    failed = read(database, dataset_id)
    assert (failed.state, failed.storage_key) == (DatasetState.FAILED, None)
    assert failed.error is not None
    assert (failed.error["code"], failed.error["retryable"]) == ("quota_exceeded", False)
    assert storage.list("datasets") == []
    with database.write() as unit:
        unit.quotas.set("default", Limits(max_stored_bytes=path.stat().st_size))
    fitting = add_source(database, type="path", path=str(path))
    run(dataset_roots=(tmp_path,))
    assert read(database, fitting).state is DatasetState.READY


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("{roots}/nope", "source_unavailable", "finds no"),
        ("{roots}/out", "source_refused", "leads out"),
        ("{roots}/out/x", "source_refused", "leads out"),
        ("{roots}/loop", "source_unavailable", "finds no"),
        ("{roots}/../secret", "source_refused", "under one of"),
        ("/etc/hostname", "source_refused", "under one of"),
        ("{roots}/large", "source_too_large", "larger than"),
        ("{roots}/pipe", "source_unavailable", "neither"),
    ],
)
def test_paths_that_are_not_read(
    run: Any, database: Database, storage: Storage, tmp_path: Path, path: str, code: str, text: str
) -> None:
    import os

    roots, secret = tmp_path / "roots", tmp_path / "secret"
    roots.mkdir()
    secret.mkdir()
    (secret / "x").write_bytes(b"secret")
    (roots / "out").symlink_to(secret)
    (roots / "loop").symlink_to(roots / "loop")
    (roots / "large").write_bytes(bytes(2000))
    os.mkfifo(roots / "pipe")
    dataset_id = add_source(database, type="path", path=path.format(roots=roots))
    run(dataset_roots=(roots,), max_upload_bytes=1000, ingest_max_attempts=1)
    dataset = read(database, dataset_id)
    assert dataset.error is not None
    assert (dataset.state, dataset.error["code"]) == (DatasetState.FAILED, code)
    assert text in dataset.error["message"]
    assert dataset.error["hint"]
    assert storage.list("datasets") == []


def test_a_uri_is_fetched_and_its_signature_forgotten(
    run: Any, database: Database, dataset_zip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = dataset_zip.read_bytes()
    with https_server(lambda handler: send(handler, content)) as server:
        place = f"{HOST}:{server['port']}"

        def reach(*arguments: Any, **options: Any) -> None:
            original(*arguments, **options, resolve=server["resolve"], context=server["context"])

        original = sources.download
        monkeypatch.setattr(sources, "download", reach)
        fetched = add_source(database, type="uri", uri=f"https://{place}/a.zip?signature=canary")
        run(dataset_uri_hosts=(place,))
        other = add_source(database, type="uri", uri=f"https://{place}/a.zip")
        run(dataset_uri_hosts=("elsewhere.example.org",))
    dataset = read(database, fetched)
    assert (dataset.state, dataset.size_bytes) == (DatasetState.READY, len(content))
    assert "canary" not in json.dumps(dataset.source)
    refused = read(database, other)
    assert refused.error is not None
    assert (refused.state, refused.error["code"]) == (DatasetState.FAILED, "source_refused")


@pytest.mark.parametrize("as_folder", [True, False])
def test_a_dataset_comes_out_of_a_bucket(
    run: Any, database: Database, s3: Any, tmp_path: Path, dataset_zip: Path, as_folder: bool
) -> None:
    here = Settings(data_dir=tmp_path / "other", dataset_buckets=(f"s3://{s3.bucket}",), storage_endpoint=s3.url)
    store, key = open_bucket(here, s3.bucket), new_id("ds")
    if as_folder:
        write_roboflow(tmp_path / "bolts")
        for path in (tmp_path / "bolts").rglob("*.*"):
            obstore.put(store, f"{key}/{path.relative_to(tmp_path / 'bolts').as_posix()}", path.read_bytes())
    else:
        obstore.put(store, key, dataset_zip.read_bytes())
    uri = f"s3://{s3.bucket}/{key}" + "/" * as_folder
    dataset_id, other = (add_source(database, type="uri", uri=uri) for _ in range(2))
    changes = {"dataset_buckets": here.dataset_buckets, "storage_endpoint": s3.url}
    run(**changes)
    for each in (dataset_id, other):
        dataset = read(database, each)
        assert (dataset.state, dataset.source) == (DatasetState.READY, {"type": "uri", "uri": uri}), dataset.error
    late = add_source(database, type="uri", uri=uri)
    run(**(changes | {"dataset_buckets": ()}))
    refused = read(database, late)
    assert refused.error is not None
    assert (refused.state, refused.error["code"]) == (DatasetState.FAILED, "source_refused")


def test_a_host_on_this_network_is_not_asked(run: Any, database: Database) -> None:
    dataset_id = add_source(database, type="uri", uri="https://localhost/a.zip")
    run(dataset_uri_hosts=("localhost",))
    dataset = read(database, dataset_id)
    assert dataset.error is not None
    assert (dataset.state, dataset.error["code"]) == (DatasetState.FAILED, "source_refused")


def test_a_passing_failure_is_tried_again_and_then_said(
    run: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def unavailable(*_: Any, **__: Any) -> None:
        tries.append(1)
        raise sources.SourceError("source_unavailable", "status 503.", "Wait.", retryable=True)

    monkeypatch.setattr(sources, "download", unavailable)
    dataset_id = add_source(database, type="uri", uri=f"https://{HOST}/a.zip")
    job_id = add_job(database, dataset_id, state=JobState.VALIDATING_FILES)
    while read(database, dataset_id).state is DatasetState.PROCESSING:
        run(dataset_uri_hosts=(HOST,))
    dataset = read(database, dataset_id)
    assert dataset.error is not None
    assert (dataset.state, dataset.error["code"], len(tries)) == (DatasetState.FAILED, "source_unavailable", 3)
    waiting = job_of(database, job_id).error
    assert waiting is not None
    assert (waiting["code"], waiting["hint"]) == ("dataset_invalid", "Wait.")
    assert waiting["message"].endswith("could not be checked: status 503.")


def test_what_a_deleted_dataset_had_fetched_does_not_stay(
    run: Any, database: Database, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(CONTENT)
    dataset_id = add_source(database, type="path", path=str(path))
    original = storage.put_file

    def put_and_delete(*arguments: Any, **options: Any) -> Any:
        with database.write() as unit:
            unit.datasets.mark_deleted(dataset_id)
        return original(*arguments, **{**options, "on_chunk": None})

    monkeypatch.setattr(storage, "put_file", put_and_delete)
    run(dataset_roots=(tmp_path,))
    assert storage.list("datasets") == []


def test_api_and_worker_share_nothing_but_bucket_and_database(s3: Any, tmp_path: Path, dataset_zip: Path) -> None:
    """Each side has a folder of its own; what one puts into the bucket the other finds."""
    from service.shared.db.migrate import upgrade
    from tests.service.conftest import served

    there = s3.settings("shared")
    database_url = f"sqlite:///{tmp_path / 'shared.db'}"
    api_side = Settings(data_dir=tmp_path / "api", database_url=database_url, **there)
    worker_side = Settings(data_dir=tmp_path / "worker", database_url=database_url, **there)
    upgrade(api_side)
    content = dataset_zip.read_bytes()
    with served(api_side) as api:
        checks = api.client.get("/readyz").json()["checks"]
        body = {"filename": "a.zip", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        upload = api.client.post("/v1/uploads", json=body).json()
        assert api.client.put(upload["urls"]["part"].format(number=1), content=content).status_code == 200
        assert api.client.post(upload["urls"]["complete"]).status_code == 200
        source = {"source": {"type": "upload", "upload_id": upload["id"]}}
        ids = [api.client.post("/v1/datasets", json=source).json()["id"]]
        files = {"file": ("b.zip", zip_bytes_of(dataset_zip, tmp_path), "application/zip")}
        ids.append(api.client.post("/v1/datasets", files=files).json()["id"])
        database = Database(worker_side, SystemClock(), RecordingQueue())
        workspace = Workspace(worker_side.data_dir / "workspace")
        runner = IngestRunner(
            worker_side, database, Storage(worker_side), workspace, worker_id="w", is_draining=lambda: False
        )
        while runner.run_next():
            pass
        assert checks["storage"] == "ok"
        for dataset_id in ids:
            dataset = api.client.get(f"/v1/datasets/{dataset_id}").json()
            assert (dataset["status"], dataset["summary"]["images"]) == ("ready", 16)
            pictures = api.client.get(dataset["urls"]["preview"]).json()["data"]
            assert api.client.get(pictures[0]["url"]).headers["content-type"] == "image/webp"
        workspace.close()
        database.close()
    assert not (tmp_path / "api" / "storage").exists()
    assert not (tmp_path / "worker" / "storage").exists()


def zip_bytes_of(dataset_zip: Path, tmp_path: Path) -> bytes:
    """The same dataset in another archive."""
    folder = tmp_path / "again"
    shutil.unpack_archive(dataset_zip, folder)
    (folder / "note.txt").write_text("another archive")
    return zip_folder(folder, tmp_path / "again.zip").read_bytes()
