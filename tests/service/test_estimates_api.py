"""What a job would take: worked out by a worker once for each question, and told without holding a thread."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update

from service.reconciler import Reconciler
from service.shared.db.models import Dataset
from service.shared.db.repositories.estimates import MAX_ATTEMPTS, WORK_S
from service.shared.queue import Task
from service.shared.states import DatasetState, JobState
from tests.service.conftest import Api, FakeClock, add_dataset, assert_problem, body, served
from tests.service.test_jobs_api import count_jobs, create

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.shared.settings import Settings
    from service.shared.unit_of_work import Database

NUMBERS = {
    "modules": 3,
    "components": ["scoring"],
    "trainable_parameters": 10,
    "total_parameters": 1000,
    "trainable_percent": 1.0,
    "peak_memory_bytes": {"weights": 1, "adapters": 2, "activations": 3, "peak": 6},
    "needed_bytes": {"cuda": 40 * 10**9, "cpu": 50 * 10**9},
    "batch": {"images": 2, "queries": 22, "positives": 4, "objects": 8, "assumed": True},
}


@pytest.fixture
def impatient(settings: Settings) -> Iterator[Api]:
    """An API that does not wait for the workers."""
    with served(settings.model_copy(update={"estimate_wait_s": 0.0})) as api:
        yield api


def answer(api: Api, **values: Any) -> None:
    """Do the work of a worker."""
    with api.database.write() as unit:
        estimate = unit.estimates.claim()
        assert estimate is not None
        unit.estimates.finish(estimate.id, **values)


def test_an_estimate_is_pending_until_a_worker_has_answered_and_creates_nothing(impatient: Api) -> None:
    api = impatient
    sent = body(dataset_id=add_dataset(api.database), config={"lora": {"rank": 4}})
    response = api.client.post("/v1/jobs/estimate", json=sent)
    pending = response.json()
    assert (response.status_code, pending["status"], pending["memory"]) == (202, "pending", None)
    assert int(response.headers["retry-after"]) > 0
    assert pending["resolved"]["config"]["lora"] | {"rank": 4, "alpha": 16.0} == pending["resolved"]["config"]["lora"]
    assert api.queue.rings == [(Task.ESTIMATE, pending["id"])]
    answer(api, result=NUMBERS)
    for base, memory in (("NVIDIA H100", 80 * 10**9), ("NVIDIA T4", 16 * 10**9)):
        with api.database.write() as unit:
            unit.workers.beat(f"w-{base}", kind="gpu", host="h", pid=1, device=base, memory_bytes=memory)
    ready = api.client.post("/v1/jobs/estimate", json=sent | {"name": "other"})  # the same question
    assert ready.status_code == 200
    assert ready.json()["adapted"]["trainable_parameters"] == 10
    assert ready.json()["memory"]["peak"] == 6
    assert [(d["device"], d["fits"]) for d in ready.json()["devices"]] == [("NVIDIA H100", True), ("NVIDIA T4", False)]
    assert ready.json()["fits"] is True
    assert len(api.queue.rings) == 1
    assert count_jobs(api) == 0
    other = api.client.post("/v1/jobs/estimate", json=sent | {"config": {"lora": {"rank": 5}}})
    assert other.status_code == 202


def test_an_estimate_waits_for_its_worker(api: Api) -> None:
    sent = body(dataset_id=add_dataset(api.database))
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(api.client.post("/v1/jobs/estimate", json=sent)))
    thread.start()
    while not api.queue.rings:
        time.sleep(0.01)
    answer(api, result=NUMBERS)
    thread.join()
    assert (answers[0].status_code, answers[0].json()["status"], answers[0].json()["fits"]) == (200, "ready", None)


def test_failures_are_told_and_passing_ones_tried_again_when_asked_again(api: Api) -> None:
    sent = body(dataset_id=add_dataset(api.database))
    for error, status, code in (
        ({"code": "internal", "message": "m", "hint": "h", "retryable": True}, 503, "estimate_failed"),
        ({"code": "config_invalid", "message": "28 is no", "hint": "", "retryable": False}, 422, "invalid_request"),
    ):
        rung = len(api.queue.rings)
        answers: list[Any] = []
        thread = threading.Thread(target=lambda a=answers: a.append(api.client.post("/v1/jobs/estimate", json=sent)))
        thread.start()
        while len(api.queue.rings) == rung:
            time.sleep(0.01)
        answer(api, error=error)
        thread.join()
        assert_problem(answers[0], status, code)
    problem = assert_problem(api.client.post("/v1/jobs/estimate", json=sent), 422, "invalid_request")
    assert problem["errors"][0]["pointer"] == "/config"


def test_what_cannot_become_a_job_cannot_be_estimated(api: Api) -> None:
    for wrong, pointer in (
        ({"dataset_id": "ds_nope"}, "/dataset_id"),
        ({"config": {"lora": {"rnk": 1}}}, "/config/lora/rnk"),
        ({"base_model": "sam3"}, "/base_model"),
    ):
        response = api.client.post("/v1/jobs/estimate", json=body(dataset_id=add_dataset(api.database)) | wrong)
        assert response.status_code == 422
        assert pointer in [fault["pointer"] for fault in response.json()["errors"]]
    assert not api.queue.rings


def test_the_expected_time_is_measured_on_jobs_with_the_same_base(impatient: Api) -> None:
    api = impatient

    def expected(**values: Any) -> tuple[float | None, str | None]:
        found = api.client.post("/v1/jobs/estimate", json=body(**values)).json()
        return found["expected_seconds"], found["expected_seconds_reason"]

    def with_images(count: int) -> str:
        dataset_id = add_dataset(api.database)
        with api.database.write() as unit:
            row = update(Dataset).where(Dataset.id == dataset_id)
            unit.session.execute(row.values(report={"summary": {"images": count}}))
        return dataset_id

    dataset = with_images(10)
    seconds, reason = expected(dataset_id=dataset)
    assert seconds is None
    assert "no job on sam3-tiny" in str(reason)
    create(api, dataset_id=dataset)
    with api.database.write() as unit:
        claimed = unit.jobs.claim("w-1")
        assert claimed is not None
    api.clock.advance(100)
    with api.database.write() as unit:
        unit.attempts.finish(claimed.id, claimed.epoch, JobState.SUCCEEDED, result={"epochs": 5})
    config = {"training": {"max_epochs": 3}}
    assert expected(dataset_id=with_images(20), config=config) == (120.0, None)  # 2 s for an image and epoch
    short = {"training": {"max_epochs": 3, "max_seconds": 30}}
    assert expected(dataset_id=dataset, config=short) == (30.0, None)
    assert "still being checked" in str(expected(dataset_id=add_dataset(api.database, DatasetState.PROCESSING))[1])


def test_a_question_whose_workers_are_lost_is_taken_again_then_given_up(database: Database, clock: FakeClock) -> None:
    with database.write() as unit:
        unit.estimates.ask("a" * 64, base_model="sam3-tiny", config={})
    for _ in range(MAX_ATTEMPTS):
        with database.write() as unit:
            assert unit.estimates.claim() is not None
            assert unit.estimates.claim() is None  # it has been taken
        clock.advance(WORK_S)
    with database.write() as unit:
        assert unit.estimates.claim() is None
        error = unit.estimates.get("a" * 64).error
        assert error is not None
        assert error["code"] == "worker_lost"
        unit.estimates.finish("a" * 64, result={"late": True})  # no answer comes too late
        assert unit.estimates.get("a" * 64).result == {"late": True}


def test_a_question_put_back_counts_no_attempt_and_old_ones_are_forgotten(
    database: Database, clock: FakeClock, settings: Settings, api: Api
) -> None:
    with database.write() as unit:
        unit.estimates.ask("a" * 64, base_model="sam3-tiny", config={})
        for _ in range(MAX_ATTEMPTS + 2):
            assert unit.estimates.claim() is not None
            unit.estimates.put_back("a" * 64)
    clock.advance(settings.estimate_retention_s + 1)
    Reconciler(settings, database, api.storage, api.queue, clock).sweep()
    with database.write() as unit:
        assert unit.estimates.claim() is None
