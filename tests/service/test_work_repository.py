"""Work is done by one worker at a time, never lost and never doubled, on both databases."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from service.reconciler import Reconciler
from service.shared.db.models import Export, Prediction
from service.shared.errors import LeaseLostError, StateConflictError
from service.shared.ids import new_id
from service.shared.queue import Task
from service.shared.states import WorkState
from service.shared.storage import Storage
from tests.service.conftest import FakeClock, FakeQueue
from tests.service.results import add_model, claimed_job, publish

if TYPE_CHECKING:
    from pathlib import Path

    from service.shared.settings import Settings
    from service.shared.unit_of_work import Database

ERROR = {"code": "internal", "message": "m", "hint": "h", "retryable": True}


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage(settings)


@pytest.fixture
def model_id(database: Database, storage: Storage, tmp_path: Path) -> str:
    return add_model(database, storage, tmp_path)


def add_prediction(database: Database, model_id: str) -> str:
    prediction = Prediction(
        id=new_id("pred"),
        model_id=model_id,
        image_key=f"predictions/{new_id('pred')}/image",
        image_sha256="0" * 64,
        width=4,
        height=4,
        request={},
    )
    with database.write() as unit:
        unit.predictions.add(prediction)
    return prediction.id


def claim(database: Database) -> Prediction | None:
    with database.write() as unit:
        return unit.predictions.claim("w-1")


def test_each_piece_is_claimed_once_and_the_oldest_first(database: Database, model_id: str, clock: FakeClock) -> None:
    ids = []
    for _ in range(6):
        ids.append(add_prediction(database, model_id))
        clock.advance(1)
    first = claim(database)
    assert first is not None
    assert first.id == ids[0]
    claimed: list[str] = []

    def take() -> None:
        while (prediction := claim(database)) is not None:
            claimed.append(prediction.id)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(ids[1:])


def test_a_worker_that_was_replaced_can_write_nothing(database: Database, model_id: str) -> None:
    add_prediction(database, model_id)
    held = claim(database)
    assert held is not None
    with database.write() as unit:
        unit.predictions.give_back(held.id, held.epoch)
    again = claim(database)
    assert again is not None
    assert (again.id, again.epoch) == (held.id, held.epoch + 1)
    for write in ("heartbeat", "give_back", "succeed"):
        with pytest.raises(LeaseLostError), database.write() as unit:
            getattr(unit.predictions, write)(held.id, held.epoch)
    with database.write() as unit:
        unit.predictions.succeed(again.id, again.epoch, result=[])
    with pytest.raises(LeaseLostError), database.write() as unit:
        unit.predictions.fail(again.id, again.epoch, ERROR)


def test_failures_are_tried_again_until_the_attempts_are_used_up(
    database: Database, model_id: str, clock: FakeClock, settings: Settings
) -> None:
    add_prediction(database, model_id)
    for _ in range(settings.work_max_attempts - 1):
        held = claim(database)
        assert held is not None
        with database.write() as unit:
            assert unit.predictions.fail(held.id, held.epoch, ERROR).state is WorkState.QUEUED
        assert claim(database) is None  # it waits
        clock.advance(settings.retry_backoff_max_s)
    held = claim(database)
    assert held is not None
    with database.write() as unit:
        ended = unit.predictions.fail(held.id, held.epoch, ERROR)
    assert (ended.state, ended.error, ended.finished_at) == (WorkState.FAILED, ERROR, clock.now())


def test_a_final_failure_is_not_tried_again(database: Database, model_id: str) -> None:
    add_prediction(database, model_id)
    held = claim(database)
    assert held is not None
    with database.write() as unit:
        assert unit.predictions.fail(held.id, held.epoch, {**ERROR, "retryable": False}).state is WorkState.FAILED


def test_only_a_lease_that_stood_still_is_taken_away(database: Database, model_id: str) -> None:
    add_prediction(database, model_id)
    held = claim(database)
    assert held is not None
    with database.read() as unit:
        (lease,) = unit.predictions.leases()
    with database.write() as unit:
        unit.predictions.heartbeat(held.id, held.epoch)
    with pytest.raises(StateConflictError), database.write() as unit:
        unit.predictions.reap(lease)
    with database.read() as unit:
        (lease,) = unit.predictions.leases()
    with database.write() as unit:
        assert unit.predictions.reap(lease).state is WorkState.QUEUED
    with pytest.raises(LeaseLostError), database.write() as unit:
        unit.predictions.succeed(held.id, held.epoch, result=[])


@pytest.mark.parametrize("table", ["predictions", "exports"])
def test_the_database_itself_refuses_other_moves(database: Database, model_id: str, table: str) -> None:
    add_prediction(database, model_id)
    with database.write() as unit:
        unit.exports.add(Export(id=new_id("exp"), model_id=model_id, format="peft"))
    with pytest.raises(DatabaseError), database.write() as unit:
        unit.session.execute(text(f"UPDATE {table} SET state = 'succeeded'"))


def test_the_reconciler_takes_work_from_lost_workers_and_announces_what_waits(
    database: Database, model_id: str, storage: Storage, settings: Settings, queue: FakeQueue, clock: FakeClock
) -> None:
    reconciler = Reconciler(settings, database, storage, queue, clock)
    add_prediction(database, model_id)
    lost = claim(database)
    assert lost is not None
    with database.write() as unit:
        export = unit.exports.add(Export(id=new_id("exp"), model_id=model_id, format="peft"))
    reconciler.run_once()
    assert (Task.EXPORT, export.id) in queue.rings
    assert not [ring for ring in queue.rings if ring[0] is Task.PREDICT]
    for _ in range(7):
        clock.advance(5)
        reconciler.run_once()
    with database.read() as unit:
        assert unit.predictions.get(lost.id).state is WorkState.QUEUED
    clock.advance(settings.retry_backoff_max_s)
    reconciler.run_once()
    assert (Task.PREDICT, lost.id) in queue.rings


def test_predictions_are_forgotten_and_only_files_without_a_row_are_swept(
    database: Database,
    model_id: str,
    storage: Storage,
    settings: Settings,
    queue: FakeQueue,
    clock: FakeClock,
    tmp_path: Path,
) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"x")
    reconciler = Reconciler(settings, database, storage, queue, clock)
    job = claimed_job(database)
    publish(database, storage, job, tmp_path, "report.html", content="<html>")
    old = add_prediction(database, model_id)
    with database.read() as unit:
        image_key = unit.predictions.get(old).image_key
    storage.put_file(image_key, source)
    orphans = [f"jobs/{job.id}/e1/artifact-1/report.html", "exports/exp_1/m.zip", "predictions/pred_1/image"]
    for key in orphans:
        storage.put_file(key, source)
    with database.read() as unit:
        job_id = unit.models.get(model_id).job_id
    with database.write() as unit:  # the model outlives the checkpoint that it shares files with
        checkpoints = unit.checkpoints.list(str(job_id))
        unit.session.execute(text("DELETE FROM checkpoint_files"))
    kept = {file.storage_key for checkpoint in checkpoints for file in checkpoint.files}
    clock.elapsed_s = 400 * 86400.0  # beyond the files' own time, which is today's
    reconciler.sweep()
    reconciler.sweep()
    with database.read() as unit:
        assert unit.predictions.known_keys([image_key]) == set()
    left = {key for prefix in ("jobs", "exports", "predictions") for key in storage.list(prefix)}
    assert left == kept | {f"jobs/{job.id}/artifacts/report.html"}


def test_a_wait_that_a_wrong_clock_has_set_keeps_no_work(database: Database, model_id: str, clock: FakeClock) -> None:
    prediction_id = add_prediction(database, model_id)
    with database.write() as unit:
        held = unit.predictions.claim("w-1")
    assert held is not None
    clock.advance(5400)  # of whoever ends the attempt, alone
    with database.write() as unit:
        assert unit.predictions.fail(prediction_id, held.epoch, ERROR).state is WorkState.QUEUED
        assert unit.predictions.claim("w-1") is None
    clock.advance(-5400)
    with database.write() as unit:
        assert unit.predictions.claim("w-1") is not None
