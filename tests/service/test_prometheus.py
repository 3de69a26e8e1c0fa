"""GET /metrics: what it says against what has happened, for good, the same everywhere, and to nobody else."""

from __future__ import annotations

import re
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from service.reconciler import Reconciler
from service.shared.clock import SystemClock
from service.shared.db.models import Tally
from service.shared.db.repositories.tallies import FOLD_FROM
from service.shared.states import DatasetState, JobState
from service.shared.tallies import TallyName
from service.shared.unit_of_work import Database
from service.shared.webhooks import EventType
from service.usecases import access
from service.usecases.access import EVERYTHING, Scope
from service.usecases.actions import cancel_job, delete_job
from service.usecases.monitoring import KEPT_S, PROBED_EVERY_S, STORAGE_ASKED_EVERY_S
from tests.service.conftest import Api, FakeQueue, add_dataset, add_job, assert_problem, body, served
from tests.service.webhooks import KEY, add_endpoint
from tests.stack import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.shared.db.models import Job
    from service.shared.settings import Settings

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
ERROR = {"code": "gpu_oom", "message": "m", "hint": "", "retryable": True}


@pytest.fixture
def both(settings: Settings) -> Iterator[Api]:
    """The application on each database."""
    with served(settings) as api:
        yield api


def scrape(api: Api, *, fresh: bool = True) -> Samples:
    if fresh:
        api.clock.advance(KEPT_S)
    answer = api.client.get("/metrics")
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def claim(api: Api, gpus: int = 1) -> Job:
    with api.database.write() as unit:
        job = unit.jobs.claim("w-1", gpus=gpus)
    assert job is not None
    return job


def finish(api: Api, job: Job, state: JobState, **values: Any) -> None:
    with api.database.write() as unit:
        unit.attempts.finish(job.id, job.epoch, state, **values)


def test_counts_follow_what_jobs_do(both: Api) -> None:
    empty = scrape(both)
    assert value(empty, "sam3_jobs_total", status="succeeded") == 0
    assert value(empty, "sam3_queue_wait_seconds_count") == 0
    dataset = add_dataset(both.database)
    good, bad, gone = (add_job(both.database, dataset, gpus=gpus) for gpus in (2, 1, 1))
    both.clock.advance(40)
    seen = scrape(both)
    assert value(seen, "sam3_queue_depth") == value(seen, "sam3_unfinished_jobs", status="queued") == 3
    assert value(seen, "sam3_oldest_due_seconds", kind="job") == 40 + KEPT_S

    first = claim(both, gpus=2)
    assert first.id == good
    seen = scrape(both)
    assert (value(seen, "sam3_gpus_busy"), value(seen, "sam3_stalest_heartbeat_seconds")) == (2, KEPT_S)
    both.clock.advance(100)
    finish(both, first, JobState.SUCCEEDED, result={})
    second = claim(both)
    assert second.id == bad
    finish(both, second, JobState.QUEUED, error=ERROR)
    with both.database.write() as unit:
        cancel_job(unit, gone)
    both.clock.advance(3600)
    third = claim(both)
    assert third.id == bad
    finish(both, third, JobState.FAILED, error=ERROR)

    seen = scrape(both)
    jobs = {state: value(seen, "sam3_jobs_total", status=state) for state in JobState}
    assert jobs == dict.fromkeys(JobState, 0) | {"queued": 4, "running": 3, "succeeded": 1, "failed": 1, "cancelled": 1}
    assert value(seen, "sam3_job_failures_total", code="gpu_oom") == 1
    assert value(seen, "sam3_attempts_lost_total", reason="gpu_oom") == 1
    assert value(seen, "sam3_attempts_lost_total", reason="worker_lost") == 0
    assert value(seen, "sam3_gpu_seconds_total") == 2 * (100 + KEPT_S)
    assert value(seen, "sam3_queue_depth") == value(seen, "sam3_gpus_busy") == 0
    assert value(seen, "sam3_oldest_due_seconds", kind="job") == 0
    # 45 s, 150 s, and the wait behind the backoff of 10 s.
    assert value(seen, "sam3_queue_wait_seconds_bucket", le="60.0") == 1
    assert value(seen, "sam3_queue_wait_seconds_bucket", le="300.0") == 2
    assert value(seen, "sam3_queue_wait_seconds_bucket", le="+Inf") == 3
    assert value(seen, "sam3_queue_wait_seconds_sum") == pytest.approx(45 + 150 + 3592, abs=10)
    assert value(seen, "sam3_job_duration_seconds_sum", status="succeeded") == 100 + KEPT_S
    assert value(seen, "sam3_job_duration_seconds_bucket", status="failed", le="3600.0") == 1
    assert value(seen, "sam3_job_duration_seconds_count", status="cancelled") == 0  # it never ran


