"""What must hold once the dust has settled; each check yields its violations, with enough to find them."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from safetensors import SafetensorError, safe_open
from sqlalchemy import select

from service.operate.gc import collect
from service.shared.db.models import (
    Artifact,
    Attempt,
    Checkpoint,
    CheckpointFile,
    Dataset,
    Job,
    JobEvent,
    MetricPoint,
    Model,
    ModelFile,
    Worker,
)
from service.shared.errors import NotFoundError
from service.shared.states import INITIAL, JOB_MOVES, LEASED, TERMINAL, DatasetState, JobState
from service.usecases.stored_files import FOLDERS
from tests.faults.journal import Life, overlaps
from tests.faults.trainer import STEPS, curve, state_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from service.shared.settings import Settings
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database
    from tests.faults.clients import Promised

COUNTED = ("lost", "doubled", "orphans", "overlaps", "stuck")
LAST_BREATH_S = 0.5  # between a job's end as a client sees it and the last beat of its trainer
KEPT = ("lock", "adapters-")
"""What a living worker keeps in its folder while it does nothing; the second is that of one who answers predictions."""
FATAL = frozenset({"gpu_oom", "internal"})
"""Codes that end a job of the campaign, where its trainer was made to fail so."""


@dataclass(frozen=True)
class Violation:
    """`counts_as`: one of COUNTED."""

    counts_as: str
    invariant: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """Everything that the checks look at. `fatal`: jobs whose trainers were made to fail for good."""

    settings: Settings
    database: Database
    storage: Storage
    promised: Mapping[str, Promised]
    lives: Sequence[Life]
    fatal: frozenset[str]
    workers: Sequence[int]
    """Process ids of the workers that run."""


def check(evidence: Evidence) -> list[Violation]:
    """All violations."""
    return [violation for each in CHECKS for violation in each(evidence)]


def promises_kept(evidence: Evidence) -> Iterator[Violation]:
    """Every job that was promised exists and has ended as it had to."""
    jobs = _jobs(evidence)
    for promised in evidence.promised.values():
        job = jobs.get(promised.job_id)
        if job is None:
            yield Violation("lost", "a job that was promised exists", {"job": promised.job_id, "key": promised.key})
            continue
        had_to_fail = (job.error or {}).get("code") in FATAL and job.id in evidence.fatal
        if broken := broken_promise(job, promised, had_to_fail=had_to_fail):
            facts = {"job": job.id, "key": promised.key, "state": job.state.value, "error": job.error}
            yield Violation(*broken, facts)


def broken_promise(job: Job, promised: Promised, *, had_to_fail: bool) -> tuple[str, str] | None:
    """What the job's end breaks, if anything, and as what that counts."""
    if job.state not in TERMINAL:
        return "stuck", "every job ends"
    if promised.ended_as not in (None, job.state.value):
        return "doubled", "an end is told once"
    if promised.cancelled and job.state is not JobState.CANCELLED:
        return "lost", "a job whose cancelling was accepted is cancelled"
    if job.state is JobState.CANCELLED and not promised.cancelled:
        return "lost", "nobody else cancels a job"
    if job.state is JobState.FAILED and not had_to_fail:
        return "lost", "a job fails only for a reason that cannot pass"
    return None


def keys_used_once(evidence: Evidence) -> Iterator[Violation]:
    """A key makes one job, and every job was promised to somebody."""
    jobs = _jobs(evidence)
    keys = Counter(str(job.labels.get("key")) for job in jobs.values() if job.retry_of is None)
    for key, number in keys.items():
        if number > 1:
            yield Violation("doubled", "a key makes one job", {"key": key, "jobs": number})
    for job in jobs.values():
        if job.id not in evidence.promised:
            facts = {"job": job.id, "key": job.labels.get("key"), "retry_of": job.retry_of}
            yield Violation("doubled", "every job was promised to somebody", facts)


