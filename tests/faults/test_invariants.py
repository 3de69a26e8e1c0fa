"""Every invariant of the campaign can be violated, and is found violated then."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from service.shared.db.models import Attempt, Job
from service.shared.db.repositories.checkpoints import CheckpointManifest
from service.shared.states import JobState
from tests.faults import kinds, plan
from tests.faults.clients import Promised
from tests.faults.invariants import (
    Evidence,
    attempts_closed,
    broken_promise,
    curve_of,
    events_of,
    files_whole,
    keys_used_once,
    leases_ended,
    machine_tidy,
    promises_kept,
    storage_tidy,
    trainers_stop,
)
from tests.faults.journal import Life, overlaps
from tests.faults.trainer import adapter, curve, state_at
from tests.worker.conftest import (  # noqa: F401
    add_dataset,
    add_job,
    database,
    dataset_zip,
    queue,
    settings,
    storage,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from service.shared.settings import Settings
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database
    from tests.faults.invariants import Violation

SEED, STEPS = 11, 10


def promised(**values: Any) -> Promised:
    return Promised(**{"key": "k", "job_id": "j", "seed": SEED, "steps": STEPS, "is_real": False} | values)


def ended(state: JobState = JobState.SUCCEEDED, **values: Any) -> Job:
    return Job(**{"id": "j", "state": state, "attempt": 1, "result": {"steps": STEPS}, "resumes_from": None} | values)


def named(violations: Iterable[Violation]) -> list[str]:
    return [violation.invariant for violation in violations]


@pytest.mark.parametrize(
    ("state", "told", "counts_as"),
    [
        (JobState.RUNNING, {}, "stuck"),
        (JobState.SUCCEEDED, {"ended_as": "failed"}, "doubled"),
        (JobState.SUCCEEDED, {"cancelled": True}, "lost"),
        (JobState.CANCELLED, {}, "lost"),
        (JobState.FAILED, {}, "lost"),
    ],
)
def test_broken_promises(state: JobState, told: dict[str, Any], counts_as: str) -> None:
    found = broken_promise(ended(state), promised(**told), had_to_fail=False)
    assert found is not None
    assert found[0] == counts_as


def test_kept_promises() -> None:
    assert broken_promise(ended(), promised(ended_as="succeeded"), had_to_fail=False) is None
    assert broken_promise(ended(JobState.FAILED), promised(), had_to_fail=True) is None
    assert broken_promise(ended(JobState.CANCELLED), promised(cancelled=True), had_to_fail=False) is None


EVALUATION = SimpleNamespace(type="evaluation", data={"step": 5}, attempt=1)


def event(seq: int, status: str | None = None, attempt: int = 1) -> Any:
    kind = "message" if status is None else "status"
    return SimpleNamespace(seq=seq, type=kind, data={"status": status}, attempt=attempt)


GOOD = [event(1, "queued", 0), event(2, "running"), event(3), event(4, "succeeded")]


@pytest.mark.parametrize(
    ("events", "broken"),
    [
        (GOOD, []),
        ([GOOD[0], GOOD[1], GOOD[3]], ["events are numbered without a gap"]),
        ([*GOOD[:2], event(3, None, 2), event(4, "succeeded", 1)], ["an attempt that has ended says nothing more"]),
        ([*GOOD[:3], event(4, "running")], ["events of a job lead", "moves that are allowed"]),
        (
            [*GOOD[:2], *(SimpleNamespace(**vars(EVALUATION), seq=seq) for seq in (3, 4)), event(5, "succeeded")],
            ["an attempt tells of an evaluation once"],
        ),
        ([*GOOD[:2], event(3, "failed"), event(4, "succeeded")], ["moves that are allowed", "a job ends once"]),
    ],
)
def test_events(events: list[Any], broken: list[str]) -> None:
    found = named(events_of(ended(last_event_seq=events[-1].seq), events))
    assert len(found) == len(broken)
    assert all(part in whole for part, whole in zip(broken, found, strict=True))


def test_curves() -> None:
    whole = list(enumerate(curve(SEED, STEPS), start=1))
    assert list(curve_of(ended(), promised(), whole)) == []
    assert named(curve_of(ended(), promised(), whole[:4] + whole[5:])) == ["no step of a curve is missing"]
    assert named(curve_of(ended(), promised(), whole[:-1])) == ["a curve goes to the end of the run"]
    again = [*whole[:5], *enumerate(curve(SEED, 5), start=6)]  # a run that began anew and said that it went on
    assert named(curve_of(ended(), promised(), again)) == ["a resumed run goes on where it was"]
    short = ended(result={"steps": 5})
    assert named(curve_of(short, promised(), whole[:5])) == ["a job that was not stopped trains to its end"]
    assert list(curve_of(short, promised(stopped=True), whole[:5])) == []
    assert list(curve_of(ended(resumes_from="other"), promised(), whole[5:])) == []


def test_overlaps() -> None:
    first, later = Life("j", 1, 100, 0.0, 5.0, 3), Life("j", 2, 101, 5.5, 6.0, 3)
    assert overlaps([later, first, Life("other", 1, 102, 1.0, 4.0, 1)]) == []
    within = Life("j", 3, 103, 4.0, 4.5, 3)
    assert overlaps([first, later, within]) == [(first, within)]


def evidence(settings: Settings, database: Database, storage: Storage, **values: Any) -> Evidence:  # noqa: F811
    given = {"promised": {}, "lives": [], "fatal": frozenset(), "workers": []} | values
    return Evidence(settings, database, storage, **given)


@pytest.fixture
def seen(settings: Settings, database: Database, storage: Storage, dataset_zip: Path) -> Evidence:  # noqa: F811
    """A job with a published checkpoint, which its worker has not ended."""
    job_id = add_job(database, add_dataset(database, storage, dataset_zip), labels={"key": "k"})
    with database.write() as unit:
        job = unit.jobs.claim("worker-1", "CPU")
    assert job is not None
    weights = adapter(state_at(SEED, STEPS))
    file = storage.put(f"jobs/{job_id}/e1/adapter_model.safetensors", [weights], size_bytes=len(weights))
    manifest = CheckpointManifest("epoch", 2, STEPS, None, None, files={"adapter_model.safetensors": file})
    with database.write() as unit:
        unit.checkpoints.publish(job_id, job.epoch, manifest)
    (settings.data_dir / "workspace").mkdir()
    return evidence(settings, database, storage, promised={job_id: promised(job_id=job_id)})


def test_what_is_whole_is_found_whole(seen: Evidence) -> None:
    assert [*files_whole(seen), *storage_tidy(seen), *machine_tidy(seen), *keys_used_once(seen)] == []
    assert named(promises_kept(seen)) == ["every job ends"]
    assert named(leases_ended(seen)) == ["no lease outlives its work"]


def test_jobs_that_nobody_was_promised_or_that_are_gone(seen: Evidence) -> None:
    with seen.database.read() as unit:
        [job] = unit.jobs.list(limit=1)[0]
    add_job(seen.database, job.dataset_id, labels={"key": "k"})
    assert named(keys_used_once(seen)) == ["a key makes one job", "every job was promised to somebody"]
    gone = evidence(seen.settings, seen.database, seen.storage, promised={"job_0": promised(job_id="job_0")})
    assert named(promises_kept(gone)) == ["a job that was promised exists"]


def test_files_that_are_damaged_gone_or_of_another_step(seen: Evidence) -> None:
    [job_id] = seen.promised
    seen.promised[job_id].seed += 1
    assert named(files_whole(seen)) == ["adapters load and are those of their step"]
    key = f"jobs/{job_id}/e1/adapter_model.safetensors"
    seen.storage.put(key, [b"damaged"], size_bytes=7)
    assert named(files_whole(seen)) == ["files of checkpoints are what was published"]
    seen.storage.delete(key)
    assert named(files_whole(seen)) == ["files of checkpoints are what was published"]
    assert named(storage_tidy(seen)) == ["files that rows name are in storage"]


def test_what_dead_workers_left(seen: Evidence) -> None:
    workspace = seen.settings.data_dir / "workspace"
    (workspace / "worker-1-abc" / "job_1-e1").mkdir(parents=True)
    (workspace / "extra").mkdir()
    assert sorted(named(machine_tidy(seen))) == [
        "no workspace of a dead worker or ended attempt is left",
        "workspaces hold nothing else",
    ]


def test_attempts_that_are_open_or_end_a_job_twice(seen: Evidence) -> None:
    assert named(attempts_closed(seen)) == ["attempts end"]
    [job_id] = seen.promised
    with seen.database.write() as unit:
        first = unit.attempts.list(job_id)[0]
        later = Attempt(job_id=job_id, epoch=2, attempt=2, worker_id="worker-2", started_at=first.started_at)
        unit.session.add(later)
        for attempt in (first, later):
            attempt.outcome, attempt.ended_at = JobState.SUCCEEDED, first.started_at
    assert named(attempts_closed(seen)) == ["one attempt ends a job"]


def test_trainers_that_run_on(seen: Evidence) -> None:
    [job_id] = seen.promised
    life = Life(job_id, 1, 100, 0.0, 10.4, 3)
    seen.promised[job_id].ended_at = 10.0
    after = evidence(seen.settings, seen.database, seen.storage, promised=seen.promised, lives=[life])
    assert named(trainers_stop(after)) == []
    life.last = 11.0
    assert named(trainers_stop(after)) == ["a job that has ended trains no more"]
    words = [sys.executable, "-c", "import time; time.sleep(60)", str(seen.settings.data_dir.parent / "trainer.py")]
    with subprocess.Popen(words) as process:
        try:
            assert named(trainers_stop(seen)) == ["no trainer is left"]
        finally:
            process.kill()


def test_every_kind_of_fault_can_be_done() -> None:
    for backend in ("embedded", "production"):
        assert plan.kinds(backend, disks=True).keys() <= kinds.FAULTS.keys()
