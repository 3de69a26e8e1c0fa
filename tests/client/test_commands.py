"""Commands that ask a service: what they print, and with which exit code they end."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner, Result

from sam3_lora.cli import app
from sam3_lora.client.progress import sparkline
from service.shared.db.repositories.events import NewEvent
from service.shared.states import Actor, DatasetState, JobState
from tests.service.conftest import Api, add_dataset, add_job, zip_bytes
from tests.service.results import add_model, claimed_job

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Result]

CONFIG = """
lora: {rank: 4}
model: {base: sam3-tiny, checkpoint: sam3.pt}
dataset: {train_img_folder: a, train_ann_file: b.json, negatives_per_image: 2}
training: {max_epochs: 3}
output: {dir: runs/x}
"""


@pytest.fixture
def run(api: Api, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SAM3_API_URL", str(api.client.base_url))
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "pallets.yaml"
    path.write_text(CONFIG)
    return path


def test_a_run_of_this_machine_becomes_a_job_of_the_service(api: Api, run: Run, config: Path) -> None:
    dataset = add_dataset(api.database)
    done = run("jobs", "submit", config, "--dataset", dataset, "--tag", "night", "--json")
    assert done.exit_code == 0, done.output
    job = json.loads(done.stdout)
    assert (job["name"], job["base_model"], job["tags"]) == ("pallets", "sam3-tiny", ["night"])
    assert job["config"] == {
        "lora": {"rank": 4},
        "dataset": {"negatives_per_image": 2},
        "training": {"max_epochs": 3},
    }
    assert "left out" in done.stderr
    for name in ("output", "model.checkpoint", "dataset.train_img_folder", "dataset.train_ann_file"):
        assert name in done.stderr
    assert f"/ui/jobs/{job['id']}" in done.stderr
    listed = run("jobs", "list", "--status", "queued")
    assert listed.stdout == f"{job['id']}\tpallets\tqueued\t\t\n"
    shown = run("jobs", "show", job["id"])
    assert f"id        {job['id']}\n" in shown.stdout
    assert "possible  " in shown.stdout
    for action, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        assert f"status    {state}\n" in run("jobs", action, job["id"]).stdout
    retried = json.loads(run("jobs", "retry", job["id"], "--max-runtime-s", "600", "--json").stdout)
    assert (retried["retry_of"], retried["limits"]["max_runtime_s"]) == (job["id"], 600)
    assert run("jobs", "cancel", retried["id"]).exit_code == 0
    assert run("jobs", "delete", retried["id"]).exit_code == 0
    assert run("jobs", "show", retried["id"]).exit_code == 2


def test_the_same_key_makes_one_job(api: Api, run: Run, config: Path) -> None:
    submit = ("jobs", "submit", config, "--dataset", add_dataset(api.database), "--idempotency-key", "ci-17", "--json")
    first, second = (json.loads(run(*submit).stdout)["id"] for _ in range(2))
    assert first == second


def test_what_is_wrong_is_said_and_has_its_exit_code(api: Api, run: Run, config: Path, tmp_path: Path) -> None:
    config.write_text("lora: {rnak: 4}\nmodel: {base: sam3-tiny}\n")
    refused = run("jobs", "submit", config, "--dataset", add_dataset(api.database))
    assert refused.exit_code == 2
    assert "/config/lora/rnak" in refused.stderr
    assert "request req_" in refused.stderr
    assert refused.stdout == ""
    for content in ("[1", "- a"):
        config.write_text(content)
        assert run("jobs", "submit", config, "--dataset", "ds_x").exit_code == 2
    assert run("jobs", "submit", tmp_path / "none.yaml", "--dataset", "ds_x").exit_code == 2
    assert run("datasets", "upload", tmp_path / "none").exit_code == 2
    away = run("jobs", "list", "--url", "http://127.0.0.1:9")
    assert away.exit_code == 3
    assert "does not answer" in away.stderr
    bad = run("datasets", "report", add_dataset(api.database, DatasetState.INVALID))
    assert bad.exit_code == 1


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    from sam3_lora.client._sync.client import Client
    from sam3_lora.commands import service

    class Impatient(Client):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **{"retry_for_s": 1, **options})  # type: ignore[arg-type]

    monkeypatch.setattr(service, "Client", Impatient)


def test_watching_tells_the_states_and_ends_with_the_job(api: Api, run: Run) -> None:
    job = add_job(api.database)

    def work() -> None:
        time.sleep(0.7)
        with api.database.write() as unit:
            held = unit.jobs.claim("w-1")
            assert held is not None
            error = {"code": "gpu_oom", "message": "No memory.", "hint": "Smaller batches.", "retryable": False}
            unit.attempts.finish(job, held.epoch, JobState.FAILED, reason="No memory.", error=error)

    thread = threading.Thread(target=work)
    thread.start()
    watched = run("jobs", "watch", job)
    thread.join()
    assert watched.exit_code == 1
    assert [line.split()[0] for line in watched.stderr.splitlines()] == ["queued", "failed", "the", "error:"]
    assert "gpu_oom: No memory. Smaller batches." in watched.stderr
    with api.database.write() as unit:
        ended = unit.jobs.add(job_of_its_own(add_dataset(api.database)))
        unit.jobs.move(ended.id, JobState.CANCELLED, Actor.API, reason="as asked")
    assert run("jobs", "watch", ended.id).exit_code == 1


def job_of_its_own(dataset: str):
    from tests.service.conftest import new_job

    return new_job(dataset)


def test_log_and_events_are_streamed(api: Api, run: Run) -> None:
    job = claimed_job(api.database)
    with api.database.write() as unit:
        unit.events.append(job.id, job.epoch, [NewEvent("message", "hello")])
        unit.logs.append(job.id, job.epoch, "one\ntwo\n")
    with api.database.write() as unit:
        unit.attempts.finish(job.id, job.epoch, JobState.SUCCEEDED, result={"model_id": None})
    assert run("jobs", "logs", job.id).stdout == "one\ntwo\n"
    assert run("jobs", "logs", job.id, "-f").stdout == "one\ntwo\n"
    told = run("jobs", "events", job.id, "--json").stdout.splitlines()
    assert "hello" in [json.loads(line)["message"] for line in told]
    assert len(run("jobs", "events", job.id, "--after", "1").stdout.splitlines()) == len(told) - 1


def test_datasets_and_models_are_listed_and_fetched(api: Api, run: Run, tmp_path: Path) -> None:
    archive = tmp_path / "pallets.zip"
    archive.write_bytes(zip_bytes())
    sent = run("datasets", "upload", archive, "--no-wait", "--json")
    assert sent.exit_code == 0, sent.output
    dataset = json.loads(sent.stdout)
    assert dataset["status"] == "processing"
    assert run("datasets", "list").stdout.split("\t")[:3] == [dataset["id"], "pallets", "processing"]
    assert f"sha256       {dataset['sha256']}" in run("datasets", "show", dataset["id"]).stdout
    assert run("datasets", "delete", dataset["id"]).exit_code == 0
    model = add_model(api.database, api.storage, tmp_path)
    assert run("models", "list").stdout.startswith(f"{model}\t")
    got = run("models", "download", model, "-o", tmp_path / "m.zip")
    assert (got.exit_code, got.stdout) == (0, f"{tmp_path / 'm.zip'}\n")
    job = api.client.get(f"/v1/models/{model}").json()["job_id"]
    assert run("jobs", "download", job, "-o", tmp_path / "adapter").exit_code == 0
    assert (tmp_path / "adapter" / "checkpoint.json").read_text() == f"checkpoint.json of {job}"


def test_help_is_there_for_everything(run: Run) -> None:
    for group in ("jobs", "datasets", "models"):
        said = run(group, "--help")
        assert said.exit_code == 0
    for command in ("submit", "watch", "list", "show", "logs", "events", "cancel", "stop", "pause", "resume", "retry",
                    "download", "delete"):  # fmt: skip
        assert run("jobs", command, "--help").exit_code == 0


def test_curves_are_drawn_in_a_row() -> None:
    assert sparkline([1, 2, 3, 8]) == "▁▂▃█"
    assert sparkline([5, 5]) == "▁▁"
