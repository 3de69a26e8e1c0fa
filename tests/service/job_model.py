"""What must hold of jobs, told a second time: by a model that knows neither the database nor the product's tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias

At: TypeAlias = "datetime | None"

LEASED = ("running", "pausing", "cancelling")
TERMINAL = ("succeeded", "failed", "cancelled")
LEASE_S, BACKOFF_S, BACKOFF_MAX_S, CHECKS = 30, 10, 600, 3
"""As the settings have them by default."""
FILE_BYTES = 10
"""Of whatever a worker stores."""
KEPT = ("attempt_usage", "job_outcomes")
"""Tables that keep what is known of a job when it is gone."""


@dataclass
class Lease:
    """What one worker was once given."""

    id: str
    epoch: int


@dataclass(frozen=True)
class Quota:
    """Limits of a project; None: there is none."""

    active_jobs: int | None = None
    running_gpus: int | None = None
    gpu_seconds: int | None = None
    stored_bytes: int | None = None
    datasets: int | None = None

    @property
    def is_of_sums(self) -> bool:
        """Whether it limits what processes remember for longer."""
        return self.gpu_seconds is not None or self.stored_bytes is not None


@dataclass(eq=False)
class ModelDataset:
    id: str
    created_at: datetime
    size_bytes: int
    state: str = "processing"
    worker: bool = False
    epoch: int = 0
    beats: int = 0
    lost: int = 0
    not_before: At = None
    deleted: bool = False

    @property
    def is_waiting(self) -> bool:
        return self.state == "processing" and not self.deleted


@dataclass(eq=False)
class ModelJob:
    id: str
    project: str
    datasets: tuple[str, ...]
    priority: int
    gpus: int
    max_attempts: int
    created_at: datetime
    state: str = ""
    request: str | None = None
    epoch: int = 0
    lost: int = 0
    beats: int = 0
    queued_at: At = None
    not_before: At = None
    started_at: At = None
    claimed_at: At = None
    seen_at: At = None
    finished_at: At = None
    gpu_seconds: float = 0.0
    error: tuple[str, int] | None = None
    """Its code, and the attempt."""
    resumes_from: str | None = None
    sweep: str | None = None
    deleted: bool = False
    purged: bool = False
    events: list[str] = field(default_factory=list)
    """`status` with the state, or the type, in order."""
    attempts: list[str | None] = field(default_factory=list)
    """Where each led; None: it goes on."""
    checkpoints: dict[str, str] = field(default_factory=dict)
    """Storage keys by kind: `epoch`, `best`."""
    report: str | None = None
    """Storage key of an artifact."""
    model: str | None = None
    """Storage key of the model's adapter."""
    model_id: str | None = None

    @property
    def is_live(self) -> bool:
        return self.state not in TERMINAL

    def files(self) -> set[str]:
        """Storage keys of its own."""
        return {*self.checkpoints.values(), *([self.report] if self.report else [])}


def acted(job: ModelJob, action: str) -> str | None:
    """What an action does to a job: the state it leads to, `request`, `nothing`, or None where it is refused."""
    state = job.state
    if action == "cancel":
        if state in ("cancelling", "cancelled"):
            return "nothing"
        if state in ("succeeded", "failed"):
            return None
        return "cancelling" if state in LEASED else "cancelled"
    if action == "stop":
        if job.request == "stop" or state == "succeeded":
            return "nothing"
        return "request" if state == "running" else None
    if action == "pause":
        if state in ("pausing", "paused"):
            return "nothing"
        if job.request == "stop":
            return None
        return {"queued": "paused", "running": "pausing"}.get(state)
    if job.request == "resume":
        return "nothing"
    return "queued" if state == "paused" else None


def settled(state: str, outcome: str) -> str:
    """Where a job that a worker held goes when its attempt ends so."""
    if state == "cancelling":
        return "cancelled"
    return "paused" if state == "pausing" and outcome == "queued" else outcome


