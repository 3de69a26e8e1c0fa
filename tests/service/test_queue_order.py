"""Who is next: priorities, fairness among projects, what `jobs_ahead` and `estimated_start_at` promise of it."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, select, text

from service.shared.db.models import Job
from service.shared.db.repositories.queue import EXACT, KEPT_S, LONG_QUEUE, STEP
from service.shared.states import JobState
from service.usecases.queue import places
from tests.service.conftest import add_dataset, add_job, new_job
from tests.service.test_jobs_repository import claim, read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.shared.settings import Settings
    from service.shared.unit_of_work import Database
    from tests.service.conftest import FakeClock


def test_projects_take_turns_and_a_crowd_of_one_holds_nobody_up(database: Database, clock: FakeClock) -> None:
    dataset = add_dataset(database)
    for project in ("a", "a", "a", "b", "b", "c"):
        clock.advance(1)
        add_job(database, dataset, project=project)
    claimed = [claim(database) for _ in range(6)]
    assert [job.project for job in claimed] == ["a", "b", "c", "a", "b", "a"]
    with database.write() as unit:  # one of a's ends: a has no more running than b, and is older
        for job in claimed[:5]:
            if job.project == "a":
                unit.attempts.finish(job.id, job.epoch, JobState.SUCCEEDED, result={})
    clock.advance(1)
    for project in ("b", "a"):
        add_job(database, dataset, project=project)
    assert claim(database).project == "a"


def test_priority_comes_before_fairness_and_backoff_before_both(database: Database, clock: FakeClock) -> None:
    dataset = add_dataset(database)
    later = clock.now() + timedelta(minutes=10)
    add_job(database, dataset, project="b", priority=99, not_before=later)
    low = add_job(database, dataset, project="b", priority=10)
    high = [add_job(database, dataset, project="a", priority=50) for _ in range(2)]
    assert {claim(database).id, claim(database).id} == set(high)
    assert claim(database).id == low


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_jobs_ahead_is_the_order_of_the_claims(seed: int, database: Database, clock: FakeClock) -> None:
    dataset = add_dataset(database)
    chance = random.Random(seed)
    for _ in range(5):
        add_job(database, dataset, project=chance.choice("ab"))
        claim(database)
    for _ in range(30):
        clock.advance(chance.randint(0, 1))
        add_job(database, dataset, project=chance.choice("aaabcc"), priority=chance.choice((50, 50, 60)))
    with database.read() as unit:
        jobs, _ = unit.jobs.list(limit=100)
        ahead = unit.queue.jobs_ahead(jobs, unit.queue.running())
        assert all(
            unit.queue.jobs_ahead([job], unit.queue.running()) == {job.id: ahead[job.id]}
            for job in jobs
            if job.id in ahead
        )
        assert unit.queue.jobs_ahead(jobs[9:20], unit.queue.running()) == {job.id: ahead[job.id] for job in jobs[9:20]}
    assert [claim(database).id for _ in ahead] == sorted(ahead, key=lambda job_id: ahead[job_id])
    assert sorted(ahead.values()) == list(range(30))


def test_a_page_of_queued_jobs_takes_as_many_statements_as_one(database: Database, settings: Settings) -> None:
    dataset = add_dataset(database)
    for _ in range(20):
        add_job(database, dataset)
    statements: list[str] = []

    def remember(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "WITH")):
            statements.append(statement)

    counts = []
    for limit in (1, 20):
        with database.read() as unit:
            jobs, _ = unit.jobs.list(limit=limit)
            event.listen(database.engine, "before_cursor_execute", remember)
            try:
                assert len(places(unit, settings, jobs)) == limit
            finally:
                event.remove(database.engine, "before_cursor_execute", remember)
        counts.append(len(statements))
        statements.clear()
    assert counts[1] <= counts[0] <= 6  # the limits of the project are known for a second


def test_the_start_is_estimated_from_workers_progress_and_history(
    database: Database, settings: Settings, clock: FakeClock
) -> None:
    dataset = add_dataset(database)

    def start_of(job_id: str) -> float | None:
        with database.read() as unit:
            start = places(unit, settings, [unit.jobs.get(job_id)])[job_id].estimated_start_at
        return None if start is None else (start - clock.now()).total_seconds() / 60

    def beat(worker: str) -> None:
        with database.write() as unit:
            unit.workers.beat(worker, kind="gpu", host="h", pid=1, device="CPU")

    first = add_job(database, dataset)
    assert start_of(first) is None  # nobody works
    beat("w-1")
    assert start_of(first) == 1  # at once, to the minute
    claim(database)
    second, third = add_job(database, dataset), add_job(database, dataset)
    assert start_of(second) is None  # nothing is known of how long the first takes
    with database.write() as unit:
        unit.attempts.report(first, 1, progress={"eta_s": 600.0})
    assert start_of(second) == 11
    assert start_of(third) is None
    clock.advance(900)
    beat("w-1")
    assert start_of(second) == 1  # overdue
    with database.write() as unit:
        unit.attempts.finish(first, 1, JobState.SUCCEEDED, result={})
    assert start_of(second) == 1
    assert start_of(third) == 16  # a job takes 900 seconds
    beat("w-2")
    assert start_of(third) == 1


def fill(database: Database, count: int) -> None:
    """So many queued jobs of twenty projects at three priorities."""
    dataset = add_dataset(database)
    chance = random.Random(1)
    with database.write() as unit:
        for index in range(count):
            at = unit.clock.now() + timedelta(seconds=index)
            where = {"project": f"p{chance.randint(0, 19)}", "priority": chance.choice((10, 50, 50, 50, 90))}
            unit.session.add(new_job(dataset, created_at=at, updated_at=at, queued_at=at, **where))
    with database.engine.begin() as connection:
        connection.execute(text("ANALYZE"))


@pytest.fixture
def explained(database: Database) -> Iterator[list[str]]:
    """Plans of the SELECTs on jobs that run meanwhile."""
    plans: list[str] = []
    prefix = "EXPLAIN " if database.engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "

    def explain(connection: object, cursor: object, statement: str, parameters: object, *_: object) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "WITH")):
            raw = connection.connection.cursor()  # type: ignore[attr-defined]
            raw.execute(prefix + statement, parameters)
            plans.append(statement + "\n" + "\n".join(str(row) for row in raw.fetchall()))

    event.listen(database.engine, "before_cursor_execute", explain)
    yield plans
    event.remove(database.engine, "before_cursor_execute", explain)


def test_a_claim_among_thousands_reads_no_more_of_them_than_the_index_needs(
    database: Database, explained: list[str]
) -> None:
    fill(database, 3000)
    explained.clear()
    claim(database)
    scanning = [plan for plan in explained if "Seq Scan on jobs" in plan or "SCAN jobs" in plan]
    assert scanning == []
    assert len(explained) <= 6
    assert read(database, claim(database).id).priority == 90


def test_a_long_queue_is_counted_every_few_seconds_and_in_steps(database: Database, clock: FakeClock) -> None:
    count = LONG_QUEUE + 200
    dataset = add_dataset(database)
    with database.write() as unit:
        unit.jobs.add_all({new_job(dataset, name=str(number)): [] for number in range(count)})
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("SELECT"):
            statements.append(statement)

    def ahead(jobs: list[Job]) -> list[int]:
        with database.read() as unit:
            found = unit.queue.jobs_ahead(jobs, [])
        return [found[job.id] for job in jobs]

    with database.read() as unit:
        order = list(unit.session.scalars(select(Job).order_by(Job.created_at, Job.id)))
    assert ahead(order[:EXACT]) == list(range(EXACT))
    places = ahead(order)
    assert places == sorted(places)
    assert all(0 <= number - place <= STEP for number, place in enumerate(places))
    event.listen(database.engine, "before_cursor_execute", note)
    try:
        newest = new_job(dataset, project="another", created_at=clock.now() + timedelta(hours=1))
        assert ahead(order[:3]) == [0, 1, 2]
        assert ahead([newest]) == [1]  # its project's turn comes after one job of the other
        assert statements == []
        clock.advance(KEPT_S)
        assert claim(database).id == order[0].id
        statements.clear()
        assert ahead(order[1:3]) == [0, 1]
        assert len(statements) == 2
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


def test_while_one_counts_a_long_queue_others_take_what_is_known(database: Database, clock: FakeClock) -> None:
    dataset = add_dataset(database)
    job = new_job(dataset)
    with database.write() as unit:
        unit.jobs.add_all({each: [] for each in [job, *(new_job(dataset) for _ in range(LONG_QUEUE))]})
    with database.read() as unit:
        unit.queue.jobs_ahead([job], [])
        memory = unit.queue._memory
        clock.advance(KEPT_S)
        with memory.counting:  # another thread
            assert unit.queue.jobs_ahead([job], []) == {job.id: 0}
        before = memory.lines
        unit.queue.jobs_ahead([job], [])
        assert memory.lines is not before


def test_a_crowd_that_finds_old_counts_of_a_long_queue_counts_once(database: Database, clock: FakeClock) -> None:
    dataset = add_dataset(database)
    job = new_job(dataset)
    with database.write() as unit:
        unit.jobs.add_all({each: [] for each in [job, *(new_job(dataset) for _ in range(LONG_QUEUE))]})
    with database.read() as unit:
        unit.queue.jobs_ahead([job], [])
    clock.advance(3600)
    counts: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "row_number" in statement:
            counts.append(statement)

    def look(_number: int) -> dict[str, int]:
        with database.read() as unit:
            return unit.queue.jobs_ahead([job], [])

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(look, range(8))) == [{job.id: 0}] * 8
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    assert len(counts) == 1


def test_a_trainer_that_promises_eternity_breaks_no_look_at_the_queue(database: Database, settings: Settings) -> None:
    dataset = add_dataset(database)
    first = add_job(database, dataset)
    with database.write() as unit:
        unit.workers.beat("w-1", kind="gpu", host="h", pid=1, device="CPU")
    claim(database)
    second = add_job(database, dataset)
    with database.write() as unit:
        unit.attempts.report(first, 1, progress={"eta_s": 1e300})
    with database.read() as unit:
        place = places(unit, settings, [unit.jobs.get(second)])[second]
    assert (place.jobs_ahead, place.estimated_start_at) == (0, None)
