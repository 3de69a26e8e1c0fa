"""What happens is told in the transaction that makes it happen, to those who want it, and tried again in time."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import TypeAdapter
from sqlalchemy import event, text, update
from sqlalchemy.exc import DBAPIError

from service.api.schemas.messages import (
    CheckpointMessage,
    ComparisonMessage,
    DatasetMessage,
    EndpointMessage,
    JobMessage,
    OpenAIMessage,
)
from service.reconciler import Reconciler
from service.shared.db.models import Comparison, WebhookDelivery
from service.shared.db.repositories.attempts import Lease
from service.shared.db.repositories.checkpoints import CheckpointManifest
from service.shared.db.repositories.webhooks import DELAYS_S, MAX_AT_ONCE, MAX_TRIES, Sent
from service.shared.errors import EndpointLimitError, LeaseLostError
from service.shared.ids import new_id
from service.shared.queue import Task
from service.shared.states import Actor, DatasetState, JobState, WorkState
from service.shared.storage import Storage, StoredFile
from service.shared.unit_of_work import Database
from service.shared.webhooks import EventType, MessageFormat
from service.usecases import actions
from service.usecases.webhooks import change_endpoint, delete_endpoint
from tests.service.conftest import FakeClock, FakeQueue, add_dataset, add_job, new_job
from tests.service.webhooks import KEY, add_endpoint, deliveries

if TYPE_CHECKING:
    from service.shared.settings import Settings

NEVER_S = 1e9


MESSAGE: TypeAdapter[Any] = TypeAdapter(
    JobMessage | CheckpointMessage | DatasetMessage | ComparisonMessage | EndpointMessage | OpenAIMessage
)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"secret_key": KEY})


def told(database: Database, endpoint_id: str) -> list[dict[str, Any]]:
    """Messages for an endpoint, oldest first; each is as the OpenAPI document has it."""
    messages = [json.loads(delivery.body) for delivery in deliveries(database, endpoint_id)]
    for each in messages:
        MESSAGE.validate_python(each)
    return messages


def fail(database: Database, clock: FakeClock, **how: Any) -> WebhookDelivery:
    """Claim what is due, which fails."""
    with database.write() as unit:
        claimed = unit.deliveries.claim("w-1")
    assert claimed is not None
    sent = Sent(clock.now(), 0.1, **({"status": 500} | how))
    with database.write() as unit:
        return unit.deliveries.settle(claimed, sent, disable_after_s=NEVER_S)


def test_a_job_tells_of_every_step_with_growing_numbers(
    database: Database, settings: Settings, queue: FakeQueue
) -> None:
    endpoint_id, _ = add_endpoint(database, settings)
    job_id = add_job(database)
    assert queue.rings == [(Task.DELIVER, deliveries(database, endpoint_id)[0].id)]
    with database.write() as unit:
        job = unit.jobs.claim("w-1")
    assert job is not None
    with database.write() as unit:
        unit.checkpoints.publish(job_id, job.epoch, CheckpointManifest("best", 3, 30, "segm_mAP", 0.5, files={}))
    with database.write() as unit:
        ended = unit.attempts.finish(job_id, job.epoch, JobState.SUCCEEDED, result={"model_id": None, "steps": 30})
        model = unit.models.add_best(ended)
    assert model is not None
    messages = told(database, endpoint_id)
    assert [each["type"] for each in messages] == ["job.queued", "job.started", "job.checkpoint", "job.succeeded"]
    assert [each["data"]["seq"] for each in messages] == [1, 2, 2, 3]
    assert {each["timestamp"] for each in messages} == {"2026-01-01T00:00:00Z"}
    assert messages[2]["data"]["checkpoint"]["value"] == 0.5
    last = messages[3]["data"]
    assert (last["id"], last["status"], last["model_id"], last["best"]["value"]) == (job_id, "succeeded", model.id, 0.5)
    assert last["url"] == f"/v1/jobs/{job_id}"


def test_pausing_failing_and_cancelling_are_told(database: Database, settings: Settings) -> None:
    endpoint_id, _ = add_endpoint(database, settings)
    job_id = add_job(database)
    with database.write() as unit:
        actions.pause_job(unit, job_id)
    with database.write() as unit:
        actions.resume_job(unit, job_id)
    with database.write() as unit:
        job = unit.jobs.claim("w-1")
        assert job is not None
        error = {"code": "diverged", "message": "x" * 30_000, "hint": "y" * 30_000, "retryable": False}
        unit.attempts.finish(job_id, job.epoch, JobState.FAILED, error=error)
    other = add_job(database)
    with database.write() as unit:
        actions.cancel_job(unit, other)
    messages = told(database, endpoint_id)
    kinds = [each["type"].removeprefix("job.") for each in messages]
    assert kinds == ["queued", "paused", "queued", "started", "failed", "queued", "cancelled"]
    assert messages[4]["data"]["error"]["code"] == "diverged"
    assert all(len(json.dumps(each)) < 20_000 for each in messages)


def test_datasets_and_comparisons_tell_how_they_ended(database: Database, settings: Settings) -> None:
    endpoint_id, _ = add_endpoint(database, settings)
    for outcome in (DatasetState.READY, DatasetState.INVALID, DatasetState.FAILED):
        dataset_id = add_dataset(database, DatasetState.PROCESSING)
        with database.write() as unit:
            held = unit.datasets.claim("w-1")
            assert held is not None
            report = {"status": outcome, "summary": {"errors": 1}}
            unit.datasets.finish(dataset_id, held.epoch, outcome, report=report)
    names = {"name": "a", "dataset_id": dataset_id, "first_model": "sam3", "second_model": "m", "metric": "segm_mAP"}
    for number in range(3):
        with database.write() as unit:
            unit.comparisons.add(Comparison(id=new_id("cmp"), models=[], **names))
        if number == 2:
            with database.write() as unit:
                unit.comparisons.fail_unfinished("m", {"code": "model_deleted", "message": "gone", "retryable": False})
            continue
        with database.write() as unit:
            comparison = unit.comparisons.claim("w-1")
        assert comparison is not None
        with database.write() as unit:
            if number == 0:
                file = StoredFile("comparisons/x/report.html", 1, "0" * 64)
                unit.comparisons.succeed(comparison.id, comparison.epoch, files={"report.html": file}, result={})
            else:
                error = {"code": "internal", "message": "m", "hint": "", "retryable": False}
                unit.comparisons.fail(comparison.id, comparison.epoch, error)
    messages = told(database, endpoint_id)
    kinds = ["dataset.ready", "dataset.invalid", "dataset.failed", "comparison.succeeded", *["comparison.failed"] * 2]
    assert [each["type"] for each in messages] == kinds
    assert messages[1]["data"]["summary"] == {"errors": 1}
    assert messages[5]["data"]["error"]["code"] == "model_deleted"


def test_what_is_lost_for_good_is_told_and_what_is_tried_again_is_not(database: Database, settings: Settings) -> None:
    endpoint_id, _ = add_endpoint(database, settings, events=[EventType.DATASET_FAILED])
    dataset_id = add_dataset(database, DatasetState.PROCESSING)
    for attempt in range(1, settings.ingest_max_attempts + 1):
        assert told(database, endpoint_id) == []
        with database.write() as unit:
            unit.session.execute(text("UPDATE datasets SET not_before = NULL"))
            held = unit.datasets.claim("w-1")
            assert held is not None
            assert held.epoch == attempt
        with database.write() as unit:
            unit.datasets.reap(Lease(dataset_id, held.epoch, 0))
    [message] = told(database, endpoint_id)
    assert message["data"]["error"]["code"] == "worker_lost"


def test_only_those_who_want_it_are_told(database: Database, settings: Settings) -> None:
    wanting, _ = add_endpoint(database, settings, events=[EventType.JOB_QUEUED])
    other_event, _ = add_endpoint(database, settings, events=[EventType.JOB_FAILED])
    other_project, _ = add_endpoint(database, settings, project="attic")
    disabled, _ = add_endpoint(database, settings)
    openai, _ = add_endpoint(database, settings, events=[EventType.JOB_CANCELLED], form=MessageFormat.OPENAI)
    with database.write() as unit:
        change_endpoint(unit, settings, disabled, {"enabled": False})
    job_id = add_job(database)
    assert [len(told(database, each)) for each in (wanting, other_event, other_project, disabled, openai)] == [
        *(1, 0, 0, 0, 0)
    ]
    add_job(database, project="attic")
    assert (len(told(database, wanting)), len(told(database, other_project))) == (1, 1)
    with database.write() as unit:
        actions.cancel_job(unit, job_id)
    [message] = told(database, openai)
    [delivery] = deliveries(database, openai)
    assert message == {
        "id": delivery.message_id,
        "object": "event",
        "created_at": 1767225600,
        "type": "fine_tuning.job.cancelled",
        "data": {"id": job_id},
    }


def test_a_transaction_that_fails_tells_nothing(database: Database, settings: Settings, queue: FakeQueue) -> None:
    endpoint_id, _ = add_endpoint(database, settings)
    job_id = add_job(database)
    queue.rings.clear()

    def cancel_and_break() -> None:
        with database.write() as unit:
            unit.jobs.move(job_id, JobState.CANCELLED, Actor.API)
            unit.conclude()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cancel_and_break()
    assert [each["type"] for each in told(database, endpoint_id)] == ["job.queued"]
    assert queue.rings == []


def test_many_events_take_the_statements_of_one(database: Database, settings: Settings) -> None:
    for _ in range(3):
        add_endpoint(database, settings)
    ready = add_dataset(database)
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "webhook" in statement:
            seen.append(statement)

    counts = []
    event.listen(database.engine, "before_cursor_execute", note)
    try:
        for count in (1, 30):
            seen.clear()
            with database.write() as unit:
                unit.jobs.add_all({new_job(ready): () for _ in range(count)})
            counts.append(len(seen))
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
    assert counts == [2, 2]


def test_an_endpoint_that_goes_at_the_same_time_fails_nobody(database: Database, settings: Settings) -> None:
    """Deliveries of an endpoint that is gone could not be stored: whoever deletes it waits, or came first."""
    failures: list[BaseException] = []
    ready = add_dataset(database)

    def run(what: Any) -> None:
        try:
            what()
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    for _ in range(10):
        endpoint_id, _ = add_endpoint(database, settings)

        def delete(endpoint_id: str = endpoint_id) -> None:
            with database.write() as unit:
                delete_endpoint(unit, endpoint_id)

        threads = [threading.Thread(target=run, args=(lambda: add_job(database, ready),)) for _ in range(4)]
        threads.insert(2, threading.Thread(target=run, args=(delete,)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_the_schedule_is_that_of_the_standard(database: Database, settings: Settings, clock: FakeClock) -> None:
    endpoint_id, _ = add_endpoint(database, settings, events=[EventType.JOB_QUEUED])
    add_job(database)
    waits = []
    for attempt in range(1, MAX_TRIES + 1):
        delivery = fail(database, clock, status=503, response="busy")
        assert delivery.attempt == attempt
        if delivery.state is WorkState.FAILED:
            break
        assert delivery.not_before is not None
        waits.append((delivery.not_before - clock.now()).total_seconds())
        with database.write() as unit:
            assert unit.deliveries.claim("w-1") is None
        clock.advance(waits[-1])
    assert len(waits) == len(DELAYS_S) == 9
    assert all(0.89 * due <= wait <= 1.11 * due for due, wait in zip(DELAYS_S, waits, strict=True))
    [delivery] = deliveries(database, endpoint_id)
    assert delivery.error is not None
    assert (delivery.error["code"], delivery.error["message"]) == (
        "not_delivered",
        "The receiver answered with status 503.",
    )
    assert [entry["number"] for entry in delivery.attempts] == list(range(1, 11))
    assert delivery.attempts[-1]["response"] == "busy"


@pytest.mark.parametrize(("asked", "expected"), [(0.0, 5.0), (600.0, 600.0), (1e12, 86400.0)])
def test_a_receiver_may_ask_for_more_time_within_reason(
    database: Database, settings: Settings, clock: FakeClock, asked: float, expected: float
) -> None:
    add_endpoint(database, settings, events=[EventType.JOB_QUEUED])
    add_job(database)
    delivery = fail(database, clock, status=429, retry_after_s=asked)
    assert delivery.not_before is not None
    assert abs((delivery.not_before - clock.now()).total_seconds() - expected) <= 0.11 * 5
    assert delivery.next_publish_at == delivery.not_before


def test_a_receiver_that_is_gone_gets_nothing_more(database: Database, settings: Settings, clock: FakeClock) -> None:
    endpoint_id, _ = add_endpoint(database, settings, events=[EventType.JOB_QUEUED])
    add_job(database)
    add_job(database)
    assert fail(database, clock, status=410).state is WorkState.FAILED
    ended = [(each.state, each.error and each.error["code"]) for each in deliveries(database, endpoint_id)]
    assert ended == [(WorkState.FAILED, "endpoint_disabled")] * 2
    with database.read() as unit:
        endpoint = unit.webhooks.get(endpoint_id)
    assert (endpoint.enabled, endpoint.disabled_reason) == (False, "The receiver answered 410 Gone.")
    add_job(database)
    assert len(deliveries(database, endpoint_id)) == 2


def test_an_answer_of_any_bytes_is_kept(database: Database, settings: Settings, clock: FakeClock) -> None:
    add_endpoint(database, settings, events=[EventType.JOB_QUEUED])
    add_job(database)
    delivery = fail(database, clock, response="a\x00\udcff\ufffdz", error="\x00")
    assert (delivery.attempts[0]["response"], delivery.attempts[0]["error"]) == ("a\ufffd\ufffd\ufffdz", "\ufffd")


def test_days_of_nothing_but_failures_disable_an_endpoint(
    database: Database, settings: Settings, clock: FakeClock
) -> None:
    endpoint_id, _ = add_endpoint(database, settings, events=[EventType.JOB_QUEUED])

    def attempt(status: int) -> bool:
        """Send a new message; whether the endpoint is enabled afterwards."""
        add_job(database)
        with database.write() as unit:
            unit.session.execute(update(WebhookDelivery).values(not_before=clock.now() + timedelta(days=99)))
            newest = update(WebhookDelivery).where(WebhookDelivery.attempt == 0)
            unit.session.execute(newest.values(not_before=clock.now()))
            claimed = unit.deliveries.claim("w-1")
        assert claimed is not None
        with database.write() as unit:
            unit.deliveries.settle(claimed, Sent(clock.now(), 0.1, status), disable_after_s=5 * 86400)
            return unit.webhooks.get(endpoint_id).enabled

    assert attempt(500)
    clock.advance(4.9 * 86400)
    assert attempt(500)
    assert attempt(200)  # from here on it counts anew
    clock.advance(86400)
    assert attempt(500)
    clock.advance(4.9 * 86400)
    assert attempt(500)
    clock.advance(0.2 * 86400)
    assert not attempt(500)
    with database.write() as unit:
        assert unit.webhooks.get(endpoint_id).disabled_reason == "Every delivery has failed for 5.1 days."
        enabled = change_endpoint(unit, settings, endpoint_id, {"enabled": True})
        assert (enabled.disabled_reason, enabled.failing_since) == (None, None)
    assert attempt(500)


def test_one_endpoint_occupies_few_senders(database: Database, settings: Settings) -> None:
    slow, _ = add_endpoint(database, settings, events=[EventType.JOB_QUEUED])
    for _ in range(MAX_AT_ONCE + 2):
        add_job(database)
    other, _ = add_endpoint(database, settings, events=[EventType.JOB_QUEUED], project="other")
    add_job(database, project="other")
    claimed = []
    for _ in range(MAX_AT_ONCE + 2):
        with database.write() as unit:
            delivery = unit.deliveries.claim("w-1")
        claimed.append(None if delivery is None else delivery.endpoint_id)
    assert claimed == [*[slow] * MAX_AT_ONCE, other, None]


def test_one_delivery_is_claimed_once(database: Database, settings: Settings) -> None:
    add_endpoint(database, settings, events=[EventType.JOB_QUEUED])
    add_job(database)
    claimed: list[str] = []

    def claim() -> None:
        with database.write() as unit:
            delivery = unit.deliveries.claim("w-1")
        if delivery is not None:
            claimed.append(delivery.id)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == 1


def test_a_lost_worker_costs_an_attempt_and_writes_nothing_more(
    database: Database, settings: Settings, clock: FakeClock, queue: FakeQueue
) -> None:
    endpoint_id, _ = add_endpoint(database, settings, events=[EventType.JOB_QUEUED])
    add_job(database)
    with database.write() as unit:
        claimed = unit.deliveries.claim("w-1")
    assert claimed is not None
    reconciler = Reconciler(settings, database, Storage(settings), queue, clock)
    reconciler.run_once()
    clock.advance(settings.lease_timeout_s)
    reconciler.run_once()
    [delivery] = deliveries(database, endpoint_id)
    assert (delivery.state, delivery.attempt) == (WorkState.QUEUED, 1)
    assert "worker was lost" in delivery.attempts[0]["error"]
    with pytest.raises(LeaseLostError), database.write() as unit:
        unit.deliveries.settle(claimed, Sent(clock.now(), 0.1, 200), disable_after_s=NEVER_S)
    queue.rings.clear()
    clock.advance(6)
    reconciler.run_once()
    assert (Task.DELIVER, delivery.id) in queue.rings


def test_an_endpoint_deleted_while_it_is_sent_to_takes_its_deliveries_along(
    database: Database, settings: Settings, clock: FakeClock
) -> None:
    endpoint_id, _ = add_endpoint(database, settings, events=[EventType.JOB_QUEUED])
    add_job(database)
    with database.write() as unit:
        claimed = unit.deliveries.claim("w-1")
    assert claimed is not None
    with database.write() as unit:
        delete_endpoint(unit, endpoint_id)
    with pytest.raises(LeaseLostError), database.write() as unit:
        unit.deliveries.settle(claimed, Sent(clock.now(), 0.1, 200), disable_after_s=NEVER_S)
    assert deliveries(database, endpoint_id) == []


def test_old_deliveries_are_forgotten_and_waiting_ones_never(
    database: Database, settings: Settings, clock: FakeClock, queue: FakeQueue
) -> None:
    endpoint_id, _ = add_endpoint(database, settings, events=[EventType.JOB_QUEUED])
    add_job(database)
    fail(database, clock, status=410)
    with database.write() as unit:
        change_endpoint(unit, settings, endpoint_id, {"enabled": True})
    add_job(database)
    reconciler = Reconciler(settings, database, Storage(settings), queue, clock)
    clock.advance(settings.webhook_retention_s - 60)
    reconciler.sweep()
    assert len(deliveries(database, endpoint_id)) == 2
    clock.advance(3601)
    reconciler.sweep()
    assert [each.state for each in deliveries(database, endpoint_id)] == [WorkState.QUEUED]


def test_a_project_has_so_many_endpoints_however_many_ask_at_once(database: Database, settings: Settings) -> None:
    for _ in range(18):
        add_endpoint(database, settings)
    outcomes: list[str] = []

    def add() -> None:
        try:
            add_endpoint(database, settings)
            outcomes.append("made")
        except EndpointLimitError:
            outcomes.append("refused")

    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["made"] * 2 + ["refused"] * 4
    add_endpoint(database, settings, project="other")


@pytest.mark.parametrize(
    "move", ["UPDATE webhook_deliveries SET state = 'succeeded'", "UPDATE webhook_deliveries SET state = 'nowhere'"]
)
def test_the_database_refuses_moves_that_are_not_listed(database: Database, settings: Settings, move: str) -> None:
    add_endpoint(database, settings, events=[EventType.JOB_QUEUED])
    add_job(database)
    with pytest.raises(DBAPIError), database.write() as unit:
        unit.session.execute(text(move))
