"""What may be done with a job: every action in every state, twice, and by two at once."""

from __future__ import annotations

import threading
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from service.reconciler import Reconciler
from service.shared.db.models import Base, Job
from service.shared.db.repositories.checkpoints import CheckpointManifest
from service.shared.errors import JobInUseError, LeaseLostError, NotFoundError, StateConflictError
from service.shared.queue import Task
from service.shared.states import ACTIONS, JobAction, JobRequest, JobState, allowed_actions
from service.shared.storage import Storage, StoredFile
from service.usecases import actions
from service.usecases.retries import retry_job
from tests.service.conftest import Api, add_dataset, add_job, assert_problem, body
from tests.service.test_jobs_repository import claim, lead_to, read

if TYPE_CHECKING:
    from pathlib import Path

    from service.shared.settings import Settings
    from service.shared.unit_of_work import Database, UnitOfWork
    from tests.service.conftest import FakeClock, FakeQueue

S = JobState


def retry(unit: UnitOfWork, job_id: str) -> Job:
    return retry_job(unit, job_id, from_scratch=False)


TAKE: dict[JobAction, Any] = {
    JobAction.CANCEL: actions.cancel_job,
    JobAction.STOP: actions.stop_job,
    JobAction.PAUSE: actions.pause_job,
    JobAction.RESUME: actions.resume_job,
    JobAction.RETRY: retry,
    JobAction.DELETE: actions.delete_job,
}
# Where an action leads from each state; every other state refuses it.
LEADS: dict[JobAction, dict[JobState, JobState]] = {
    JobAction.CANCEL: {
        S.VALIDATING_FILES: S.CANCELLED,
        S.QUEUED: S.CANCELLED,
        S.PAUSED: S.CANCELLED,
        S.RUNNING: S.CANCELLING,
        S.PAUSING: S.CANCELLING,
        S.CANCELLING: S.CANCELLING,
        S.CANCELLED: S.CANCELLED,
    },
    JobAction.STOP: {S.RUNNING: S.RUNNING, S.SUCCEEDED: S.SUCCEEDED},
    JobAction.PAUSE: {S.QUEUED: S.PAUSED, S.PAUSED: S.PAUSED, S.RUNNING: S.PAUSING, S.PAUSING: S.PAUSING},
    JobAction.RESUME: {S.PAUSED: S.QUEUED},
    JobAction.RETRY: {S.FAILED: S.QUEUED, S.CANCELLED: S.QUEUED},
}


def take(database: Database, action: JobAction, job_id: str) -> Job:
    with database.write() as unit:
        job: Job = TAKE[action](unit, job_id)
    return job


def add_ended(database: Database, state: JobState, **values: Any) -> str:
    job_id = add_job(database, **values)
    lead_to_from_queued = [S.RUNNING, state] if state is not S.CANCELLED else [state]
    for step in lead_to_from_queued:
        with database.engine.begin() as connection:
            connection.execute(text("UPDATE jobs SET state = :s WHERE id = :id"), {"s": step, "id": job_id})
    return job_id


def publish(database: Database, job_id: str, kind: str = "epoch", step: int = 10) -> str:
    """Id of a checkpoint of a running job."""
    files = {"adapter_model.safetensors": StoredFile(f"jobs/{job_id}/{kind}-{step}", 3, "0" * 64)}
    with database.write() as unit:
        epoch = unit.jobs.get(job_id).epoch
        return unit.checkpoints.publish(job_id, epoch, CheckpointManifest(kind, 1, step, "m", 0.5, files)).id


def test_every_action_in_every_state(database: Database) -> None:
    dataset = add_dataset(database)
    for action, state in product(JobAction, JobState):
        job_id = add_job(database, dataset, state=S.VALIDATING_FILES)
        lead_to(database, job_id, state)
        before = read(database, job_id).last_event_seq
        if action is JobAction.DELETE and state in ACTIONS[action]:
            take(database, action, job_id)
            with pytest.raises(NotFoundError):
                read(database, job_id)
        elif state in LEADS.get(action, {}):
            assert take(database, action, job_id).state is LEADS[action][state]
            acted = state in ACTIONS[action] and action is not JobAction.RETRY
            assert read(database, job_id).last_event_seq == before + acted
        else:
            with pytest.raises(StateConflictError, match=f"is {state}") as refusal:
                take(database, action, job_id)
            leads_on = [each for each in allowed_actions(state) if each is not JobAction.DELETE]
            assert all(each in refusal.value.message for each in leads_on)
            assert JobAction.DELETE not in refusal.value.message.replace("delete is not possible", "")
            hint = action is JobAction.RETRY and state is S.SUCCEEDED
            assert ("clone" in refusal.value.message) is hint
            assert read(database, job_id).last_event_seq == before