def test_a_lost_worker_and_a_bad_dataset_are_counted(both: Api) -> None:
    job = add_job(both.database)
    claimed = claim(both)
    with both.database.write() as unit:
        [lease] = unit.attempts.leases()
        unit.attempts.reap(lease)
    waiting_on = add_dataset(both.database, DatasetState.PROCESSING)
    for _ in range(2):
        add_job(both.database, waiting_on, state=JobState.VALIDATING_FILES)
    with both.database.write() as unit:
        unit.jobs.release_waiting(waiting_on, valid=False)
    assert claimed.id == job
    seen = scrape(both)
    assert value(seen, "sam3_attempts_lost_total", reason="worker_lost") == 1
    assert value(seen, "sam3_job_failures_total", code="dataset_invalid") == 2
    assert value(seen, "sam3_jobs_total", status="validating_files") == 2


def test_counters_never_fall_when_jobs_are_deleted_or_processes_restart(both: Api) -> None:
    dataset = add_dataset(both.database)
    for _ in range(3):
        add_job(both.database, dataset)
        job = claim(both)
        both.clock.advance(10)
        finish(both, job, JobState.SUCCEEDED, result={})
    before = {key: number for key, number in scrape(both).items() if is_counter(key[0])}
    assert before["sam3_jobs_total", (("status", "succeeded"),)] == 3
    with both.database.write() as unit:
        for found in unit.jobs.list(limit=10)[0]:
            delete_job(unit, found.id)
    Reconciler(both.settings, both.database, both.storage, both.queue, both.clock).run_once()
    with both.database.read() as unit:
        assert not unit.jobs.deleted(10)
    with served(both.settings) as another:
        for api in (both, another):
            after = scrape(api)
            assert {key: after[key] for key in before} == before


def is_counter(name: str) -> bool:
    """Those of the installation."""
    own = name.startswith("sam3_") and "http" not in name
    return own and name.endswith(("_total", "_count", "_sum", "_bucket"))


def test_api_processes_agree_and_look_only_every_few_seconds(both: Api) -> None:
    with served(both.settings) as other:
        add_job(both.database)
        installation = [
            {key: number for key, number in scrape(api).items() if is_counter(key[0]) or key[0] == "sam3_queue_depth"}
            for api in (both, other)
        ]
        assert installation[0] == installation[1]
        assert value(installation[0], "sam3_queue_depth") == 1
        add_job(both.database)
        assert value(scrape(both, fresh=False), "sam3_queue_depth") == 1
        assert value(scrape(both), "sam3_queue_depth") == 2


