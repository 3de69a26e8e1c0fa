# Made from `_async` by `make generate`: change it there.
"""Lists that come in pages, as if they did not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sam3_lora.client._sync.transport import Transport

T = TypeVar("T")
PAGE = 100


def every(
    transport: Transport, path: str, made: Callable[[dict[str, Any]], T], limit: int | None, **query: Any
) -> Iterator[T]:
    """Every item of a list, the newest first; at most `limit` of them.

    Args:
        query: None: not asked for.
    """
    params = {name: value for name, value in query.items() if value is not None}
    left = limit
    while left is None or left > 0:
        params["limit"] = PAGE if left is None else min(PAGE, left)
        page = transport.json("GET", path, params=params)
        for item in page["data"]:
            yield made(item)
        if not page["has_more"]:
            return
        left = None if left is None else left - len(page["data"])
        params["after"] = page["last_id"]
