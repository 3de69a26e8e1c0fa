"""Tuned models: the list, and one with all that can be done with it. They stay when their job is deleted."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from service.api.deps import AppServices, ReadUnit
from service.api.schemas.comparisons import comparison_read
from service.api.schemas.models import model_read
from service.pages.comparisons import better_of
from service.pages.paging import SHOWN, Cursor, ways
from service.pages.rendering import PageRoute, page, page_or_part
from service.shared.states import DatasetState

router = APIRouter(prefix="/ui/models", route_class=PageRoute, include_in_schema=False)

OFFERED = 50
ModelId = Annotated[str, Path(max_length=64)]


@router.get("", name="page_models")
def show_models(request: Request, unit: ReadUnit, after: Cursor = None, before: Cursor = None) -> Response:
    """Models, newest first."""
    rows, more = unit.models.list(limit=SHOWN, after=after, before=before)
    return page_or_part(
        request,
        "models",
        models=[model_read(row) for row in rows],
        query=request.url.query,
        **ways(rows, more=more, after=after, before=before),
    )


@router.get("/{model_id}", name="page_model")
def show_model(request: Request, unit: ReadUnit, found: AppServices, model_id: ModelId) -> Response:
    """One model: try it, take it away, have it measured against another."""
    model = model_read(unit.models.get(model_id))
    compared, _ = unit.comparisons.list(limit=SHOWN, descending=True, after=None, before=None, model=model_id)
    others, _ = unit.models.list(limit=OFFERED)
    datasets, _ = unit.datasets.list(limit=OFFERED, states=[DatasetState.READY])
    return page(
        request,
        "model.html",
        model=model,
        comparisons=[(read, better_of(read)) for read in map(comparison_read, compared)],
        others=[*((base, f"{base}, not tuned") for base in found.settings.base_models)]
        + [(row.id, row.name) for row in others if row.id != model_id],
        datasets=[(row.id, row.name) for row in datasets],
    )
