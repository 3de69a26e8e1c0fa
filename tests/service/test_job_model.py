"""Whatever clients, workers and the reconciler do, in any order, jobs do what a model of them says.

The short test is the same every time. The long one looks elsewhere each time, at so many examples:
`SAM3_TEST_EXAMPLES=1000`.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from contextlib import ExitStack
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import invariant, precondition, run_state_machine_as_test
from sqlalchemy import func, select

from service.shared.db.migrate import upgrade
from service.shared.db.models import Attempt, AttemptUsage, Dataset, Job, JobEvent, JobOutcome, WebhookDelivery
from service.shared.settings import Settings
from service.shared.states import JOB_MOVES
from tests.servers import fresh_database
from tests.service.conftest import Api, served
from tests.service.job_machine import PROJECTS, Steps
from tests.service.job_model import TERMINAL, ModelJob
from tests.service.webhooks import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

FEW = 3  # moves that chance may leave out
# Whole rows, with their configurations, take most of the test's time.
ROWS = select(
    Job.id,
    Job.project,
    Job.state,
    Job.request,
    Job.priority,
    Job.epoch,
    Job.attempt,
    Job.lost_attempts,
    Job.hb_seq,
    Job.last_event_seq,
    Job.next_publish_at,
    Job.created_at,
    Job.queued_at,
    Job.not_before,
    Job.started_at,
    Job.finished_at,
    Job.gpu_seconds,
    Job.error,
    Job.resumes_from,
    Job.deleted_at,
    Job.best,
)
EVENTS = select(JobEvent.job_id, JobEvent.seq, JobEvent.type, JobEvent.data).order_by(JobEvent.job_id, JobEvent.seq)
MESSAGES = select(WebhookDelivery.endpoint_id, WebhookDelivery.type, WebhookDelivery.body)
EXAMPLES = 8
MANY = int(os.environ.get("SAM3_TEST_EXAMPLES", "40"))


@pytest.fixture(scope="module")
def served_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The application on each database."""
    with ExitStack() as stack:
        url = ""
        if request.param == "postgresql":
            url = stack.enter_context(fresh_database(request.getfixturevalue("postgres_server_url")))
        data_dir = tmp_path_factory.mktemp(f"model-{request.param}")
        settings = Settings(data_dir=data_dir, secret_key=KEY, database_url=url)
        upgrade(settings)
        yield stack.enter_context(served(settings))


class JobMachine(Steps):
    """What must hold after each step."""

    moves: set[tuple[str, str]]
    """That were made by all examples."""

    def teardown(self) -> None:
        self.moves |= self.world.moves
        try:
            self.look_at_the_end()
        finally:
            super().teardown()

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        with self.database.read() as unit:
            rows = {row.id: row for row in unit.session.execute(ROWS)}
            events: defaultdict[str, list[str]] = defaultdict(list)
            for job_id, seq, kind, data in unit.session.execute(EVENTS):
                events[job_id].append(f"status {data['status']}" if kind == "status" else kind)
                assert seq == len(events[job_id])
            tried: defaultdict[str, list[tuple[int, str | None]]] = defaultdict(list)
            for row in unit.session.scalars(select(Attempt).order_by(Attempt.job_id, Attempt.epoch)):
                assert (row.ended_at is None) == (row.outcome is None)
                tried[row.job_id].append((row.epoch, row.outcome))
            datasets = {row.id: row for row in unit.session.scalars(select(Dataset))}
        assert rows.keys() == {job.id for job in self.world.jobs.values() if not job.purged}
        for job in self.world.jobs.values():
            if not job.purged:
                assert seen(rows[job.id]) == expected(job)
                assert events[job.id] == job.events
                assert tried[job.id] == list(enumerate(job.attempts, start=1))
        for dataset in self.world.datasets.values():
            row = datasets[dataset.id]
            assert (row.state, row.epoch, row.lost_attempts) == (dataset.state, dataset.epoch, dataset.lost)
            assert dataset.deleted or (row.worker_id is not None) == dataset.worker

    @invariant()
    def what_is_counted_used_and_told_is_what_happened(self) -> None:
        counts: Counter[tuple[str, str]] = Counter()
        amounts: defaultdict[str, float] = defaultdict(float)
        with self.database.read() as unit:
            for total in unit.tallies.totals():
                amounts[str(total.name)] += total.amount
                if total.name != "gpu_seconds":
                    counts[str(total.name), total.label] += total.number
            used = dict(
                unit.session.execute(
                    select(AttemptUsage.project, func.sum(AttemptUsage.gpu_seconds)).group_by(AttemptUsage.project)
                ).all()
            )
            ended = Counter(
                (project, str(outcome))
                for project, outcome in unit.session.execute(select(JobOutcome.project, JobOutcome.outcome))
            )
            told = Counter(message(*row) for row in unit.session.execute(MESSAGES))
        assert counts == self.world.counts
        assert {name: amount for name, amount in amounts.items() if amount} == pytest.approx(
            {name: amount for name, amount in self.world.amounts.items() if amount}
        )
        assert used == pytest.approx({project: seconds for project, seconds in self.world.used.items() if seconds})
        assert ended == self.world.outcomes
        assert told == self.world.told

    @precondition(lambda self: self.steps % 3 == 0)
    @invariant()
    def clients_see_it_and_who_is_next(self) -> None:
        listed = {job["id"]: job for job in self.client.get("/v1/jobs", params={"limit": 100}).json()["data"]}
        there = {job.id: job for job in self.world.there()}
        assert listed.keys() == there.keys()
        for job_id, job in there.items():
            assert (listed[job_id]["status"], listed[job_id]["attempt"]) == (job.state, len(job.attempts))
            assert listed[job_id]["is_terminal"] == (job.state in TERMINAL)
        order = [job.id for job in self.world.order()]
        ahead = {job_id: job["queue"]["jobs_ahead"] for job_id, job in listed.items() if job["status"] == "queued"}
        assert ahead == {job_id: place for place, job_id in enumerate(order)}
        now = self.clock.now()
        for job_id in ahead:
            room = self.world.room(there[job_id].project, now)
            is_held = room is not None and there[job_id].gpus > room
            assert (listed[job_id]["queue"]["reason"] or "").startswith("project ") == is_held

    def look_at_the_end(self) -> None:
        """Nothing of a job is there that is not its own, and nothing that is its own is missing."""
        for job in self.world.jobs.values():
            if not job.deleted:
                assert set(self.api.storage.list(f"jobs/{job.id}/")) == job.files()
        for project in PROJECTS:
            self.look_at_quota(project)


