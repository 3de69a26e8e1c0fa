"""Steps of clients over HTTP, of workers through the repositories that they use, and of the reconciler, in any order.

Each says what it does to the model, and checks what it is answered.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from sqlalchemy import func, select

from service.reconciler import Reconciler
from service.shared.db.models import Base, Job
from service.shared.db.repositories.attempts import Lease as HeldLease
from service.shared.db.repositories.checkpoints import CheckpointManifest
from service.shared.db.repositories.events import NewEvent
from service.shared.errors import LeaseLostError, NotFoundError, StateConflictError
from service.shared.queue import Task
from service.shared.states import DatasetState, JobState
from service.shared.storage import StoredFile
from service.shared.unit_of_work import Database
from service.shared.webhooks import EventType
from tests.service.conftest import Api, assert_problem, body, empty
from tests.service.job_model import (
    CHECKS,
    FILE_BYTES,
    KEPT,
    LEASE_S,
    LEASED,
    Lease,
    ModelDataset,
    ModelJob,
    Quota,
    World,
    acted,
    backoff,
)
from tests.service.webhooks import add_endpoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeVar

    from httpx import Response

    from service.shared.unit_of_work import UnitOfWork

    T = TypeVar("T")

SEEDS = st.integers(0, 2**32 - 1)
MAX_LIVE = 9  # jobs: the reconciler announces 16 in a pass
GAP_S, LONG_GAP_S = 2, 6  # between any two steps: longer than a process remembers limits, or sums
MONTH_ENDS_S = 500  # after an example's begin
PASS_S = 5
WRITES = ("event", "report", "metrics", "log", "epoch", "epoch", "epoch", "best", "best", "artifact")
ENDS = ("succeeded", "succeeded", "failed", "failed", "transient", "transient", "drain")
PROJECTS = {"default": tuple(EventType), "blue": (EventType.JOB_FAILED, EventType.JOB_STARTED)}
"""And what their webhooks tell."""


class Steps(RuleBasedStateMachine):
    def __init__(self, api: Api) -> None:
        super().__init__()
        empty(api.settings)
        api.queue.rings.clear()
        api.queue.down = False
        now = api.clock.now()
        api.clock.advance((next_month(now + timedelta(days=1)) - now).total_seconds() - MONTH_ENDS_S)
        self.api = api
        self.client = api.client
        self.clock = api.clock
        # Of other processes, which remember nothing of what the API's does.
        self.database = Database(api.settings, api.clock, api.queue)
        self.other = Database(api.settings, api.clock, api.queue)
        self.reconciler = Reconciler(api.settings, self.other, api.storage, api.queue, api.clock)
        self.world = World()
        self.keyed: dict[str, tuple[dict[str, Any], str]] = {}
        self.sweeps: list[str] = []
        self.steps = self.files = 0
        self.seeds: Counter[int] = Counter()
        for project, kinds in PROJECTS.items():
            endpoint, _ = add_endpoint(self.database, api.settings, project=project, events=kinds)
            self.world.endpoints[endpoint] = project, tuple(map(str, kinds))

    def teardown(self) -> None:
        self.database.close()
        self.other.close()

    @initialize(seed=SEEDS)
    def begin(self, seed: int) -> None:
        self.seed = seed
        self.add_dataset()
        self.check_dataset("ready")

    # One rule, since hypothesis leaves out some rules in each example, and without claims nothing happens.
    @rule(seed=SEEDS)
    def step(self, seed: int) -> None:
        self.steps += 1
        # Hypothesis draws few numbers often: without a count of each, one step in three would be one that was before.
        # Of an example that failed, steps can be left out: what others do depends on those of their seed alone.
        self.random = Random(f"{self.seed} {seed} {self.seeds[seed]}")
        self.seeds[seed] += 1
        self.clock.advance(LONG_GAP_S if any(each.is_of_sums for each in self.world.quotas.values()) else GAP_S)
        name = self.draw(self.possible())
        note(f"{name} at {self.clock.now()}")
        getattr(self, name)()

    def possible(self) -> list[str]:
        """Names of steps that make sense now, each as often as it is worth."""
        world = self.world
        jobs, live = world.jobs.values(), [job for job in world.jobs.values() if job.is_live]
        unchecked = [each for each in world.datasets.values() if each.is_waiting]
        needed = [job for job in jobs if not job.deleted and not job.is_live and world.is_needed(job)]
        worth = {
            "create": 4 if len(live) < MAX_LIVE else 0,
            "create_sweep": (5 if self.nearly_full() else 1)
            if len(live) < MAX_LIVE - 1 and len(self.sweeps) < 2
            else 0,
            "repeat": 1 if self.keyed else 0,
            "act": 9 if live else 0,
            "prefer": 1 if jobs else 0,
            "retry": (9 if self.resumable() else 3) if len(live) < MAX_LIVE and len(jobs) > len(live) else 0,
            "delete": (6 if needed else 2) if len(jobs) > len(live) else 0,
            "end_sweep": 1 if self.sweeps else 0,
            "limit": 3,
            "add_dataset": 3 if len(world.datasets) < 10 and len(unchecked) < 2 else 0,
            "delete_dataset": 1,
            "delete_model": 3 if any(job.model for job in jobs) else 0,
            "claim_dataset": 2 if unchecked else 0,
            "claim": 9 if any(job.state == "queued" for job in live) else 1,
            "beat": 2 if world.leased() else 0,
            "write": 7 if world.leased() else 0,
            "finish": 6 if world.leased() else 0,
            "write_late": 3 if world.lost_leases else 0,
            "watch": 3,
            "outlast": 2 if world.leased() else 0,
            "sleep": 1,
            "switch_broker": 1,
        }
        return [name for name, times in worth.items() for _ in range(times)]

    # Clients

    def create(self) -> None:
        used = {self.dataset(), self.draw([None, None, self.dataset()])} - {None}
        waiting = {each for each in self.world.datasets.values() if each.is_waiting}
        used = self.draw([used, waiting if len(waiting) > 1 else used])  # for both of them
        datasets = tuple(sorted((each for each in used if each is not None), key=lambda each: each.id))
        project = self.draw([*PROJECTS, *self.limited() * 2])
        queued = {job.gpus for job in self.world.there() if (job.project, job.state) == (project, "queued")}
        others = sorted({1, 2} - queued) if project in self.limited() else []
        values = {"project": project, "priority": self.draw([10, 50, 50]), "gpus": self.draw([1, 2, *others * 3])}
        most = self.draw([1, 2, 3])
        request = body(
            dataset_id=datasets[0].id,
            validation_dataset_id=datasets[1].id if len(datasets) > 1 else None,
            project=values["project"],
            priority=values["priority"],
            resources={"gpus": values["gpus"]},
            limits={"max_attempts": most},
        )
        key = self.draw([None, f"key-{len(self.keyed)}"])
        answer = self.client.post("/v1/jobs", json=request, headers={} if key is None else {"Idempotency-Key": key})
        job = self.created(answer, datasets, max_attempts=most, **values)
        if job is not None and key is not None:
            self.keyed[key] = request, job.id

    def repeat(self) -> None:
        key, is_same = self.draw(self.keyed), self.draw([True, False])
        request, job_id = self.keyed[key]
        changed = {} if is_same else {"name": "another"}
        answer = self.client.post("/v1/jobs", json=request | changed, headers={"Idempotency-Key": key})
        assert answer.status_code == (201 if is_same else 422), answer.text
        if is_same:
            assert (answer.json()["id"], answer.headers["idempotent-replayed"]) == (job_id, "true")

    def act(self) -> None:
        action = self.draw(["cancel", "cancel", "stop", "pause", "pause", "pause", "resume", "resume"])
        jobs = list(self.world.jobs.values())
        changed = [job for job in jobs if acted(job, action) not in (None, "nothing")]
        rare = [job for job in changed if job.state == "pausing"]
        job = self.draw([*changed * 3, *rare * 8, *jobs])
        answer = self.client.post(f"/v1/jobs/{job.id}/{action}")
        if job.deleted:
            assert answer.status_code == 404
            return
        change = self.acted(job, action)
        assert answer.status_code == (409 if change is None else 202), answer.text
        if change is not None:
            assert answer.json()["status"] == job.state

    def prefer(self) -> None:
        job, priority = self.draw(self.world.jobs.values()), self.draw([10, 50, 90])
        changes = priority != job.priority
        answer = self.client.patch(f"/v1/jobs/{job.id}", json={"priority": priority})
        if job.deleted:
            assert answer.status_code == 404
        elif changes and not job.is_live:
            assert answer.status_code == 409
        else:
            assert answer.status_code == 200
            job.priority = priority
            job.events += ["message"] if changes else []

    def retry(self) -> None:
        ended = [job for job in self.world.jobs.values() if not job.is_live]
        old, is_anew = self.draw([*ended, *self.resumable() * 8]), self.draw([False, False, True])
        answer = self.client.post(f"/v1/jobs/{old.id}/retry", json={"from_scratch": is_anew})
        if old.deleted or old.state == "succeeded":
            assert answer.status_code == (404 if old.deleted else 409)
            return
        alike = {name: getattr(old, name) for name in ("project", "priority", "gpus", "max_attempts")}
        resumes_from = None if is_anew else self.world.resumable(old)
        datasets = [self.world.datasets[each] for each in old.datasets]
        self.created(answer, datasets, is_told=True, resumes_from=resumes_from, **alike)

    def delete(self) -> None:
        ended = [job for job in self.world.jobs.values() if not job.is_live]
        there = [job for job in ended if not job.deleted]
        needed = [job for job in there if self.world.is_needed(job)]
        job = self.draw([*ended, *there * 3, *needed * 8])
        answer = self.client.delete(f"/v1/jobs/{job.id}")
        if job.deleted:
            assert answer.status_code == 404
        elif self.world.is_needed(job):
            assert (answer.status_code, answer.json()["code"]) == (409, "job_in_use")
        else:
            assert answer.status_code == 204
            self.deleted(job)

    def create_sweep(self) -> None:
        dataset, project = self.dataset(), self.draw([*PROJECTS, *self.nearly_full() * 4])
        now = self.clock.now()
        job = {"base_model": "sam3-tiny", "dataset_id": dataset.id, "project": project}
        request = {"name": "ranks", "job": job, "parameters": {"lora.rank": {"values": [4, 8]}}}
        answer = self.client.post("/v1/sweeps", json=request)
        if self.is_answered(answer, [dataset], project, 1, jobs=2):
            sweep_id = answer.json()["id"]
            self.sweeps.append(sweep_id)
            with self.database.read() as unit:
                ids = unit.session.scalars(select(Job.id).where(Job.sweep_id == sweep_id)).all()
            assert len(ids) == 2
            for job_id in ids:
                self.added(ModelJob(job_id, project, (dataset.id,), 50, 1, 3, now, sweep=sweep_id))

    def end_sweep(self) -> None:
        sweep_id, is_over = self.draw(self.sweeps), self.draw([False, True])
        trials = [job for job in self.world.there() if job.sweep == sweep_id]
        if not is_over:
            self.client.post(f"/v1/sweeps/{sweep_id}/cancel").raise_for_status()
            for job in trials:
                self.acted(job, "cancel")
            return
        answer = self.client.delete(f"/v1/sweeps/{sweep_id}")
        is_kept = any(job.is_live or self.world.is_needed(job) for job in trials)
        assert answer.status_code == (409 if is_kept else 204), answer.text
        if not is_kept:
            self.sweeps.remove(sweep_id)
            for job in trials:
                self.deleted(job)

    def limit(self) -> None:
        project, is_unset = self.draw(PROJECTS), self.draw([False, False, True])
        if is_unset:
            assert self.client.delete(f"/v1/quotas/{project}").status_code == 204
            self.world.quotas[project] = Quota()
        else:
            used = self.world.used_of(project, self.clock.now())
            # Near what is used, or chance would seldom meet a limit. Sums that are used up leave little to happen.
            near = {
                "active_jobs": [None, None, -1, 0, 1, 2],
                "running_gpus": [None, None, 0, 1, 2, 2],
                "gpu_seconds": [None, None, None, None, None, 0, 50, 500],
                "stored_bytes": [None, None, None, None, None, 0, FILE_BYTES, 3 * FILE_BYTES],
                "datasets": [None, None, None, -1, 0, 0, 1],
            }
            drawn = {name: self.draw(steps) for name, steps in near.items()}
            limits = {name: None if step is None else max(0, int(used[name]) + step) for name, step in drawn.items()}
            quota = self.world.quotas[project] = Quota(**limits)
            names = {"gpu_seconds": "gpu_seconds_per_month"}
            wanted = {f"max_{names.get(name, name)}": most for name, most in limits.items()}
            note(f"{project}: {quota}")
            self.client.put(f"/v1/quotas/{project}", json=wanted).raise_for_status()
        self.look_at_quota(project)

    def look_at_quota(self, project: str) -> None:
        quota = self.client.get("/v1/quota", params={"project": project}).json()
        for name, used in self.world.used_of(project, self.clock.now()).items():
            assert (quota[name]["used"], quota[name]["limit"]) == (used, getattr(self.world.quotas[project], name)), (
                name
            )

    def add_dataset(self) -> None:
        self.files += 1
        content = b"PK\x05\x06" + bytes(16) + self.files.to_bytes(2, "little")
        answer = self.client.post("/v1/datasets", files={"file": ("a.zip", content, "application/zip")})
        refusal = self.world.dataset_refusal(len(content))
        if refusal is not None:
            assert_refused(answer, refusal)
            return
        assert answer.status_code == 201, answer.text
        dataset_id = answer.json()["id"]
        self.world.datasets[dataset_id] = ModelDataset(dataset_id, self.clock.now(), len(content))

    def delete_model(self) -> None:
        job = self.draw([job for job in self.world.jobs.values() if job.model])
        assert self.client.delete(f"/v1/models/{job.model_id}").status_code == 204
        job.model = None

    def delete_dataset(self) -> None:
        dataset = self.draw(self.world.datasets.values())
        if sum(not each.deleted for each in self.world.datasets.values()) == 1:
            return  # no job could be made any more
        answer = self.client.delete(f"/v1/datasets/{dataset.id}")
        if dataset.deleted:
            assert answer.status_code == 404
        elif self.world.is_used(dataset):
            assert (answer.status_code, answer.json()["code"]) == (409, "dataset_in_use")
        else:
            assert answer.status_code == 204
            dataset.deleted = True

    # Workers

    def claim_dataset(self) -> None:
        self.check_dataset(self.draw(["ready", "ready", "invalid", "failed", "again", "drain", "lost"]))

    def check_dataset(self, outcome: str) -> None:
        now = self.clock.now()
        with self.database.write() as unit:
            claimed = unit.datasets.claim("w-cpu")
        due = [each for each in self.world.datasets.values() if each.is_waiting and not each.worker]
        due = [each for each in due if each.not_before is None or each.not_before <= now]
        expected = min(due, key=lambda each: (each.created_at, each.id), default=None)
        assert (claimed and claimed.id) == (expected and expected.id)
        if expected is None:
            return
        expected.epoch, expected.beats, expected.worker = expected.epoch + 1, 1, True
        with self.database.write() as unit:
            unit.datasets.heartbeat(expected.id, expected.epoch)
        if outcome == "drain":
            with self.database.write() as unit:
                unit.datasets.drain(expected.id, expected.epoch)
            expected.worker = False
        elif outcome != "lost":
            self.end_check(expected, outcome)

    def end_check(self, dataset: ModelDataset, outcome: str) -> None:
        state = DatasetState.PROCESSING if outcome == "again" else DatasetState(outcome)
        failure = {"code": "internal", "message": "It broke.", "hint": "", "retryable": outcome == "again"}
        error = None if outcome in ("ready", "invalid") else failure
        with self.database.write() as unit:
            ended = unit.datasets.finish(dataset.id, dataset.epoch, state, report={}, error=error)
            if ended.state is not DatasetState.PROCESSING:
                valid = ended.state is DatasetState.READY
                for job_id in unit.jobs.release_waiting(dataset.id, valid=valid, error=ended.error):
                    unit.ring_after_commit(Task.TRAIN, job_id)
        if outcome == "again":
            self.check_lost(dataset)
        else:
            self.world.checked(dataset, outcome, self.clock.now())

    def claim(self) -> None:
        queued = {(job.project, job.gpus) for job in self.world.there() if job.state == "queued"}
        rivals = [each for each in self.limited() if {(each, 1), (each, 2)} <= queued]  # for the same room
        gpus, now = self.draw([1, 2, 2, *(1 for _ in rivals * 4)]), self.clock.now()
        with self.database.write() as unit:
            for size in self.draw([(), (gpus,), (1, 2), (1, 2)]):
                unit.workers.beat(f"w-{size}", kind="gpu", host="h", pid=1, device=None, gpus=size)
                self.world.workers[size] = now
            claimed = unit.jobs.claim(f"w-{gpus}", gpus=gpus)
        expected = self.world.next_for(gpus, now)
        assert (claimed and claimed.id) == (expected and expected.id)
        if claimed is not None and expected is not None:
            self.world.claimed(expected, now)
            assert claimed.epoch == expected.epoch

    def beat(self) -> None:
        job = self.draw(self.world.leased())
        with self.database.write() as unit:
            request = unit.attempts.heartbeat(job.id, job.epoch)
        assert request == job.request
        job.beats, job.seen_at = job.beats + 1, self.clock.now()

    def write(self) -> None:
        job, kind = self.draw(self.world.leased()), self.draw(WRITES)
        self.files += 1
        stored = StoredFile(f"jobs/{job.id}/e{job.epoch}/{kind}-{self.files}/a.bin", FILE_BYTES, "0" * 64)
        if kind in ("epoch", "best", "artifact"):
            self.api.storage.put(stored.key, [bytes(FILE_BYTES)], size_bytes=FILE_BYTES)
        with self.database.write() as unit:
            write_as(unit, job, kind, stored, self.files)
        if kind == "event":
            job.events.append("message")
        elif kind == "artifact":
            self.withdraw([job.report] if job.report else [])
            job.report = stored.key
        elif kind in ("epoch", "best"):
            self.world.tell("job.checkpoint", job)
            job.checkpoints[kind] = stored.key
            with self.database.write() as unit:  # as workers do, keep one of each kind
                replaced = [each.id for each in unit.checkpoints.list(job.id) if each.kind == kind][1:]
                keys = unit.checkpoints.remove(job.id, job.epoch, replaced)
            self.withdraw(keys)

    def withdraw(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.api.storage.delete(key)

    def finish(self) -> None:
        job, how = self.draw(self.world.leased()), self.draw(ENDS)
        outcome = "queued" if how in ("transient", "drain") else how
        if job.state == "cancelling" and how == "drain":
            outcome = "cancelled"  # so says a worker that was told in time
        error = {"transient": "gpu_oom", "failed": "diverged"}.get(how)
        with self.database.write() as unit:
            details = error and {"code": error, "message": "x", "retryable": how == "transient"}
            result = {"model_id": None} if how == "succeeded" else None
            ended = unit.attempts.finish(job.id, job.epoch, JobState(outcome), error=details, result=result)
            model = unit.models.add_best(ended) if ended.state is JobState.SUCCEEDED else None
            job.model_id = model and model.id
        if self.world.ended(job, outcome, self.clock.now(), error=error):
            self.wait(job)

    def write_late(self) -> None:
        held = {job.id for job in self.world.leased()}
        again = [lease for lease in self.world.lost_leases if lease.id in held]
        lease = self.draw([*self.world.lost_leases, *again * 8])
        kind = self.draw([*WRITES, "beat", "finish", "fail", "remove", "reap"])
        refusals = (LeaseLostError, StateConflictError, NotFoundError) if kind == "reap" else LeaseLostError
        with pytest.raises(refusals), self.database.write() as unit:
            write_as(unit, lease, kind, StoredFile("jobs/late", 3, "0" * 64), 0)

    # The reconciler, and time

    def watch(self) -> None:
        for _ in range(self.draw([1, 2, 4])):
            self.clock.advance(PASS_S)
            self.reconcile()

    def outlast(self) -> None:
        """Every lease is lost but one, whose worker renews it."""
        kept = self.draw([None, *self.world.leased()])
        for _ in range(LEASE_S // PASS_S + 1):
            self.clock.advance(PASS_S)
            if kept is not None:
                with self.database.write() as unit:
                    unit.attempts.heartbeat(kept.id, kept.epoch)
                kept.beats, kept.seen_at = kept.beats + 1, self.clock.now()
            self.reconcile()

    def reconcile(self) -> None:
        now = self.clock.now()
        with self.database.read() as unit:
            is_due = (Job.state == JobState.QUEUED, Job.next_publish_at <= now)
            due = unit.session.scalars(select(Job.id).where(*is_due)).all()
        self.api.queue.rings.clear()
        self.reconciler.run_once()
        for each in self.world.stale(now):
            if isinstance(each, ModelDataset):
                self.check_lost(each)
            elif self.world.ended(each, "queued", now, error="worker_lost", is_reaped=True):
                self.wait(each)
        if not self.api.queue.down:
            assert {(Task.TRAIN, job_id) for job_id in due} <= set(self.api.queue.rings)
            with self.database.read() as unit:
                assert not unit.session.scalars(select(Job.id).where(*is_due)).all()
        for job in self.world.jobs.values():
            if job.deleted and not job.purged:
                job.purged = True
                assert self.api.storage.list(f"jobs/{job.id}/") == ([job.model] if job.model else [])
                assert not self.rows_of(job)

    def rows_of(self, job: ModelJob) -> list[str]:
        """Tables that have rows of a job; those that are to outlive it are left out."""
        tables = [table for name, table in Base.metadata.tables.items() if "job_id" in table.c and name not in KEPT]
        with self.database.read() as unit:
            counts = {t.name: unit.session.scalar(select(func.count()).where(t.c.job_id == job.id)) for t in tables}
        return [name for name, count in counts.items() if count]

    def sleep(self) -> None:
        """Nobody does anything, nor watches leases."""
        self.clock.advance(self.draw([15, 40, 700]))

    def switch_broker(self) -> None:
        self.api.queue.down = self.draw([False, True])

    # What steps share

    def draw(self, among: Any) -> Any:
        return self.random.choice(list(among))

    def dataset(self) -> ModelDataset:
        """One of the datasets, most often one that jobs can be made of."""
        every = list(self.world.datasets.values())
        good = [each for each in every if not each.deleted and each.state in ("ready", "processing")]
        return self.draw([*good, *good, *(each for each in good if each.is_waiting), *every])

    def nearly_full(self) -> list[str]:
        """Projects that may have one more job, and no two."""
        quotas, active = self.world.quotas, self.world.active
        return [each for each in PROJECTS if quotas[each].active_jobs == active(each) + 1]

    def limited(self) -> list[str]:
        """Projects whose jobs may have to wait for each other's GPUs."""
        return [project for project in PROJECTS if self.world.quotas[project].running_gpus is not None]

    def resumable(self) -> list[ModelJob]:
        """Jobs that a retry goes on from a checkpoint of."""
        return [job for job in self.world.there() if job.state in ("failed", "cancelled") and self.world.resumable(job)]

    def is_answered(
        self, answer: Response, datasets: Sequence[ModelDataset], project: str, gpus: int, jobs: int = 1
    ) -> bool:
        """Whether who wanted jobs was to get them; the answer is right either way."""
        if any(each.deleted or each.state in ("invalid", "failed") for each in datasets):
            assert answer.status_code == 422, answer.text
            return False
        refusal = self.world.refusal(project, gpus, jobs, self.clock.now())
        if refusal is not None:
            assert_refused(answer, refusal)
            return False
        assert answer.status_code == 201, answer.text
        return True

    def created(
        self, answer: Response, datasets: Sequence[ModelDataset], *, is_told: bool = False, **values: Any
    ) -> ModelJob | None:
        """The job that a client got, unless it had to be refused."""
        if not self.is_answered(answer, datasets, values["project"], values["gpus"]):
            return None
        ids = tuple(each.id for each in datasets)
        return self.added(
            ModelJob(answer.json()["id"], datasets=ids, created_at=self.clock.now(), **values), is_told=is_told
        )

    def added(self, job: ModelJob, *, is_told: bool = False) -> ModelJob:
        self.world.add(job, is_told=is_told)
        self.rung(job)
        return job

    def rung(self, job: ModelJob) -> None:
        """Workers were told at once of a job that waits for them."""
        if job.state == "queued" and not self.api.queue.down:
            assert (Task.TRAIN, job.id) in self.api.queue.rings

    def acted(self, job: ModelJob, action: str) -> str | None:
        """A client has taken an action; what it did, as `acted` says."""
        change = acted(job, action)
        if change == "request":
            job.request = "stop"
            job.events.append("message")
        elif change not in (None, "nothing"):
            if action == "resume":
                job.request, job.not_before = "resume", None
            elif change in LEASED:
                job.request = action
            self.world.move(job, change, self.clock.now())
            self.rung(job)
        return change

    def deleted(self, job: ModelJob) -> None:
        assert self.client.get(f"/v1/jobs/{job.id}").status_code == 404
        job.deleted = True

    def wait(self, job: ModelJob) -> None:
        """The job waits for its backoff, whose jitter is not the model's to know."""
        with self.database.read() as unit:
            job.not_before = unit.jobs.get(job.id).not_before
        self.is_backoff(job.not_before, job.lost)

    def check_lost(self, dataset: ModelDataset) -> None:
        """A check has failed through no fault of the dataset's."""
        dataset.lost, dataset.worker = dataset.lost + 1, False
        if dataset.lost >= CHECKS:
            self.world.checked(dataset, "failed", self.clock.now())
            return
        with self.database.read() as unit:
            dataset.not_before = unit.datasets.get(dataset.id).not_before
        self.is_backoff(dataset.not_before, dataset.lost)

    def is_backoff(self, until: datetime | None, lost: int) -> None:
        first, last = backoff(lost, self.clock.now())
        assert until is not None
        assert first <= until <= last