def test_the_table_of_actions_says_where_each_changes_something() -> None:
    for action, leads in LEADS.items():
        in_place = S.RUNNING if action is JobAction.STOP else None  # it leaves a request there
        assert ACTIONS[action] == {s for s, goal in leads.items() if s is not goal or s is in_place}


@pytest.mark.parametrize("action", [a for a in JobAction if a not in ("retry", "delete")])
def test_of_two_racing_callers_both_are_answered_and_one_acts(database: Database, action: JobAction) -> None:
    job_id = add_job(database)
    if action in (JobAction.STOP, JobAction.CANCEL):
        claim(database)
    if action is JobAction.RESUME:
        take(database, JobAction.PAUSE, job_id)
    before = read(database, job_id).last_event_seq
    barrier = threading.Barrier(4)
    answers: list[JobState] = []

    def race() -> None:
        barrier.wait()
        answers.append(take(database, action, job_id).state)

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert len(set(answers)) == 1
    assert read(database, job_id).last_event_seq == before + 1


def test_of_racing_deletes_one_succeeds_and_the_others_find_nothing(database: Database) -> None:
    job_id = add_ended(database, S.FAILED)
    barrier = threading.Barrier(4)
    found: list[str] = []

    def race() -> None:
        barrier.wait()
        try:
            with database.write() as unit:
                actions.delete_job(unit, job_id)
            found.append("deleted")
        except NotFoundError:
            found.append("not found")

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["deleted", "not found", "not found", "not found"]


def test_a_pause_ends_paused_and_a_resumed_job_is_due_and_rung_for(
    database: Database, queue: FakeQueue, clock: FakeClock
) -> None:
    job_id = add_job(database)
    epoch = claim(database).epoch
    take(database, JobAction.PAUSE, job_id)
    with database.write() as unit:
        assert unit.attempts.heartbeat(job_id, epoch) is JobRequest.PAUSE
        job = unit.attempts.finish(job_id, epoch, S.QUEUED, reason="Paused by request")
    assert (job.state, job.request, job.next_publish_at) == (S.PAUSED, None, None)
    with database.write() as unit:
        assert unit.jobs.claim("w-1") is None
    for _ in range(2):
        job = take(database, JobAction.RESUME, job_id)
        assert (job.state, job.not_before) == (S.QUEUED, None)
    assert queue.rings == [(Task.TRAIN, job_id)]
    assert claim(database).id == job_id
    with pytest.raises(StateConflictError, match="running"):
        take(database, JobAction.RESUME, job_id)


def test_a_pausing_job_whose_worker_is_lost_is_paused_and_one_that_was_done_has_succeeded(database: Database) -> None:
    for outcome in (S.PAUSED, S.SUCCEEDED):
        job_id = add_job(database)
        epoch = claim(database).epoch
        take(database, JobAction.PAUSE, job_id)
        with database.write() as unit:
            if outcome is S.PAUSED:
                [lease] = unit.attempts.leases()
                unit.attempts.reap(lease)
            else:
                unit.attempts.finish(job_id, epoch, S.SUCCEEDED, result={})
        assert read(database, job_id).state is outcome


def test_a_stop_outlives_the_worker_that_was_asked(database: Database, clock: FakeClock) -> None:
    job_id = add_job(database)
    lost = claim(database)
    assert take(database, JobAction.STOP, job_id).status_reason == "Stop requested"
    with database.write() as unit:
        assert unit.attempts.heartbeat(job_id, lost.epoch) is JobRequest.STOP
        [lease] = unit.attempts.leases()
        unit.attempts.reap(lease)
    with pytest.raises(LeaseLostError), database.write() as unit:
        unit.attempts.heartbeat(job_id, lost.epoch)
    clock.advance(60)
    epoch = claim(database).epoch
    with database.write() as unit:
        assert unit.attempts.heartbeat(job_id, epoch) is JobRequest.STOP
        assert unit.attempts.finish(job_id, epoch, S.SUCCEEDED, result={}).request is None


def test_a_queued_job_that_was_paused_keeps_no_backoff(database: Database, clock: FakeClock) -> None:
    from datetime import timedelta

    job_id = add_job(database, not_before=clock.now() + timedelta(minutes=10))
    take(database, JobAction.PAUSE, job_id)
    take(database, JobAction.RESUME, job_id)
    assert claim(database).id == job_id


# --- deletion -------------------------------------------------------------------------------------------------


