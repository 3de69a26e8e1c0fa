"""New jobs from old ones: retries, clones, starting from an earlier adapter; and a dataset for validation alone."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from service.shared.db.repositories.checkpoints import CheckpointManifest
from service.shared.states import DatasetState, JobState
from service.shared.storage import StoredFile
from service.usecases.actions import cancel_job, delete_job
from service.usecases.retries import merged
from tests.service.conftest import Api, add_dataset, add_job, assert_problem, body
from tests.service.test_jobs_api import create

if TYPE_CHECKING:
    from service.shared.unit_of_work import Database


def finish(api: Api, job_id: str, state: JobState, *checkpoints: tuple[str, int]) -> list[str]:
    """Run the job to its end; ids of checkpoints of these kinds and steps that it leaves."""
    with api.database.write() as unit:
        claimed = unit.jobs.claim("w-1")
        assert claimed is not None
        assert claimed.id == job_id
        ids = []
        for kind, step in checkpoints:
            files = {"adapter_model.safetensors": StoredFile(f"jobs/{job_id}/{kind}-{step}", 3, "0" * 64)}
            manifest = CheckpointManifest(kind, step // 10, step, "m", 0.5, files)
            ids.append(unit.checkpoints.publish(job_id, claimed.epoch, manifest).id)
        unit.attempts.finish(job_id, claimed.epoch, state, result={}, error={"code": "diverged", "message": "m"})
    api.clock.advance(1)
    return ids


def retry(api: Api, job_id: str, **request: Any) -> dict[str, Any]:
    response = api.client.post(f"/v1/jobs/{job_id}/retry", **request)
    assert response.status_code == 201, response.text
    job: dict[str, Any] = response.json()
    assert response.headers["location"] == job["urls"]["self"]
    return job


def messages(api: Api, job_id: str) -> list[str]:
    return [event["message"] for event in api.client.get(f"/v1/jobs/{job_id}/events").json()["data"]]


# --- retry ----------------------------------------------------------------------------------------------------


def test_a_retry_is_a_new_job_like_the_old_one_that_goes_on_from_its_last_checkpoint(api: Api) -> None:
    old = create(api, config={"lora": {"rank": 4}}, seed=7, tags=["a"], metadata={"k": "v"}, project="p", priority=60)
    _, last, _ = finish(api, old["id"], JobState.FAILED, ("epoch", 10), ("epoch", 20), ("best", 20))
    new = retry(api, old["id"])
    assert new["id"] != old["id"]
    assert (new["retry_of"], new["resumes_from"]) == (old["id"], old["id"])
    for same in (
        "name",
        "config",
        "resolved",
        "seed",
        "tags",
        "metadata",
        "project",
        "priority",
        "dataset_id",
        "limits",
    ):
        assert new[same] == old[same]
    assert (new["status"], new["error"], new["attempt"]) == ("queued", None, 0)
    assert messages(api, new["id"])[1] == (
        f"Retry of {old['id']}: training goes on from checkpoint {last} after step 20"
    )
    assert api.client.get(f"/v1/jobs/{old['id']}").json()["status"] == "failed"
    assert api.client.get("/v1/jobs?tag=a").json()["data"][0]["id"] == new["id"]


def test_a_retry_begins_anew_where_asked_or_where_nothing_was_left(api: Api) -> None:
    old = create(api)
    finish(api, old["id"], JobState.FAILED, ("best", 10))
    assert retry(api, old["id"])["resumes_from"] is None  # a best one alone cannot be gone on from
    other = create(api)
    api.client.post(f"/v1/jobs/{other['id']}/cancel")
    assert messages(api, retry(api, other["id"])["id"])[1] == f"Retry of {other['id']}: training begins anew"


def test_a_retry_from_scratch_needs_to_be_asked_for(api: Api) -> None:
    old = create(api)
    finish(api, old["id"], JobState.FAILED, ("epoch", 10))
    assert retry(api, old["id"], json={"from_scratch": True})["resumes_from"] is None
    assert retry(api, old["id"], json={})["resumes_from"] == old["id"]
    for wrong in ({"from_scrach": True}, {"from_scratch": "yes"}, []):
        response = api.client.post(f"/v1/jobs/{old['id']}/retry", json=wrong)
        assert_problem(response, 422, "invalid_request")
    response = api.client.post(f"/v1/jobs/{old['id']}/retry", content=b"x", headers={"Content-Type": "text/plain"})
    assert_problem(response, 415, "unsupported_media_type")


def test_a_retry_may_have_other_limits_and_still_goes_on(api: Api) -> None:
    old = create(api, limits={"max_runtime_s": 600, "max_attempts": 5})
    finish(api, old["id"], JobState.FAILED, ("epoch", 10))
    for limits, found in (
        ({}, {"max_runtime_s": 600, "max_attempts": 5}),
        ({"max_runtime_s": 1200, "max_attempts": None}, {"max_runtime_s": 1200, "max_attempts": 5}),
        ({"max_attempts": 1}, {"max_runtime_s": 600, "max_attempts": 1}),
    ):
        new = retry(api, old["id"], json={"limits": limits})
        assert (new["limits"], new["resumes_from"]) == (found, old["id"])
    for wrong in ({"max_runtime_s": 59}, {"max_attempts": 21}, {"max_runtime": 600}, None):
        response = api.client.post(f"/v1/jobs/{old['id']}/retry", json={"limits": wrong})
        assert assert_problem(response, 422, "invalid_request")["errors"][0]["pointer"].startswith("/limits")


def test_a_retry_of_a_retry_that_never_ran_goes_on_from_the_first(api: Api) -> None:
    first = create(api)
    finish(api, first["id"], JobState.FAILED, ("epoch", 10))
    second = retry(api, first["id"])
    api.client.post(f"/v1/jobs/{second['id']}/cancel")
    assert retry(api, second["id"])["resumes_from"] == first["id"]
    with api.database.write() as unit:
        for job in unit.jobs.list(limit=10)[0]:
            if job.retry_of == second["id"]:
                cancel_job(unit, job.id)
        delete_job(unit, first["id"])
    third = retry(api, second["id"])
    assert (third["retry_of"], third["resumes_from"]) == (second["id"], None)


def test_a_retry_on_a_dataset_that_is_gone_is_refused(api: Api) -> None:
    old = create(api)
    api.client.post(f"/v1/jobs/{old['id']}/cancel")
    assert api.client.delete(f"/v1/datasets/{old['dataset_id']}").status_code == 204
    assert_problem(api.client.post(f"/v1/jobs/{old['id']}/retry"), 422, "invalid_request")


@pytest.mark.parametrize("path", ["retry", "clone"])
def test_one_key_makes_one_new_job_however_many_ask(api: Api, path: str) -> None:
    old = create(api)
    api.client.post(f"/v1/jobs/{old['id']}/cancel")
    url, headers = f"/v1/jobs/{old['id']}/{path}", {"Idempotency-Key": "k1"}
    barrier = threading.Barrier(4)
    made: list[tuple[int, str]] = []

    def race() -> None:
        barrier.wait()
        response = api.client.post(url, headers=headers)
        made.append((response.status_code, response.json()["id"]))

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 1
    assert made[0][0] == 201
    other = create(api)
    api.client.post(f"/v1/jobs/{other['id']}/cancel")
    response = api.client.post(f"/v1/jobs/{other['id']}/{path}", headers=headers)
    assert_problem(response, 422, "idempotency_key_reused")


# --- clone ----------------------------------------------------------------------------------------------------


def test_a_clone_is_the_same_request_with_the_overrides_merged_in(api: Api) -> None:
    config = {"lora": {"rank": 4, "alpha": 8.0}, "training": {"max_epochs": 3}}
    old = create(api, config=config, metadata={"k": "v"}, tags=["a"], limits={"max_attempts": 2})
    overrides = {
        "name": "next",
        "config": {"lora": {"rank": 16}, "training": {"max_epochs": None, "seed": 5}},
        "metadata": {"k": None, "l": "w"},
        "dataset_id": add_dataset(api.database),
    }
    response = api.client.post(f"/v1/jobs/{old['id']}/clone", json={"overrides": overrides})
    assert response.status_code == 201, response.text
    new = response.json()
    assert new["config"] == {"lora": {"rank": 16, "alpha": 8.0}, "training": {"seed": 5}}
    assert (new["name"], new["metadata"], new["tags"]) == ("next", {"l": "w"}, ["a"])
    assert (new["dataset_id"], new["limits"]["max_attempts"]) == (overrides["dataset_id"], 2)
    assert (new["seed"], new["retry_of"], new["resumes_from"]) == (5, None, None)
    assert messages(api, new["id"])[1] == f"Cloned from {old['id']}"
    plain = api.client.post(f"/v1/jobs/{old['id']}/clone").json()
    assert {key: plain[key] for key in ("name", "config", "seed", "resolved")} == {
        key: old[key] for key in ("name", "config", "seed", "resolved")
    }


@pytest.mark.parametrize(
    ("overrides", "pointer"),
    [
        ({"nam": "x"}, "/overrides/nam"),
        ({"name": None}, "/overrides/name"),
        ({"config": {"lora": {"rnk": 1}}}, "/overrides/config/lora/rnk"),
        ({"config": 5}, "/overrides/config"),
        ({"dataset_id": "ds_nope"}, "/overrides/dataset_id"),
        ({"base_model": "sam3"}, "/overrides/base_model"),
        ({"seed": 1, "config": {"training": {"seed": 2}}}, "/overrides/seed"),
        (5, "/overrides"),
    ],
)
def test_a_wrong_override_is_named_where_it_stands(api: Api, overrides: Any, pointer: str) -> None:
    old = create(api)
    response = api.client.post(f"/v1/jobs/{old['id']}/clone", json={"overrides": overrides})
    assert response.status_code == 422
    assert pointer in [fault["pointer"] for fault in response.json()["errors"]]
    assert len(api.client.get("/v1/jobs").json()["data"]) == 1


def test_merging_is_that_of_rfc_7396() -> None:
    # examples of the standard's appendix
    for value, patch, expected in (
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ):
        assert merged(value, patch) == expected


# --- starting from an earlier adapter -------------------------------------------------------------------------


@pytest.fixture
def trained(api: Api) -> tuple[str, list[str]]:
    """An ended job of rank 4 on all targets, and its checkpoints: of an epoch, then the best."""
    job = create(api, config={"lora": {"rank": 4, "target_modules": ["all"]}})
    return job["id"], finish(api, job["id"], JobState.SUCCEEDED, ("epoch", 10), ("best", 10), ("epoch", 20))


def test_a_job_starts_from_a_checkpoint_or_the_best_of_a_job_and_takes_over_its_adapters(
    api: Api, trained: tuple[str, list[str]]
) -> None:
    job_id, (first, best, _) = trained
    for given, found in (
        ({"job_id": job_id}, best),
        ({"checkpoint_id": first}, first),
        (first, first),
    ):
        job = create(api, init_from=given, config={"lora": {"dropout": 0.1}})
        assert job["init_from"] == {"checkpoint_id": found}
        assert job["resolved"]["config"]["lora"]["rank"] == 4
        assert job["resolved"]["config"]["lora"]["dropout"] == 0.1
        assert job["config"] == {"lora": {"dropout": 0.1}}
    same = {"lora": {"rank": 4, "target_modules": ["qkv", "proj", "fc1", "fc2"]}}  # the same under other names
    create(api, init_from=first, config=same)


@pytest.mark.parametrize(
    ("values", "pointer"),
    [
        ({"config": {"lora": {"rank": 8}}}, "/config/lora/rank"),
        ({"config": {"lora": {"alpha": 1.0, "target_modules": ["qkv"]}}}, "/config/lora/target_modules"),
        ({"config": {"lora": {"apply_to_vision_encoder": False}}}, "/config/lora/apply_to_vision_encoder"),
        ({"init_from": {"job_id": "job_nope"}}, "/init_from"),
        ({"init_from": {"checkpoint_id": "ckpt_nope"}}, "/init_from"),
        ({"init_from": "ckpt_nope"}, "/init_from"),
        ({"init_from": {"job_id": "a", "checkpoint_id": "b"}}, "/init_from"),
        ({"init_from": 5}, "/init_from"),
    ],
)
def test_what_does_not_fit_the_earlier_adapter_is_named(
    api: Api, trained: tuple[str, list[str]], values: dict[str, Any], pointer: str
) -> None:
    sent = body(dataset_id=add_dataset(api.database), init_from=trained[1][0]) | values
    problem = assert_problem(api.client.post("/v1/jobs", json=sent), 422, "invalid_request")
    assert pointer in [fault["pointer"] for fault in problem["errors"]]


@pytest.mark.parametrize("is_object", [True, False])
@pytest.mark.parametrize(("another", "text"), [("job_1", '{"job_id": "job_1"}'), ("model_1", "`job_id` of the model")])
def test_another_id_than_a_checkpoints_is_told_where_it_belongs(
    api: Api, is_object: bool, another: str, text: str
) -> None:
    given = {"checkpoint_id": another} if is_object else another
    sent = body(dataset_id=add_dataset(api.database), init_from=given)
    [found] = assert_problem(api.client.post("/v1/jobs", json=sent), 422, "invalid_request")["errors"]
    assert found["pointer"] == "/init_from/checkpoint_id"
    assert text in found["message"]


def test_a_job_that_may_still_replace_its_checkpoints_is_nothing_to_start_from(api: Api) -> None:
    running = create(api)
    with api.database.write() as unit:
        assert unit.jobs.claim("w-1") is not None
    sent = body(dataset_id=add_dataset(api.database), init_from={"job_id": running["id"]})
    problem = assert_problem(api.client.post("/v1/jobs", json=sent), 422, "invalid_request")
    assert problem["errors"][0]["code"] == "checkpoint_not_found"
    with api.database.write() as unit:
        files = {"f": StoredFile("jobs/x/f", 3, "0" * 64)}
        checkpoint = unit.checkpoints.publish(running["id"], 1, CheckpointManifest("epoch", 1, 1, None, None, files))
    problem = assert_problem(
        api.client.post("/v1/jobs", json=sent | {"init_from": checkpoint.id}), 422, "invalid_request"
    )
    assert problem["errors"][0]["code"] == "job_not_ended"


def test_another_base_than_the_earlier_adapters_is_refused(api: Api, trained: tuple[str, list[str]]) -> None:
    with api.database.write() as unit:
        unit.jobs.get(trained[0]).base_model = "sam3"
    sent = body(dataset_id=add_dataset(api.database), init_from=trained[1][0])
    problem = assert_problem(api.client.post("/v1/jobs", json=sent), 422, "invalid_request")
    assert problem["errors"][0]["pointer"] == "/base_model"


# --- a dataset for validation ---------------------------------------------------------------------------------


def test_a_job_waits_for_both_of_its_datasets(database: Database) -> None:
    datasets = [add_dataset(database, DatasetState.PROCESSING) for _ in range(2)]
    job_id = add_job(database, datasets[0], validation_dataset_id=datasets[1], state=JobState.VALIDATING_FILES)
    released = []
    for _ in datasets:
        with database.write() as unit:
            claimed = unit.datasets.claim("w-1")
            assert claimed is not None
        with database.write() as unit:
            unit.datasets.finish(claimed.id, claimed.epoch, DatasetState.READY, report={})
            released.append(list(unit.jobs.release_waiting(claimed.id, valid=True)))
    assert released == [[], [job_id]]


def test_two_datasets_that_become_ready_at_once_release_the_job_once(database: Database) -> None:
    datasets = [add_dataset(database, DatasetState.PROCESSING) for _ in range(2)]
    job_id = add_job(database, datasets[0], validation_dataset_id=datasets[1], state=JobState.VALIDATING_FILES)
    claims = []
    for _ in datasets:
        with database.write() as unit:
            claims.append(unit.datasets.claim("w-1"))
    barrier = threading.Barrier(2)
    released: list[str] = []

    def race(claimed: Any) -> None:
        barrier.wait()
        with database.write() as unit:
            unit.datasets.finish(claimed.id, claimed.epoch, DatasetState.READY, report={})
            released.extend(unit.jobs.release_waiting(claimed.id, valid=True))

    threads = [threading.Thread(target=race, args=(claimed,)) for claimed in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert released == [job_id]


def test_a_validation_dataset_is_checked_kept_and_shown(api: Api) -> None:
    training, validation = add_dataset(api.database), add_dataset(api.database, DatasetState.PROCESSING)
    job = create(api, dataset_id=training, validation_dataset_id=validation)
    assert (job["status"], job["validation_dataset_id"]) == ("validating_files", validation)
    assert job["resolved"]["validation_dataset_sha256"] == "0" * 64
    assert_problem(api.client.delete(f"/v1/datasets/{validation}"), 409, "dataset_in_use")
    with api.database.write() as unit:
        unit.jobs.release_waiting(validation, valid=False)
    failed = api.client.get(f"/v1/jobs/{job['id']}").json()
    assert failed["error"]["code"] == "dataset_invalid"
    assert validation in failed["error"]["message"]
    for wrong, code in (
        (training, "same_dataset"),
        ("ds_nope", "dataset_not_found"),
        (add_dataset(api.database, DatasetState.INVALID), "dataset_invalid"),
    ):
        sent = body(dataset_id=training, validation_dataset_id=wrong)
        [fault] = api.client.post("/v1/jobs", json=sent).json()["errors"]
        assert (fault["pointer"], fault["code"]) == ("/validation_dataset_id", code)