def events_in_order(evidence: Evidence) -> Iterator[Violation]:
    """Numbers without a gap, one event for each move, allowed moves only, and no late words of an earlier attempt."""
    jobs = _jobs(evidence)
    with evidence.database.read() as unit:
        rows = unit.session.execute(
            select(JobEvent.job_id, JobEvent.seq, JobEvent.type, JobEvent.data, JobEvent.attempt).order_by(
                JobEvent.job_id, JobEvent.seq
            )
        ).all()
    for job_id, group in itertools.groupby(rows, lambda row: row.job_id):
        yield from events_of(jobs[job_id], list(group))


def events_of(job: Job, events: Sequence[Any]) -> Iterator[Violation]:
    """The events of one job."""
    numbers = [event.seq for event in events]
    if numbers != list(range(1, len(numbers) + 1)) or job.last_event_seq != len(numbers):
        yield Violation("lost", "events are numbered without a gap", {"job": job.id, "numbers": numbers})
    if [event.attempt for event in events] != sorted(event.attempt for event in events):
        yield Violation("doubled", "an attempt that has ended says nothing more", {"job": job.id})
    states = [JobState(event.data["status"]) for event in events if event.type == "status"]
    facts = {"job": job.id, "states": [state.value for state in states]}
    moves = list(itertools.pairwise(states))
    if not states or states[0] not in INITIAL or states[-1] is not job.state:
        yield Violation("lost", "the events of a job lead from its first state to its last", facts)
    if any(move not in JOB_MOVES for move in moves):
        yield Violation("doubled", "jobs make only moves that are allowed", facts)
    told = Counter((event.attempt, event.data["step"]) for event in events if event.type == "evaluation")
    if doubled := [key for key, number in told.items() if number > 1]:
        facts = {"job": job.id, "attempts and steps": doubled}
        yield Violation("doubled", "an attempt tells of an evaluation once", facts)
    if sum(state in TERMINAL for state in states) > 1:
        yield Violation("doubled", "a job ends once", facts)


def attempts_closed(evidence: Evidence) -> Iterator[Violation]:
    """No attempt is open, and at most one of a job has brought its end."""
    with evidence.database.read() as unit:
        attempts = unit.session.scalars(select(Attempt)).all()
    ends: dict[str, list[int]] = defaultdict(list)
    for attempt in attempts:
        if attempt.ended_at is None:
            yield Violation("stuck", "attempts end", {"job": attempt.job_id, "epoch": attempt.epoch})
        elif attempt.outcome in TERMINAL:
            ends[attempt.job_id].append(attempt.epoch)
    for job_id, epochs in ends.items():
        if len(epochs) > 1:
            yield Violation("doubled", "one attempt ends a job", {"job": job_id, "epochs": epochs})


def curves_whole(evidence: Evidence) -> Iterator[Violation]:
    """The loss of every job is that of an uninterrupted run, point by point."""
    jobs = _jobs(evidence)
    with evidence.database.read() as unit:
        points: dict[str, list[tuple[int, float | None]]] = defaultdict(list)
        query = select(MetricPoint.job_id, MetricPoint.step, MetricPoint.value).where(MetricPoint.name == "train/loss")
        for job_id, step, value in unit.session.execute(query.order_by(MetricPoint.job_id, MetricPoint.step)):
            points[job_id].append((step, value))
    for promised in evidence.promised.values():
        job = jobs.get(promised.job_id)
        if job is not None and not promised.is_real:
            yield from curve_of(job, promised, points[job.id])


def curve_of(job: Job, promised: Promised, points: Sequence[tuple[int, float | None]]) -> Iterator[Violation]:
    """The points of one job, by step."""
    steps = [step for step, _ in points]
    facts = {"job": job.id, "state": job.state.value, "attempts": job.attempt, "steps": steps[:3] + steps[-3:]}
    first = steps[0] if steps and job.resumes_from else 1
    if (first - 1) % STEPS and job.resumes_from is None:
        yield Violation("lost", "training begins at the beginning", facts)
    missing = sorted(set(range(first, (steps[-1] if steps else 0) + 1)) - set(steps))
    if missing:
        yield Violation("lost", "no step of a curve is missing", facts | {"missing": missing})
    if job.state is JobState.SUCCEEDED:
        taken = int((job.result or {})["steps"])
        if (steps[-1] if steps else 0) != taken and not (job.resumes_from and not steps):
            yield Violation("lost", "a curve goes to the end of the run", facts | {"taken": taken})
        if taken != promised.steps and not promised.stopped:
            yield Violation("lost", "a job that was not stopped trains to its end", facts | {"taken": taken})
    expected = curve(promised.seed, max(steps, default=0))
    wrong = [step for step, value in points if value != expected[step - 1]]
    if wrong:
        yield Violation("doubled", "a resumed run goes on where it was", facts | {"wrong": wrong[:10]})