def test_a_deleted_job_is_gone_at_once_and_its_rows_and_files_soon(
    database: Database, settings: Settings, queue: FakeQueue, clock: FakeClock, tmp_path: Path
) -> None:
    storage = Storage(settings)
    job_id, other = add_job(database, tags=["a"]), add_job(database)
    claim(database)
    checkpoint_id = publish(database, job_id)
    source = tmp_path / "file"
    source.write_bytes(b"x")
    storage.put_file(f"jobs/{job_id}/epoch-10", source)
    storage.put_file(f"jobs/{other}/kept", source)
    storage.put_file(f"jobs/{job_id}x/kept", source)
    with database.write() as unit:
        unit.logs.append(job_id, 1, "text")
        unit.attempts.finish(job_id, 1, S.FAILED)
        actions.delete_job(unit, job_id)
    with database.read() as unit:
        for look in (unit.jobs.get, lambda job_id: unit.jobs.get(job_id, lock=False)):
            with pytest.raises(NotFoundError):
                look(job_id)
        assert [job.id for job in unit.jobs.list(limit=10)[0]] == [other]
        assert unit.checkpoints.find(checkpoint_id) is None
        assert unit.jobs.versions([job_id]) == {}
    for _ in range(2):  # a pass that dies between files and rows is repeated by the next
        Reconciler(settings, database, storage, queue, clock).run_once()
    assert set(storage.list("jobs")) == {f"jobs/{job_id}x/kept", f"jobs/{other}/kept"}
    with database.engine.connect() as connection:
        for table in Base.metadata.sorted_tables:
            if "job_id" in table.c and table.name not in ("attempt_usage", "job_outcomes"):  # what was used stays
                assert connection.execute(table.select().where(table.c.job_id == job_id)).all() == []


def test_a_job_is_kept_while_another_needs_its_checkpoints(database: Database) -> None:
    job_id = add_job(database)
    claim(database)
    checkpoint_id = publish(database, job_id)
    with database.write() as unit:
        unit.attempts.finish(job_id, 1, S.FAILED)
    dependents = [take(database, JobAction.RETRY, job_id).id, add_job(database, init_checkpoint_id=checkpoint_id)]
    for dependent in dependents:
        with pytest.raises(JobInUseError, match="starts from"), database.write() as unit:
            actions.delete_job(unit, job_id)
        take(database, JobAction.CANCEL, dependent)
    with database.write() as unit:
        actions.delete_job(unit, job_id)


# --- over HTTP ------------------------------------------------------------------------------------------------


def create(api: Api, **values: Any) -> str:
    values.setdefault("dataset_id", add_dataset(api.database))
    response = api.client.post("/v1/jobs", json=body(**values))
    assert response.status_code == 201, response.text
    return f"/v1/jobs/{response.json()['id']}"


def test_actions_answer_202_with_the_job_and_conflicts_name_state_and_are_not_retried(api: Api) -> None:
    url = create(api)
    refused = api.client.post(f"{url}/stop")
    assert "is queued" in assert_problem(refused, 409, "state_conflict")["detail"]
    assert refused.headers["x-should-retry"] == "false"
    for action, status, allowed in (
        ("pause", "paused", ["cancel", "resume"]),
        ("resume", "queued", ["cancel", "pause"]),
        ("cancel", "cancelled", ["retry", "delete"]),
    ):
        for _ in range(2):
            response = api.client.post(f"{url}/{action}")
            assert (response.status_code, response.json()["status"]) == (202, status)
        assert response.json()["allowed_actions"] == allowed
    for action in ("stop", "pause", "resume", "retry", "clone"):
        assert_problem(api.client.post(f"/v1/jobs/job_nope/{action}"), 404, "not_found")
    assert api.client.delete(url).status_code == 204
    assert_problem(api.client.delete(url), 404, "not_found")
    assert_problem(api.client.get(f"{url}/events"), 404, "not_found")


def test_attempts_say_who_tried_and_how_it_ended(api: Api) -> None:
    url = create(api)
    with api.database.write() as unit:
        claimed = unit.jobs.claim("w-1", "NVIDIA H100")
    assert claimed is not None
    api.clock.advance(5)
    running = api.client.get(f"{url}/attempts").json()["data"]
    assert [(each["attempt"], each["outcome"], each["gpu_seconds"]) for each in running] == [(1, None, None)]
    with api.database.write() as unit:
        unit.attempts.finish(claimed.id, claimed.epoch, S.QUEUED, reason="drain")
    [attempt] = api.client.get(f"{url}/attempts").json()["data"]
    assert (attempt["worker"], attempt["outcome"]) == ({"id": "w-1", "device": "NVIDIA H100"}, "queued")
    assert (attempt["reason"], attempt["gpu_seconds"]) == ("drain", 5.0)
    assert_problem(api.client.get("/v1/jobs/job_nope/attempts"), 404, "not_found")


