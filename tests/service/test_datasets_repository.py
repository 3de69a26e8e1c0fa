from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event

from service.shared.errors import LeaseLostError, NotFoundError, StateConflictError
from service.shared.states import DatasetState, JobState
from tests.service.conftest import FakeClock, add_dataset, add_job

if TYPE_CHECKING:
    from service.shared.db.models import Dataset
    from service.shared.unit_of_work import Database

ERROR = {"code": "internal", "message": "m", "hint": "", "retryable": True}


def claim(database: Database) -> Dataset:
    with database.write() as unit:
        dataset = unit.datasets.claim("w-1")
    assert dataset is not None
    return dataset


def test_the_oldest_unchecked_dataset_is_claimed_by_one_worker(database: Database, clock: FakeClock) -> None:
    ids = set()
    for _ in range(3):
        clock.advance(1)
        ids.add(add_dataset(database, DatasetState.PROCESSING))
    add_dataset(database, DatasetState.READY)
    barrier = threading.Barrier(6)
    claimed: list[str] = []

    def race() -> None:
        barrier.wait()
        with database.write() as unit:
            dataset = unit.datasets.claim("w")
        if dataset is not None:
            claimed.append(dataset.id)

    threads = [threading.Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(set(claimed))
    while len(claimed) < 3:
        claimed.append(claim(database).id)
    assert set(claimed) == ids
    with database.write() as unit:
        assert unit.datasets.claim("w") is None


def test_a_wait_that_a_wrong_clock_has_set_keeps_no_dataset(database: Database, clock: FakeClock) -> None:
    dataset_id = add_dataset(database, DatasetState.PROCESSING)
    epoch = claim(database).epoch
    clock.advance(5400)  # of whoever ends the attempt, alone
    with database.write() as unit:
        assert unit.datasets.finish(dataset_id, epoch, DatasetState.PROCESSING, error=ERROR).not_before is not None
        assert unit.datasets.claim("w") is None
    clock.advance(-5400)
    assert claim(database).id == dataset_id


def test_every_write_of_a_stale_lease_is_refused(database: Database) -> None:
    dataset = claim_after_drain(database)
    stale = dataset.epoch - 1
    for write in (
        lambda unit: unit.datasets.heartbeat(dataset.id, stale),
        lambda unit: unit.datasets.finish(dataset.id, stale, DatasetState.READY, report={}),
        lambda unit: unit.datasets.drain(dataset.id, stale),
    ):
        with pytest.raises(LeaseLostError), database.write() as unit:
            write(unit)
    with database.write() as unit:
        unit.datasets.heartbeat(dataset.id, dataset.epoch)
        done = unit.datasets.finish(dataset.id, dataset.epoch, DatasetState.READY, report={"summary": {}})
    assert (done.state, done.worker_id, done.report) == (DatasetState.READY, None, {"summary": {}})
    assert done.finished_at is not None


def claim_after_drain(database: Database) -> Dataset:
    add_dataset(database, DatasetState.PROCESSING)
    first = claim(database)
    with database.write() as unit:
        unit.datasets.drain(first.id, first.epoch)
    second = claim(database)
    assert (second.epoch, second.lost_attempts) == (first.epoch + 1, 0)
    return second


def test_a_failed_check_is_tried_again_until_no_attempt_is_left(database: Database, clock: FakeClock) -> None:
    dataset_id = add_dataset(database, DatasetState.PROCESSING)
    states = []
    for _ in range(3):
        dataset = claim(database)
        with database.write() as unit:
            states.append(unit.datasets.finish(dataset_id, dataset.epoch, DatasetState.PROCESSING, error=ERROR).state)
        with database.write() as unit:
            assert unit.datasets.claim("w") is None
        clock.advance(60)
    assert states == [DatasetState.PROCESSING, DatasetState.PROCESSING, DatasetState.FAILED]
    with database.read() as unit:
        assert unit.datasets.get(dataset_id).error == ERROR


def test_a_deleted_dataset_ends_its_lease(database: Database) -> None:
    add_dataset(database, DatasetState.PROCESSING)
    dataset = claim(database)
    with database.write() as unit:
        unit.datasets.mark_deleted(dataset.id)
    with pytest.raises(LeaseLostError), database.write() as unit:
        unit.datasets.heartbeat(dataset.id, dataset.epoch)
    with pytest.raises(NotFoundError), database.write() as unit:
        unit.datasets.mark_deleted(dataset.id)


def test_a_renewed_lease_is_not_reaped(database: Database) -> None:
    add_dataset(database, DatasetState.PROCESSING)
    dataset = claim(database)
    with database.read() as unit:
        (lease,) = unit.datasets.leases()
    with database.write() as unit:
        unit.datasets.heartbeat(dataset.id, dataset.epoch)
    with pytest.raises(StateConflictError), database.write() as unit:
        unit.datasets.reap(lease)


def test_a_check_releases_many_jobs_with_the_statements_of_few(database: Database) -> None:
    counts = []
    for count in (2, 40):
        dataset = add_dataset(database, DatasetState.PROCESSING)
        other = add_dataset(database, DatasetState.PROCESSING)
        ready = [add_job(database, dataset, state=JobState.VALIDATING_FILES) for _ in range(count)]
        waits = add_job(database, dataset, state=JobState.VALIDATING_FILES, validation_dataset_id=other)
        statements: list[str] = []

        def note(
            _connection: object, _cursor: object, statement: str, *_: object, seen: list[str] = statements
        ) -> None:
            seen.append(statement)

        event.listen(database.engine, "before_cursor_execute", note)
        try:
            with database.write() as unit:
                assert set(unit.jobs.release_waiting(dataset, valid=True)) == set(ready)
        finally:
            event.remove(database.engine, "before_cursor_execute", note)
        counts.append(len(statements))
        with database.read() as unit:
            jobs = [unit.jobs.get(job_id) for job_id in ready]
            assert {job.state for job in jobs} == {JobState.QUEUED}
            assert all(job.queued_at and job.next_publish_at for job in jobs)
            assert unit.jobs.get(waits).state is JobState.VALIDATING_FILES
            assert [each.seq for each in unit.events.list(ready[0])] == [1, 2]
            assert unit.events.list(ready[0])[1].data == {"status": "queued"}
        with database.write() as unit:
            assert unit.jobs.release_waiting(other, valid=False) == []
            failed = unit.jobs.get(waits)
            assert (failed.state, (failed.error or {})["code"]) == (JobState.FAILED, "dataset_invalid")
            assert failed.finished_at is not None
    assert counts[0] == counts[1] <= 6
