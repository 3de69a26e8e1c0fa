"""The HTTP server of an API process, and whether there is a place for it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from service.connections import Connection
from service.shared import checks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

    from service.shared.checks import Finding
    from service.shared.settings import Settings


def free_port(host: str, port: int) -> int:
    """The port, if it can be listened on; any free one for 0.

    Raises:
        OSError: if it cannot.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        return int(listener.getsockname()[1])


def listening(settings: Settings) -> Iterator[Finding]:
    """Whether the API can listen where it is to."""
    try:
        free_port(settings.host, settings.port)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        message = f"cannot listen on {settings.host} port {settings.port}: {reason}"
        yield checks.fault("port", message, "choose another SAM3_PORT (--port), or stop what listens there")
    else:
        yield checks.ok("port", f"{settings.host} port {settings.port} is free")


def configured(application: FastAPI, **options: Any) -> uvicorn.Config:
    """How every server of the application is set up; `options` of uvicorn's own say where it listens."""
    return uvicorn.Config(
        application,
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        **options,
    )


class Server(uvicorn.Server):
    """Uvicorn, which ends streams and long polls when it shuts down: it would wait for them, and they for news."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        services = cast("Any", self.config.app).state.services
        for waiting in (services.broadcaster, services.watch, services.predictions):
            waiting.close()
        await super().shutdown(sockets)
