"""What is kept for a time goes after it, and not before; large deletions come in steps."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, func, insert, select

from service import reconciler as reconciler_module
from service.reconciler import PURGE_ROWS, SWEEP_INTERVAL_S, Reconciler
from service.shared.clock import SystemClock
from service.shared.db.models import (
    Base,
    Dataset,
    Estimate,
    IdempotencyKey,
    Job,
    JobEvent,
    MetricPoint,
    Prediction,
    Upload,
    WebhookDelivery,
    Worker,
)
from service.shared.settings import Settings
from service.shared.states import DatasetState, JobState
from service.shared.storage import Storage
from service.shared.unit_of_work import Database
from service.usecases import actions
from tests.everything import fill
from tests.service.conftest import FakeClock, FakeQueue, add_dataset, add_job
from tests.service.results import add_model
from tests.service.webhooks import KEY

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import ColumnElement

ENDED: dict[str, tuple[type[Any], tuple[ColumnElement[bool], ...]]] = {
    "job_retention_s": (Job, (Job.state == JobState.SUCCEEDED,)),
    "dataset_retention_s": (Dataset, (Dataset.deleted_at.is_(None), Dataset.name == "alone")),
    "estimate_retention_s": (Estimate, ()),
    "idempotency_retention_s": (IdempotencyKey, ()),
    "upload_retention_s": (Upload, ()),
    "worker_retention_s": (Worker, ()),
    "prediction_retention_s": (Prediction, ()),
    "webhook_retention_s": (WebhookDelivery, (WebhookDelivery.finished_at.is_not(None),)),
}


STAYS = {"models", "attempt_usage", "job_outcomes"}  # when its job is deleted


def test_every_retention_is_tried_here() -> None:
    settings = {name for name in Settings.model_fields if name.endswith("_retention_s")}
    assert settings == {*ENDED, "staging_retention_s"}


@pytest.mark.parametrize("name", ENDED)
def test_what_a_retention_names_goes_after_it_and_not_before(
    settings: Settings, clock: FakeClock, queue: FakeQueue, tmp_path: Path, name: str
) -> None:
    kept_s = 50 * 86400.0
    others = {each: 1e9 for each in ENDED if each != name}
    settings = settings.model_copy(update={"secret_key": KEY, **others, name: kept_s})
    database, storage = Database(settings, clock, queue), Storage(settings)
    model, conditions = ENDED[name]

    def left() -> int:
        with database.read() as unit:
            return unit.session.execute(select(func.count()).select_from(model).where(*conditions)).scalar_one()

    def sweep() -> None:
        reconciler = Reconciler(settings, database, storage, queue, clock)
        for _ in range(2):
            reconciler.run_once()
            reconciler.sweep()

    clock.elapsed_s = time.time() - clock.now().timestamp() - 40 * 86400  # files are younger than any time of rows
    fill(database, settings, storage, tmp_path)
    _add_an_unused_dataset(database)
    _end_a_delivery(database)
    before = left()
    assert before > 0
    clock.advance(kept_s - 60)
    sweep()
    assert left() == before
    clock.advance(120 + SWEEP_INTERVAL_S)
    sweep()
    assert left() == 0
    database.close()


def test_leftovers_of_uploads_go_after_their_retention(
    settings: Settings, database: Database, queue: FakeQueue
) -> None:
    settings = settings.model_copy(update={"staging_retention_s": 500.0})
    settings.staging_dir.mkdir(parents=True, exist_ok=True)
    ages = {"old": 600, "young": 400}
    for name, age in ages.items():
        (settings.staging_dir / name).touch()
        os.utime(settings.staging_dir / name, (time.time() - age,) * 2)
    Reconciler(settings, database, Storage(settings), queue, SystemClock()).sweep()
    assert [path.name for path in settings.staging_dir.iterdir()] == ["young"]


def test_a_job_past_its_retention_leaves_its_model_with_its_files(
    settings: Settings, database: Database, queue: FakeQueue, clock: FakeClock, tmp_path: Path
) -> None:
    storage = Storage(settings)
    model_id = add_model(database, storage, tmp_path)
    waiting = add_job(database)
    clock.advance(100)
    Reconciler(settings.model_copy(update={"job_retention_s": 50.0}), database, storage, queue, clock).run_once()
    with database.read() as unit:
        model = unit.models.get(model_id)
        assert model.job_id is None
        assert all(storage.exists(file.storage_key) for file in model.files)
        assert unit.session.scalars(select(Job.id)).all() == [waiting]


def test_a_job_that_another_starts_from_outlives_its_retention(
    settings: Settings, database: Database, queue: FakeQueue, clock: FakeClock, tmp_path: Path
) -> None:
    model_id = add_model(database, Storage(settings), tmp_path)
    with database.read() as unit:
        job_id = unit.models.get(model_id).job_id
    add_job(database, resumes_from=job_id)
    clock.advance(100)
    Reconciler(
        settings.model_copy(update={"job_retention_s": 50.0}), database, Storage(settings), queue, clock
    ).run_once()
    with database.read() as unit:
        assert unit.jobs.get(str(job_id)).state is JobState.SUCCEEDED


def test_jobs_that_are_needed_do_not_keep_the_others_from_being_deleted(
    settings: Settings, database: Database, queue: FakeQueue, clock: FakeClock, tmp_path: Path
) -> None:
    storage = Storage(settings)
    settings = settings.model_copy(update={"job_retention_s": 50.0})
    model_id = add_model(database, storage, tmp_path)
    with database.read() as unit:
        origin = str(unit.models.get(model_id).job_id)
        [checkpoint] = unit.checkpoints.list(origin)
    add_job(database, init_checkpoint_id=checkpoint.id)
    needed = {origin, *(ended_job(database) for _ in range(20))}  # more than a pass looks at
    for job_id in needed - {origin}:
        add_job(database, resumes_from=job_id)
    clock.advance(1)
    free = ended_job(database)
    clock.advance(100)
    Reconciler(settings, database, storage, queue, clock).run_once()
    with database.read() as unit:
        left = set(unit.session.scalars(select(Job.id).where(Job.deleted_at.is_(None))))
    assert left >= needed
    assert free not in left


def test_who_needs_a_job_is_found_without_a_look_at_all_jobs(database: Database) -> None:
    statements: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, values: Any, *_: object) -> None:
        statements.append((statement, values))

    with database.read() as unit:
        event.listen(database.engine, "before_cursor_execute", note)
        try:
            unit.jobs.waiting_for_checkpoints_of("job_1")
        finally:
            event.remove(database.engine, "before_cursor_execute", note)
        connection = unit.session.connection()
        explain = "EXPLAIN QUERY PLAN"
        if database.engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            explain = "EXPLAIN"
        plans = [str(list(connection.exec_driver_sql(f"{explain} {text}", values))) for text, values in statements[-2:]]
    assert len(plans) == 2
    assert not any("SCAN jobs" in plan or "Seq Scan on jobs" in plan for plan in plans), plans


def ended_job(database: Database) -> str:
    job_id = add_job(database)
    with database.write() as unit:
        actions.cancel_job(unit, job_id)
    return job_id


def test_a_job_of_very_many_rows_is_purged_in_steps_that_may_be_interrupted(
    settings: Settings,
    database: Database,
    queue: FakeQueue,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points, steps = 45_000, 3
    monkeypatch.setattr(reconciler_module, "PURGE_STEPS", steps)
    job_id, other = add_job(database), add_job(database)
    rows = [
        {"job_id": owner, "name": "train/loss", "step": step, "value": 0.5, "created_at": clock.now()}
        for owner, count in ((job_id, points), (other, 10))
        for step in range(count)
    ]
    with database.write() as unit:
        unit.session.execute(insert(MetricPoint), rows)
        actions.cancel_job(unit, job_id)
    with database.write() as unit:
        actions.delete_job(unit, job_id)

    def left(model: type[Any], owner: str) -> int:
        with database.read() as unit:
            return unit.session.execute(select(func.count()).where(model.job_id == owner)).scalar_one()

    def passes(count: int) -> None:
        for _ in range(count):
            Reconciler(settings, database, Storage(settings), queue, clock).run_once()

    passes(1)
    assert left(MetricPoint, job_id) == points - steps * PURGE_ROWS
    with database.write() as unit:
        assert not unit.jobs.purge(job_id, limit=100)
        unit.session.rollback()  # as a process that dies
    assert left(MetricPoint, job_id) == points - steps * PURGE_ROWS
    passes(1)
    with database.read() as unit:
        assert unit.session.scalars(select(Job.id)).all() == [other]
        for table in Base.metadata.sorted_tables:
            if "job_id" in table.c and table.name not in STAYS:
                assert unit.session.execute(table.select().where(table.c.job_id == job_id)).all() == []
    assert left(MetricPoint, other) == 10
    assert left(JobEvent, other) == 1


def test_a_job_that_is_not_deleted_is_not_purged(database: Database) -> None:
    job_id = add_job(database)
    with database.write() as unit:
        assert unit.jobs.purge(job_id, limit=10)
    with database.read() as unit:
        assert unit.jobs.get(job_id).last_event_seq == len(unit.events.list(job_id)) == 1


def _add_an_unused_dataset(database: Database) -> None:
    dataset_id = add_dataset(database, DatasetState.PROCESSING)
    with database.write() as unit:
        unit.datasets.get(dataset_id).name = "alone"
    while True:
        with database.write() as unit:
            held = unit.datasets.claim("w-1")
            if held is None:
                return
            unit.datasets.finish(held.id, held.epoch, DatasetState.INVALID, report={"status": "invalid"})


def _end_a_delivery(database: Database) -> None:
    with database.write() as unit:
        delivery = unit.deliveries.claim("w-1")
        assert delivery is not None
        unit.deliveries.succeed(delivery.id, delivery.epoch)
