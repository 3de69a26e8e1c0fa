"""Query strings say what they mean: no parameter is ignored, none that has one value is given twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from service.api.authentication import PAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import Request
    from fastapi.dependencies.models import Dependant
    from fastapi.routing import APIRoute


@dataclass
class _Parameters:
    names: set[str] = field(default_factory=set)
    lists: set[str] = field(default_factory=set)
    """Those that may be repeated."""
    are_checked: bool = False
    """Whether a model of the operation's own refuses others."""


def require_known_query(request: Request) -> None:
    """Raise RequestValidationError, naming each, for parameters that the operation does not have or that come twice."""
    if not request.scope["query_string"] or request.scope["path"].startswith(PAGES):
        return
    known = _parameters(request.scope["route"])
    faults = []
    for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in known.names and not known.are_checked:
            others = f"only {', '.join(sorted(known.names))}" if known.names else "none"
            faults.append(_fault(name, "extra_forbidden", f"there is no such parameter here, {others}"))
        elif count > 1 and name not in known.lists:
            faults.append(_fault(name, "given_twice", "give it once"))
    if faults:
        raise RequestValidationError(faults)


def _fault(name: str, code: str, message: str) -> dict[str, Any]:
    """As FastAPI finds them itself."""
    return {"loc": ("query", name), "type": code, "msg": message}


def _parameters(route: APIRoute) -> _Parameters:
    found = _Parameters()
    for parameter in _query_fields(route.dependant):
        annotation = parameter.field_info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.are_checked = annotation.model_config.get("extra") == "forbid"
            members = {name: member.annotation for name, member in annotation.model_fields.items()}
        else:
            members = {parameter.alias: annotation}
        found.names |= members.keys()
        found.lists |= {name for name, kind in members.items() if _is_list(kind)}
    return found


def _query_fields(dependant: Dependant) -> Iterator[Any]:
    yield from dependant.query_params
    for inner in dependant.dependencies:
        yield from _query_fields(inner)


def _is_list(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin in (Union, UnionType, Annotated):
        return any(_is_list(inner) for inner in get_args(annotation))
    return origin is list
