from __future__ import annotations

import threading
from datetime import timedelta
from itertools import product
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from service.shared.db.repositories.checkpoints import CheckpointManifest
from service.shared.db.repositories.events import NewEvent
from service.shared.errors import LeaseLostError, NotFoundError, StateConflictError
from service.shared.queue import Task
from service.shared.states import DATASET_MOVES, INITIAL, JOB_MOVES, TERMINAL, Actor, DatasetState, JobRequest, JobState
from service.shared.storage import StoredFile
from service.usecases.actions import cancel_job
from tests.service.conftest import FakeClock, FakeQueue, add_dataset, add_job, new_job

if TYPE_CHECKING:
    from service.shared.db.models import Job
    from service.shared.unit_of_work import Database

MANIFEST = CheckpointManifest(
    "best", 1, 10, "val/segm_mAP", 0.5, {"adapter_model.safetensors": StoredFile("jobs/a/b", 3, "0" * 64)}
)


def claim(database: Database, worker: str = "w-1") -> Job:
    with database.write() as unit:
        job = unit.jobs.claim(worker, "cpu")
    assert job is not None
    return job


def read(database: Database, job_id: str) -> Job:
    with database.read() as unit:
        return unit.jobs.get(job_id)


def force_state(database: Database, table: str, row_id: str, state: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text(f"UPDATE {table} SET state = :state WHERE id = :id"), {"state": state, "id": row_id})


def lead_to(database: Database, job_id: str, goal: JobState) -> None:
    """Bring a new `validating_files` job to `goal` by allowed moves only, past the repository."""
    paths = {JobState.VALIDATING_FILES: [JobState.VALIDATING_FILES]}
    while goal not in paths:
        for old, new in JOB_MOVES:
            if old in paths and new not in paths:
                paths[new] = [*paths[old], new]
    for state in paths[goal][1:]:
        force_state(database, "jobs", job_id, state)


def test_a_claim_takes_the_highest_priority_then_the_oldest(database: Database, clock: FakeClock) -> None:
    dataset = add_dataset(database)
    ids = []
    for priority in (50, 90, 50, 90):
        clock.advance(1)
        ids.append(add_job(database, dataset, priority=priority))
    assert [claim(database).id for _ in ids] == [ids[1], ids[3], ids[0], ids[2]]
    with database.write() as unit:
        assert unit.jobs.claim("w-1") is None


def test_a_claim_opens_an_attempt_under_a_new_epoch(database: Database) -> None:
    add_job(database)
    job = claim(database)
    assert (job.state, job.epoch, job.attempt, job.worker_id, job.next_publish_at) == ("running", 1, 1, "w-1", None)
    with database.read() as unit:
        (attempt,) = unit.attempts.list(job.id)
    assert (attempt.epoch, attempt.worker_id, attempt.ended_at) == (1, "w-1", None)


