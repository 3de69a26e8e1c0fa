"""The Celery task behind webhooks: a doorbell. Which delivery is sent is the database's decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.shared.queue import Task

if TYPE_CHECKING:
    from celery import Celery

    from worker.webhooks import Senders


def register(app: Celery, senders: Senders) -> None:
    """Have messages on the `cpu` queue wake a sender."""

    def deliver(delivery_id: str) -> None:  # noqa: ARG001 - for people who read the queue
        senders.ring()

    app.task(name=Task.DELIVER.value)(deliver)
