"""Metrics as Prometheus scrapes them: of this process, and of the installation as the database knows it.

Labels are states, kinds, codes and routes, all of them few; never an id, a project, or anything that a client sent.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

import prometheus_client
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.exposition import generate_latest as plain
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.registry import Collector

from sam3_lora.version import VERSION
from service.api.errors import METHODS
from service.api.negotiation import preferred
from service.shared.db.engine import MAX_CONNECTIONS
from service.shared.queue import Task
from service.shared.states import TERMINAL, JobState
from service.shared.tallies import BUCKETS, OVERFLOW, TallyName
from service.usecases.monitoring import Lookout, StorageWatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from service.shared.clock import Clock
    from service.shared.db.repositories.tallies import Total
    from service.shared.queue import Queue
    from service.shared.settings import Settings
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database
    from service.usecases.following import Broadcaster
    from service.usecases.monitoring import Sight

PLAIN, OPENMETRICS = "text/plain", "application/openmetrics-text"
NO_ROUTE = "unmatched"
REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call] # a second series beside each counter


class Exposition:
    """The metrics of one API process."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storage: Storage,
        queue: Queue,
        broadcaster: Broadcaster,
        clock: Clock,
    ) -> None:
        self._registry = CollectorRegistry()
        for kind in (prometheus_client.ProcessCollector, prometheus_client.PlatformCollector):
            kind(registry=self._registry)
        prometheus_client.GCCollector(registry=self._registry)
        self._requests = Histogram(
            "sam3_http_request_duration_seconds",
            "Time from a request's head to the end of its answer; streams and long polls take as long as they are open",
            ["method", "route", "status"],
            buckets=REQUEST_SECONDS,
            registry=self._registry,
        )
        self.storage = StorageWatch(storage, clock)
        lookout = Lookout(database, settings, clock)
        self._registry.register(_Installation(lookout, self.storage, queue))
        self._registry.register(_Process(settings, database, broadcaster))

    def note_request(self, method: str, route: str | None, status: int, took_s: float) -> None:
        """A request has been answered. `route`: its template without /v1; None if it came to none."""
        known = method if method in METHODS else "other"
        self._requests.labels(known, NO_ROUTE if route is None else route, status).observe(took_s)

    def render(self, accept: str | None) -> tuple[bytes, str]:
        """All metrics in the format that an Accept header asks for, and its content type."""
        if preferred(accept, (PLAIN, OPENMETRICS)) == OPENMETRICS:
            return openmetrics(self._registry), CONTENT_TYPE_LATEST  # type: ignore[no-untyped-call]
        return plain(self._registry), CONTENT_TYPE_PLAIN_0_0_4


class _Process(Collector):
    """What this process uses of what it may use."""

    def __init__(self, settings: Settings, database: Database, broadcaster: Broadcaster) -> None:
        self._settings = settings
        self._pool: Any = database.engine.pool
        self._broadcaster = broadcaster

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("sam3_build", "What runs", {"version": VERSION})
        yield GaugeMetricFamily("sam3_database_connections", "In use by this process", self._pool.checkedout())
        yield GaugeMetricFamily("sam3_database_connections_max", "That this process opens at most", MAX_CONNECTIONS)
        yield GaugeMetricFamily("sam3_streams", "Open at this process", self._broadcaster.followers)
        yield GaugeMetricFamily("sam3_streams_max", "That this process keeps open", self._settings.max_streams)


class _Installation(Collector):
    """What the database knows: the same from every API process, so take the `max` of them, never the `sum`."""

    def __init__(self, lookout: Lookout, storage: StorageWatch, queue: Queue) -> None:
        self._lookout = lookout
        self._storage = storage
        self._queue = queue

    def collect(self) -> Iterator[Metric]:
        sight = self._lookout.look()
        is_up = {
            "database": sight is not None,
            "broker": self._queue.depth(Task.TRAIN) is not None,
            "storage": self._storage.recall(),
        }
        known = {name: float(state) for name, state in is_up.items() if state is not None}
        yield _gauge("sam3_component_up", "1 if this process reaches it", "component", known.items())
        if sight is not None:
            yield from _now(sight)
            yield from _ever(sight.totals)


