"""Fine-tuning jobs, as OpenAI's client creates and follows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import OpenAI

from service.shared.db.repositories.checkpoints import CheckpointManifest
from service.shared.db.repositories.events import NewEvent
from service.shared.db.repositories.metrics import StepValues
from service.shared.db.repositories.quotas import Limits
from service.shared.states import JobState
from tests.service.conftest import Api, add_dataset, add_job, assert_problem
from tests.service.openai_client.conftest import refused
from tests.service.results import add_model, claimed_job, report_evaluation

if TYPE_CHECKING:
    from pathlib import Path

STATUSES = {
    JobState.VALIDATING_FILES: "validating_files",
    JobState.QUEUED: "queued",
    JobState.RUNNING: "running",
    JobState.PAUSING: "running",
    JobState.CANCELLING: "running",
    JobState.PAUSED: "queued",
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}


def test_a_fine_tuning_job_is_a_job(api: Api, client: OpenAI, dataset: str) -> None:
    validation = add_dataset(api.database)
    job = client.fine_tuning.jobs.create(
        model="sam3-tiny",
        training_file=dataset,
        validation_file=validation,
        suffix="pallets-v3",
        seed=7,
        metadata={"ticket": "A-1"},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 30}},
        },
        extra_body={
            "config": {"lora": {"rank": 4}, "training": {"use_amp": False}},
            "priority": 70,
            "tags": ["t"],
            "limits": {"max_attempts": 1},
        },
    )
    own = api.client.get(f"/v1/jobs/{job.id}").json()
    assert own["config"] == {
        "lora": {"rank": 4},
        "training": {"use_amp": False, "max_epochs": 3, "batch_size": 4, "learning_rate": 3e-3},
    }
    named = ("name", "dataset_id", "validation_dataset_id", "seed", "metadata", "priority", "tags", "base_model")
    assert [own[name] for name in named] == [
        *("pallets-v3", dataset, validation, 7),
        *({"ticket": "A-1"}, 70, ["t"], "sam3-tiny"),
    ]
    assert own["limits"]["max_attempts"] == 1
    assert job.hyperparameters.model_dump() == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 30}
    assert job.method is not None
    assert job.method.supervised is not None
    assert job.method.supervised.model_dump()["hyperparameters"] == job.hyperparameters.model_dump()
    assert (job.status, job.model, job.training_file, job.validation_file) == (
        "queued",
        "sam3-tiny",
        dataset,
        validation,
    )
    assert (job.organization_id, job.seed, job.metadata) == ("default", 7, {"ticket": "A-1"})
    assert (job.result_files, job.fine_tuned_model, job.trained_tokens, job.error) == ([], None, None, None)
    assert client.fine_tuning.jobs.retrieve(job.id) == job
    assert list(client.fine_tuning.jobs.list()) == [job]
    assert [ring[1] for ring in api.queue.rings] == [job.id]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"hyperparameters": {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}},
        {"method": {"type": "supervised"}, "suffix": None, "metadata": None, "integrations": None},
    ],
)
def test_what_is_left_to_the_service_is_the_default(
    api: Api, client: OpenAI, dataset: str, given: dict[str, Any]
) -> None:
    job = client.fine_tuning.jobs.create(model="sam3-tiny", training_file=dataset, **given)
    own = api.client.get(f"/v1/jobs/{job.id}").json()
    assert (own["name"], own["config"]) == ("ft:sam3-tiny", {"training": {}})
    assert job.hyperparameters.model_dump() == {"n_epochs": 20, "batch_size": 2, "learning_rate_multiplier": 1}


@pytest.mark.parametrize(
    ("given", "pointer", "code"),
    [
        ({"model": "gpt-4o-mini"}, "/model", "literal_error"),
        ({"method": {"type": "dpo"}}, "/method/type", "literal_error"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "/integrations", "too_long"),
        ({"hyperparameters": {"n_epochs": 0}}, "/hyperparameters/n_epochs", "greater_than_equal"),
        ({"hyperparameters": {"batch_size": "all"}}, "/hyperparameters/batch_size", "int_type"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 0}},
            "/hyperparameters/learning_rate_multiplier",
            "greater_than",
        ),
        ({"hyperparameters": {"beta": 1}}, "/hyperparameters/beta", "extra_forbidden"),
        ({"hyperparameters": {"n_epochs": 1}, "method": {"type": "supervised"}}, "", "value_error"),
        (
            {"hyperparameters": {"n_epochs": 1}, "extra_body": {"config": {"training": {"max_epochs": 1}}}},
            "",
            "value_error",
        ),
        ({"suffix": "x" * 65}, "/suffix", "string_too_long"),
        ({"training_file": "ds_x"}, "/training_file", "dataset_not_found"),
        ({"validation_file": "ds_x"}, "/validation_file", "dataset_not_found"),
        ({"extra_body": {"config": {"lora": {"rank": 0}}}}, "/config/lora/rank", "greater_than_equal"),
        ({"extra_body": {"init_from": "ckpt_x"}}, "/init_from", "checkpoint_not_found"),
        ({"extra_body": {"speed": 1}}, "/speed", "extra_forbidden"),
    ],
)
def test_jobs_that_are_refused(client: OpenAI, dataset: str, given: dict[str, Any], pointer: str, code: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.fine_tuning.jobs.create(**{"model": "sam3-tiny", "training_file": dataset} | given)
    assert refused(error) == (pointer, code)
    assert list(client.fine_tuning.jobs.list()) == []


def test_a_quota_that_is_used_up_is_told_once(client: OpenAI, api: Api, dataset: str) -> None:
    with api.database.write() as unit:
        unit.quotas.set("default", Limits(max_active_jobs=0))
    with pytest.raises(openai.PermissionDeniedError) as error:
        client.fine_tuning.jobs.create(model="sam3-tiny", training_file=dataset)
    assert (error.value.code, error.value.param) == ("quota_exceeded", "")
    with api.database.write() as unit:
        unit.quotas.remove("default")


def test_a_model_without_weights_is_named(client: OpenAI, dataset: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.fine_tuning.jobs.create(model="sam3", training_file=dataset)
    assert refused(error) == ("/model", "base_model_unavailable")


def test_what_is_wrong_is_said_in_the_words_of_the_request(client: OpenAI, dataset: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="validation_file is training_file: a model") as error:
        client.fine_tuning.jobs.create(model="sam3-tiny", training_file=dataset, validation_file=dataset)
    assert refused(error) == ("/validation_file", "same_dataset")


def test_one_key_makes_one_job_in_the_form_of_its_door(api: Api, client: OpenAI, dataset: str) -> None:
    headers = {"Idempotency-Key": "k"}
    made = [
        client.fine_tuning.jobs.create(model="sam3-tiny", training_file=dataset, extra_headers=headers)
        for _ in range(2)
    ]
    assert made[0] == made[1]
    body = {"name": "x", "base_model": "sam3-tiny", "dataset_id": dataset}
    assert_problem(api.client.post("/v1/jobs", json=body, headers=headers), 422, "idempotency_key_reused")
    answer = client.fine_tuning.jobs.with_raw_response.create(model="sam3-tiny", training_file=dataset)
    assert answer.headers["location"] == f"/v1/fine_tuning/jobs/{answer.parse().id}"


@pytest.mark.parametrize(("state", "status"), STATUSES.items())
def test_every_state_is_one_that_strict_clients_know(api: Api, client: OpenAI, state: JobState, status: str) -> None:
    assert set(STATUSES) == set(JobState)
    job_id = _job_in(api, state)
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert job.status == status
    assert job.model_extra is not None
    assert job.model_extra["native"]["status"] == state
    assert job.model_extra["native"]["url"] == f"/v1/jobs/{job_id}"


def _job_in(api: Api, state: JobState) -> str:
    if state in (JobState.VALIDATING_FILES, JobState.QUEUED):
        return add_job(api.database, state=state)
    if state is JobState.PAUSED:
        job_id = add_job(api.database)
        api.client.post(f"/v1/jobs/{job_id}/pause")
        return job_id
    job = claimed_job(api.database)
    if state in (JobState.PAUSING, JobState.CANCELLING):
        api.client.post(f"/v1/jobs/{job.id}/{'pause' if state is JobState.PAUSING else 'cancel'}")
        return job.id
    if state is not JobState.RUNNING:
        if state is JobState.CANCELLED:
            api.client.post(f"/v1/jobs/{job.id}/cancel")
        error = {"code": "diverged", "message": "NaN.", "hint": "Lower it.", "retryable": False, "attempt": 1}
        with api.database.write() as unit:
            unit.attempts.finish(job.id, job.epoch, state, error=error if state is JobState.FAILED else None)
    return job.id


def test_a_job_that_failed_says_why(api: Api, client: OpenAI) -> None:
    job = client.fine_tuning.jobs.retrieve(_job_in(api, JobState.FAILED))
    assert job.error is not None
    assert job.error.model_dump() == {"code": "diverged", "message": "NaN. Lower it.", "param": None}
    assert job.finished_at is not None
    assert job.result_files == [f"metrics_{job.id}"]


def test_a_running_job_tells_when_it_will_have_trained(api: Api, client: OpenAI) -> None:
    job = claimed_job(api.database)
    assert client.fine_tuning.jobs.retrieve(job.id).estimated_finish is None
    api.clock.advance(1)
    with api.database.write() as unit:
        unit.attempts.report(job.id, job.epoch, progress={"step": 1, "eta_s": 90.4, "percent": 3})
    found = client.fine_tuning.jobs.retrieve(job.id)
    assert found.estimated_finish == int(api.clock.now().timestamp()) + 90
    assert found.model_extra is not None
    assert found.model_extra["native"]["progress"]["percent"] == 3


def test_jobs_are_cancelled_paused_and_resumed(api: Api, client: OpenAI, dataset: str) -> None:
    job = client.fine_tuning.jobs.create(model="sam3-tiny", training_file=dataset)

    def state() -> str:
        status: str = api.client.get(f"/v1/jobs/{job.id}").json()["status"]
        return status

    assert client.fine_tuning.jobs.pause(job.id).status == "queued"
    assert state() == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    assert state() == "queued"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.ConflictError) as error:
        client.fine_tuning.jobs.resume(job.id)
    assert error.value.code == "state_conflict"
    assert error.value.request.headers["x-stainless-retry-count"] == "0"


def test_jobs_are_listed_and_filtered(live: Api, live_client: OpenAI) -> None:
    dataset = add_dataset(live.database)
    made = [add_job(live.database, dataset, labels={"n": str(number % 2), "all": ""}) for number in range(5)]
    assert [job.id for job in live_client.fine_tuning.jobs.list(limit=2)] == made[::-1]
    odd = live_client.fine_tuning.jobs.list(limit=1, metadata={"n": "1"})
    assert [job.id for job in odd] == [made[3], made[1]]
    assert len(list(live_client.fine_tuning.jobs.list(metadata={"n": "0", "all": ""}))) == 3
    assert list(live_client.fine_tuning.jobs.list(metadata={"n": "2"})) == []
    with pytest.raises(openai.NotFoundError):
        live_client.fine_tuning.jobs.list(after="job_x")


def test_events_come_newest_first(live: Api, live_client: OpenAI) -> None:
    job = claimed_job(live.database)
    with live.database.write() as unit:
        unit.events.append(
            job.id,
            job.epoch,
            [NewEvent("phase", "", {"phase": "training"}), NewEvent("message", "odd", {"n": 1}, "warning")],
        )
    report_evaluation(live.database, job, "tuned", 1, 0.5)
    events = list(live_client.fine_tuning.jobs.list_events(job.id, limit=2))
    seqs = [(event.model_extra or {})["native"]["seq"] for event in events]
    assert seqs == list(range(len(events), 0, -1))
    assert (events[0].type, events[0].message) == ("metrics", "evaluation")
    assert isinstance(events[0].data, dict)
    assert events[0].data["metrics"]["segm_mAP"] == 0.5
    assert (events[1].type, events[1].level, events[1].message, events[1].data) == ("message", "warn", "odd", {"n": 1})
    assert events[2].message == "phase training"
    other = live.client.get(f"/v1/jobs/{add_job(live.database)}/events").json()["data"][0]["id"]
    for after in ("evt_x", other):
        with pytest.raises(openai.NotFoundError):
            live_client.fine_tuning.jobs.list_events(job.id, after=after)


def test_results_of_a_job(api: Api, client: OpenAI, tmp_path: Path) -> None:
    model = add_model(api.database, api.storage, tmp_path)
    job = next(iter(client.fine_tuning.jobs.list()))
    assert (job.status, job.fine_tuned_model) == ("succeeded", model)
    adapter = client.files.content(model)
    assert adapter.content == api.client.get(f"/v1/models/{model}/export").content
    file = client.files.retrieve(model)
    assert (file.bytes, file.purpose, file.status) == (len(adapter.content), "fine-tune-results", "processed")
    [metrics] = job.result_files
    content = client.files.content(metrics)
    assert content.text == api.client.get(f"/v1/jobs/{job.id}/metrics?format=csv").text
    assert client.files.retrieve(metrics).bytes == len(content.content)
    assert client.files.retrieve(metrics).filename == f"{job.id}-metrics.csv"
    etag = content.response.headers["etag"]
    again = api.client.get(f"/v1/files/{metrics}/content", headers={"If-None-Match": etag})
    assert again.status_code == 304
    for result in (metrics, model):
        with pytest.raises(openai.ConflictError):
            client.files.delete(result)
    running = claimed_job(api.database)
    for unknown in (f"metrics_{running.id}", "metrics_job_x", "metrics_", "model_x"):
        with pytest.raises(openai.NotFoundError):
            client.files.content(unknown)


def test_checkpoints_have_what_was_measured_at_their_step(live: Api, live_client: OpenAI, tmp_path: Path) -> None:
    add_model(live.database, live.storage, tmp_path)
    [job] = live_client.fine_tuning.jobs.list()
    [checkpoint] = live_client.fine_tuning.jobs.checkpoints.list(job.id)
    assert (checkpoint.fine_tuning_job_id, checkpoint.step_number) == (job.id, 30)
    assert checkpoint.fine_tuned_model_checkpoint == checkpoint.id
    assert checkpoint.metrics.model_dump() == {
        **dict.fromkeys(type(checkpoint.metrics).model_fields),
        "step": 30,
    }
    running = claimed_job(live.database)
    with live.database.write() as unit:
        unit.metrics.add_all(
            running.id,
            running.epoch,
            [
                StepValues(1, 1.0, {"train/loss": 9.0, "val/segm_mAP": 0.1}),
                StepValues(2, 2.0, {"train/loss": 1.5, "train/lr": 1e-4, "val/segm_mAP": 0.25, "val/cgF1": None}),
            ],
        )
        for step in (1, 2):
            unit.checkpoints.publish(running.id, running.epoch, CheckpointManifest("epoch", step, step, None, None, {}))
    newest, older = live_client.fine_tuning.jobs.checkpoints.list(running.id, limit=1)
    assert newest.metrics.model_dump(exclude_none=True) == {"step": 2, "train_loss": 1.5, "val/segm_mAP": 0.25}
    assert older.metrics.train_loss == 9.0
    with pytest.raises(openai.NotFoundError):
        live_client.fine_tuning.jobs.checkpoints.list(running.id, after=checkpoint.id)