def test_a_patch_changes_what_it_names_and_says_so(api: Api) -> None:
    url = create(api, tags=["a"], metadata={"ticket": "A-1", "old": "x"}, priority=10)
    response = api.client.patch(url, json={"name": "new", "metadata": {"old": None, "team": "b"}, "priority": 90})
    job = response.json()
    assert response.status_code == 200
    assert (job["name"], job["tags"], job["priority"]) == ("new", ["a"], 90)
    assert job["metadata"] == {"ticket": "A-1", "team": "b"}
    assert response.headers["etag"] == api.client.get(url).headers["etag"]
    for unchanged in ({}, {"name": "new"}, {"metadata": {"nope": None}}):
        assert api.client.patch(url, json=unchanged).headers["etag"] == response.headers["etag"]
    assert api.client.patch(url, json={"tags": []}).json()["tags"] == []
    events = api.client.get(f"{url}/events").json()["data"]
    assert [event["message"] for event in events[1:]] == ["Changed: metadata, name, priority", "Changed: tags"]
    assert [event["data"] for event in events[1:]] == [
        {
            "changed": {
                "metadata": {"from": {"ticket": "A-1", "old": "x"}, "to": {"ticket": "A-1", "team": "b"}},
                "name": {"from": "pallets-v1", "to": "new"},
                "priority": {"from": 10, "to": 90},
            }
        },
        {"changed": {"tags": {"from": ["a"], "to": []}}},
    ]
    job_id = job["id"]
    for query, found in (("metadata[team]=b", [job_id]), ("metadata[old]=x", []), ("tag=a", [])):
        assert [each["id"] for each in api.client.get(f"/v1/jobs?{query}").json()["data"]] == found


def test_a_patch_with_if_match_changes_only_the_job_that_was_seen(api: Api) -> None:
    url = create(api)
    seen = api.client.get(url).headers["etag"]
    first = api.client.patch(url, json={"name": "first"}, headers={"If-Match": seen})
    assert first.status_code == 200
    second = api.client.patch(url, json={"name": "second"}, headers={"If-Match": seen})
    assert first.headers["etag"] in assert_problem(second, 412, "precondition_failed")["detail"]
    assert api.client.get(url).json()["name"] == "first"
    assert api.client.patch(url, json={"name": "third"}, headers={"If-Match": "*"}).status_code == 200
    assert_problem(api.client.patch("/v1/jobs/job_nope", json={}), 404, "not_found")


@pytest.mark.parametrize(
    ("sent", "pointer"),
    [
        ({"name": None}, "/name"),
        ({"name": ""}, "/name"),
        ({"priority": 101}, "/priority"),
        ({"tags": None}, "/tags"),
        ({"metadata": {"k": 5}}, "/metadata/k"),
        ({"metadata": {"": "x"}}, "/metadata/"),
        ({"metadata": {f"k{n}": "v" for n in range(16)}}, "/metadata"),
        ({"status": "succeeded"}, "/status"),
        ({"config": {}}, "/config"),
    ],
)
def test_a_wrong_patch_changes_nothing(api: Api, sent: dict[str, Any], pointer: str) -> None:
    url = create(api, metadata={"ticket": "A-1"})
    before = api.client.get(url).json()
    problem = assert_problem(api.client.patch(url, json=sent), 422, "invalid_request")
    assert any(fault["pointer"].startswith(pointer) for fault in problem["errors"])
    assert api.client.get(url).json() == before


def test_the_priority_of_an_ended_job_cannot_change_but_its_name_can(api: Api) -> None:
    url = create(api)
    api.client.post(f"{url}/cancel")
    assert_problem(api.client.patch(url, json={"priority": 1, "name": "x"}), 409, "state_conflict")
    assert api.client.patch(url, json={"name": "done", "priority": 50}).json()["name"] == "done"


def test_a_job_that_was_asked_to_stop_is_not_paused(database: Database) -> None:
    job_id = add_job(database)
    claim(database)
    take(database, JobAction.STOP, job_id)
    with pytest.raises(StateConflictError, match="will end soon"):
        take(database, JobAction.PAUSE, job_id)
    assert read(database, job_id).request is JobRequest.STOP


def test_a_claim_completes_the_hash_of_a_dataset_that_was_still_to_be_fetched(database: Database) -> None:
    job_id = add_job(database, resolved={"config": {}, "dataset_sha256": ""})
    assert claim(database).resolved["dataset_sha256"] == "0" * 64
    assert read(database, job_id).resolved["dataset_sha256"] == "0" * 64


def test_a_job_that_was_asked_to_stop_offers_only_what_it_would_do(api: Api) -> None:
    url = create(api)
    with api.database.write() as unit:
        unit.jobs.claim("worker")
    assert api.client.get(url).json()["allowed_actions"] == ["cancel", "stop", "pause"]
    assert api.client.post(f"{url}/stop").json()["allowed_actions"] == ["cancel"]
    assert_problem(api.client.post(f"{url}/pause"), 409, "state_conflict")
