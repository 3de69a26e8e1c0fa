"""All pages, as one router, and the files that they load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request, Response
from fastapi.responses import RedirectResponse

from service.pages import (
    access,
    compare,
    comparisons,
    datasets,
    job,
    jobs,
    models,
    new_job,
    sessions,
    sweeps,
    workers,
)
from service.pages.rendering import STATIC_URL, Files, nothing_here

if TYPE_CHECKING:
    from fastapi import FastAPI


def add_pages(app: FastAPI) -> None:
    """Serve the pages at /ui, and lead there from /."""
    for each in (sessions, jobs, new_job, job, compare, sweeps, datasets, models, comparisons, workers, access):
        app.include_router(each.router)
    app.mount(STATIC_URL, Files(), name="static")
    app.add_api_route("/", _start, include_in_schema=False, name="page_root")
    app.add_api_route("/ui/{rest:path}", _nothing, include_in_schema=False, name="page_nothing")


def _start() -> Response:
    return RedirectResponse("/ui", 307)


def _nothing(request: Request, rest: str) -> Response:  # noqa: ARG001 - whatever it is
    return nothing_here(request)
