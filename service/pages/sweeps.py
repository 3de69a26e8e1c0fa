"""Parameter sweeps: the list, and one with its jobs, the best of them marked."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from service.api.deps import ReadUnit
from service.api.schemas.sweeps import sweep_read
from service.pages.paging import SHOWN, Cursor, ways
from service.pages.rendering import PageRoute, page_or_part

router = APIRouter(prefix="/ui/sweeps", route_class=PageRoute, include_in_schema=False)


@router.get("", name="page_sweeps")
def show_sweeps(request: Request, unit: ReadUnit, after: Cursor = None, before: Cursor = None) -> Response:
    """Sweeps, newest first."""
    rows, more = unit.sweeps.list(limit=SHOWN, descending=True, after=after, before=before)
    trials = unit.sweeps.trials([row.id for row in rows])
    return page_or_part(
        request,
        "sweeps",
        sweeps=[sweep_read(row, [trial for trial in trials if trial.sweep_id == row.id]) for row in rows],
        query=request.url.query,
        **ways(rows, more=more, after=after, before=before),
    )


@router.get("/{sweep_id}", name="page_sweep")
def show_sweep(request: Request, unit: ReadUnit, sweep_id: Annotated[str, Path(max_length=64)]) -> Response:
    """One sweep: what each of its jobs tries, and how it did."""
    sweep = sweep_read(unit.sweeps.get(sweep_id), unit.sweeps.trials([sweep_id]))
    return page_or_part(request, "sweep", sweep=sweep, parameters=list(sweep.request.get("parameters", {})))
