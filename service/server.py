"""The HTTP server of an API process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import uvicorn

if TYPE_CHECKING:
    import socket


class Server(uvicorn.Server):
    """Uvicorn, which ends open streams when it shuts down: it would wait for them, and they for the next event."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        cast("Any", self.config.app).state.services.broadcaster.close()
        await super().shutdown(sockets)
