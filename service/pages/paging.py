"""Lists in pages: which rows, and the ways to those before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Query

if TYPE_CHECKING:
    from collections.abc import Sequence

SHOWN = 25
Cursor = Annotated[str | None, Query(max_length=64)]


def ways(rows: Sequence[Any], *, more: bool, after: str | None, before: str | None) -> dict[str, str | None]:
    """Cursors to `newer` and `older` rows, None where there are none.

    Args:
        rows: of the page, newest first.
        more: whether others follow in the direction that was asked for.
        after: cursor that was asked for, as `before`.
    """
    has_newer, has_older = (more, True) if before is not None else (after is not None, more)
    return {
        "newer": rows[0].id if rows and has_newer else None,
        "older": rows[-1].id if rows and has_older else None,
    }
