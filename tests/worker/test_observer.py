"""What a trainer says reaches the database, or is skipped; it never stops the job or the worker."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import OperationalError

from sam3_lora.events import Event, EventType
from service.shared.errors import LeaseLostError
from tests.worker.conftest import add_dataset, add_job, both_databases, job_of, points_of
from worker.observer import LOG_PIECE_BYTES, Observer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from service.shared.db.models import Job
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database, UnitOfWork


@pytest.fixture
def job(database: Database, storage: Storage, dataset_zip: Path) -> Job:
    add_job(database, add_dataset(database, storage, dataset_zip))
    with database.write() as unit:
        job = unit.jobs.claim("worker-1", "CPU")
    assert job is not None
    return job


@pytest.fixture
def observer(database: Database, job: Job, tmp_path: Path) -> Observer:
    (tmp_path / "log").touch()
    return Observer(database, job, tmp_path / "log", lambda _: None, lambda _: None)


def log_of(database: Database, job: Job) -> str:
    with database.read() as unit:
        return unit.logs.read(job.id).decode()


HOSTILE: list[dict[str, Any]] = [
    {"type": "message", "message": "nul \x00 and surrogate \ud800", "data": {"k\x00": "\ud800", "n": 10**400}},
    {"type": "metrics", "message": "", "data": {}},
    {"type": "metrics", "message": "", "data": {"step": True, "values": {"a": 1}}},
    {"type": "metrics", "message": "", "data": {"step": "1", "values": {"a": 1}}},
    {"type": "metrics", "message": "", "data": {"step": 10**30, "values": {"a": 1}}},
    {"type": "metrics", "message": "", "data": {"step": -1, "values": {"a": 1}}},
    {"type": "metrics", "message": "", "data": {"step": 1, "values": {"a": 10**400}}},
    {"type": "metrics", "message": "", "data": {"step": 1, "values": {"x" * 5000: 1.0, "\x00": 2.0, "\ud800": 3.0}}},
    {"type": "metrics", "message": "", "data": {"step": 1, "values": {"a": True, "b": "1", "c": [1]}}},
    {"type": "metrics", "message": "", "data": {"step": 1, "epoch": 10**400, "values": {"d": 1.0}}},
    {"type": "progress", "message": "", "data": {"percent": "\x00"}},
    {"type": "phase", "message": "", "data": {"phase": ["x" * 5000, "\x00"]}},
    {"type": "resolved", "message": "", "data": {"config": "\ud800", "trainable_parameters": 10**400}},
]


@both_databases
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_events_do_no_harm(database: Database, job: Job, observer: Observer, number: int) -> None:
    observer(Event.from_line(json.dumps({"level": "info", **HOSTILE[number]})))
    observer(Event(EventType.METRICS, "", {"step": 7, "values": {"good": 0.5}}))
    observer(Event(EventType.MESSAGE, "after"))
    observer.flush()
    with database.read() as unit:
        assert [event.message for event in unit.events.list(job.id)][-1] == "after"
    assert any(point.name == "good" for point in points_of(database, job.id))
    observer.finish()


@both_databases
def test_log_arrives_whole_in_pieces_and_by_lines(
    database: Database, job: Job, observer: Observer, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("ab", buffering=0) as log:
        log.write("grüße\nhalf a li".encode())
        observer.flush()
        assert log_of(database, job) == "grüße\n"
        log.write(b"ne\n" + b"z" * (LOG_PIECE_BYTES * 2) + b"\n\xff\xfe\x00end")
        observer.finish()
    text = log_of(database, job)
    assert text.startswith("grüße\nhalf a line\nzz")
    assert text.count("z") == LOG_PIECE_BYTES * 2
    assert text.endswith("end")


def test_state_of_the_job_follows(database: Database, job: Job, observer: Observer) -> None:
    for percent in (10, 20):
        observer(Event(EventType.PROGRESS, "", {"percent": percent}))
    observer(Event(EventType.PHASE, "", {"phase": "evaluating"}))
    observer.tick()
    after = job_of(database, job.id)
    assert after.phase == "evaluating"
    assert after.progress is not None
    assert after.progress["percent"] == 20


@both_databases
def test_what_was_resolved_is_stored_without_the_workers_paths(
    database: Database, job: Job, observer: Observer
) -> None:
    config = {"model": {"base": "sam3", "checkpoint": "/w/sam3.pt"}, "output": {"dir": "/w/run", "tensorboard": True}}
    observer(Event(EventType.RESOLVED, "3 modules adapted", {"config": config, "trainable_parameters": 7}))
    observer.flush()
    kept = {"model": {"base": "sam3"}, "output": {"tensorboard": True}}
    assert job_of(database, job.id).resolved["run"] == {"config": kept, "trainable_parameters": 7}
    with database.read() as unit:
        [event] = [event for event in unit.events.list(job.id) if event.type == EventType.RESOLVED]
    assert event.data["config"] == kept


def test_what_the_trainer_takes_of_the_machine_is_noted_now_and_then(
    database: Database, job: Job, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer.vitals = lambda: {"sys/mem_used_bytes": 5e8}
    for step in (1, 2, 3):
        observer(Event(EventType.METRICS, "", {"step": step, "epoch": 0.5, "values": {"train/loss": 1.0}}))
    observer.flush()
    observer(Event(EventType.METRICS, "", {"step": 4, "values": {"train/loss": 1.0}}))
    observer.flush()  # too soon for more
    [point] = [point for point in points_of(database, job.id) if point.name.startswith("sys/")]
    assert (point.name, point.step, point.epoch, point.value) == ("sys/mem_used_bytes", 3, 0.5, 5e8)
    monkeypatch.setattr("worker.observer.VITALS_INTERVAL_S", 0.0)
    observer._vitals_at = 0.0
    for step in (5, 6):
        observer(Event(EventType.METRICS, "", {"step": step, "values": {"train/loss": 1.0}}))
        observer.flush()
    assert [point.step for point in points_of(database, job.id) if point.name.startswith("sys/")] == [3, 5, 6]


def test_lost_lease_is_raised(database: Database, job: Job, observer: Observer) -> None:
    with database.write() as unit:
        unit.attempts.reap(unit.attempts.leases()[0])
    observer(Event(EventType.MESSAGE, "too late"))
    with pytest.raises(LeaseLostError):
        observer.flush()
    with database.read() as unit:
        assert "too late" not in [event.message for event in unit.events.list(job.id)]


def test_what_led_to_a_checkpoint_is_stored_before_it_even_if_the_database_comes_back_late(
    database: Database, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def publish(event: Event) -> None:
        seen.append(len(points_of(database, job.id)))

    def insist(write: Callable[[], None]) -> None:
        with pytest.raises(OperationalError):
            write()
        monkeypatch.undo()
        write()

    def fail(*_: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("the server is starting up"))

    (tmp_path / "log").touch()
    observer = Observer(database, job, tmp_path / "log", publish, lambda _: None, insist)
    observer(Event(EventType.METRICS, "", {"step": 1, "values": {"train/loss": 1.0}}))
    monkeypatch.setattr(database, "write", fail)
    observer(Event(EventType.CHECKPOINT, "", {"kind": "epoch", "epoch": 1, "step": 1}))
    assert seen == [1]


@both_databases
@pytest.mark.parametrize("is_committed", [True, False])
@pytest.mark.parametrize("kinds", ["events and log", "events", "log"])
def test_what_was_stored_when_its_answer_was_lost_is_not_stored_again(
    database: Database,
    job: Job,
    observer: Observer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kinds: str,
    is_committed: bool,
) -> None:
    write = database.write

    @contextlib.contextmanager
    def failing() -> Iterator[UnitOfWork]:
        with write() as unit:
            yield unit
            if not is_committed:
                raise OperationalError("COMMIT", {}, Exception("the connection broke"))
        raise OperationalError("COMMIT", {}, Exception("the connection broke"))

    def go_on(number: int) -> None:
        if "events" in kinds:
            observer(Event(EventType.PROGRESS, "", {"percent": number}))
            observer(Event(EventType.MESSAGE, f"event {number}"))
        if "log" in kinds:
            with (tmp_path / "log").open("a") as file:
                file.write(f"line {number}\n")

    with database.read() as unit:
        before = len(unit.events.list(job.id))
    go_on(1)
    observer.flush()
    go_on(2)
    monkeypatch.setattr(database, "write", failing)
    observer.flush()
    go_on(3)
    observer.flush()  # cannot even find out
    monkeypatch.setattr(database, "write", write)
    observer.flush()
    go_on(4)
    observer.finish()
    with database.read() as unit:
        told = [event.message for event in unit.events.list(job.id)][before:]
    assert told == ([f"event {number}" for number in (1, 2, 3, 4)] if "events" in kinds else [])
    assert log_of(database, job) == ("line 1\nline 2\nline 3\nline 4\n" if "log" in kinds else "")
