"""One real job in the embedded service: its trace from POST to trainer, its log lines, and no secret in any of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from sam3_lora.synthetic.__main__ import main as draw
from tests.e2e.test_job import FAST, QUICK
from tests.stack import started, wait_until
from tests.telemetry.collector import Collector, collecting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
REQUEST_ID = "from-the-client-1"
CANARIES = {
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-bucket",
    "HF_TOKEN": "hf_canaryofthehub",
    "SAM3_SECRET_KEY": "Y2FuYXJ5LWNhbmFyeS1jYW5hcnktY2FuYXJ5LWNhbmE=",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=canary-of-the-collector",
}


class Ran:
    """What is left of a service that has run a good and a bad job."""

    def __init__(
        self,
        collector: Collector,
        job: dict[str, Any],
        failed: dict[str, Any],
        logs: Path,
        secrets: set[str],
        answers: dict[str, str],
    ):
        self.collector, self.job, self.failed, self.logs, self.secrets = collector, job, failed, logs, secrets
        self.answers = answers

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Of one process; all are JSON."""
        return [json.loads(line) for line in (self.logs / f"{name}.log").read_text().splitlines()]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("telemetry")
    archive = folder / "shapes.zip"
    draw([str(archive), "--train", "8", "--valid", "3", "--concepts", "heart", "cross"])
    with collecting() as collector, pytest.MonkeyPatch.context() as patch:
        for name, value in (CANARIES | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}).items():
            patch.setenv(name, value)
        patch.setenv("SAM3_DATA_DIR", str(folder / "data"))
        with started(folder, folder / "data", **FAST, require_keys=True) as service:
            secret = make_key()
            with httpx.Client(
                base_url=service.url, timeout=30, headers={"Authorization": f"Bearer {secret}"}
            ) as client:
                webhook = {"url": "https://hooks.example.org/x", "events": ["job.succeeded"]}
                signing = client.post("/v1/webhook_endpoints", json=webhook).raise_for_status().json()["secret"]
                dataset = upload(client, archive)
                job = post_job(client, dataset, {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})
                assert client.get("/v1/jobs", headers={"Authorization": "Bearer sam3_" + "x" * 43}).status_code == 401
                broken = folder / "broken.zip"
                with zipfile.ZipFile(broken, "w") as file:
                    file.writestr("train/_annotations.coco.json", "{")
                failed = post_job(client, upload(client, broken), {})
                wait_until(lambda: client.get(f"/v1/jobs/{failed['id']}").json()["is_terminal"], 60)
                wait_until(lambda: client.get(f"/v1/jobs/{job['id']}").json()["is_terminal"], 240)
                job = client.get(f"/v1/jobs/{job['id']}").json()
                paths = ["/metrics", "/v1/workers", "/v1/version", "/v1/queue", "/v1/webhook_endpoints", "/readyz"]
                for each in (job, failed):
                    here = f"/v1/jobs/{each['id']}"
                    paths += [here, f"{here}/events", f"{here}/logs", f"{here}/metrics", f"{here}/attempts"]
                answers = {path: client.get(path).text for path in paths}
        secrets = {secret, signing, *CANARIES.values()} - {CANARIES["OTEL_EXPORTER_OTLP_HEADERS"]}
        yield Ran(collector, job, failed, folder / "data" / "logs", secrets | {"canary-of-the-collector"}, answers)