def files_whole(evidence: Evidence) -> Iterator[Violation]:
    """Files of checkpoints, models and artifacts are there, are what was published, and load."""
    jobs = _jobs(evidence)
    with evidence.database.read() as unit:
        checkpoints = unit.session.scalars(select(Checkpoint)).all()
        models = unit.session.scalars(select(Model)).all()
        artifacts = unit.session.scalars(select(Artifact)).all()
        by_model = {model.id: list(model.files) for model in models}
    scratch = evidence.settings.data_dir / "fetched"
    for checkpoint in checkpoints:
        owner = evidence.promised.get(checkpoint.job_id)
        for file in checkpoint.files:
            facts = {"job": checkpoint.job_id, "checkpoint": checkpoint.id, "key": file.storage_key}
            content = _content(evidence.storage, file.storage_key)
            if content is None or hashlib.sha256(content).hexdigest() != file.sha256:
                yield Violation("lost", "files of checkpoints are what was published", facts)
            elif file.name == "adapter_model.safetensors":
                scratch.write_bytes(content)
                if not _loads(scratch, None if owner is None or owner.is_real else (owner.seed, checkpoint.step)):
                    yield Violation("lost", "adapters load and are those of their step", facts)
    scratch.unlink(missing_ok=True)
    named: list[tuple[str, ModelFile | Artifact]] = [("model", file) for files in by_model.values() for file in files]
    named += [("artifact", artifact) for artifact in artifacts]
    for kind, each in named:
        content = _content(evidence.storage, each.storage_key)
        if content is None or hashlib.sha256(content).hexdigest() != each.sha256:
            yield Violation("lost", f"files of {kind}s are what was published", {"key": each.storage_key})
    of_jobs = Counter(model.job_id for model in models)
    for job in jobs.values():
        if of_jobs[job.id] != (job.state is JobState.SUCCEEDED):
            yield Violation("doubled", "a job that succeeded has one model, others none", {"job": job.id})


def storage_tidy(evidence: Evidence) -> Iterator[Violation]:
    """`gc` finds what a walk of our own finds, deletes it, and nothing that a row names is missing."""
    before = datetime.now(UTC) + timedelta(seconds=1)
    found = {
        file.key
        for folder in FOLDERS
        for page in evidence.storage.pages(folder, unchanged_since=before)
        for file in page
    }
    ours = _unnamed(evidence.database, found)
    arguments = (evidence.settings, evidence.database, evidence.storage)
    shown = collect(*arguments, older_than_s=-1, dry_run=True)
    if shown.orphans.count != len(ours):
        facts = {"gc": shown.orphans.count, "walk": len(ours), "first": sorted(ours)[:5]}
        yield Violation("orphans", "gc sees the files that no row names", facts)
    for name in (*shown.missing.first, *shown.altered.first):
        yield Violation("lost", "files that rows name are in storage", {"file": name})
    collect(*arguments, older_than_s=-1, dry_run=False, force=True)
    left = collect(*arguments, older_than_s=-1, dry_run=True)
    for key in (*left.orphans.first, *left.local.first):
        yield Violation("orphans", "nothing is left after gc", {"file": key})


def machine_tidy(evidence: Evidence) -> Iterator[Violation]:
    """Workspaces hold the folders of living workers, empty, and datasets; nothing else."""
    root = evidence.settings.data_dir / "workspace"
    for folder in root.iterdir():
        if folder.name.startswith("worker-"):
            pid = int(folder.name.split("-")[1])
            inside = [path.name for path in folder.iterdir() if not path.name.startswith(KEPT)]
            if pid not in evidence.workers or inside:
                facts = {"folder": folder.name, "inside": inside, "lives": pid in evidence.workers}
                yield Violation("orphans", "no workspace of a dead worker or ended attempt is left", facts)
        elif not folder.name.startswith("datasets-"):
            yield Violation("orphans", "workspaces hold nothing else", {"folder": folder.name})