def test_folding_changes_no_sum_while_others_count_and_look(settings: Settings) -> None:
    database = Database(settings, SystemClock(), FakeQueue())
    stop, sums, counts = threading.Event(), [], [0, 0]

    def count(nth: int) -> None:
        while not stop.is_set():
            with database.write() as unit:
                unit.tallies.count(TallyName.GPU_SECONDS, amount=0.5)
                unit.tallies.observe(TallyName.QUEUE_WAIT, 3)
            counts[nth] += 1

    def look() -> None:
        while not stop.is_set():
            with database.read() as unit:
                sums.append(sum(total.number for total in unit.tallies.totals()))

    threads = [threading.Thread(target=work) for work in (partial(count, 0), partial(count, 1), look)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while min(counts) < 15 and time.monotonic() < deadline:
        with database.write() as unit:
            unit.tallies.fold()
    stop.set()
    for thread in threads:
        thread.join()
    with database.write() as unit:
        before = {(total.name, total.bucket): total for total in unit.tallies.totals()}
        unit.tallies.fold()
    with database.read() as unit:
        after = {(total.name, total.bucket): total for total in unit.tallies.totals()}
        assert unit.session.query(Tally).count() == 2
    database.close()
    assert after == before
    counted, waited = after[TallyName.GPU_SECONDS, ""], after[TallyName.QUEUE_WAIT, "5"]
    assert counted.number == waited.number == sum(counts) >= 30
    assert (counted.amount, waited.amount) == (counted.number * 0.5, waited.number * 3)
    assert sums == sorted(sums)


def test_the_reconciler_folds_what_has_become_many(api: Api) -> None:
    for _ in range(FOLD_FROM):
        with api.database.write() as unit:
            unit.tallies.count(TallyName.DELIVERIES, "failed")
    Reconciler(api.settings, api.database, api.storage, api.queue, api.clock).run_once()
    with api.database.read() as unit:
        assert unit.session.query(Tally).count() == 1
    assert value(scrape(api), "sam3_webhook_tries_total", outcome="failed") == FOLD_FROM


def test_what_waits_and_who_works(both: Api) -> None:
    add_dataset(both.database, DatasetState.PROCESSING)
    keyed = both.settings.model_copy(update={"secret_key": KEY})
    add_endpoint(both.database, keyed, events=[EventType.JOB_QUEUED])
    add_job(both.database)
    with both.database.write() as unit:
        unit.workers.beat("w-1", kind="gpu", host="h", pid=1, device="NVIDIA H100", gpus=4)
        unit.workers.beat("w-2", kind="cpu", host="h", pid=2, device=None)
    both.clock.advance(7)
    seen = scrape(both)
    waiting = {kind: value(seen, "sam3_waiting", kind=kind) for kind in ("dataset", "delivery", "prediction", "export")}
    assert waiting == {"dataset": 1, "delivery": 1, "prediction": 0, "export": 0}
    for kind in ("dataset", "delivery", "job"):
        assert value(seen, "sam3_oldest_due_seconds", kind=kind) == 7 + KEPT_S
    assert value(seen, "sam3_oldest_due_seconds", kind="comparison") == 0
    assert value(seen, "sam3_webhook_endpoints", state="working") == 1
    assert [value(seen, "sam3_workers", kind=kind) for kind in ("gpu", "cpu", "predict")] == [1, 1, 0]
    assert value(seen, "sam3_gpus") == 4
    at = both.clock.now().timestamp() - 7 - KEPT_S
    assert value(seen, "sam3_worker_last_heartbeat_timestamp_seconds", kind="gpu") == at
    assert ("sam3_worker_last_heartbeat_timestamp_seconds", (("kind", "predict"),)) not in seen
    both.clock.advance(both.settings.lease_timeout_s)
    seen = scrape(both)
    assert (value(seen, "sam3_workers", kind="gpu"), value(seen, "sam3_gpus")) == (0, 0)
    assert value(seen, "sam3_worker_last_heartbeat_timestamp_seconds", kind="gpu") == at


def test_components_are_told_and_nothing_else_while_the_database_is_away(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.clock.advance(STORAGE_ASKED_EVERY_S)
    scrape(api)
    wait_until(lambda: scrape(api).get(("sam3_component_up", (("component", "storage"),))) == 1)
    api.queue.down = True
    monkeypatch.setattr(type(api.storage), "check", gone)
    monkeypatch.setattr("service.shared.db.repositories.census.CensusRepository.staff", gone_database)
    seen = scrape(api)
    assert value(seen, "sam3_component_up", component="database") == 0
    assert value(seen, "sam3_component_up", component="broker") == 0
    assert value(seen, "sam3_component_up", component="storage") == 1  # as it was last seen
    assert not any(name.startswith(("sam3_jobs", "sam3_queue")) for name, _ in seen)
    assert value(seen, "sam3_database_connections_max") == 20
    assert any(name == "process_resident_memory_bytes" for name, _ in seen)
    api.clock.advance(PROBED_EVERY_S)
    api.client.get("/readyz")
    assert value(scrape(api), "sam3_component_up", component="storage") == 0


def gone(*_: object, **__: object) -> None:
    from service.shared.errors import StorageError

    raise StorageError("gone")


def gone_database(*_: object, **__: object) -> None:
    raise OperationalError("SELECT", {}, Exception("gone"))


def test_requests_are_told_by_route_and_nothing_that_clients_send_is_a_label(api: Api) -> None:
    job_id = api.client.post("/v1/jobs", json=body(dataset_id=add_dataset(api.database), project="secretive")).json()[
        "id"
    ]
    api.client.get(f"/v1/jobs/{job_id}")
    api.client.get(f"/jobs/{job_id}")
    api.client.get("/v1/wp-login.php")
    api.client.request("PROPFIND", f"/v1/jobs/{job_id}")
    seen = scrape(api)
    name = "sam3_http_request_duration_seconds_count"
    assert value(seen, name, method="GET", route="/jobs/{job_id}", status="200") >= 2
    assert value(seen, name, method="GET", route="unmatched", status="404") >= 1
    assert value(seen, name, method="other", route="/jobs/{job_id}", status="405") >= 1
    labels = {label for _, pairs in seen for label in pairs}
    names = {label for label, _ in labels}
    assert names <= {"method", "route", "status", "le", "kind", "code", "reason", "component", "state", "outcome"} | {
        "version",
        "generation",
        "implementation",
        "major",
        "minor",
        "patchlevel",
    }
    for _, text in labels:
        assert not re.search(r"_[0-9a-f]{12,}|secretive|wp-login|PROPFIND|w-1", text), text


def test_only_admins_scrape_where_keys_are_asked_for(settings: Settings) -> None:
    with served(settings.model_copy(update={"require_keys": True})) as api:
        assert_problem(api.client.get("/metrics"), 401, "unauthorized")
        for scope, project, status in ((Scope.READ, "a", 403), (Scope.KEYS, "a", 403), (Scope.ADMIN, None, 200)):
            with api.database.write() as unit:
                made = access.create_key(unit, EVERYTHING, name="k", project=project, scopes=[scope], lasts_s=None)
            for path in ("/metrics", "/v1/metrics"):
                answer = httpx.get(api.client.base_url.join(path), headers={"Authorization": f"Bearer {made.secret}"})
                assert answer.status_code == status, answer.text


def test_a_scraper_whose_key_is_known_is_told_that_the_database_is_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.authentication.KNOWN_FOR_S", 0.0)
    with served(settings.model_copy(update={"require_keys": True})) as api:
        with api.database.write() as unit:
            made = access.create_key(unit, EVERYTHING, name="k", project=None, scopes=[Scope.ADMIN], lasts_s=None)

        def ask(secret: str) -> httpx.Response:
            return httpx.get(api.client.base_url.join("/metrics"), headers={"Authorization": f"Bearer {secret}"})

        assert ask(made.secret).status_code == 200
        monkeypatch.setattr("service.shared.db.repositories.api_keys.ApiKeyRepository.find", gone_database)
        monkeypatch.setattr("service.shared.db.repositories.census.CensusRepository.staff", gone_database)
        assert ask(made.secret).status_code == 200
        assert ask("sam3_" + "x" * 43).status_code == 503
        monkeypatch.setattr("service.api.authentication.TRUSTED_FOR_S", -1.0)
        assert ask(made.secret).status_code == 503


def test_prometheus_gets_the_format_that_it_prefers(api: Api) -> None:
    scrape(api)
    plain = api.client.get("/metrics", headers={"Accept": "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"})
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    asked = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    openmetrics = api.client.get("/metrics", headers={"Accept": asked})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in parse_openmetrics(openmetrics.text)}
    assert families["sam3_jobs"].type == "counter"
    assert families["sam3_queue_wait_seconds"].type == "histogram"
    assert {family.name for family in parse(plain.text)} >= {"sam3_jobs", "sam3_queue_wait_seconds", "sam3_gpus"}
    assert api.client.get("/metrics", headers={"Accept": "text/plain;version=x;escaping=y"}).status_code == 200


def test_a_scrape_takes_the_same_few_statements_however_much_there_is(api: Api) -> None:
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    counts = []
    event.listen(api.database.engine, "before_cursor_execute", note)
    try:
        for jobs in (1, 20):
            for _ in range(jobs):
                add_job(api.database)
            seen.clear()
            scrape(api)
            counts.append(len(seen))
    finally:
        event.remove(api.database.engine, "before_cursor_execute", note)
    assert counts[0] == counts[1] <= 8


def test_the_job_queued_longest_is_found_in_an_index(both: Api) -> None:
    statements: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, values: Any, *_: object) -> None:
        statements.append((statement, values))

    with both.database.read() as unit:
        event.listen(both.database.engine, "before_cursor_execute", note)
        try:
            unit.census.oldest_due_job_s()
        finally:
            event.remove(both.database.engine, "before_cursor_execute", note)
        statement, values = statements[-1]
        connection = unit.session.connection()
        if both.database.engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            rows = connection.exec_driver_sql(f"EXPLAIN {statement}", values)
        else:
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
        assert "ix_jobs_state_queued_at" in str(list(rows))
