"""Requests for jobs that come at the same time share a transaction, yet each has its own answer."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, OperationalError

from sam3_lora.config import parse
from service.api.batching import MAX_BATCH, Batcher
from service.api.job_creation import JobCreation
from service.api.schemas.jobs import JobCreate, job_spec
from service.shared.errors import IdempotencyKeyReusedError, InvalidRequestError
from service.shared.states import DatasetState, JobState
from service.shared.storage import Storage
from service.usecases.idempotency import Answer, Keyed, fingerprint
from tests.service.conftest import Api, add_dataset
from tests.service.results import add_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from service.shared.settings import Settings
    from service.shared.unit_of_work import Database
    from service.usecases.jobs import JobSpec
    from tests.service.conftest import FakeQueue


def wanted(dataset_id: str, key: str | None = None, **values: Any) -> Keyed[JobSpec]:
    body = {"name": "together", "base_model": "sam3-tiny", "dataset_id": dataset_id, **values}
    return Keyed(job_spec(parse(JobCreate, body), None), key, fingerprint(body))


@pytest.fixture
def creation(database: Database, settings: Settings) -> JobCreation:
    return JobCreation(database, settings)


def names(database: Database) -> list[str]:
    with database.read() as unit:
        return sorted(job.name for job in unit.jobs.list(limit=100)[0])


def test_each_gets_its_job_or_its_own_refusal(database: Database, creation: JobCreation, queue: FakeQueue) -> None:
    ready, processing = add_dataset(database, DatasetState.READY), add_dataset(database, DatasetState.PROCESSING)
    queue.rings.clear()
    answers = creation._create(
        database,
        [
            wanted(ready, name="a", tags=["x"], metadata={"k": "v"}),
            wanted("ds_nope", name="b"),
            wanted(processing, name="c"),
            wanted(ready, name="d", validation_dataset_id="ds_nope"),
            wanted(ready, name="e", tags=["x"]),
        ],
    )
    a, b, c, d, e = answers
    assert isinstance(a, Answer)
    assert isinstance(c, Answer)
    assert isinstance(e, Answer)
    assert (a.body["name"], a.body["status"], a.body["tags"], a.body["metadata"]) == ("a", "queued", ["x"], {"k": "v"})
    assert (c.body["name"], c.body["status"]) == ("c", "validating_files")
    assert isinstance(b, InvalidRequestError)
    assert b.errors[0]["pointer"] == "/dataset_id"
    assert isinstance(d, InvalidRequestError)
    assert d.errors[0]["pointer"] == "/validation_dataset_id"
    assert names(database) == ["a", "c", "e"]
    assert [job_id for _, job_id in queue.rings] == [a.body["id"], e.body["id"]]
    assert sorted((a.body["queue"]["jobs_ahead"], e.body["queue"]["jobs_ahead"])) == [0, 1]
    with database.read() as unit:
        assert [each.seq for each in unit.events.list(e.body["id"])] == [1]


def test_of_one_key_in_a_batch_one_job_comes(database: Database, creation: JobCreation) -> None:
    ready = add_dataset(database, DatasetState.READY)
    first, again, other, unkeyed, third = creation._create(
        database,
        [
            wanted(ready, "k1", name="one"),
            wanted(ready, "k1", name="one"),
            wanted(ready, "k1", name="different"),
            wanted(ready, name="free"),
            wanted(ready, "k2", name="two"),
        ],
    )
    assert isinstance(first, Answer)
    assert isinstance(again, Answer)
    assert (again.body, first.replayed, again.replayed) == (first.body, False, True)
    assert isinstance(other, IdempotencyKeyReusedError)
    assert isinstance(unkeyed, Answer)
    assert isinstance(third, Answer)
    assert names(database) == ["free", "one", "two"]
    [later] = creation._create(database, [wanted(ready, "k1", name="one")])
    assert isinstance(later, Answer)
    assert later.body == first.body


def test_a_key_whose_request_was_refused_is_free_again(database: Database, creation: JobCreation) -> None:
    ready = add_dataset(database, DatasetState.READY)
    refused, made, replayed = creation._create(
        database, [wanted("ds_nope", "k", name="one"), wanted(ready, "k", name="two"), wanted(ready, "k", name="two")]
    )
    assert isinstance(refused, InvalidRequestError)
    assert isinstance(made, Answer)
    assert isinstance(replayed, Answer)
    assert (made.body["name"], replayed.replayed) == ("two", True)
    assert names(database) == ["two"]


@pytest.fixture
def poison(database: Database) -> Iterator[str]:
    """A name that the database itself refuses, which no check of ours knows of."""
    name, dialect = "poison", database.engine.dialect.name
    create = {
        "sqlite": "CREATE TRIGGER refuse BEFORE INSERT ON jobs WHEN NEW.name = 'poison' "
        "BEGIN SELECT RAISE(ABORT, 'no'); END",
        "postgresql": "ALTER TABLE jobs ADD CONSTRAINT refuse CHECK (name <> 'poison')",
    }
    remove = {"sqlite": "DROP TRIGGER refuse", "postgresql": "ALTER TABLE jobs DROP CONSTRAINT refuse"}
    with database.engine.begin() as connection:
        connection.execute(text(create[dialect]))
    yield name
    with database.engine.begin() as connection:
        connection.execute(text(remove[dialect]))


def test_one_that_breaks_the_transaction_takes_no_other_along(
    database: Database, creation: JobCreation, poison: str
) -> None:
    ready = add_dataset(database, DatasetState.READY)
    together = [wanted(ready, "k1", name="a"), wanted(ready, name=poison), wanted(ready, name="b")]
    a, bad, b = creation._create(database, together)
    assert isinstance(a, Answer)
    assert isinstance(b, Answer)
    assert isinstance(bad, DBAPIError)
    assert names(database) == ["a", "b"]
    with pytest.raises(DBAPIError):
        creation._create(database, [wanted(ready, name=poison)])


def test_a_database_that_is_away_is_not_asked_once_for_each(database: Database, creation: JobCreation) -> None:
    ready = add_dataset(database, DatasetState.READY)
    attempts: list[str] = []

    def fail(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        attempts.append(statement)
        raise OperationalError(statement, {}, Exception("the database is away"))

    event.listen(database.engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(OperationalError):
            creation._create(database, [wanted(ready), wanted(ready), wanted(ready)])
    finally:
        event.remove(database.engine, "before_cursor_execute", fail)
    assert len(attempts) == 1
    assert names(database) == []


def test_many_take_the_statements_of_few(database: Database, creation: JobCreation) -> None:
    ready = add_dataset(database, DatasetState.READY)
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    counts = []
    creation._create(database, [wanted(ready)])  # what places are judged by is known from here on, for a second
    event.listen(database.engine, "before_cursor_execute", note)
    try:
        for count in (2, 20):
            seen.clear()
            creation._create(database, [wanted(ready, f"{count}-{n}", name="n", tags=["t"]) for n in range(count)])
            counts.append(len(seen))
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    assert counts[0] == counts[1] <= 11


def test_a_crowd_over_http_gets_every_answer(api: Api) -> None:
    ready = add_dataset(api.database, DatasetState.READY)

    def create(number: int) -> tuple[int, int, dict[str, Any]]:
        dataset_id = ready if number % 5 else "ds_nope"
        body = {"name": f"job {number}", "base_model": "sam3-tiny", "dataset_id": dataset_id}
        answer = api.client.post("/v1/jobs", json=body, headers={"Idempotency-Key": f"key-{number % 30}"})
        return number, answer.status_code, answer.json()

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(create, range(60)))
    created = [body for _, status, body in answers if status == 201]
    assert all(status in (201, 422) for _, status, _ in answers)
    assert all(status == 422 for number, status, _ in answers if number % 5 == 0)
    # Two requests with different bodies share each key: one of them makes a job, the other is told so.
    assert len({body["id"] for body in created}) == len(created) == 24
    with api.database.read() as unit:
        jobs, _ = unit.jobs.list(limit=100)
    assert {job.id for job in jobs} == {body["id"] for body in created}
    assert {job.state for job in jobs} == {JobState.QUEUED}


def test_questions_gather_while_one_is_answered() -> None:
    batches: list[list[int]] = []

    def answer(questions: list[int]) -> list[int | Exception]:
        batches.append(list(questions))
        return [ValueError("odd") if question % 2 else question * 10 for question in questions]

    async def ask() -> list[int | BaseException]:
        batcher: Batcher[int, int] = Batcher(answer)  # type: ignore[arg-type]
        first = asyncio.create_task(batcher.ask(0))
        await asyncio.sleep(0)
        asked = [asyncio.create_task(batcher.ask(number)) for number in range(1, MAX_BATCH + 10)]
        await asyncio.sleep(0)
        asked[1].cancel()
        found = await asyncio.gather(first, *asked, return_exceptions=True)
        assert await batcher.ask(4) == 40  # and it goes on afterwards
        return found

    found = asyncio.run(ask())
    assert isinstance(found[1], ValueError)
    assert isinstance(found[2], asyncio.CancelledError)
    assert found[4::2] == [number * 10 for number in range(4, MAX_BATCH + 10, 2)]
    assert max(map(len, batches)) == MAX_BATCH
    assert sum(map(len, batches)) == MAX_BATCH + 11
    assert len(batches) <= 4


def test_who_asks_again_right_after_an_answer_is_answered_with_the_others() -> None:
    """Requests that are being read when a batch could begin are part of it, not of the one after it."""
    batches: list[int] = []

    def answer(questions: list[int]) -> list[int]:
        batches.append(len(questions))
        return questions

    async def client(batcher: Batcher[int, int], number: int) -> None:
        for _ in range(10):
            await batcher.ask(number)
            for _ in range(number % 5):  # the loop's rounds from one client's answer to its next request
                await asyncio.sleep(0)

    async def ask() -> None:
        batcher: Batcher[int, int] = Batcher(answer)  # type: ignore[arg-type]
        await asyncio.gather(*(client(batcher, number) for number in range(16)))

    asyncio.run(ask())
    assert batches == [16] * 10


def test_those_who_keep_coming_keep_nobody_waiting() -> None:
    batches: list[int] = []

    def answer(questions: list[int]) -> list[int]:
        batches.append(len(questions))
        return questions

    async def ask() -> None:
        batcher: Batcher[int, int] = Batcher(answer)  # type: ignore[arg-type]
        first = asyncio.create_task(batcher.ask(0))
        others = []
        while not first.done():
            others.append(asyncio.create_task(batcher.ask(1)))
            await asyncio.sleep(0)
        await asyncio.gather(*others)

    asyncio.run(asyncio.wait_for(ask(), 30))
    assert batches[0] == MAX_BATCH


def test_a_batch_that_fails_fails_for_all_of_it_and_for_nobody_else() -> None:
    calls = 0

    def answer(questions: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("once")
        return questions

    async def ask() -> None:
        batcher: Batcher[int, int] = Batcher(answer)  # type: ignore[arg-type]
        failed = await asyncio.gather(batcher.ask(1), batcher.ask(2), return_exceptions=True)
        assert [type(error) for error in failed] == [RuntimeError, RuntimeError]
        assert await batcher.ask(3) == 3

    asyncio.run(ask())


def test_one_locked_dataset_keeps_no_other_job_waiting_for_long(database: Database, creation: JobCreation) -> None:
    if database.engine.dialect.name != "postgresql":
        pytest.skip("SQLite locks no rows")
    held, free = add_dataset(database, DatasetState.READY), add_dataset(database, DatasetState.READY)
    with database.write() as unit:
        unit.datasets.get(held, lock=True)
        refused, made = creation._create(database, [wanted(held), wanted(free, name="free")])
    assert isinstance(refused, OperationalError)
    assert isinstance(made, Answer)
    assert names(database) == ["free"]


def test_jobs_from_the_same_adapters_in_another_order_do_not_wait_for_each_other(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    if database.engine.dialect.name != "postgresql":
        pytest.skip("SQLite locks no rows")
    storage = Storage(settings)
    sources = []
    for _ in range(2):
        model = add_model(database, storage, tmp_path)
        with database.read() as unit:
            sources.append(unit.models.get(model).job_id)
    ready = add_dataset(database, DatasetState.READY)
    batches = [[wanted(ready, init_from={"job_id": source}) for source in order] for order in (sources, sources[::-1])]
    creations = [JobCreation(database, settings) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            done = list(pool.map(lambda pair: pair[0]._create(database, pair[1]), zip(creations, batches, strict=True)))
            assert all(isinstance(answer, Answer) for answers in done for answer in answers)


def test_a_start_is_told_by_the_workers_of_now(database: Database, creation: JobCreation) -> None:
    ready = add_dataset(database, DatasetState.READY)

    def reason() -> str | None:
        [made] = creation._create(database, [wanted(ready)])
        assert isinstance(made, Answer)
        return str(made.body["queue"]["reason"])

    assert "no worker" in str(reason())
    assert "no worker" in str(reason())
    with database.write() as unit:
        unit.workers.beat("w-1", kind="gpu", host="h", pid=1, device="CPU")
    assert reason() == "None"  # own writes are seen at once