def leases_ended(evidence: Evidence) -> Iterator[Violation]:
    """Nothing is held, every dataset is ready, and workers that are listed as living do live."""
    with evidence.database.read() as unit:
        held = unit.session.scalars(select(Job).where(Job.state.in_(LEASED))).all()
        datasets = unit.session.scalars(select(Dataset)).all()
        workers = unit.session.scalars(select(Worker)).all()
    for job in held:
        yield Violation("stuck", "no lease outlives its work", {"job": job.id, "state": job.state.value})
    for dataset in datasets:
        if dataset.state is not DatasetState.READY:
            facts = {"dataset": dataset.id, "state": dataset.state.value, "error": dataset.error}
            yield Violation("stuck", "every dataset gets checked", facts)
    fresh = {worker.pid for worker in workers if _age_s(worker) < 3 * evidence.settings.heartbeat_interval_s}
    if fresh != set(evidence.workers):
        facts = {"listed": sorted(fresh), "running": sorted(evidence.workers)}
        yield Violation("stuck", "workers that are listed as living are those that live", facts)


def one_trainer_at_a_time(evidence: Evidence) -> Iterator[Violation]:
    for first, second in overlaps(evidence.lives):
        facts = {"job": first.job, "epochs": [first.epoch, second.epoch], "seconds": first.last - second.begun}
        yield Violation("overlaps", "one trainer of a job runs at a time", facts)


def trainers_stop(evidence: Evidence) -> Iterator[Violation]:
    """None runs on after its job has ended, as clients see it, or is still there."""
    for life in evidence.lives:
        promised = evidence.promised.get(life.job)
        if promised is not None and promised.ended_at is not None and life.last > promised.ended_at + LAST_BREATH_S:
            late_s = round(life.last - promised.ended_at, 2)
            facts = {"job": life.job, "epoch": life.epoch, "late_s": late_s, "ended_as": promised.ended_as}
            yield Violation("overlaps", "a job that has ended trains no more", facts)
    for process in psutil.process_iter(["cmdline", "pid"]):
        words = process.info["cmdline"] or []
        if str(evidence.settings.data_dir.parent) in " ".join(words) and any("trainer.py" in word for word in words):
            yield Violation("overlaps", "no trainer is left", {"pid": process.info["pid"]})


CHECKS = (
    promises_kept,
    keys_used_once,
    events_in_order,
    attempts_closed,
    curves_whole,
    files_whole,
    storage_tidy,
    machine_tidy,
    leases_ended,
    one_trainer_at_a_time,
    trainers_stop,
)


def _jobs(evidence: Evidence) -> dict[str, Job]:
    with evidence.database.read() as unit:
        return {job.id: job for job in unit.session.scalars(select(Job))}


def _unnamed(database: Database, found: set[str]) -> set[str]:
    """Those of the keys that no row names, by a walk through the tables that has nothing of the product's."""
    with database.read() as unit:
        archives = set(unit.session.scalars(select(Dataset.storage_key)))
        keys = set(unit.session.scalars(select(Artifact.storage_key)))
        keys |= set(unit.session.scalars(select(ModelFile.storage_key)))
        keys |= set(unit.session.scalars(select(CheckpointFile.storage_key)))
    folders = tuple(f"{str(archive).rpartition('/')[0]}/" for archive in archives)
    return {key for key in found if key not in keys and not key.startswith(folders)}


def _content(storage: Storage, key: str) -> bytes | None:
    try:
        return b"".join(storage.get_range(key))
    except NotFoundError:
        return None


def _loads(path: Path, at: tuple[int, int] | None) -> bool:
    """Whether the file is a safetensors file, and, with seed and step, that of this state."""
    try:
        with safe_open(path, framework="numpy") as opened:
            names = list(opened.keys())
            return bool(names) and (at is None or int(opened.get_tensor("state")[0]) == state_at(*at))
    except SafetensorError:
        return False


def _age_s(worker: Worker) -> float:
    return (datetime.now(UTC) - worker.last_seen_at).total_seconds()
