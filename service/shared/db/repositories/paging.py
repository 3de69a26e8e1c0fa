"""Pages of lists: by key, never by offset, so that new rows shift nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import tuple_

from service.shared.db.models import Comparison, Dataset, Job, Model, Sweep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

Listed = TypeVar("Listed", Job, Dataset, Model, Sweep, Comparison)


def page(
    session: Session,
    query: Select[Listed],
    model: type[Listed],
    *,
    limit: int,
    descending: bool,
    after: Listed | None,
    before: Listed | None,
) -> tuple[Sequence[Listed], bool]:
    """At most `limit` rows of the query in order of creation, and whether there are more in that direction.

    The page begins behind `after`; with `before` it is the one that ends there.
    """
    position = tuple_(model.created_at, model.id)
    backwards = before is not None
    for cursor, later in ((after, not descending), (before, descending)):
        if cursor is not None:
            mark = tuple_(cursor.created_at, cursor.id)
            query = query.where(position > mark if later else position < mark)
    newest_first = descending != backwards
    order = (model.created_at.desc(), model.id.desc()) if newest_first else (model.created_at, model.id)
    rows = list(session.scalars(query.order_by(*order).limit(limit + 1)))
    found = rows[:limit]
    return (found[::-1] if backwards else found), len(rows) > limit
