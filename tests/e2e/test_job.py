"""The main job for real: a dataset and a job spec go in over HTTP, a trained adapter comes out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from sam3_lora.lora.layers import adapters_off
from sam3_lora.synthetic.__main__ import main as draw
from tests.stack import Service, production, started, wait_until

QUICK = {
    "lora": {"rank": 4},
    "training": {"max_epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "use_amp": False, "num_workers": 0},
}
ENDLESS = {**QUICK, "training": {**QUICK["training"], "max_epochs": 5000}, "evaluation": {"every_epochs": 5000}}
# The protocol's times, scaled down together: self-fence and kill stay below the lease.
FAST = {
    "heartbeat_interval_s": 0.5,
    "self_fence_s": 3,
    "kill_grace_s": 1,
    "lease_timeout_s": 6,
    "poll_interval_s": 2,
    "reconcile_interval_s": 0.5,
    "retry_backoff_s": 0.5,
    "terminate_grace_s": 10,
}
TIMEOUT_S = 240.0


class Client:
    def __init__(self, url: str, archive: Path) -> None:
        self.http = httpx.Client(base_url=url, timeout=30)
        self.archive = archive

    def dataset(self) -> str:
        with self.archive.open("rb") as file:
            answer = self.http.post("/v1/datasets", data={"name": "shapes"}, files={"file": ("shapes.zip", file)})
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def post_job(self, config: dict[str, Any], **fields: object) -> dict[str, Any]:
        body = {"name": "e2e", "base_model": "sam3-tiny", "dataset_id": self.dataset(), "config": config, **fields}
        answer = self.http.post("/jobs", json=body)  # the unversioned door, without a redirect
        assert answer.status_code == 201, answer.text
        assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
        return answer.json()

    def job(self, job_id: str) -> dict[str, Any]:
        return self.http.get(f"/v1/jobs/{job_id}").raise_for_status().json()

    def until(self, job_id: str, condition: Any, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            job = self.job(job_id)
            if condition(job):
                return job
            assert not job["is_terminal"], (job["status"], job["error"], self.http.get(f"/v1/jobs/{job_id}/logs").text)
            time.sleep(0.2)
        raise AssertionError(f"still {job['status']} {job['phase']} {job['progress']}")

    def events(self, job_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = self.http.get(f"/v1/jobs/{job_id}/events", params={"after": len(found), "limit": 50}).json()
            found += page["data"]
            if not page["has_more"]:
                return found

    def download(self, file: dict[str, Any]) -> bytes:
        """In two parts, as a client does whose connection broke."""
        half = file["bytes"] // 2
        first = self.http.get(file["url"], headers={"Range": f"bytes=0-{half - 1}"})
        rest = self.http.get(file["url"], headers={"Range": f"bytes={half}-", "If-Range": first.headers["etag"]})
        assert (first.status_code, rest.status_code) == (206, 206)
        return first.content + rest.content


@contextlib.contextmanager
def connected(url: str, archive: Path) -> Iterator[Client]:
    client = Client(url, archive)
    with client.http:
        yield client


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "shapes.zip"
    draw([str(path), "--train", "8", "--valid", "3", "--concepts", "heart", "cross"])
    return path


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("embedded")
    with started(folder, folder / "data", **FAST) as service:
        yield service


@pytest.fixture(params=["embedded", "production"])
def client(request: pytest.FixtureRequest, tmp_path: Path, archive: Path) -> Iterator[Client]:
    if request.param == "embedded":
        with connected(request.getfixturevalue("embedded").url, archive) as client:
            yield client
    else:
        with production(tmp_path, **FAST) as url, connected(url, archive) as client:
            yield client


@pytest.fixture
def local(embedded: Service, archive: Path) -> Iterator[Client]:
    with connected(embedded.url, archive) as client:
        yield client


def test_job_trains_to_an_adapter_that_can_be_downloaded_and_used(client: Client, tmp_path: Path):
    created = client.post_job(QUICK, seed=3, tags=["e2e"], metadata={"ticket": "A-1"})
    assert created["status"] in ("validating_files", "queued")
    running = client.until(created["id"], lambda job: job["status"] == "running")
    assert running["worker"]["id"]
    job = client.until(created["id"], lambda job: job["status"] == "succeeded")
    assert job["resolved"]["config"]["training"]["seed"] == 3
    assert job["resolved"]["config"]["lora"]["alpha"] == 16.0  # a default, shown
    assert job["progress"]["percent"] == 100
    assert job["trainable"]["parameters"] > 10_000
    assert job["usage"]["gpu_seconds"] > 0
    assert job["result"]["steps"] == 4
    assert set(job["result"]["best"]["evaluation"]["metrics"]) >= {"segm_mAP", "bbox_mAP"}
    _check_events(client, job)
    series = client.http.get(f"/v1/jobs/{job['id']}/metrics").json()["series"]
    assert [point["step"] for point in series["train/loss"]] == [1, 2, 3, 4]
    assert {"base/segm_mAP", "val/segm_mAP", "train/lr", "train/grad_norm"} <= set(series)
    assert "saved checkpoints/best" in client.http.get(f"/v1/jobs/{job['id']}/logs").text
    folder = _download_best(client, job, tmp_path / "adapter")
    _predict_with(folder, client.archive)


def _check_events(client: Client, job: dict[str, Any]) -> None:
    events = client.events(job["id"])
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    phases = list(dict.fromkeys(e["data"]["phase"] for e in events if e["type"] == "phase"))
    assert phases[0] == "downloading_dataset"
    assert {"loading_model", "training", "evaluating", "saving_checkpoint", "finalizing"} <= set(phases)


def _download_best(client: Client, job: dict[str, Any], folder: Path) -> Path:
    checkpoints = client.http.get(f"/v1/jobs/{job['id']}/checkpoints").json()["data"]
    best = next(c for c in checkpoints if c["id"] == job["best"]["checkpoint_id"])
    folder.mkdir()
    for file in best["files"]:
        content = client.download(file)
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
        (folder / file["name"]).write_bytes(content)
    return folder


def _predict_with(adapter: Path, archive: Path) -> None:
    from sam3_lora.data.images import read_rgb
    from sam3_lora.evaluation.predict import open_predictor

    with zipfile.ZipFile(archive) as opened:
        opened.extract("valid/scene_0001.jpg", adapter)
    predictor, info = open_predictor(adapter)
    assert info.prompts == {"heart": "heart", "cross": "cross"}
    pixels = read_rgb(adapter / "valid" / "scene_0001.jpg")
    tuned = predictor.predict(pixels, ["heart"])[0]
    with adapters_off(predictor.model):
        base = predictor.predict(pixels, ["heart"])[0]
    assert tuned.masks_KHW.shape[1:] == pixels.shape[:2]
    assert not np.allclose(tuned.scores_K, base.scores_K)


def test_cancel_while_training(local: Client):
    job_id = local.post_job(ENDLESS)["id"]
    local.until(job_id, lambda job: (job["progress"] or {}).get("step", 0) >= 2)
    answer = local.http.post(f"/v1/jobs/{job_id}/cancel")
    assert answer.status_code == 202
    local.until(job_id, lambda job: job["status"] == "cancelled", timeout_s=40)
    assert local.http.post(f"/v1/jobs/{job_id}/cancel").status_code in (200, 202, 409)


def test_job_of_a_killed_worker_goes_on_from_its_checkpoint(embedded: Service, local: Client):
    config = {**QUICK, "training": {**QUICK["training"], "max_epochs": 12}}
    job_id = local.post_job(config)["id"]
    local.until(job_id, lambda job: (job["progress"] or {}).get("epoch", 0) >= 3)
    embedded.child("gpu-worker").send_signal(signal.SIGKILL)
    job = local.until(job_id, lambda job: job["status"] == "succeeded")
    assert job["attempt"] == 2
    assert job["result"]["steps"] == 24
    messages = [event["message"] for event in local.events(job_id)]
    assert any(message.startswith("resumed after step") for message in messages)
    # The base was measured by the first attempt alone, and is in the report all the same.
    assert "base" in local.http.get(job["urls"]["samples"]).json()["data"][0]["panels"]


def test_invalid_dataset_fails_the_waiting_job_with_a_report(embedded: Service, tmp_path: Path):
    archive = tmp_path / "broken.zip"
    with zipfile.ZipFile(archive, "w") as broken:
        broken.writestr("train/_annotations.coco.json", json.dumps({"images": [{"id": 1}], "annotations": []}))
    with connected(embedded.url, archive) as client:
        _expect_refusal(client)


def _expect_refusal(client: Client) -> None:
    dataset_id = client.dataset()
    body = {"name": "x", "base_model": "sam3-tiny", "dataset_id": dataset_id}
    created = client.http.post("/v1/jobs", json=body)
    if created.status_code == 201:  # the check was still running
        wait_until(lambda: client.job(created.json()["id"])["is_terminal"])
        assert client.job(created.json()["id"])["error"]["code"] == "dataset_invalid"
    else:
        assert created.json()["code"] == "dataset_invalid"
    wait_until(lambda: client.http.get(f"/v1/datasets/{dataset_id}").json()["status"] == "invalid")
    report = client.http.get(f"/v1/datasets/{dataset_id}/validation").json()
    assert report["summary"]["errors"] > 0
    assert all(issue["hint"] for issue in report["issues"] if issue["severity"] == "error")