def assert_refused(answer: Response, limit: str) -> None:
    """By a quota, for this limit."""
    problem = assert_problem(answer, 403, "quota_exceeded")
    assert [each["code"] for each in problem["errors"]] == [limit]


def next_month(now: datetime) -> datetime:
    """When it begins."""
    years, month = divmod(now.month, 12)
    return datetime(now.year + years, month + 1, 1, tzinfo=UTC)


def write_as(unit: UnitOfWork, lease: ModelJob | Lease, kind: str, stored: StoredFile, step: int) -> None:
    """Write as the worker does that holds, or held, the lease."""
    held = lease.id, lease.epoch
    error = {"code": "diverged", "message": "x", "retryable": False}
    manifest = CheckpointManifest(kind, 1, step, "val/segm_mAP", 0.5, {"a.bin": stored})
    writes = {
        "event": lambda: unit.events.append(*held, [NewEvent("message", "x")]),
        "report": lambda: unit.attempts.report(*held, phase="training", progress={"step": step}),
        "metrics": lambda: unit.metrics.add(*held, step=step, values={"train/loss": 1.0}, training_epoch=0),
        "log": lambda: unit.logs.append(*held, "x"),
        "epoch": lambda: unit.checkpoints.publish(*held, manifest),
        "best": lambda: unit.checkpoints.publish(*held, manifest),
        "artifact": lambda: unit.artifacts.publish(*held, "report.html", {"report.html": stored}),
        "beat": lambda: unit.attempts.heartbeat(*held),
        "finish": lambda: unit.attempts.finish(*held, JobState.SUCCEEDED, result={}),
        "fail": lambda: unit.attempts.finish(*held, JobState.FAILED, error=error),
        "remove": lambda: unit.checkpoints.remove(*held, ["ckpt_x"]),
        "reap": lambda: unit.attempts.reap(HeldLease(*held, hb_seq=0)),
    }
    writes[kind]()
