"""One job: where it stands, how it learns, what came of it; and word of every change while somebody looks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from fastapi.sse import format_sse_event

from sam3_lora.events import EventType
from service.api import sse
from service.api.deps import AppServices, JobId, ReadUnit, Services
from service.api.job_views import read_job
from service.api.schemas.attempts import attempt_read
from service.api.schemas.checkpoints import checkpoint_read
from service.api.schemas.evaluation import evaluation_read
from service.api.schemas.events import event_read
from service.api.schemas.lists import Read
from service.api.schemas.samples import sample_reads
from service.pages.rendering import PageRoute, page
from service.shared.db.repositories.job_filters import JobFilter
from service.shared.errors import NotFoundError
from service.usecases.evaluation import get_evaluation
from service.usecases.samples import epochs_with_samples, list_samples

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from service.api.schemas.jobs import JobRead
    from service.shared.unit_of_work import UnitOfWork

router = APIRouter(prefix="/ui/jobs/{job_id}", route_class=PageRoute, include_in_schema=False)

EVENTS_SHOWN = 50
COMPARABLE = 30
CALM_S = 1.0  # between two words of a change: a trainer reports ten steps a second
STEPS = (
    ("queued", "Queued"),
    ("preparing", "Preparing"),
    ("training", "Training"),
    ("finalizing", "Finishing"),
    ("done", "Done"),
)
_STEP_OF_PHASE = {
    "starting": "preparing",
    "downloading_dataset": "preparing",
    "loading_model": "preparing",
    "training": "training",
    "evaluating": "training",
    "saving_checkpoint": "training",
    "finalizing": "finalizing",
}
Part = Literal["status", "try", "learning", "results", "events", "checkpoints"]


@router.get("", name="page_job")
def show_job(request: Request, unit: ReadUnit, found: AppServices, job_id: JobId) -> Response:
    """The whole page."""
    job = read_job(unit, found.settings, unit.jobs.get(job_id))
    parts = {name: value for part in PARTS.values() for name, value in part(unit, found, job).items()}
    names = unit.datasets.names({job.dataset_id, *([job.validation_dataset_id] if job.validation_dataset_id else [])})
    # On the same data: else figures say little.
    alike, _ = unit.jobs.list(limit=COMPARABLE, matching=JobFilter(dataset_id=job.dataset_id))
    others = [(each.id, each.name) for each in alike if each.id != job_id]
    return page(request, "job.html", job=job, datasets=names, others=others, **parts)


@router.get("/stream", name="page_job_stream")
async def stream_changes(found: AppServices, job_id: JobId) -> Response:
    """Server-sent events: `changed` at once and whenever the job has, at most once a second, and `done` at its end.

    They say that something is new, not what: a page that was cut off asks for what it lacks and has missed nothing.
    """
    found.broadcaster.check_room()
    await found.watch.look(job_id, found.database.project)
    return sse.EventStream(_changes(found, job_id), found.settings.stream_stall_timeout_s)


@router.get("/learning", name="page_job_learning")
def show_learning(
    request: Request, unit: ReadUnit, found: AppServices, job_id: JobId, epoch: int | None = None
) -> Response:
    """How the model came to see: what it found after an epoch, else after the latest."""
    job = read_job(unit, found.settings, unit.jobs.get(job_id))
    return page(request, "parts/job_learning.html", job=job, **_learning(unit, found, job, epoch))


@router.get("/{part}", name="page_job_part")
def show_part(
    request: Request, unit: ReadUnit, found: AppServices, job_id: JobId, part: Annotated[Part, Path()]
) -> Response:
    """A part of the page, as it is now."""
    job = read_job(unit, found.settings, unit.jobs.get(job_id))
    return page(request, f"parts/job_{part}.html", job=job, **PARTS[part](unit, found, job))


class Changed(Read):
    """How far the job has come: a page compares it with what it shows."""

    events: int


async def _changes(found: Services, job_id: str) -> AsyncGenerator[bytes]:
    with found.broadcaster.counted():
        yield format_sse_event(retry=sse.RETRY_MS)
        view = await found.watch.look(job_id)
        while True:
            yield sse.frame("changed", Changed(events=view.version[2]))
            if view.is_terminal:
                yield sse.frame("done", sse.Done(status="ended"))
                return
            await asyncio.sleep(CALM_S)
            seen = view
            while view.version == seen.version:
                if found.watch.closed:
                    return
                try:
                    view = await found.watch.until(
                        lambda now: now.version != seen.version,  # noqa: B023 - used before it changes
                        seen,
                        found.settings.stream_heartbeat_s,
                    )
                except NotFoundError:  # it was deleted
                    yield sse.frame("done", sse.Done(status="deleted"))
                    return
                if view.version == seen.version:
                    yield format_sse_event(comment="heartbeat")


def _status(_unit: UnitOfWork, _found: Services, job: JobRead) -> dict[str, Any]:
    return {"steps": STEPS, "step": _step(job.status, job.phase)}


def _try(_unit: UnitOfWork, _found: Services, _job: JobRead) -> dict[str, Any]:
    return {}


def _learning(unit: UnitOfWork, found: Services, job: JobRead, epoch: int | None = None) -> dict[str, Any]:
    epochs = epochs_with_samples(unit, job.id)
    shown = epoch if epoch in epochs else max(epochs, default=None)
    samples = [] if shown is None else sample_reads(job.id, list_samples(unit, found.storage, job.id, shown))
    return {"epochs": epochs, "epoch": shown, "followed": samples}


def _results(unit: UnitOfWork, found: Services, job: JobRead) -> dict[str, Any]:
    return {
        "evaluation": evaluation_read(job.id, get_evaluation(unit, job.id), []),
        "samples": sample_reads(job.id, list_samples(unit, found.storage, job.id)),
    }


def _events(unit: UnitOfWork, _found: Services, job: JobRead) -> dict[str, Any]:
    rows = unit.events.list(job.id, limit=EVENTS_SHOWN, descending=True)
    return {"events": [event_read(row) for row in rows if row.type != EventType.ARTIFACT]}  # the page shows the files


def _checkpoints(unit: UnitOfWork, _found: Services, job: JobRead) -> dict[str, Any]:
    return {
        "checkpoints": [checkpoint_read(row) for row in unit.checkpoints.list(job.id)],
        "attempts": [attempt_read(row, job.resources.gpus) for row in unit.attempts.list(job.id)],
    }


PARTS: dict[str, Callable[[UnitOfWork, Services, JobRead], dict[str, Any]]] = {
    "status": _status,
    "try": _try,
    "learning": _learning,
    "results": _results,
    "events": _events,
    "checkpoints": _checkpoints,
}
"""What each part shows besides the job."""


def _step(status: str, phase: str | None) -> str:
    """Which of `STEPS` the job is at."""
    if status == "succeeded":
        return "done"
    if status in ("queued", "validating_files", "paused"):
        return "queued"
    return _STEP_OF_PHASE.get(phase or "starting", "training")
