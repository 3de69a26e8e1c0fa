"""Files of a run on their way to storage: whole or not at all, whatever the trainer does meanwhile and whoever dies."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from sam3_lora.errors import CheckpointError
from sam3_lora.events import Event, EventType
from service.reconciler import Reconciler
from service.shared.clock import SystemClock
from service.shared.errors import LeaseLostError
from service.shared.states import JobState
from tests.worker import trainers
from tests.worker.conftest import add_dataset, add_job, both_databases, job_of
from tests.worker.test_training_runner import Rig, rig
from worker import artifacts
from worker.artifacts import ArtifactPublisher
from worker.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from service.shared.db.models import Job
    from service.shared.settings import Settings
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database
    from tests.worker.conftest import RecordingQueue

__all__ = ["rig"]


@pytest.fixture
def job(database: Database, storage: Storage, dataset_zip: Path) -> Job:
    add_job(database, add_dataset(database, storage, dataset_zip))
    with database.write() as unit:
        job = unit.jobs.claim("worker-1", "CPU")
    assert job is not None
    return job


@pytest.fixture
def publisher(settings: Settings, database: Database, storage: Storage, job: Job) -> Iterator[ArtifactPublisher]:
    with Lease(lambda: None, settings, claimed_at=time.monotonic(), name=job.id) as lease:
        yield ArtifactPublisher(database, storage, job, lease)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run_dir = tmp_path / "run"
    write(run_dir / "evaluation" / "tuned", "1")
    (run_dir / "report.html").write_text("<html>")
    return run_dir


def write(folder: Path, content: str) -> None:
    folder.mkdir(parents=True)
    for name in ("truth", "predictions", "evaluation"):
        (folder / f"{name}.json").write_text(content)


def event(place: str) -> Event:
    return Event(EventType.ARTIFACT, data={"place": place})


def published(database: Database, storage: Storage, job: Job, place: str) -> dict[str, bytes]:
    with database.read() as unit:
        files = unit.artifacts.list(job.id, place)
    return {file.name: b"".join(storage.get_range(file.storage_key)) for file in files}


@both_databases
def test_a_newer_version_replaces_the_older_one_whole(
    publisher: ArtifactPublisher, database: Database, storage: Storage, job: Job, run_dir: Path, tmp_path: Path
) -> None:
    assert publisher.publish(event("evaluation/tuned"), run_dir, tmp_path / "s") == "evaluation/tuned"
    (run_dir / "evaluation" / "tuned").rename(tmp_path / "old")
    write(run_dir / "evaluation" / "tuned", "2")
    (run_dir / "evaluation" / "tuned" / "truth.json").unlink()
    publisher.publish(event("report.html"), run_dir, tmp_path / "s")
    publisher.publish(event("evaluation/tuned"), run_dir, tmp_path / "s")
    found = published(database, storage, job, "evaluation/tuned")
    assert found == {"evaluation/tuned/predictions.json": b"2", "evaluation/tuned/evaluation.json": b"2"}
    with database.read() as unit:
        assert unit.artifacts.get(job.id, "report.html").size_bytes == 6
    assert len(storage.list(f"jobs/{job.id}")) == 3  # what was replaced is gone
    assert not (tmp_path / "s").exists()


def test_what_the_trainer_replaces_meanwhile_is_left_to_its_next_event(
    publisher: ArtifactPublisher,
    database: Database,
    storage: Storage,
    job: Job,
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuned = run_dir / "evaluation" / "tuned"

    def listed_while_vanishing(descriptor: int) -> list[str]:
        tuned.rename(run_dir / "evaluation" / ".replaced")
        (run_dir / "evaluation" / ".replaced" / "truth.json").unlink()
        write(tuned, "2")
        return listdir(descriptor)

    listdir = os.listdir
    monkeypatch.setattr(artifacts.os, "listdir", listed_while_vanishing)
    assert publisher.publish(event("evaluation/tuned"), run_dir, tmp_path / "s") is None
    monkeypatch.undo()
    assert publisher.publish(event("gone"), run_dir, tmp_path / "s") is None
    assert published(database, storage, job, "evaluation") == {}
    publisher.publish(event("evaluation/tuned"), run_dir, tmp_path / "s")
    assert set(published(database, storage, job, "evaluation").values()) == {b"2"}


@pytest.mark.parametrize("place", ["..", "../secret", "/etc/passwd", "", ".", "evaluation/../../secret"])
def test_nothing_outside_of_the_run_is_published(
    publisher: ArtifactPublisher, run_dir: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "secret").write_text("s")
    with pytest.raises(CheckpointError):
        publisher.publish(event(place), run_dir, tmp_path / "s")


def test_links_and_pipes_are_not_followed(publisher: ArtifactPublisher, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (run_dir / "samples").mkdir()
    (run_dir / "samples" / "0-truth.jpg").symlink_to(tmp_path / "secret")
    (run_dir / "report.json").symlink_to(tmp_path / "secret")
    os.mkfifo(run_dir / "pipe")
    for place in ("samples", "report.json", "pipe"):
        with pytest.raises(CheckpointError):
            publisher.publish(event(place), run_dir, tmp_path / "s")


def test_a_commit_whose_answer_was_lost_loses_no_file(
    publisher: ArtifactPublisher, database: Database, storage: Storage, job: Job, run_dir: Path, tmp_path: Path
) -> None:
    announce = publisher._announce

    def twice(*arguments: object) -> object:
        announce(*arguments)  # type: ignore[arg-type]
        return announce(*arguments)  # type: ignore[arg-type]

    publisher._announce = twice  # type: ignore[assignment,method-assign]
    publisher.publish(event("evaluation/tuned"), run_dir, tmp_path / "s")
    assert len(published(database, storage, job, "evaluation/tuned")) == 3


def test_death_between_storage_and_row_leaves_orphans_that_are_swept(
    publisher: ArtifactPublisher,
    settings: Settings,
    database: Database,
    storage: Storage,
    queue: RecordingQueue,
    job: Job,
    run_dir: Path,
    tmp_path: Path,
) -> None:
    publisher.publish(event("report.html"), run_dir, tmp_path / "s")

    def die(*_: object) -> None:
        raise SystemExit(137)

    publisher._announce = die  # type: ignore[assignment,method-assign]
    with pytest.raises(SystemExit):
        publisher.publish(event("evaluation/tuned"), run_dir, tmp_path / "s")
    assert published(database, storage, job, "evaluation") == {}
    assert len(storage.list(f"jobs/{job.id}")) == 4
    swept = settings.model_copy(update={"staging_retention_s": 1e-6})
    reconciler = Reconciler(swept, database, storage, queue, SystemClock())
    reconciler.sweep()
    reconciler.sweep()
    assert [key.rpartition("/")[2] for key in storage.list(f"jobs/{job.id}")] == ["report.html"]


def test_a_lost_lease_publishes_nothing(
    publisher: ArtifactPublisher, database: Database, storage: Storage, job: Job, run_dir: Path, tmp_path: Path
) -> None:
    with database.write() as unit:
        (lease,) = unit.attempts.leases()
        unit.attempts.reap(lease)
    with pytest.raises(LeaseLostError):
        publisher.publish(event("report.html"), run_dir, tmp_path / "s")
    assert published(database, storage, job, "") == {}


EVALUATES = (
    trainers.CONTRACT
    + """
