"""The HTTP server of an API process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import uvicorn

if TYPE_CHECKING:
    import socket


class Server(uvicorn.Server):
    """Uvicorn, which ends streams and long polls when it shuts down: it would wait for them, and they for news."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        services = cast("Any", self.config.app).state.services
        for waiting in (services.broadcaster, services.watch, services.predictions):
            waiting.close()
        await super().shutdown(sockets)
