# Made from `_async` by `make generate`: change it there.
"""What a job tells, as it happens: server-sent events, gone on with where they broke off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
from httpx_sse import EventSource

from sam3_lora.client.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from httpx_sse import ServerSentEvent

    from sam3_lora.client._sync.transport import Transport

NOTHING_MORE = 204


def follow(transport: Transport, path: str, after: int) -> Iterator[ServerSentEvent]:
    """Every event of a stream behind `after`, once and in order, until the stream says that it is done.

    Raises:
        ConnectionFailedError, ApiError: if it broke off and does not go on.
    """
    position = after
    patience = transport.patience()
    while True:
        try:
            with transport.stream(path, {"Last-Event-ID": str(position)}) as response:
                if response.status_code == NOTHING_MORE:
                    return
                for event in EventSource(response).iter_sse():
                    if event.event == "done":
                        return
                    patience.reset()
                    if not event.data:  # it says how soon to come back
                        continue
                    yield event
                    position = int(event.id or position)
            # It ended without a word: the server stops, or something on the way did.
            transport.pause(patience, httpx.RemoteProtocolError("the stream broke off"))
        except (httpx.TransportError, ApiError) as error:
            transport.pause(patience, error)
