"""Long polls: who waits for a job hears of its change, and holds neither a thread nor a connection meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from service.api.job_views import JobWatch
from service.api.waiting import requested_wait
from service.shared.errors import NotFoundError
from service.shared.states import JobState
from service.usecases.actions import cancel_job, delete_job
from tests.service.conftest import Api, add_dataset, add_job, assert_problem, served

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.shared.settings import Settings
    from service.shared.unit_of_work import Database


@pytest.mark.parametrize(
    ("prefer", "wait_s"),
    [
        (None, None),
        ("", None),
        ("respond-async", None),
        ("wait=30", 30),
        ("respond-async, wait=10", 10),
        ("wait=10; x=y, handling=lenient", 10),
        ('Wait = "5"', 5),
        ("wait=0", 0),
        ("wait=999999999", 60),
        ("wait=" + "9" * 5000, None),
        ("wait=-1", None),
        ("wait=1e3", None),
        ("wait=NaN", None),
        ("await=3", None),
    ],
)
def test_what_a_prefer_header_asks_for(prefer: str | None, wait_s: float | None) -> None:
    assert requested_wait(prefer, 60) == wait_s


def meanwhile(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_a_long_poll_answers_with_the_change(api: Api) -> None:
    job_id = add_job(api.database)
    url = f"/v1/jobs/{job_id}"
    etag = api.client.get(url).headers["etag"]
    answers: list[httpx.Response] = []
    headers = {"If-None-Match": etag, "Prefer": "wait=30"}
    thread = meanwhile(lambda: answers.append(api.client.get(url, headers=headers)))
    while not api.watch._waiting:
        time.sleep(0.01)
    with api.database.write() as unit:
        cancel_job(unit, job_id)
    thread.join()
    [answer] = answers
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert answer.headers["preference-applied"] == "wait=30"
    assert answer.headers["etag"] != etag
    assert api.client.get(url, headers=headers | {"If-None-Match": '"other"'}).status_code == 200  # at once


def test_without_change_a_long_poll_answers_304_and_without_a_tag_the_job_as_it_is(api: Api) -> None:
    url = f"/v1/jobs/{add_job(api.database)}"
    etag = api.client.get(url).headers["etag"]
    answer = api.client.get(url, headers={"If-None-Match": etag, "Prefer": "wait=1"})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert api.client.get(url, headers={"Prefer": "wait=1"}).json()["status"] == "queued"
    api.client.post(f"{url}/cancel")
    answer = api.client.get(url, headers={"Prefer": "wait=60"})  # ended: at once
    assert answer.json()["status"] == "cancelled"
    assert_problem(api.client.get("/v1/jobs/job_nope", headers={"Prefer": "wait=60"}), 404, "not_found")


def test_without_a_tag_a_long_poll_waits_for_the_end(settings: Settings, database: Database) -> None:
    job_id = add_job(database)
    with database.write() as unit:
        claimed = unit.jobs.claim("w-1")
    assert claimed is not None
    watch = JobWatch(database, settings)

    async def follow() -> str:
        waiting = asyncio.create_task(watch.until(lambda view: view.is_terminal, await watch.look(job_id), 30))
        await asyncio.to_thread(progress)
        await asyncio.sleep(1.2)
        assert not waiting.done()
        await asyncio.to_thread(end)
        return (await waiting).content.decode()

    def progress() -> None:
        with database.write() as unit:
            unit.attempts.report(job_id, claimed.epoch, progress={"step": 1})
            unit.attempts.heartbeat(job_id, claimed.epoch)

    def end() -> None:
        with database.write() as unit:
            unit.attempts.finish(job_id, claimed.epoch, JobState.SUCCEEDED, result={})

    assert '"status":"succeeded"' in asyncio.run(follow())


def test_five_hundred_wait_on_one_statement_and_leave_nothing(database: Database, settings: Settings) -> None:
    jobs = [add_job(database) for _ in range(2)]
    watch = JobWatch(database, settings)
    statements: list[str] = []

    def remember(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    async def follow() -> int:
        views = [await watch.look(job_id) for job_id in jobs]
        waiting = [asyncio.create_task(watch.until(lambda v: v.is_terminal, views[n % 2], 30)) for n in range(500)]
        statements.clear()
        while not statements or database.engine.pool.checkedout():  # type: ignore[attr-defined]
            await asyncio.sleep(0.05)
        assert sum(map(len, watch._waiting.values())) == 500
        selects = [each for each in statements if each.startswith("SELECT")]
        assert len(selects) == 1
        for waiter in waiting[:100]:
            waiter.cancel()  # clients that have gone
        await asyncio.to_thread(cancel_all)
        answers = await asyncio.gather(*waiting[100:])
        assert watch._waiting == {}
        while watch._poller is not None:
            await asyncio.sleep(0.05)
        return len({view.content for view in answers})

    def cancel_all() -> None:
        with database.write() as unit:
            for job_id in jobs:
                cancel_job(unit, job_id)

    event.listen(database.engine, "before_cursor_execute", remember)
    try:
        assert asyncio.run(follow()) == 2
    finally:
        event.remove(database.engine, "before_cursor_execute", remember)


def test_a_watch_survives_the_database_and_hears_of_a_deletion(database: Database, settings: Settings) -> None:
    job_id = add_job(database)
    watch = JobWatch(database, settings)
    failed = threading.Event()

    def fail(*_: object) -> None:
        if not failed.is_set():
            failed.set()
            raise OperationalError("SELECT", {}, Exception("the database is away"))

    def delete() -> None:
        assert failed.wait(10)
        with database.write() as unit:
            cancel_job(unit, job_id)
            delete_job(unit, job_id)

    async def follow() -> None:
        view = await watch.look(job_id)
        event.listen(database.engine, "before_cursor_execute", fail)
        try:
            waiting = asyncio.create_task(watch.until(lambda seen: seen.is_terminal, view, 30))
            await asyncio.to_thread(delete)
        finally:
            event.remove(database.engine, "before_cursor_execute", fail)
        with pytest.raises(NotFoundError):
            await waiting

    asyncio.run(follow())


def test_at_the_end_of_a_long_poll_the_place_in_the_queue_is_that_of_then(api: Api) -> None:
    dataset = add_dataset(api.database)
    ahead, mine = add_job(api.database, dataset), add_job(api.database, dataset)
    url = f"/v1/jobs/{mine}"
    answers: list[httpx.Response] = []
    thread = meanwhile(lambda: answers.append(api.client.get(url, headers={"Prefer": "wait=2"})))
    while not api.watch._waiting:
        time.sleep(0.01)
    with api.database.write() as unit:
        cancel_job(unit, ahead)
    thread.join()
    assert answers[0].json()["queue"]["jobs_ahead"] == 0


def test_a_server_that_shuts_down_answers_its_long_polls(settings: Settings) -> None:
    answers: list[httpx.Response] = []
    with served(settings) as api:
        url = f"{api.client.base_url}/v1/jobs/{add_job(api.database)}"
        started = time.monotonic()
        thread = meanwhile(lambda: answers.append(httpx.get(url, headers={"Prefer": "wait=50"}, timeout=60)))
        while not api.watch._waiting:
            time.sleep(0.01)
    thread.join()
    assert (answers[0].status_code, answers[0].json()["status"]) == (200, "queued")
    assert time.monotonic() - started < 8


def test_views_that_are_kept_take_bounded_memory(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.job_views.MAX_KEPT_BYTES", 10_000)
    jobs = [add_job(database, name="x" * 200) for _ in range(12)]
    watch = JobWatch(database, settings)

    async def look() -> None:
        for job_id in [*jobs, *jobs]:
            assert (await watch.look(job_id)).id == job_id

    asyncio.run(look())
    assert 0 < watch._kept_bytes == sum(len(kept.view.content) for kept in watch._kept.values()) <= 10_000
