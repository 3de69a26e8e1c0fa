from __future__ import annotations

import hashlib
import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from service.shared.queue import Task
from service.shared.settings import Settings
from service.shared.states import DatasetState, JobState
from tests.service.conftest import Api, add_dataset, add_job, assert_problem, body, served, upload, zip_bytes

if TYPE_CHECKING:
    from pathlib import Path


def stored(api: Api) -> list[str]:
    return api.storage.list("datasets")


def staged(api: Api) -> list[Path]:
    return list(api.settings.staging_dir.iterdir()) if api.settings.staging_dir.exists() else []


def test_an_upload_is_stored_hashed_and_rung(api: Api) -> None:
    content = zip_bytes()
    response = upload(api, content, data={"name": "pallets"})
    dataset = response.json()
    digest = hashlib.sha256(content).hexdigest()
    assert response.status_code == 201
    assert response.headers["location"] == f"/v1/datasets/{dataset['id']}"
    assert (dataset["status"], dataset["name"], dataset["filename"]) == ("processing", "pallets", "pallets.zip")
    assert (dataset["bytes"], dataset["sha256"]) == (len(content), digest)
    assert b"".join(api.storage.get_range(stored(api)[0])) == content
    assert api.queue.rings == [(Task.INGEST, dataset["id"])]
    assert api.client.get(dataset["urls"]["self"]).json() == dataset
    assert staged(api) == []


def test_a_tar_and_a_large_archive_arrive_unchanged(api: Api) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("train/a.bin")
        info.size = 5 * 2**20 + 17
        archive.addfile(info, io.BytesIO(bytes(range(256)) * (info.size // 256 + 1)))
    response = upload(api, buffer.getvalue())
    assert response.json()["sha256"] == hashlib.sha256(buffer.getvalue()).hexdigest()
    assert b"".join(api.storage.get_range(stored(api)[0])) == buffer.getvalue()


def test_a_wrong_hash_is_refused_and_nothing_stays(api: Api) -> None:
    problem = assert_problem(upload(api, data={"sha256": "0" * 64}), 422, "invalid_request")
    assert problem["errors"][0]["code"] == "sha256_mismatch"
    assert stored(api) == []
    assert staged(api) == []
    assert not api.queue.rings
    digest = hashlib.sha256(zip_bytes()).hexdigest()
    assert upload(api, data={"sha256": digest}).status_code in (201, 422)


@pytest.mark.parametrize("content", [b"", b"hello", b"%PDF-1.7", b"\x80\x04\x95pickle"])
def test_what_is_no_archive_is_refused(api: Api, content: bytes) -> None:
    assert_problem(upload(api, content), 415, "unsupported_media_type")
    assert stored(api) == []


def test_one_key_makes_one_dataset(api: Api) -> None:
    content = zip_bytes()
    headers = {"Idempotency-Key": "k1"}
    first, again = (upload(api, content, headers=headers) for _ in range(2))
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert len(stored(api)) == 1
    assert_problem(upload(api, zip_bytes(b"[]"), headers=headers), 422, "idempotency_key_reused")
    assert len(stored(api)) == 1
    assert len(api.client.get("/v1/datasets").json()["data"]) == 1


def test_the_report_is_shown(api: Api) -> None:
    dataset = add_dataset(api.database, DatasetState.PROCESSING)
    url = f"/v1/datasets/{dataset}/validation"
    assert api.client.get(url).json()["issues"] == []
    report = {"status": "invalid", "summary": {"errors": 1}, "issues": [{"code": "image_missing"}], "stats": {"x": 1}}
    with api.database.write() as unit:
        claimed = unit.datasets.claim("w")
        assert claimed is not None
        unit.datasets.finish(dataset, claimed.epoch, DatasetState.INVALID, report=report)
    shown = api.client.get(url).json()
    assert (shown["status"], shown["summary"], shown["issues"]) == ("invalid", {"errors": 1}, report["issues"])
    assert api.client.get(f"/v1/datasets/{dataset}").json()["summary"] == {"errors": 1}


def test_a_dataset_is_deleted_unless_an_unfinished_job_needs_it(api: Api) -> None:
    dataset = upload(api).json()["id"]
    job = add_job(api.database, dataset, state=JobState.VALIDATING_FILES)
    response = api.client.delete(f"/v1/datasets/{dataset}")
    assert_problem(response, 409, "dataset_in_use")
    assert response.headers["x-should-retry"] == "false"
    api.client.post(f"/v1/jobs/{job}/cancel")
    assert api.client.delete(f"/v1/datasets/{dataset}").status_code == 204
    assert_problem(api.client.get(f"/v1/datasets/{dataset}"), 404, "not_found")
    assert_problem(api.client.delete(f"/v1/datasets/{dataset}"), 404, "not_found")
    assert api.client.get("/v1/datasets").json()["data"] == []
    assert_problem(api.client.post("/v1/jobs", json=body(dataset_id=dataset)), 422, "invalid_request")
    assert api.client.get(f"/v1/jobs/{job}").json()["dataset_id"] == dataset


def test_datasets_are_paged_and_filtered(api: Api) -> None:
    ids = [add_dataset(api.database) for _ in range(5)]
    waiting = add_dataset(api.database, DatasetState.PROCESSING)
    first = api.client.get("/v1/datasets?limit=4").json()
    rest = api.client.get("/v1/datasets", params={"limit": 4, "after": first["last_id"]}).json()
    assert [one["id"] for one in first["data"] + rest["data"]] == sorted([*ids, waiting], reverse=True)
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert [one["id"] for one in api.client.get("/v1/datasets?status=processing").json()["data"]] == [waiting]


def test_an_archive_over_the_cap_is_refused_while_it_arrives(api: Api) -> None:
    with served(Settings(data_dir=api.settings.data_dir, max_upload_bytes=100_000)) as small:
        assert_problem(upload(small, zip_bytes() + b"x" * 100_000), 413, "payload_too_large")
        assert_problem(upload(small, zip_bytes() + b"x" * 1_000_000), 413, "payload_too_large")
        assert stored(small) == []
        assert staged(small) == []
        assert upload(small).status_code == 201


def test_a_dataset_says_whose_it_is_and_when_to_ask_again(api: Api) -> None:
    waiting, ready = add_dataset(api.database, DatasetState.PROCESSING), add_dataset(api.database)
    asked = api.client.get(f"/v1/datasets/{waiting}")
    assert (asked.headers["retry-after"], asked.json()["project"]) == ("5", "default")
    assert "retry-after" not in api.client.get(f"/v1/datasets/{ready}").headers
