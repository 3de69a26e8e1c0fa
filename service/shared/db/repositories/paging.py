"""Pages of lists: by key, never by offset, so that new rows shift nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import tuple_

from service.shared.db.models import Comparison, Dataset, Job, Model, Sweep, Upload, WebhookDelivery, WebhookEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sqlalchemy import Select
    from sqlalchemy.orm import Mapped, Session

Listed = TypeVar("Listed", Job, Dataset, Model, Sweep, Comparison, Upload, WebhookEndpoint, WebhookDelivery)


def page(
    session: Session,
    query: Select[Listed],
    model: type[Listed],
    *,
    limit: int,
    descending: bool,
    after: str | None,
    before: str | None,
    get: Callable[[str], Listed],
    position: tuple[Mapped[datetime], Mapped[str]] | None = None,
) -> tuple[Sequence[Listed], bool]:
    """At most `limit` rows of the query in order of creation, and whether there are more in that direction.

    The page begins behind the row `after`, which `get` finds; with `before` it is the one that ends there. `position`:
    columns equal to the model's time of creation and id that the query has an index for.
    """
    created_at, row_id = position or (model.created_at, model.id)
    place = tuple_(created_at, row_id)
    backwards = before is not None
    for cursor_id, later in ((after, not descending), (before, descending)):
        if cursor_id is not None:
            cursor = get(cursor_id)
            mark = tuple_(cursor.created_at, cursor.id)
            query = query.where(place > mark if later else place < mark)
    newest_first = descending != backwards
    order = (created_at.desc(), row_id.desc()) if newest_first else (created_at, row_id)
    rows = list(session.scalars(query.order_by(*order).limit(limit + 1)))
    found = rows[:limit]
    return (found[::-1] if backwards else found), len(rows) > limit