def seen(row: Any) -> dict[str, Any]:
    """What a row says of what the model knows."""
    return {
        "project": row.project,
        "state": row.state,
        "request": row.request,
        "priority": row.priority,
        "epoch": row.epoch,
        "attempt": row.attempt,
        "lost": row.lost_attempts,
        "beats": row.hb_seq,
        "events": row.last_event_seq,
        "is_announced": row.next_publish_at is not None,
        "times": (row.created_at, row.queued_at, row.not_before, row.started_at, row.finished_at),
        "gpu_seconds": pytest.approx(row.gpu_seconds),
        "error": row.error and (row.error["code"], row.error["attempt"]),
        "resumes_from": row.resumes_from,
        "is_deleted": row.deleted_at is not None,
        "has_best": row.best is not None,
    }


def expected(job: ModelJob) -> dict[str, Any]:
    """The same of the model."""
    return {
        "project": job.project,
        "state": job.state,
        "request": job.request,
        "priority": job.priority,
        "epoch": job.epoch,
        "attempt": len(job.attempts),
        "lost": job.lost,
        "beats": job.beats,
        "events": len(job.events),
        "is_announced": job.state == "queued",
        "times": (job.created_at, job.queued_at, job.not_before, job.started_at, job.finished_at),
        "gpu_seconds": job.gpu_seconds,
        "error": job.error,
        "resumes_from": job.resumes_from,
        "is_deleted": job.deleted,
        "has_best": "best" in job.checkpoints,
    }


@lru_cache(10_000)
def message(endpoint_id: str, kind: str, content: str) -> tuple[str, str, str, int]:
    """Endpoint, type, whom it is about, and the number of the job's event."""
    told = json.loads(content)
    assert told["type"] == kind
    return endpoint_id, kind, told["data"]["id"], told["data"].get("seq", 0)


@pytest.mark.parametrize("served_model", ["sqlite"], indirect=True)
def test_jobs_do_what_the_model_of_them_says(served_model: Api) -> None:
    look(served_model, EXAMPLES, is_long=False)


@pytest.mark.slow
@pytest.mark.timeout(60 + 60 * MANY)
@pytest.mark.parametrize("served_model", ["sqlite", "postgresql"], indirect=True)
def test_jobs_do_so_for_long(served_model: Api) -> None:
    look(served_model, MANY, is_long=True)


def look(served_model: Api, examples: int, *, is_long: bool) -> None:
    """Run so many examples, which must have made nearly all moves that there are."""
    JobMachine.moves = set()
    run_state_machine_as_test(
        lambda: JobMachine(served_model),
        settings=settings(
            max_examples=examples,
            stateful_step_count=120,
            derandomize=not is_long,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink] if is_long else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    allowed = {(str(old), str(new)) for old, new in JOB_MOVES}
    assert allowed >= JobMachine.moves
    assert len(JobMachine.moves) >= len(allowed) - FEW
