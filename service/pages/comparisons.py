"""Two models measured on one dataset."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from service.api.deps import ReadUnit
from service.api.schemas.comparisons import ComparisonRead, comparison_read
from service.pages.rendering import PageRoute, page_or_part

router = APIRouter(prefix="/ui/comparisons", route_class=PageRoute, include_in_schema=False)


@router.get("/{comparison_id}", name="page_comparison")
def show_comparison(request: Request, unit: ReadUnit, comparison_id: Annotated[str, Path(max_length=64)]) -> Response:
    """How far it is, and which of the two does better."""
    read = comparison_read(unit.comparisons.get(comparison_id))
    names = unit.datasets.names({read.dataset_id})
    return page_or_part(request, "comparison", comparison=read, datasets=names, better=better_of(read))


def better_of(comparison: ComparisonRead) -> str | None:
    """Name of the model that does better, if one does."""
    better = None if comparison.result is None else comparison.result.better
    return next((model.name for model in comparison.models if model.model == better), None)
