"""The Celery task behind `POST /comparisons`: a doorbell. Which comparison is made is the database's decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.shared.queue import Task

if TYPE_CHECKING:
    from celery import Celery

    from worker.station import Station


def register(app: Celery, station: Station) -> None:
    """Have messages on the `gpu` queue make the comparisons that are due, oldest first."""

    def compare(comparison_id: str) -> None:  # noqa: ARG001 - for people who read the queue
        station.ring()

    app.task(name=Task.COMPARE.value)(compare)
