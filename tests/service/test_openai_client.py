"""OpenAI's own client against the service, with strict validation of every answer."""

from __future__ import annotations

import asyncio
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from sqlalchemy import update

from service.shared.db.models import Dataset
from service.shared.db.repositories.checkpoints import CheckpointManifest
from service.shared.db.repositories.events import NewEvent
from service.shared.db.repositories.metrics import StepValues
from service.shared.states import DatasetState, JobState
from service.usecases.access import Scope
from tests.service.conftest import Api, add_dataset, add_job, assert_problem, served, zip_bytes
from tests.service.results import add_model, claimed_job, report_evaluation
from tests.service.test_access import key
from tests.service.test_access import served_with_keys as served_with_keys

if TYPE_CHECKING:
    from collections.abc import Iterator
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


def connected(api: Api, secret: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{api.client.base_url}/v1", api_key=secret, _strict_response_validation=True)


@pytest.fixture
def client(api: Api) -> Iterator[OpenAI]:
    with connected(api) as client:
        yield client


@pytest.fixture
def live_client(live: Api) -> Iterator[OpenAI]:
    """On each database."""
    with connected(live) as client:
        yield client


@pytest.fixture
def dataset(api: Api) -> str:
    return add_dataset(api.database)


def refused(error: pytest.ExceptionInfo[openai.APIStatusError]) -> tuple[str | None, str | None]:
    """Where and what is wrong, as the client's error has it."""
    body: Any = error.value.response.json()
    assert error.value.code == body["code"]
    assert error.value.type == "invalid_request_error"
    return error.value.param, body["errors"][0]["code"]


# Files


def test_a_file_is_a_dataset(api: Api, client: OpenAI) -> None:
    content = zip_bytes()
    file = client.files.create(file=("pallets.zip", content), purpose="fine-tune")
    assert (file.status, file.bytes, file.filename) == ("uploaded", len(content), "pallets.zip")
    dataset = api.client.get(f"/v1/datasets/{file.id}").json()
    assert (dataset["name"], dataset["sha256"]) == ("pallets.zip", hashlib.sha256(content).hexdigest())
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == content
    part = client.files.with_raw_response.content(file.id, extra_headers={"Range": "bytes=2-9"})
    assert (part.status_code, part.content) == (206, content[2:10])
    head = api.client.head(f"/v1/files/{file.id}/content")
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(content)))
    assert part.headers["content-disposition"] == f'attachment; filename="{file.id}.zip"'
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.deleted) == (file.id, True)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    assert api.client.get(f"/v1/datasets/{file.id}").status_code == 404


def test_members_of_a_dataset_that_openai_does_not_have(api: Api, client: OpenAI) -> None:
    sha256 = hashlib.sha256(zip_bytes()).hexdigest()
    extra = {"name": "Paletten", "sha256": sha256}
    file = client.files.create(file=("a.zip", zip_bytes()), purpose="fine-tune", extra_body=extra)
    assert api.client.get(f"/v1/datasets/{file.id}").json()["name"] == "Paletten"
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.files.create(file=("a.zip", zip_bytes()), purpose="fine-tune", extra_body={"sha256": "0" * 64})
    assert refused(error) == ("/sha256", "sha256_mismatch")


def test_files_that_are_refused(client: OpenAI) -> None:
    archive = ("a.zip", zip_bytes())
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.files.create(file=archive, purpose="batch")
    assert refused(error) == ("/purpose", "literal_error")
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.files.create(file=archive, purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600})
    assert refused(error)[1] == "extra_forbidden"
    with pytest.raises(openai.APIStatusError) as other:
        client.files.create(file=("a.jsonl", b'{"prompt": "x"}'), purpose="fine-tune")
    assert other.value.status_code == 415
    assert list(client.files.list()) == []


