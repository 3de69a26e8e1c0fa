"""Models: made by success, listed, exported, deleted."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from typing import TYPE_CHECKING

import pytest

from service.reconciler import Reconciler
from service.shared.queue import Task
from service.shared.states import JobState
from tests.service.conftest import Api, assert_problem
from tests.service.results import add_model, claimed_job

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model_id(api: Api, tmp_path: Path) -> str:
    return add_model(api.database, api.storage, tmp_path)


def test_a_model_is_the_best_checkpoint_of_its_job(api: Api, model_id: str) -> None:
    model = api.client.get(f"/v1/models/{model_id}").json()
    job = api.client.get(f"/v1/jobs/{model['job_id']}").json()
    assert job["result"] == {"model_id": model_id, "steps": 30}
    assert (model["metric"], model["value"], model["epoch"], model["name"]) == ("segm_mAP", 0.5, 3, job["name"])
    checkpoint = api.client.get(f"/v1/checkpoints/{job['best']['checkpoint_id']}").json()
    assert model["archive"]["sha256"] == checkpoint["archive"]["sha256"]
    assert [file["sha256"] for file in model["files"]] == [file["sha256"] for file in checkpoint["files"]]


def test_a_job_without_a_best_checkpoint_succeeds_without_a_model(api: Api) -> None:
    job = claimed_job(api.database)
    with api.database.write() as unit:
        ended = unit.attempts.finish(job.id, job.epoch, JobState.SUCCEEDED, result={"model_id": None})
        assert unit.models.add_best(ended) is None
    assert api.client.get(f"/v1/jobs/{job.id}").json()["result"] == {"model_id": None}


def test_list_is_by_key_and_filtered(api: Api, tmp_path: Path) -> None:
    ids = []
    for base in ("sam3-tiny", "sam3", "sam3-tiny"):
        ids.append(add_model(api.database, api.storage, tmp_path, base_model=base))
        api.clock.advance(1)

    def listed(**query: object) -> list[str]:
        return [model["id"] for model in api.client.get("/v1/models", params=query).json()["data"]]

    assert listed() == ids[::-1]
    assert listed(base_model="sam3") == [ids[1]]
    assert listed(job_id=api.client.get(f"/v1/models/{ids[0]}").json()["job_id"]) == [ids[0]]
    assert listed(limit=1, after=ids[2]) == [ids[1]]
    assert listed(order="asc", before=ids[2]) == ids[:2]
    assert_problem(api.client.get("/v1/models?after=model_none"), 404, "not_found")
    assert_problem(api.client.get("/v1/models?base=sam3"), 422, "invalid_request")


def test_deleted_models_are_gone_with_what_was_made_of_them(api: Api, model_id: str) -> None:
    job_id = api.client.get(f"/v1/models/{model_id}").json()["job_id"]
    assert api.client.get(f"/v1/models/{model_id}/export?format=peft").status_code == 202
    assert api.client.delete(f"/v1/models/{model_id}").status_code == 204
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/export"), ("GET", "/export?format=peft")):
        assert_problem(api.client.request(method, f"/v1/models/{model_id}{path}"), 404, "not_found")
    with api.database.write() as unit:
        assert unit.exports.claim("w-1") is None
    checkpoint = api.client.get(f"/v1/jobs/{job_id}/checkpoints").json()["data"][0]
    assert api.client.get(checkpoint["archive"]["url"]).status_code == 200


def test_a_model_outlives_its_job_and_keeps_its_files(api: Api, model_id: str) -> None:
    model = api.client.get(f"/v1/models/{model_id}").json()
    checkpoint = api.client.get(f"/v1/jobs/{model['job_id']}/checkpoints").json()["data"][0]
    others = f"jobs/{model['job_id']}/e1/left-over"
    api.storage.put(others, [b"of a broken upload"], size_bytes=18)
    assert api.client.delete(f"/v1/jobs/{model['job_id']}").status_code == 204
    assert_problem(api.client.get(checkpoint["archive"]["url"]), 404, "not_found")
    Reconciler(api.settings, api.database, api.storage, api.queue, api.clock).run_once()
    assert not api.storage.exists(others)
    kept = api.client.get(f"/v1/models/{model_id}").json()
    assert kept["job_id"] is None
    exported = api.client.get(kept["archive"]["url"]).content
    assert hashlib.sha256(exported).hexdigest() == model["archive"]["sha256"]


def test_the_native_form_is_there_at_once(api: Api, model_id: str) -> None:
    model = api.client.get(f"/v1/models/{model_id}").json()
    response = api.client.get(model["archive"]["url"])
    assert hashlib.sha256(response.content).hexdigest() == model["archive"]["sha256"]
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert sorted(archive.namelist()) == [file["name"] for file in model["files"]]
    assert response.headers["content-disposition"] == f'attachment; filename="{model_id}-native.zip"'


def test_another_form_is_made_once_and_then_downloaded(api: Api, model_id: str, tmp_path: Path) -> None:
    url = f"/v1/models/{model_id}/export?format=merged"
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(api.client.get(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {202}
    assert answers[0].headers["retry-after"] == "5"
    assert [task for task, _ in api.queue.rings] == [Task.EXPORT]
    with api.database.write() as unit:
        export = unit.exports.claim("w-1")
        assert export is not None
    assert api.client.get(url).json()["status"] == "running"
    source = tmp_path / "made"
    source.write_bytes(b"merged weights")
    made = api.storage.put_file(f"exports/{export.id}/m.safetensors", source)
    with api.database.write() as unit:
        unit.exports.succeed(
            export.id,
            export.epoch,
            filename="m.safetensors",
            size_bytes=made.size_bytes,
            sha256=made.sha256,
            storage_key=made.key,
        )
    response = api.client.get(url, headers={"Range": "bytes=7-"})
    assert (response.status_code, response.content) == (206, b"weights")
    assert response.headers["etag"] == f'"{made.sha256}"'
    assert api.client.head(url).headers["content-length"] == "14"


def test_a_form_that_failed_says_why_and_is_tried_again_later(api: Api, model_id: str) -> None:
    url = f"/v1/models/{model_id}/export?format=peft"
    api.client.get(url)
    with api.database.write() as unit:
        export = unit.exports.claim("w-1")
        assert export is not None
        error = {"code": "export_failed", "message": "no such module", "hint": "", "retryable": False}
        unit.exports.fail(export.id, export.epoch, error)
    problem = assert_problem(api.client.get(url), 500, "export_failed")
    assert "no such module" in problem["detail"]
    api.clock.advance(api.settings.retry_backoff_max_s)
    assert api.client.get(url).status_code == 202


def test_forms_that_need_the_weights_of_a_base_that_is_not_here(api: Api, tmp_path: Path) -> None:
    model_id = add_model(api.database, api.storage, tmp_path, base_model="sam3")
    response = api.client.get(f"/v1/models/{model_id}/export?format=merged")
    assert_problem(response, 422, "base_model_unavailable")
    assert api.client.get(f"/v1/models/{model_id}/export?format=peft").status_code == 202
    assert api.client.get(f"/v1/models/{model_id}/export").status_code == 200
    assert_problem(api.client.get(f"/v1/models/{model_id}/export?format=onnx"), 422, "invalid_request")
