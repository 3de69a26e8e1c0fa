"""Pages of lists: keyset, never offset."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypedDict, TypeVar

from fastapi import Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from service.shared.errors import NotFoundError

T = TypeVar("T")


def _split(values: Any) -> Any:
    return [part for value in values for part in value.split(",")] if isinstance(values, list) else values


Separated = BeforeValidator(_split)
"""Lets a list in a query be given by repeating the parameter, or separated by commas."""


class Read(BaseModel):
    """Base of what the service answers."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Stored(Read, extra="allow"):
    """Base of what is stored as JSON: rows of other versions may lack some of it and have more."""


class Failure(Stored):
    """Why something failed."""

    code: str | None = None
    """Stable name, for programs."""
    message: str | None = None
    """What went wrong."""
    hint: str | None = None
    """What to do about it; may be empty."""
    retryable: bool | None = None
    """Whether the same may succeed later."""


@dataclass(frozen=True)
class Like:
    """Has the document describe a free-form object, or a list of such, as this type. It is answered as it is stored,
    whichever version stored it.
    """

    kind: Any

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(TypeAdapter(self.kind).core_schema)


class Page(Read, Generic[T]):
    """A page of a list."""

    object: Literal["list"] = "list"
    data: list[T]
    """The items of this page, in the order that was asked for."""
    first_id: str | None
    """Give it as `before` to get the page before."""
    last_id: str | None
    """Give it as `after` to get the next page."""
    has_more: bool
    """Whether more follow: after this page, or before it where `before` was given."""


class Window(TypedDict):
    """A page as repositories are asked for it."""

    limit: int
    descending: bool
    after: str | None
    before: str | None


class PageQuery(BaseModel):
    """Which page."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    after: str | None = Field(None, max_length=64)
    """Id of the item after which the page begins."""
    before: str | None = Field(None, max_length=64)
    """Id of the item before which the page ends."""
    limit: int = Field(20, ge=1, le=100)
    """Largest number of items."""
    order: Literal["asc", "desc"] = "desc"
    """By time of creation."""

    def window(self) -> Window:
        """The same as the arguments of a repository's `list`."""
        return Window(limit=self.limit, descending=self.order == "desc", after=self.after, before=self.before)


Row = TypeVar("Row")
PageOf = Annotated[PageQuery, Query()]


def page_of(rows: Sequence[Row], has_more: bool, read: Callable[[Row], T], id_of: Callable[[T], str]) -> Page[T]:
    """A page of rows that were asked for as `PageQuery.window` says."""
    data = [read(row) for row in rows]
    first, last = (id_of(data[0]), id_of(data[-1])) if data else (None, None)
    return Page(data=data, first_id=first, last_id=last, has_more=has_more)


def cut(rows: Sequence[Row], window: Window, id_of: Callable[[Row], str]) -> tuple[Sequence[Row], bool]:
    """What a repository's `list` gives, of a list that is short by nature and given whole, oldest first.

    Raises:
        NotFoundError: if the list has no item that `after` or `before` names.
    """
    ordered = rows[::-1] if window["descending"] else rows
    after, before, limit = window["after"], window["before"], window["limit"]
    places = {id_of(row): place for place, row in enumerate(ordered)}
    for cursor in (after, before):
        if cursor is not None and cursor not in places:
            raise NotFoundError(f"The list has no item {cursor!r}; a newer one may have taken its place.")
    begin = 0 if after is None else places[after] + 1
    if before is None:
        return ordered[begin : begin + limit], begin + limit < len(ordered)
    end = places[before]
    return ordered[max(begin, end - limit) : end], end - limit > begin