@pytest.mark.parametrize(
    ("state", "values", "status", "details"),
    [
        (DatasetState.PROCESSING, {"error": None}, "uploaded", None),
        (DatasetState.READY, {"report": {"issues": []}}, "processed", None),
        (
            DatasetState.INVALID,
            {
                "report": {
                    "summary": {"errors": 12},
                    "issues": [
                        {"severity": "warning", "file": None, "message": "w"},
                        {"severity": "error", "file": None, "message": "no annotations"},
                        {"severity": "error", "file": "train.json", "message": "no such image"},
                    ],
                }
            },
            "error",
            "12 errors: archive: no annotations; train.json: no such image. All of them: /v1/datasets/{}/validation",
        ),
        (
            DatasetState.FAILED,
            {"error": {"code": "internal", "message": "It broke.", "hint": "Again.", "retryable": True}},
            "error",
            "It broke. Again.",
        ),
    ],
)
def test_what_a_files_status_tells_of_the_dataset(
    api: Api, client: OpenAI, state: DatasetState, values: dict[str, Any], status: str, details: str | None
) -> None:
    dataset = add_dataset(api.database, state)
    with api.database.write() as unit:
        unit.session.execute(update(Dataset).where(Dataset.id == dataset).values(**values))
    file = client.files.retrieve(dataset)
    assert (file.status, file.status_details) == (status, details and details.format(dataset))
    assert file.model_extra == {"native": {"status": state, "url": f"/v1/datasets/{dataset}"}}
    if state is not DatasetState.PROCESSING:
        assert client.files.wait_for_processing(dataset) == file