def test_of_many_racing_claims_each_job_goes_to_one_worker(database: Database) -> None:
    dataset = add_dataset(database)
    jobs = {add_job(database, dataset) for _ in range(4)}
    barrier = threading.Barrier(8)
    claimed: list[str] = []

    def race(worker: str) -> None:
        barrier.wait()
        with database.write() as unit:
            job = unit.jobs.claim(worker)
        if job is not None:
            claimed.append(job.id)

    threads = [threading.Thread(target=race, args=(f"w-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # PostgreSQL workers may skip a row another has locked; none is ever taken twice.
    assert len(claimed) == len(set(claimed))
    while len(claimed) < 4:
        claimed.append(claim(database).id)
    assert set(claimed) == jobs


def test_a_job_that_waits_for_its_backoff_is_not_claimed(database: Database, clock: FakeClock) -> None:
    job_id = add_job(database, not_before=clock.now() + timedelta(seconds=5))
    with database.write() as unit:
        assert unit.jobs.claim("w-1") is None
    clock.advance(6)
    assert claim(database).id == job_id


def test_a_wait_that_a_wrong_clock_has_set_keeps_no_job(database: Database, clock: FakeClock) -> None:
    job_id = add_job(database)
    epoch = claim(database).epoch
    clock.advance(5400)  # of whoever ends the attempt, alone
    with database.write() as unit:
        unit.attempts.finish(job_id, epoch, JobState.QUEUED, error={"code": "internal", "retryable": True})
    clock.advance(-5400)
    assert claim(database).id == job_id


def test_every_write_of_a_stale_epoch_is_refused(database: Database) -> None:
    job_id = add_job(database)
    stale = claim(database).epoch
    with database.write() as unit:
        unit.attempts.finish(job_id, stale, JobState.QUEUED, reason="drain")
    assert claim(database).epoch == stale + 1
    before = read(database, job_id)
    writes = [
        lambda unit: unit.attempts.heartbeat(job_id, stale),
        lambda unit: unit.attempts.report(job_id, stale, phase="training"),
        lambda unit: unit.attempts.finish(job_id, stale, JobState.SUCCEEDED, result={}),
        lambda unit: unit.events.append(job_id, stale, [NewEvent("message", "x")]),
        lambda unit: unit.metrics.add(job_id, stale, step=1, values={"train/loss": 1.0}, training_epoch=0),
        lambda unit: unit.logs.append(job_id, stale, "x"),
        lambda unit: unit.checkpoints.publish(job_id, stale, MANIFEST),
        lambda unit: unit.checkpoints.remove(job_id, stale, ["ckpt_x"]),
        lambda unit: unit.jobs.move(job_id, JobState.SUCCEEDED, Actor.WORKER, epoch=stale),
    ]
    for write in writes:
        with pytest.raises(LeaseLostError), database.write() as unit:
            write(unit)
    after = read(database, job_id)
    assert (after.last_event_seq, after.hb_seq, after.state) == (before.last_event_seq, before.hb_seq, "running")
    with database.read() as unit:
        assert not unit.checkpoints.list(job_id)
        assert not unit.metrics.series(job_id)


def test_a_lease_that_was_renewed_or_has_ended_is_not_reaped(database: Database, clock: FakeClock) -> None:
    job_id = add_job(database)
    epoch = claim(database).epoch
    clock.advance(7)
    with database.write() as unit:
        [renewed] = unit.attempts.leases()
        unit.attempts.heartbeat(job_id, epoch)
        [ended] = unit.attempts.leases()
    with pytest.raises(StateConflictError, match="was renewed or has ended"), database.write() as unit:
        unit.attempts.reap(renewed)
    with database.write() as unit:
        unit.attempts.finish(job_id, epoch, JobState.QUEUED, reason="drain")
    for _ in range(2):  # while it waits, and once another worker has it
        with pytest.raises(StateConflictError, match="was renewed or has ended"), database.write() as unit:
            unit.attempts.reap(ended)
        epoch = claim(database).epoch if epoch == ended.epoch else epoch
    job = read(database, job_id)
    assert (job.state, job.epoch, job.lost_attempts) == (JobState.RUNNING, ended.epoch + 1, 0)


def test_the_heartbeat_delivers_a_cancel_and_the_job_ends_cancelled(database: Database) -> None:
    job_id = add_job(database)
    epoch = claim(database).epoch
    with database.write() as unit:
        assert unit.attempts.heartbeat(job_id, epoch) is None
        assert cancel_job(unit, job_id).state is JobState.CANCELLING
        assert unit.attempts.heartbeat(job_id, epoch) is JobRequest.CANCEL
    with database.write() as unit:
        assert cancel_job(unit, job_id).state is JobState.CANCELLING
        job = unit.attempts.finish(job_id, epoch, JobState.SUCCEEDED, result={"steps": 1})
    assert (job.state, job.request, job.result) == (JobState.CANCELLED, None, {"steps": 1})
    with database.write() as unit:
        assert cancel_job(unit, job_id).state is JobState.CANCELLED


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.VALIDATING_FILES])
def test_a_job_that_no_worker_holds_is_cancelled_at_once(database: Database, state: JobState) -> None:
    job_id = add_job(database, state=state)
    with database.write() as unit:
        job = cancel_job(unit, job_id)
    assert (job.state, job.next_publish_at) == (JobState.CANCELLED, None)
    assert job.finished_at is not None


def test_an_ended_job_cannot_be_cancelled_and_an_unknown_one_is_not_found(database: Database) -> None:
    job_id = add_job(database)
    epoch = claim(database).epoch
    with database.write() as unit:
        unit.attempts.finish(job_id, epoch, JobState.SUCCEEDED, result={})
    with pytest.raises(StateConflictError, match="succeeded"), database.write() as unit:
        cancel_job(unit, job_id)
    with pytest.raises(NotFoundError), database.write() as unit:
        cancel_job(unit, "job_nope")


def test_transient_failures_are_retried_with_backoff_until_none_is_left(database: Database, clock: FakeClock) -> None:
    job_id = add_job(database, max_attempts=2)
    error = {"code": "internal", "message": "m", "hint": "", "retryable": True}
    epoch = claim(database).epoch
    with database.write() as unit:
        job = unit.attempts.finish(job_id, epoch, JobState.QUEUED, error=error)
    assert (job.state, job.lost_attempts) == (JobState.QUEUED, 1)
    assert job.not_before is not None
    assert 5 <= (job.not_before - clock.now()).total_seconds() <= 10
    clock.advance(11)
    epoch = claim(database).epoch
    with database.write() as unit:
        job = unit.attempts.finish(job_id, epoch, JobState.QUEUED, error=error)
    assert (job.state, job.error) == (JobState.FAILED, error | {"attempt": 2})
    with database.read() as unit:
        assert [a.outcome for a in unit.attempts.list(job_id)] == ["queued", "failed"]


def test_a_drain_does_not_count_and_is_due_at_once(database: Database) -> None:
    job_id = add_job(database, max_attempts=1)
    for attempt in (1, 2, 3):
        job = claim(database)
        assert (job.id, job.attempt) == (job_id, attempt)
        with database.write() as unit:
            unit.attempts.finish(job_id, job.epoch, JobState.QUEUED, reason="drain")


def test_gpu_seconds_add_up_over_attempts(database: Database, clock: FakeClock) -> None:
    job_id = add_job(database)
    for seconds in (10, 7):
        epoch = claim(database).epoch
        clock.advance(seconds)
        with database.write() as unit:
            unit.attempts.finish(job_id, epoch, JobState.QUEUED, reason="drain")
    assert read(database, job_id).gpu_seconds == pytest.approx(17)


def test_events_are_dense_and_say_every_move(database: Database) -> None:
    job_id = add_job(database)
    epoch = claim(database).epoch
    with database.write() as unit:
        unit.events.append(job_id, epoch, [NewEvent("message", "a\x00b\ud800"), NewEvent("message", "c")])
        unit.events.append(job_id, epoch, [])
        unit.attempts.finish(job_id, epoch, JobState.SUCCEEDED, result={})
    with database.read() as unit:
        events = unit.events.list(job_id)
        assert [e.seq for e in unit.events.list(job_id, after=3, limit=1)] == [4]
    assert [(e.seq, e.type) for e in events] == [
        (1, "status"),
        (2, "status"),
        (3, "message"),
        (4, "message"),
        (5, "status"),
    ]
    assert events[2].message == "a\ufffdb\ufffd"
    assert [e.data.get("status") for e in events] == ["queued", "running", None, None, "succeeded"]


def test_a_move_and_its_event_are_one(database: Database) -> None:
    job_id = add_job(database)
    with pytest.raises(NotFoundError), database.write() as unit:  # noqa: PT012 - the first must have worked
        for cancelled in (job_id, "job_nope"):
            cancel_job(unit, cancelled)
    assert read(database, job_id).state is JobState.QUEUED
    with database.read() as unit:
        assert len(unit.events.list(job_id)) == 1


def test_a_best_checkpoint_becomes_the_jobs_best_and_removal_names_its_files(database: Database) -> None:
    job_id = add_job(database)
    epoch = claim(database).epoch
    with database.write() as unit:
        checkpoint = unit.checkpoints.publish(job_id, epoch, MANIFEST)
    assert read(database, job_id).best == {
        "checkpoint_id": checkpoint.id,
        "metric": "val/segm_mAP",
        "value": 0.5,
        "epoch": 1,
    }
    with database.read() as unit:
        (listed,) = unit.checkpoints.list(job_id)
        assert [file.name for file in listed.files] == ["adapter_model.safetensors"]
        assert unit.checkpoints.get_file(checkpoint.id, "adapter_model.safetensors").sha256 == "0" * 64
    with database.write() as unit:
        assert unit.checkpoints.remove(job_id, epoch, [checkpoint.id]) == ["jobs/a/b"]
    with database.read() as unit:
        assert not unit.checkpoints.list(job_id)
        with pytest.raises(NotFoundError):
            unit.checkpoints.get_file(checkpoint.id, "adapter_model.safetensors")


PROGRESS = {"step": 1, "eta_s": float("nan"), "epochs": "many", "flag": True}


def test_report_keeps_the_submitted_values_beside_what_was_used(database: Database) -> None:
    job_id = add_job(database, resolved={"config": {"lora": {"rank": 8}}})
    epoch = claim(database).epoch
    with database.write() as unit:
        unit.attempts.report(job_id, epoch, resolved={"adapted_modules": 3}, progress=PROGRESS, phase="training")
    job = read(database, job_id)
    assert job.resolved == {"config": {"lora": {"rank": 8}}, "run": {"adapted_modules": 3}}
    assert job.progress is not None
    assert (job.phase, job.progress["step"]) == ("training", 1)
    assert set(job.progress) == {"step", "eta_s", "updated_at"}
    assert job.progress["eta_s"] is None
    with pytest.raises(TypeError), database.write() as unit:
        unit.attempts.report(job_id, epoch, state="succeeded")


@pytest.mark.parametrize("valid", [True, False])
def test_waiting_jobs_follow_their_dataset(database: Database, valid: bool) -> None:
    dataset = add_dataset(database, DatasetState.PROCESSING)
    job_id = add_job(database, dataset, state=JobState.VALIDATING_FILES)
    with database.write() as unit:
        released = unit.jobs.release_waiting(dataset, valid=valid)
    job = read(database, job_id)
    assert list(released) == ([job_id] if valid else [])
    assert job.state is (JobState.QUEUED if valid else JobState.FAILED)
    if not valid:
        assert job.error is not None
        assert job.error["code"] == "dataset_invalid"


def test_due_jobs_are_announced_once_per_interval(database: Database, clock: FakeClock) -> None:
    job_id = add_job(database)
    with database.write() as unit:
        assert list(unit.jobs.due(10, republish_s=30)) == [job_id]
        assert not unit.jobs.due(10, republish_s=30)
    clock.advance(31)
    with database.write() as unit:
        assert list(unit.jobs.due(10, republish_s=30)) == [job_id]


def test_rings_follow_the_commit_and_never_a_rollback(database: Database, queue: FakeQueue) -> None:
    with database.write() as unit:
        unit.ring_after_commit(Task.TRAIN, "job_1")
        assert not queue.rings
    assert queue.rings == [(Task.TRAIN, "job_1")]
    with pytest.raises(NotFoundError), database.write() as unit:  # noqa: PT012 - the ring has to come first
        unit.ring_after_commit(Task.TRAIN, "job_2")
        unit.jobs.get("job_2")
    assert len(queue.rings) == 1


def test_the_trigger_allows_exactly_the_moves_of_the_table(database: Database) -> None:
    dataset = add_dataset(database)
    for old, new in product(JobState, JobState):
        if old == new:
            continue
        job_id = add_job(database, dataset, state=JobState.VALIDATING_FILES)
        lead_to(database, job_id, old)
        if (old, new) in JOB_MOVES:
            force_state(database, "jobs", job_id, new)
        else:
            with pytest.raises(DBAPIError, match="cannot move"):
                force_state(database, "jobs", job_id, new)
            assert read(database, job_id).state is old


def test_the_trigger_guards_where_jobs_begin(database: Database) -> None:
    dataset = add_dataset(database)
    for state in JobState:
        job = new_job(dataset, state=state)
        if state in INITIAL:
            with database.write() as unit:
                unit.jobs.add(job)
        else:
            with pytest.raises(DBAPIError, match="cannot begin"), database.write() as unit:
                unit.jobs.add(job)


def test_the_trigger_guards_datasets_and_events(database: Database) -> None:
    for old, new in product(DatasetState, DatasetState):
        if old == new or (old, new) in DATASET_MOVES:
            continue
        dataset = add_dataset(database, old)
        with pytest.raises(DBAPIError, match="cannot move"):
            force_state(database, "datasets", dataset, new)
        with database.engine.begin() as connection:
            connection.execute(text("UPDATE datasets SET deleted_at = created_at"))
    add_job(database)
    with pytest.raises(DBAPIError, match="append-only"), database.engine.begin() as connection:
        connection.execute(text("UPDATE job_events SET message = 'rewritten'"))


def test_no_move_leaves_a_terminal_state() -> None:
    assert not [old for old, _ in JOB_MOVES if old in TERMINAL]