class World:
    """All jobs, and what has been counted, used and told about them so far."""

    def __init__(self) -> None:
        self.jobs: dict[str, ModelJob] = {}
        self.datasets: dict[str, ModelDataset] = {}
        self.quotas: defaultdict[str, Quota] = defaultdict(Quota)
        self.workers: dict[int, datetime] = {}
        """By their GPUs: when they last gave a sign of life."""
        self.endpoints: dict[str, tuple[str, tuple[str, ...]]] = {}
        """Project and types of events."""
        self.told: Counter[tuple[str, str, str, int]] = Counter()
        """Endpoint, type, id, number of the job's event."""
        self.counts: Counter[tuple[str, str]] = Counter()
        self.amounts: defaultdict[str, float] = defaultdict(float)
        self.used: defaultdict[str, float] = defaultdict(float)
        """GPU seconds by project."""
        self.spans: list[tuple[str, int, datetime, datetime]] = []
        """Attempts that have ended: project, GPUs, from when to when they count."""
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.moves: set[tuple[str, str]] = set()
        self.lost_leases: list[Lease] = []
        """They hold nothing any more."""
        self._seen: dict[str, tuple[int, int, datetime]] = {}
        self._looked_at: At = None

    def there(self) -> list[ModelJob]:
        """Jobs that clients see, oldest first."""
        return sorted((job for job in self.jobs.values() if not job.deleted), key=age)

    def leased(self) -> list[ModelJob]:
        return [job for job in self.there() if job.state in LEASED]

    def active(self, project: str) -> int:
        return sum(job.project == project and job.is_live for job in self.jobs.values())

    def busy(self, project: str) -> int:
        """GPUs that are taken."""
        return sum(job.gpus for job in self.leased() if job.project == project)

    def spent(self, project: str, now: datetime) -> float:
        """GPU seconds of this month, of attempts that go on up to what was last heard of them."""
        month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        spans = [*self.spans]
        for job in self.leased():
            assert job.claimed_at is not None
            assert job.seen_at is not None
            spans.append((job.project, job.gpus, job.claimed_at, job.seen_at))
        return sum(
            gpus * max(0.0, (until - max(since, month)).total_seconds())
            for of, gpus, since, until in spans
            if of == project
        )

    def stored(self, project: str) -> int:
        """Bytes of datasets, and of files that a job or its model has; those that both have count once."""
        own = [job for job in self.jobs.values() if job.project == project]
        files = {key for job in own for key in (*([] if job.deleted else job.files()), job.model) if key is not None}
        return FILE_BYTES * len(files) + sum(each.size_bytes for each in self.datasets_of(project))

    def datasets_of(self, project: str) -> list[ModelDataset]:
        """Those that count."""
        return [each for each in self.datasets.values() if project == "default" and not each.deleted]

    def used_of(self, project: str, now: datetime) -> dict[str, float]:
        """What a project uses of each limit."""
        return {
            "active_jobs": self.active(project),
            "running_gpus": self.busy(project),
            "gpu_seconds": self.spent(project, now),
            "stored_bytes": self.stored(project),
            "datasets": len(self.datasets_of(project)),
        }

    def room(self, project: str, now: datetime) -> int | None:
        """GPUs that a project's jobs may be claimed for; None: any number."""
        quota = self.quotas[project]
        if quota.gpu_seconds is not None and self.spent(project, now) >= quota.gpu_seconds:
            return 0
        return None if quota.running_gpus is None else max(0, quota.running_gpus - self.busy(project))

    def add(self, job: ModelJob, *, is_told: bool = False) -> None:
        """A new job has been created."""
        self.jobs[job.id] = job
        waiting = any(self.datasets[each].state == "processing" for each in job.datasets)
        self.move(job, "validating_files" if waiting else "queued", job.created_at)
        if is_told:  # stored with the first event, after which the message to receivers is numbered
            job.events.append("message")
            self._renumber(job)

    def move(self, job: ModelJob, to: str, now: datetime, *, error: str | None = None) -> None:
        """Everything that a move brings with it."""
        if job.state:
            self.moves.add((job.state, to))
        job.state = to
        job.events.append(f"status {to}")
        self.counts["jobs", to] += 1
        self.tell(WEBHOOKS.get(to), job)
        if to == "queued":
            job.queued_at = now
        if to == "paused" or to in TERMINAL:
            job.request = None
        if to == "failed" and error is not None:
            job.error = error, len(job.attempts)
            self.counts["failures", error] += 1
        if to in TERMINAL:
            job.finished_at = now
            self.outcomes[job.project, to] += 1
            if job.started_at is not None:
                self.counts["duration", to] += 1
                self.amounts["duration"] += (now - job.started_at).total_seconds()

    def tell(self, kind: str | None, about: ModelJob | ModelDataset) -> None:
        """Every endpoint of the project that wants such events gets one message."""
        number = len(about.events) if isinstance(about, ModelJob) else 0
        project = about.project if isinstance(about, ModelJob) else "default"
        for endpoint, (own, kinds) in self.endpoints.items():
            if kind is not None and own == project and kind in kinds:
                self.told[endpoint, kind, about.id, number] += 1

    def claimed(self, job: ModelJob, now: datetime) -> None:
        """A worker has got the job."""
        due_at = max(at for at in (job.queued_at, job.not_before) if at is not None)
        self.counts["queue_wait", ""] += 1
        self.amounts["queue_wait"] += (now - due_at).total_seconds()
        job.epoch, job.beats, job.not_before = job.epoch + 1, 0, None
        job.started_at, job.claimed_at, job.seen_at = job.started_at or now, now, now
        job.request = "stop" if job.request == "stop" else None
        job.attempts.append(None)
        self.move(job, "running", now)

    def ended(
        self, job: ModelJob, outcome: str, now: datetime, *, error: str | None = None, is_reaped: bool = False
    ) -> bool:
        """The attempt has ended so, by its worker or by the reaper; whether the job waits for its backoff now."""
        until = job.seen_at if is_reaped else now
        assert until is not None
        assert job.claimed_at is not None
        seconds = job.gpus * (until - job.claimed_at).total_seconds()
        job.gpu_seconds += seconds
        self.used[job.project] += seconds
        self.spans.append((job.project, job.gpus, job.claimed_at, until))
        self.amounts["gpu_seconds"] += seconds
        self.lost_leases.append(Lease(job.id, job.epoch))
        to = settled(job.state, outcome)
        waits = False
        if is_reaped:
            self.counts["lost", "worker_lost"] += 1
        if to == "queued" and error is not None:
            if not is_reaped:
                self.counts["lost", error] += 1
            job.lost += 1
            waits = job.lost < job.max_attempts
            to = "queued" if waits else "failed"
        job.attempts[-1] = to
        if to == "succeeded":
            job.model = job.checkpoints.get("best")
        self.move(job, to, now, error=error)
        return waits

    def checked(self, dataset: ModelDataset, outcome: str, now: datetime) -> None:
        """The dataset's check has ended; jobs that wait for nothing else go on, or fail with it."""
        dataset.state, dataset.worker = outcome, False
        self.tell(f"dataset.{outcome}", dataset)
        for job in self.there():
            if job.state != "validating_files" or dataset.id not in job.datasets:
                continue
            if outcome != "ready":
                self.move(job, "failed", now, error="dataset_invalid")
            elif all(self.datasets[each].state == "ready" for each in job.datasets):
                self.move(job, "queued", now)

    def stale(self, now: datetime) -> list[ModelJob | ModelDataset]:
        """Leases that the reconciler, which looks now, has seen unchanged for too long; it must not have slept."""
        if self._looked_at is None or (now - self._looked_at).total_seconds() > LEASE_S:
            self._seen.clear()
        self._looked_at = now
        held: list[ModelJob | ModelDataset] = [*self.leased()]
        held += [each for each in self.datasets.values() if each.worker and not each.deleted]
        found = {}
        for each in held:
            known = self._seen.get(each.id)
            same = known is not None and known[:2] == (each.epoch, each.beats)
            found[each.id] = known if known is not None and same else (each.epoch, each.beats, now)
        self._seen = found
        return [each for each in held if (now - found[each.id][2]).total_seconds() >= LEASE_S]

    def next_for(self, gpus: int, now: datetime) -> ModelJob | None:
        """Whose turn it is for a worker with so many GPUs."""
        running = self._running()
        due = [job for job in self.there() if job.state == "queued" and not (job.not_before and job.not_before > now)]
        held: set[str] = set()
        for priority in sorted({job.priority for job in due}, reverse=True):
            lines: dict[str, list[ModelJob]] = {}
            for job in due:
                if job.priority == priority and job.gpus <= gpus and job.project not in held:
                    lines.setdefault(job.project, []).append(job)
            for project in sorted(lines, key=lambda own: (running[own], lines[own][0].created_at, own)):
                most, room = self.quotas[project].running_gpus, self.room(project, now)
                possible = [job for job in lines[project] if most is None or job.gpus <= most]
                if not possible:
                    continue
                kept = (
                    0 if most is None else self._kept(most, gpus, now, [job for job in due if job.project == project])
                )
                if room is None or possible[0].gpus <= room - kept:
                    return possible[0]
                held.add(project)
        return None

    def _kept(self, most: int, gpus: int, now: datetime, due: list[ModelJob]) -> int:
        """Of a project's room what waits for a worker larger than this one, whose job comes before all others."""
        alive = [size for size, at in self.workers.items() if (now - at).total_seconds() <= LEASE_S]
        possible = [job for job in due if job.gpus <= min(most, max(alive, default=0))]
        first = min(possible, key=lambda job: (-job.priority, *age(job)), default=None)
        return first.gpus if first is not None and first.gpus > gpus else 0

    def order(self) -> list[ModelJob]:
        """In which order those that are queued start, if there are workers and room for all of them."""
        running = self._running()
        waiting = [job for job in self.there() if job.state == "queued"]
        found: list[ModelJob] = []
        while waiting:
            highest = max(job.priority for job in waiting)
            first = min(
                (job for job in waiting if job.priority == highest), key=lambda job: (running[job.project], age(job))
            )
            waiting.remove(first)
            running[first.project] += 1
            found.append(first)
        return found

    def refusal(self, project: str, gpus: int, jobs: int, now: datetime) -> str | None:
        """The limit for which the project may not have so many new jobs of that size."""
        quota = self.quotas[project]
        if quota.gpu_seconds is not None and self.spent(project, now) >= quota.gpu_seconds:
            return "max_gpu_seconds_per_month"
        if quota.stored_bytes is not None and self.stored(project) >= quota.stored_bytes:
            return "max_stored_bytes"
        if quota.running_gpus is not None and gpus > quota.running_gpus:
            return "max_running_gpus"
        if quota.active_jobs is not None and self.active(project) + jobs > quota.active_jobs:
            return "max_active_jobs"
        return None

    def dataset_refusal(self, size_bytes: int) -> str | None:
        """The limit for which there may not be one more dataset of that size."""
        quota = self.quotas["default"]
        if quota.datasets is not None and len(self.datasets_of("default")) >= quota.datasets:
            return "max_datasets"
        if quota.stored_bytes is not None and self.stored("default") + size_bytes > quota.stored_bytes:
            return "max_stored_bytes"
        return None

    def resumable(self, job: ModelJob) -> str | None:
        """The job whose checkpoint a retry goes on from."""
        if "epoch" in job.checkpoints:
            return job.id
        earlier = None if job.resumes_from is None else self.jobs[job.resumes_from]
        return None if earlier is None or earlier.deleted else self.resumable(earlier)

    def is_needed(self, job: ModelJob) -> bool:
        """Whether a job that has not ended goes on from one of its checkpoints."""
        return any(each.resumes_from == job.id and each.is_live for each in self.jobs.values())

    def is_used(self, dataset: ModelDataset) -> bool:
        """Whether a job that has not ended needs the dataset."""
        return any(dataset.id in job.datasets and job.is_live for job in self.jobs.values())

    def _running(self) -> Counter[str]:
        """Jobs by project."""
        return Counter(job.project for job in self.leased())

    def _renumber(self, job: ModelJob) -> None:
        for key in [key for key in self.told if key[2] == job.id]:
            self.told[*key[:3], len(job.events)] += self.told.pop(key)


WEBHOOKS = {
    "queued": "job.queued",
    "running": "job.started",
    "paused": "job.paused",
    "succeeded": "job.succeeded",
    "failed": "job.failed",
    "cancelled": "job.cancelled",
}


def age(job: ModelJob) -> tuple[datetime, str]:
    return job.created_at, job.id


def backoff(lost: int, now: datetime) -> tuple[datetime, datetime]:
    """Between which moments a job runs again that has been lost so often."""
    ceiling = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** (lost - 1))
    return now + timedelta(seconds=ceiling / 2), now + timedelta(seconds=ceiling)