def test_files_are_listed_to_the_end(api: Api, client: OpenAI) -> None:
    made = [add_dataset(api.database) for _ in range(5)]
    assert [file.id for file in client.files.list()] == made[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc", purpose="fine-tune")] == made
    page = client.files.list(limit=2, after=made[3])
    assert ([file.id for file in page.data], page.has_more) == ([made[2], made[1]], True)
    assert [file.id for file in client.files.list(limit=10_000)] == made[::-1]
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.files.list(purpose="fine-tune-results")
    assert refused(error) == ("/query/purpose", "literal_error")


def test_a_page_has_a_hundred_items_whatever_is_asked_for(api: Api, client: OpenAI) -> None:
    dataset = add_dataset(api.database)
    for _ in range(101):
        add_job(api.database, dataset)
    page = client.fine_tuning.jobs.list(limit=5000)
    assert (len(page.data), page.has_more) == (100, True)
    assert len(list(page)) == 101


def test_a_conflict_is_not_tried_again(api: Api, client: OpenAI) -> None:
    dataset = add_dataset(api.database)
    add_job(api.database, dataset)
    with pytest.raises(openai.ConflictError) as error:
        client.files.delete(dataset)
    assert error.value.code == "dataset_in_use"
    assert error.value.request.headers["x-stainless-retry-count"] == "0"
    assert error.value.request_id == error.value.response.json()["request_id"]


def test_an_idempotency_key_is_of_one_door(api: Api, client: OpenAI) -> None:
    headers = {"Idempotency-Key": "k"}
    answers = [
        client.files.create(file=("a.zip", zip_bytes()), purpose="fine-tune", extra_headers=headers) for _ in range(2)
    ]
    assert answers[0] == answers[1]
    other = api.client.post("/v1/datasets", files={"file": ("a.zip", zip_bytes())}, headers=headers).json()
    assert other["object"] == "dataset"
    assert other["id"] != answers[0].id


# Uploads

CONTENT = os.urandom(10_000)
MIME = "application/zip"


def begin(client: OpenAI, **values: Any) -> openai.types.Upload:
    given: dict[str, Any] = {"bytes": len(CONTENT), "filename": "dir/a.zip", "mime_type": MIME, "purpose": "fine-tune"}
    return client.uploads.create(**given | values)


def test_a_large_file_in_parts(api: Api, client: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "pallets.tar.gz"
    path.write_bytes(CONTENT)
    upload = client.uploads.upload_file_chunked(
        file=path,
        mime_type="application/gzip",
        purpose="fine-tune",
        part_size=3000,
        md5=hashlib.md5(CONTENT).hexdigest(),
    )
    assert (upload.status, upload.bytes, upload.filename) == ("completed", len(CONTENT), "pallets.tar.gz")
    assert upload.file is not None
    assert upload.file == client.files.retrieve(upload.file.id)
    assert client.files.content(upload.file.id).content == CONTENT
    dataset = api.client.get(f"/v1/datasets/{upload.file.id}").json()
    assert dataset["source"]["upload_id"] == upload.id
    assert [ring[1] for ring in api.queue.rings] == [upload.file.id]
    assert api.storage.list("uploads") == []


def test_parts_are_put_together_as_they_are_named(api: Api, client: OpenAI) -> None:
    upload = begin(client)
    assert (upload.status, upload.filename, upload.file) == ("pending", "a.zip", None)
    rest = client.uploads.parts.create(upload.id, data=CONTENT[7000:])
    lost = client.uploads.parts.create(upload.id, data=CONTENT[:7000])
    first = client.uploads.parts.create(upload.id, data=CONTENT[:7000])  # as after an answer that was lost
    assert len({rest.id, lost.id, first.id}) == 3
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.uploads.complete(upload.id, part_ids=[first.id, "part_x", rest.id])
    assert refused(error) == ("/part_ids/1", "part_not_found")
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.uploads.complete(upload.id, part_ids=[first.id])
    assert refused(error) == ("/part_ids", "wrong_length")
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.uploads.complete(upload.id, part_ids=[first.id, rest.id], md5="0" * 32)
    assert refused(error) == ("/md5", "md5_mismatch")
    assert api.storage.list("datasets") == []
    done = client.uploads.complete(upload.id, part_ids=[first.id, rest.id])
    assert done.file is not None
    assert client.files.content(done.file.id).content == CONTENT
    assert client.uploads.complete(upload.id, part_ids=[first.id, rest.id]) == done
    assert len(list(client.files.list())) == 1
    assert api.storage.list("uploads") == []
    assert api.client.get(f"/v1/uploads/{upload.id}").json()["file"]["id"] == done.file.id
    client.files.delete(done.file.id)
    assert api.client.get(f"/v1/uploads/{upload.id}").json()["file"] is None


def test_parts_and_completions_that_come_together_make_one_dataset(live: Api) -> None:
    with connected(live) as client:
        upload = begin(client)
        pieces = [CONTENT[start : start + 1000] for start in range(0, len(CONTENT), 1000)]
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(lambda piece: client.uploads.parts.create(upload.id, data=piece), pieces))
            part_ids = [part.id for part in parts]
            done = list(pool.map(lambda _: client.uploads.complete(upload.id, part_ids=part_ids), range(4)))
        assert done == [done[0]] * 4
        [file] = client.files.list()
        assert file == done[0].file
        assert client.files.content(file.id).content == CONTENT
        assert live.storage.list("uploads") == []
        assert len(live.storage.list("datasets")) == 1


def test_an_upload_that_is_cancelled_is_gone(api: Api, client: OpenAI) -> None:
    upload = begin(client)
    client.uploads.parts.create(upload.id, data=CONTENT[:10])
    assert client.uploads.cancel(upload.id).status == "cancelled"
    assert api.storage.list("uploads") == []
    for act in (
        lambda: client.uploads.cancel(upload.id),
        lambda: client.uploads.parts.create(upload.id, data=b"x"),
        lambda: client.uploads.complete(upload.id, part_ids=["part_x"]),
    ):
        with pytest.raises(openai.NotFoundError):
            act()


def test_a_complete_upload_is_not_cancelled_and_takes_no_parts(client: OpenAI) -> None:
    upload = begin(client)
    part = client.uploads.parts.create(upload.id, data=CONTENT)
    client.uploads.complete(upload.id, part_ids=[part.id])
    for act in (lambda: client.uploads.cancel(upload.id), lambda: client.uploads.parts.create(upload.id, data=b"x")):
        with pytest.raises(openai.ConflictError):
            act()


def test_an_upload_that_expires(api: Api, client: OpenAI) -> None:
    upload = begin(client)
    api.clock.advance(api.settings.upload_retention_s)
    with pytest.raises(openai.APIStatusError) as error:
        client.uploads.parts.create(upload.id, data=b"x")
    assert error.value.status_code == 410
    assert api.client.get(f"/v1/uploads/{upload.id}").json()["status"] == "expired"


def test_parts_hold_no_more_than_a_client_that_tries_again_sends(api: Api, client: OpenAI) -> None:
    upload = begin(client, bytes=10)
    for _ in range(3):
        client.uploads.parts.create(upload.id, data=CONTENT[:10])
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.uploads.parts.create(upload.id, data=CONTENT[:1])
    assert refused(error)[1] == "too_many_bytes"
    assert len(api.storage.list("uploads")) == 3


def test_a_part_has_64_mib_at_most(client: OpenAI) -> None:
    upload = begin(client, bytes=2**27)
    client.uploads.parts.create(upload.id, data=bytes(2**26))
    with pytest.raises(openai.APIStatusError) as error:
        client.uploads.parts.create(upload.id, data=bytes(2**26 + 1))
    assert error.value.status_code == 413


@pytest.mark.parametrize(
    ("values", "pointer", "code"),
    [
        ({"purpose": "vision"}, "/purpose", "literal_error"),
        ({"mime_type": "application/jsonl"}, "/mime_type", "literal_error"),
        ({"bytes": 0}, "/bytes", "greater_than_equal"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3600}}, "/expires_after", "extra_forbidden"),
    ],
)
def test_uploads_that_are_refused(client: OpenAI, values: dict[str, Any], pointer: str, code: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as error:
        begin(client, **values)
    assert refused(error) == (pointer, code)


def test_the_two_kinds_of_uploads_do_not_mix(api: Api, client: OpenAI) -> None:
    theirs = begin(client)
    put = api.client.put(f"/v1/uploads/{theirs.id}/parts/1", content=CONTENT)
    assert_problem(put, 409, "state_conflict")
    problem = assert_problem(api.client.post(f"/v1/uploads/{theirs.id}/complete"), 422, "invalid_request")
    assert problem["errors"][0]["pointer"] == "/part_ids"
    ours = api.client.post("/v1/uploads", json={"filename": "a.zip", "bytes": 4}).json()
    for act in (lambda: client.uploads.parts.create(ours["id"], data=b"x"), lambda: client.uploads.cancel(ours["id"])):
        with pytest.raises(openai.ConflictError):
            act()
    for body, pointer in (({"part_ids": ["part_x"]}, "/part_ids"), ({"md5": "0" * 32}, "")):
        problem = assert_problem(
            api.client.post(f"/v1/uploads/{ours['id']}/complete", json=body), 422, "invalid_request"
        )
        assert problem["errors"][0]["pointer"] == pointer
    assert api.client.delete(f"/v1/uploads/{theirs.id}").status_code == 204
    with pytest.raises(openai.NotFoundError):
        client.uploads.cancel(theirs.id)


# Jobs


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


def test_models_are_listed_as_they_are(api: Api, client: OpenAI, tmp_path: Path) -> None:
    ids = [add_model(api.database, api.storage, tmp_path) for _ in range(2)]
    models = list(client.models.list())
    assert [model.id for model in models] == ids[::-1]
    assert client.models.retrieve(ids[0]).owned_by == "default"
    assert client.models.retrieve(ids[0]).created == int(api.clock.now().timestamp())
    client.delete(f"/models/{ids[0]}", cast_to=type(None))
    assert [model.id for model in client.models.list()] == [ids[1]]


def test_what_is_not_offered_is_not_found(api: Api, client: OpenAI, dataset: str) -> None:
    for act in (
        lambda: client.fine_tuning.alpha.graders.validate(grader={}),  # type: ignore[arg-type, typeddict-item]
        lambda: client.fine_tuning.checkpoints.permissions.list("ckpt_x"),
        lambda: client.batches.list(),
    ):
        with pytest.raises(openai.NotFoundError) as error:
            act()
        assert error.value.code == "not_found"


def test_both_doors_open_without_a_version(api: Api, dataset: str) -> None:
    with OpenAI(base_url=str(api.client.base_url), api_key="none", _strict_response_validation=True) as client:
        job = client.fine_tuning.jobs.create(model="sam3-tiny", training_file=dataset)
        assert client.fine_tuning.jobs.retrieve(job.id) == job
        assert [file.id for file in client.files.list()] == [dataset]


def test_the_asynchronous_client(api: Api) -> None:
    async def work() -> None:
        url = f"{api.client.base_url}/v1"
        async with AsyncOpenAI(base_url=url, api_key="none", _strict_response_validation=True) as client:
            file = await client.files.create(file=("a.zip", zip_bytes()), purpose="fine-tune")
            upload = await client.uploads.upload_file_chunked(
                file=CONTENT, filename="b.zip", bytes=len(CONTENT), mime_type=MIME, purpose="fine-tune", part_size=4000
            )
            assert upload.file is not None
            made = await asyncio.gather(
                *(client.fine_tuning.jobs.create(model="sam3-tiny", training_file=file.id) for _ in range(5))
            )
            assert {job.status for job in made} == {"validating_files"}
            assert {job.id async for job in client.fine_tuning.jobs.list(limit=2)} == {job.id for job in made}
            assert [event.message async for event in client.fine_tuning.jobs.list_events(made[0].id)]
            assert (await client.fine_tuning.jobs.cancel(made[0].id)).status == "cancelled"

    asyncio.run(work())


# Keys


def test_keys_scopes_and_limits_are_typed_errors(served_with_keys: Api) -> None:
    api = served_with_keys
    with connected(api, key(api, "a", Scope.READ)) as reader:
        assert list(reader.fine_tuning.jobs.list()) == []
        for act in (
            lambda: reader.files.create(file=("a.zip", zip_bytes()), purpose="fine-tune"),
            lambda: reader.fine_tuning.jobs.create(model="sam3-tiny", training_file="ds_x"),
            lambda: reader.fine_tuning.jobs.cancel("job_x"),
            lambda: reader.uploads.cancel("upload_x"),
        ):
            with pytest.raises(openai.PermissionDeniedError) as denied:
                act()
            assert denied.value.code == "insufficient_scope"
    with served(api.settings.model_copy(update={"requests_per_minute": 1})) as strict:
        with connected(strict, "sam3_wrong") as stranger, pytest.raises(openai.AuthenticationError):
            stranger.files.list()
        with connected(strict, key(api, "a", Scope.READ)).with_options(max_retries=0) as busy:
            busy.files.list()
            with pytest.raises(openai.RateLimitError):
                busy.files.list()


def test_jobs_belong_to_the_project_of_the_key(served_with_keys: Api) -> None:
    api = served_with_keys
    with connected(api, key(api, "ours")) as ours, connected(api, key(api, "theirs")) as theirs:
        file = ours.files.create(file=("a.zip", zip_bytes()), purpose="fine-tune")
        job = ours.fine_tuning.jobs.create(model="sam3-tiny", training_file=file.id)
        assert job.organization_id == "ours"
        upload = ours.uploads.upload_file_chunked(
            file=CONTENT, filename="b.zip", bytes=len(CONTENT), mime_type=MIME, purpose="fine-tune"
        )
        assert upload.file is not None
        assert list(theirs.files.list()) == list(theirs.fine_tuning.jobs.list()) == []
        for file_id in (file.id, upload.file.id, f"metrics_{job.id}"):
            with pytest.raises(openai.NotFoundError):
                theirs.files.content(file_id)
        with pytest.raises(openai.UnprocessableEntityError) as error:
            theirs.fine_tuning.jobs.create(model="sam3-tiny", training_file=file.id)
        assert refused(error) == ("/training_file", "dataset_not_found")