def make_key() -> str:
    command = [sys.executable, "-m", "service.cli", "keys", "create", "--name", "t", "--project", "team"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def upload(client: httpx.Client, archive: Path) -> str:
    with archive.open("rb") as file:
        answer = client.post("/v1/datasets", data={"name": "d"}, files={"file": (archive.name, file)})
    return str(answer.raise_for_status().json()["id"])


def post_job(client: httpx.Client, dataset_id: str, headers: dict[str, str]) -> dict[str, Any]:
    body = {"name": "t", "base_model": "sam3-tiny", "dataset_id": dataset_id, "config": QUICK}
    answer = client.post("/v1/jobs", json=body, headers={"X-Request-Id": REQUEST_ID, **headers})
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


def test_one_trace_leads_from_the_request_into_the_trainer(ran: Ran) -> None:
    assert ran.job["status"] == "succeeded"
    [post] = [span for span in ran.collector.named("POST /jobs") if span.trace_id == TRACE_ID]
    assert (post.service, post.parent_id) == ("sam3-api", PARENT_ID)
    assert post.attributes["http.response.status_code"] == 201
    [attempt] = ran.collector.named("job.attempt")
    assert (attempt.service, attempt.trace_id, attempt.parent_id) == ("sam3-gpu-worker", TRACE_ID, post.span_id)
    assert attempt.attributes["sam3.job_id"] == ran.job["id"]
    assert (attempt.attributes["sam3.state"], attempt.error) == ("succeeded", None)
    [trainer] = ran.collector.named("trainer")
    assert trainer.parent_id == attempt.span_id
    assert trainer.attributes["sam3.exit_status"] == 0
    below = {span.name: span for span in ran.collector.spans if span.parent_id == attempt.span_id}
    assert below.keys() == {"fetch_dataset", "fetch_checkpoint", "trainer"}
    phases = [span for span in ran.collector.spans if span.parent_id == trainer.span_id]
    names = {span.name for span in phases}
    assert names >= {"loading_model", "training", "evaluating", "saving_checkpoint", "finalizing", "publish_checkpoint"}
    assert {span.attributes.get("sam3.epoch") for span in phases if span.name == "training"} & {1, 2}
    assert {span.trace_id for span in phases} == {TRACE_ID}
    assert sum(span.seconds for span in phases if "publish" not in span.name) <= trainer.seconds + 0.5


def test_requests_of_probes_are_not_traced_and_others_without_a_parent_begin_a_trace(ran: Ran) -> None:
    names = {span.name for span in ran.collector.spans}
    assert not any(name.endswith(("/readyz", "/livez")) for name in names)
    assert "POST /datasets" in names
    [ingest] = [s for s in ran.collector.named("dataset.attempt") if s.service == "sam3-cpu-worker"][:1]
    assert ingest.parent_id == ""


def test_the_collector_gets_the_headers_that_the_operator_set(ran: Ran) -> None:
    assert {headers["authorization"] for headers in ran.collector.headers} == {"canary-of-the-collector"}


def test_every_line_says_when_what_how_bad_and_of_which_process(ran: Ran) -> None:
    processes = {name: name for name in ("api", "reconciler", "gpu-worker", "cpu-worker")} | {
        "predictor": "predict-worker"
    }
    for name, process in processes.items():
        assert ran.lines(name)
        for line in ran.lines(name):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["timestamp"]), line
            assert line["level"] in ("debug", "info", "warning", "error", "critical")
            assert line["event"]
            assert line["logger"]
            assert line["process"] == process
            assert ("worker_id" in line) == ("worker" in process)


def test_lines_about_a_job_carry_its_ids_and_those_of_its_request(ran: Ran) -> None:
    lines = [line for line in ran.lines("gpu-worker") if line["logger"].startswith("worker.")]
    about = [line for line in lines if line["event"].startswith("attempt_")]
    assert [line["event"] for line in about] == ["attempt_began", "attempt_ended"]
    for line in about:
        ids = {name: line[name] for name in ("job_id", "attempt", "epoch", "request_id", "trace_id")}
        assert ids == {
            "job_id": ran.job["id"], "attempt": 1, "epoch": 1, "request_id": REQUEST_ID, "trace_id": TRACE_ID
        }  # fmt: skip
    assert all("job_id" in line for line in lines if line["logger"] != "worker.app")
    [checked] = [line for line in ran.lines("cpu-worker") if line["event"] == "dataset_checked"][:1]
    assert checked["dataset_id"].startswith("ds_")
    assert checked["trace_id"]


def test_the_access_log_names_route_sizes_and_who_asked(ran: Ran) -> None:
    requests = [line for line in ran.lines("api") if line["event"] == "request"]
    [posted] = [line for line in requests if line.get("trace_id") == TRACE_ID]
    wanted = {"method": "POST", "path": "/v1/jobs", "route": "/jobs", "status": 201, "project": "team"}
    assert wanted.items() <= posted.items()
    assert (posted["request_id"], posted["client"]) == (REQUEST_ID, "127.0.0.1")
    assert posted["key_id"].startswith("key_")
    assert posted["bytes"] > 500
    assert 0 < posted["took_s"] < 30
    assert any(line["status"] == 401 and "key_id" not in line for line in requests)


def test_no_secret_is_in_any_log(ran: Ran) -> None:
    files = sorted(ran.logs.glob("*.log"))
    assert len(files) >= 6
    for file in files:
        text = file.read_text()
        for secret in ran.secrets:
            assert secret not in text, file
    assert all(secret for secret in ran.secrets)


def test_no_secret_is_in_any_answer(ran: Ran) -> None:
    assert ran.answers["/metrics"]
    assert ran.job["id"] in ran.answers[f"/v1/jobs/{ran.job['id']}/events"]
    for path, text in ran.answers.items():
        for secret in ran.secrets:
            assert secret not in text, path