def _now(sight: Sight) -> Iterator[Metric]:
    jobs = sight.jobs
    yield _gauge("sam3_unfinished_jobs", "Jobs in a state now", "status", jobs.items())
    yield GaugeMetricFamily("sam3_queue_depth", "Jobs that wait for a worker", jobs[JobState.QUEUED])
    oldest = {"job": sight.oldest_due_job_s} | {kind: found.oldest_s for kind, found in sight.waiting.items()}
    yield _gauge(
        "sam3_oldest_due_seconds", "Longest time that due work has waited; 0: none is due", "kind", oldest.items()
    )
    waiting = {kind: found.number for kind, found in sight.waiting.items()}
    yield _gauge("sam3_waiting", "Work other than jobs that nobody has claimed", "kind", waiting.items())
    staff = sight.staff
    yield _gauge("sam3_workers", "Workers that are alive", "kind", ((kind, each.alive) for kind, each in staff.items()))
    yield GaugeMetricFamily("sam3_gpus", "GPUs of living training workers; on CPUs processes", staff["gpu"].gpus)
    yield GaugeMetricFamily("sam3_gpus_busy", "GPUs of the jobs that workers hold", sight.held.gpus)
    yield GaugeMetricFamily(
        "sam3_stalest_heartbeat_seconds",
        "Longest time since a worker renewed a job that it holds; the reconciler takes it away after lease_timeout_s",
        sight.held.stalest_s,
    )
    yield _gauge(
        "sam3_worker_last_heartbeat_timestamp_seconds",
        "When any worker of a kind was last heard of; absent if none is known",
        "kind",
        ((kind, each.last_seen_at.timestamp()) for kind, each in staff.items() if each.last_seen_at is not None),
    )
    yield _gauge("sam3_webhook_endpoints", "How webhook endpoints are", "state", sight.webhook_endpoints.items())


def _ever(totals: Sequence[Total]) -> Iterator[Metric]:
    numbers = {(total.name, total.label): total.number for total in totals if not total.bucket}
    seconds = sum(total.amount for total in totals if total.name is TallyName.GPU_SECONDS)

    def counter(name: str, text: str, label: str, tally: TallyName, always: Iterable[str]) -> Metric:
        family = CounterMetricFamily(name, text, labels=[label])
        found = dict.fromkeys(always, 0) | {of: number for (kind, of), number in numbers.items() if kind is tally}
        for value, number in found.items():
            family.add_metric([value], number)
        return family

    yield counter("sam3_jobs", "Times that a job came into a state", "status", TallyName.JOBS, JobState)
    yield counter("sam3_job_failures", "Jobs that failed", "code", TallyName.FAILURES, ["internal"])
    text = "Attempts that ended without a result and did not end the job on purpose"
    yield counter("sam3_attempts_lost", text, "reason", TallyName.LOST, ["worker_lost"])
    text = "Tries to deliver a webhook"
    yield counter("sam3_webhook_tries", text, "outcome", TallyName.DELIVERIES, ["delivered", "failed"])
    yield CounterMetricFamily("sam3_gpu_seconds", "Seconds of attempts that have ended, times their GPUs", seconds)
    wait = HistogramMetricFamily("sam3_queue_wait_seconds", "Time that jobs were due until a worker took them")
    wait.add_metric([], *_histogram(totals, TallyName.QUEUE_WAIT, ""))
    yield wait
    duration = HistogramMetricFamily(
        "sam3_job_duration_seconds",
        "Time from a job's first start to its end, with all that lies between",
        labels=["status"],
    )
    for state in sorted(TERMINAL):
        duration.add_metric([state], *_histogram(totals, TallyName.DURATION, state))
    yield duration


def _histogram(totals: Sequence[Total], name: TallyName, label: str) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets and the sum; also with buckets of an earlier version."""
    own = [total for total in totals if total.name is name and total.label == label]
    counts = dict.fromkeys([str(bound) for bound in BUCKETS[name]] + [OVERFLOW], 0)
    for total in own:
        counts[total.bucket] = counts.get(total.bucket, 0) + total.number
    bounds = sorted(counts, key=float)
    running = accumulate(counts[bound] for bound in bounds)
    return [
        (OVERFLOW if bound == OVERFLOW else str(float(bound)), float(count))
        for bound, count in zip(bounds, running, strict=True)
    ], sum(t.amount for t in own)


def _gauge(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values:
        family.add_metric([value], number)
    return family
