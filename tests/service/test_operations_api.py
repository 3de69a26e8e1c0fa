from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from service.api.errors import Problem
from service.shared.db.migrate import upgrade
from service.shared.settings import Settings
from tests.service.conftest import Api, add_dataset, add_job, assert_problem, served, upload

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import S3Server


def test_probes_answer_with_and_without_the_version(api: Api) -> None:
    for prefix in ("", "/v1"):
        assert api.client.get(f"{prefix}/livez").json() == {"status": "ok"}
        assert api.client.get(f"{prefix}/version").json()["base_models"] == ["sam3-tiny"]


def test_ready_is_degraded_without_workers_or_broker_and_ok_with_them(api: Api) -> None:
    response = api.client.get("/readyz")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    with api.database.write() as unit:
        unit.workers.beat("w-1", kind="gpu", host="h", pid=1, device="NVIDIA H100")
        unit.workers.beat("w-2", kind="cpu", host="h", pid=2, device=None)
        unit.workers.beat("w-3", kind="predict", host="h", pid=3, device=None)
        unit.workers.beat("w-2", kind="cpu", host="h", pid=2, device=None)
    assert api.client.get("/readyz").json() == {
        "status": "ok",
        "checks": dict.fromkeys(
            ("database", "gpu_workers", "cpu_workers", "predict_workers", "storage", "broker"), "ok"
        ),
    }
    api.queue.down = True
    assert api.client.get("/readyz").json()["checks"]["broker"] == "degraded"
    api.queue.down = False
    api.clock.advance(api.settings.lease_timeout_s + 1)
    assert api.client.get("/readyz").json()["checks"]["gpu_workers"] == "degraded"
    with api.database.write() as unit:
        unit.workers.remove("w-1")
        unit.workers.forget_silent(0)
        assert unit.workers.count_alive("cpu", within_s=10**6) == 0


def test_a_worker_whose_clock_was_ahead_is_not_taken_for_alive_once_it_is_gone(api: Api) -> None:
    def alive() -> list[object]:
        with api.database.read() as unit:
            sizes = unit.workers.sizes("gpu", within_s=10)
            counts = [unit.workers.count_alive("gpu", within_s=10), unit.census.staff(within_s=10)["gpu"].alive]
            devices = unit.workers.devices("gpu", within_s=10)
        return [len(sizes), *counts, len(devices), len(api.client.get("/v1/workers").json()["data"])]

    def beat(ahead_s: float) -> None:
        api.clock.advance(ahead_s)
        with api.database.write() as unit:
            unit.workers.beat("w-1", kind="gpu", host="h", pid=1, device="H100", memory_bytes=1)
        api.clock.advance(-ahead_s)

    beat(60)
    assert alive() == [1] * 5
    beat(5400)
    assert alive() == [0] * 5


def test_not_ready_where_nothing_can_be_stored(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise OperationalError("SELECT", {}, Exception("gone"))

    monkeypatch.setattr("service.shared.db.repositories.workers.WorkerRepository.count_alive", gone)
    response = api.client.get("/readyz")
    assert (response.status_code, response.json()["checks"]["database"]) == (503, "failed")


@pytest.mark.parametrize(("revision", "status"), [("0009", 503), ("9999", 200)])
def test_not_ready_with_an_older_schema_and_ready_with_a_newer_one(tmp_path: Path, revision: str, status: int) -> None:
    settings = Settings(data_dir=tmp_path)
    upgrade(settings)
    with served(settings) as api:
        with api.database.write() as unit:
            unit.session.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
        assert api.client.get("/readyz").status_code == status


def test_not_ready_where_the_bucket_refuses(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    settings = Settings(data_dir=tmp_path, **s3.settings())
    upgrade(settings)
    with served(settings) as api:
        response = api.client.get("/readyz")
        assert (response.status_code, response.json()["checks"]["storage"]) == (503, "failed")
        problem = assert_problem(upload(api), 503, "storage_unavailable")
        assert "AWS_* variables" in problem["detail"]
        assert api.client.get("/v1/datasets").json()["data"] == []


def test_the_openapi_document_describes_every_operation_and_its_problems(api: Api) -> None:
    document = api.client.get("/openapi.json").json()
    assert document["servers"] == [{"url": "/v1"}, {"url": "/"}]
    assert set(document["components"]["schemas"]["Problem"]["required"]) == set(Problem.model_fields)
    names: list[str] = []
    for path, operations in document["paths"].items():
        assert not path.startswith("/v1")
        for operation in operations.values():
            names.append(operation["operationId"])
            assert operation["description"]
            assert operation["tags"]
            for status, response in operation["responses"].items():
                if status >= "400" and path != "/readyz":
                    shared = document["components"]["responses"][response["$ref"].rpartition("/")[2]]
                    assert list(shared["content"]) == ["application/problem+json"], (path, status)
    assert len(names) == len(set(names))
    config = document["components"]["schemas"]["LoraConfig"]["properties"]
    assert all(field["description"] for field in config.values())
    references = {
        part.split('"')[0] for part in api.client.get("/openapi.json").text.split("#/components/schemas/")[1:]
    }
    assert references <= set(document["components"]["schemas"])


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/jobs", "GET, POST"),
        ("/jobs", "GET, POST"),
        ("/v1/jobs/estimate", "POST"),
        ("/v1/jobs/job_1", "GET, PATCH, DELETE"),
        ("/v1/models/model_1/export", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_possible_is_answered_with_all_that_are(api: Api, path: str, allowed: str) -> None:
    answer = api.client.request("PUT", path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed


def test_workers_and_the_queue_are_told(api: Api) -> None:
    dataset = add_dataset(api.database)
    assert api.client.get("/v1/workers").json() == {"object": "list", "data": []}
    jobs = [add_job(api.database, dataset, project=project) for project in ("a", "a", "b")]
    with api.database.write() as unit:
        unit.workers.beat("w-1", kind="gpu", host="h1", pid=1, device="CPU", memory_bytes=8, gpus=2)
        unit.workers.beat("w-2", kind="cpu", host="h2", pid=2, device=None)
        claimed = unit.jobs.claim("w-1", gpus=2)
    assert claimed is not None
    first, second = api.client.get("/v1/workers").json()["data"]
    assert (first["id"], first["kind"], first["gpus"], first["job_id"]) == ("w-1", "gpu", 2, jobs[0])
    assert (second["id"], second["device"], second["job_id"]) == ("w-2", None, None)
    queue = api.client.get("/v1/queue").json()
    assert (queue["queued"], queue["running"], queue["workers"], queue["gpus"]) == (2, 1, 1, 2)
    assert queue["usual_duration_s"] is None
    assert [(line["project"], line["priority"], line["queued"]) for line in queue["lines"]] == [
        ("a", 50, 1),
        ("b", 50, 1),
    ]


def test_probes_may_be_asked_for_their_head(api: Api) -> None:
    for path in ("/livez", "/readyz", "/v1/livez", "/v1/readyz"):
        head, got = api.client.head(path), api.client.get(path)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers["content-length"] == got.headers["content-length"]