def evaluated(model, content):
    folder = run / "evaluation" / model
    folder.mkdir(parents=True)
    for name in ("truth", "predictions", "evaluation"): (folder / f"{name}.json").write_text(content)
    say("artifact", place=f"evaluation/{model}")
"""
)


def test_an_attempt_that_goes_on_finds_what_earlier_ones_evaluated(rig: Rig) -> None:
    crash = "evaluated('base', 'b'); evaluated('tuned', 't'); checkpoint('epoch', 1); os.kill(os.getpid(), 9)"
    job = rig.run(EVALUATES + crash)
    assert job.state is JobState.QUEUED
    with rig.database.read() as unit:
        damaged = unit.artifacts.get(job.id, "evaluation/tuned/truth.json")
    (rig.settings.storage_dir / damaged.storage_key).write_text("x")
    rig.make_due(job.id)
    report = """
there = {path.relative_to(run).as_posix(): path.read_text() for path in run.rglob("*.json")}
(run / "report.json").write_text(json.dumps(there)); say("artifact", place="report.json")
train(2)
"""
    job = rig.run(EVALUATES + report, job.id)
    assert job.state is JobState.SUCCEEDED
    with rig.database.read() as unit:
        found = b"".join(rig.storage.get_range(unit.artifacts.get(job.id, "report.json").storage_key))
    expected = {f"evaluation/base/{name}.json": "b" for name in ("truth", "predictions", "evaluation")}
    assert json.loads(found) == expected
    assert ("artifact", "report.json is ready") in rig.events(job.id)
    assert job_of(rig.database, job.id).result["model_id"]
