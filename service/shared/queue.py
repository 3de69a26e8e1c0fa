"""The doorbell: tells workers that the database holds work. Losing or doubling a message harms nothing."""

from __future__ import annotations

import threading
import time
from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from celery import Celery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.shared.clock import Clock
    from service.shared.settings import Settings

log = structlog.get_logger(__name__)

# Longer than any job: a message that is redelivered while its job runs would only find nothing to claim,
# but the shortest value of all applications on one Redis counts.
VISIBILITY_TIMEOUT_S = 30 * 24 * 3600
SILENCE_AFTER_FAILURE_S = 5.0
# A worker that fetches one announcement works off all that is due: more than there are idle workers wake nobody.
CROWD = 100
LOOK_AGAIN_S = 1.0
MAX_PENDING = 10_000
CLOSE_TIMEOUT_S = 2.0


class Task(StrEnum):
    """Celery tasks; each takes one argument, the id of what it was rung for."""

    TRAIN = "worker.train"
    COMPARE = "worker.compare"
    INGEST = "worker.ingest"
    ESTIMATE = "worker.estimate"
    EXPORT = "worker.export"
    DELIVER = "worker.deliver"
    PREDICT = "worker.predict"

    @property
    def queue(self) -> str:
        """Name of the queue, which is also the kind of worker."""
        return QUEUES[self]


QUEUES = {
    Task.TRAIN: "gpu",
    Task.COMPARE: "gpu",
    Task.INGEST: "cpu",
    Task.ESTIMATE: "cpu",
    Task.EXPORT: "cpu",
    Task.DELIVER: "cpu",
    Task.PREDICT: "predict",
}


KINDS = tuple(dict.fromkeys(QUEUES.values()))
"""Of workers."""


class Queue(Protocol):
    """What the service needs of a broker."""

    def ring(self, task: Task, *resource_ids: str) -> bool:
        """Announce work; whether the broker took it. Never raises."""
        ...

    def depth(self, task: Task) -> int | None:
        """Announcements that no worker has fetched; None if the broker cannot be asked. Never raises."""
        ...

    def close(self) -> None: ...


def celery_app(settings: Settings) -> Celery:
    """The Celery application with the options that both sides must share."""
    app = Celery("sam3", broker=settings.broker_url)
    connection = {"socket_timeout": 30, "socket_connect_timeout": 2, "health_check_interval": 25}
    app.conf.update(
        task_queues={task.queue: {"routing_key": task.queue} for task in Task},
        task_routes={task.value: {"queue": task.queue} for task in Task},
        task_create_missing_queues=False,
        task_acks_late=True,
        task_reject_on_worker_lost=False,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_publish_retry=False,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_soft_shutdown_timeout=settings.terminate_grace_s + settings.kill_grace_s,
        worker_enable_soft_shutdown_on_idle=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=2,
        broker_transport_options={"visibility_timeout": VISIBILITY_TIMEOUT_S, **connection},
        visibility_timeout=VISIBILITY_TIMEOUT_S,
        enable_utc=True,
    )
    return app


class CeleryQueue:
    """Rings through the broker; after a failure it stays silent for a few seconds instead of delaying callers."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._app = celery_app(settings)
        # Callers wait for a ring: kombu would try for ever to reach a broker that is down.
        self._app.conf.broker_transport_options |= {"max_retries": 0, "socket_timeout": 2}
        self._clock = clock
        self._silent_until = float("-inf")

    def ring(self, task: Task, *resource_ids: str) -> bool:
        return self.announce(task, resource_ids) is not None

    def announce(self, task: Task, resource_ids: Sequence[str]) -> int | None:
        """How many were announced: a crowd of announcements grows no further until workers fetch some, so that a long
        backlog does not fill the broker. None if the broker cannot be reached. Never raises.
        """
        waiting = self.depth(task)
        if waiting is None:
            return None
        announced = resource_ids[: max(0, CROWD - waiting)]
        try:
            for resource_id in announced:
                self._app.send_task(task.value, args=[resource_id], queue=task.queue, retry=False)
        except Exception as error:  # noqa: BLE001 - whatever the broker's client raises, the row is safe
            self._fail(error)
            return None
        return len(announced)

    def depth(self, task: Task) -> int | None:
        if self._clock.monotonic() < self._silent_until:
            return None
        try:
            with self._app.connection_or_acquire() as connection:
                channel: Any = connection.default_channel
                return int(channel.client.llen(task.queue))
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)
            return None

    def close(self) -> None:
        self._app.close()

    def _fail(self, error: Exception) -> None:
        self._silent_until = self._clock.monotonic() + SILENCE_AFTER_FAILURE_S
        log.warning("broker_unreachable", error=str(error))


class BackgroundQueue:
    """Rings in a thread of its own, so that no request waits for the broker, for all at once who came meanwhile."""

    def __init__(self, inner: CeleryQueue) -> None:
        self._inner = inner
        self._waiting: dict[Task, deque[str]] = {task: deque(maxlen=MAX_PENDING) for task in Task}
        self._news = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="ringer", daemon=True)
        self._thread.start()

    def ring(self, task: Task, *resource_ids: str) -> bool:
        self._waiting[task].extend(resource_ids)
        self._news.set()
        return True

    def depth(self, task: Task) -> int | None:
        return self._inner.depth(task)

    def close(self) -> None:
        """Ring what is left, if the broker takes it soon, and end."""
        self._closed = True
        self._news.set()
        self._thread.join(CLOSE_TIMEOUT_S)
        self._inner.close()

    def _work(self) -> None:
        crowded_until = dict.fromkeys(Task, float("-inf"))
        while True:
            self._news.wait(LOOK_AGAIN_S if any(self._waiting.values()) else None)
            self._news.clear()
            is_last = self._closed
            for task, waiting in self._waiting.items():
                if waiting and (is_last or time.monotonic() >= crowded_until[task]):
                    asked = list(waiting)
                    announced = self._inner.announce(task, asked)
                    if announced is not None and announced < len(asked):
                        crowded_until[task] = time.monotonic() + LOOK_AGAIN_S
                    # Whom the broker does not hear of, the reconciler tells it.
                    for _ in asked if announced is None else asked[:announced]:
                        waiting.popleft()
            if is_last:
                return
