"""The form for a new job, made from the schema of its configuration: what is added there is offered here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from sam3_lora.config import JobConfig
from service.api.deps import AppServices, ReadUnit
from service.pages.rendering import PageRoute, page
from service.shared.states import DatasetState
from service.usecases.recipes import find_recipe

router = APIRouter(prefix="/ui/new-job", route_class=PageRoute, include_in_schema=False)

DATASETS_OFFERED = 100
# What nearly everybody decides; all else keeps its default until somebody opens it.
FIRST = (
    "training.max_epochs",
    "training.batch_size",
    "training.learning_rate",
    "lora.rank",
    "lora.alpha",
    "dataset.val_fraction",
)
SECTIONS = {"lora": "Adapter", "dataset": "Data", "training": "Training", "evaluation": "Evaluation"}


@dataclass(frozen=True)
class Field:
    """One value of the configuration."""

    path: str
    """Such as `training.max_epochs`."""
    label: str
    hint: str
    kind: str
    """integer, number, boolean, choice, or json for what has parts."""
    default: Any
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    is_optional: bool = False
    """Empty means null."""


@router.get("", name="page_new_job")
def show_form(
    request: Request,
    unit: ReadUnit,
    found: AppServices,
    dataset: Annotated[str | None, Query(max_length=64)] = None,
    base: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """The form, with what is suggested for the base model."""
    bases = found.settings.base_models
    chosen = base if base in bases else bases[0]
    rows, _ = unit.datasets.list(limit=DATASETS_OFFERED, states=[DatasetState.READY, DatasetState.PROCESSING])
    suggested = find_recipe(found.settings, chosen).template["config"]
    offered = [(row.id, row.name) for row in rows]
    if dataset is not None and dataset not in dict(offered):
        offered.append((dataset, unit.datasets.get(dataset).name))
    return page(
        request,
        "new_job.html",
        bases=bases,
        base=chosen,
        datasets=offered,
        dataset=dataset,
        first=[each for path in FIRST for each in fields() if each.path == path],
        sections=[
            (title, [each for each in fields() if each.path.startswith(f"{name}.") and each.path not in FIRST])
            for name, title in SECTIONS.items()
        ],
        suggested={
            f"{section}.{name}": value for section, values in suggested.items() for name, value in values.items()
        },
    )


@cache
def fields() -> tuple[Field, ...]:
    """Everything that a configuration may set, in the order of the schema."""
    schema = JobConfig.model_json_schema()
    found = []
    for section, place in schema["properties"].items():
        described = schema["$defs"][place["$ref"].rpartition("/")[2]]["properties"]
        found += [_field(f"{section}.{name}", about) for name, about in described.items()]
    return tuple(found)


def _field(path: str, about: dict[str, Any]) -> Field:
    kinds = [kind for kind in about.get("anyOf", [about]) if kind.get("type") != "null"]
    kind = kinds[0]
    is_simple = len(kinds) == 1 and kind.get("type") in ("integer", "number", "boolean", "string")
    label = path.partition(".")[2].replace("_", " ")
    return Field(
        path=path,
        label=label[:1].upper() + label[1:],
        hint=about.get("description", ""),
        kind="choice" if "enum" in kind else kind["type"] if is_simple else "json",
        default=about["default"],
        least=kind.get("minimum", kind.get("exclusiveMinimum", kind.get("gt"))),
        most=kind.get("maximum", kind.get("exclusiveMaximum", kind.get("le"))),
        choices=tuple(kind.get("enum", ())),
        is_optional="anyOf" in about,
    )
