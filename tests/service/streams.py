"""Clients of streams."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.shared.db.repositories.events import NewEvent
from service.shared.states import JobState
from tests.service.conftest import Api

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from service.shared.unit_of_work import Database
    from service.usecases.following import Broadcaster


@dataclass
class Frame:
    """One event of a stream; a comment is a frame of its own."""

    id: str | None = None
    event: str | None = None
    data: Any = None
    comment: str | None = None
    retry: str | None = None


def frames(response: httpx.Response) -> Iterator[Frame]:
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(":")
            fields[name or "comment"] = value.removeprefix(" ")
        elif fields:
            data = json.loads(fields.pop("data", "null"))
            yield Frame(**fields, data=data)
            fields = {}


@contextmanager
def followed(api: Api, path: str, **headers: str) -> Iterator[Iterator[Frame]]:
    """Frames of an open stream, without comments and the first `retry`."""
    with api.client.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        yield (frame for frame in frames(response) if frame.event)


def read_all(api: Api, path: str, **headers: str) -> list[Frame]:
    with followed(api, path, **headers) as stream:
        return list(stream)


def say(database: Database, lease: tuple[str, int], *messages: str) -> None:
    with database.write() as unit:
        unit.events.append(*lease, [NewEvent("message", message) for message in messages])


def finish(database: Database, lease: tuple[str, int]) -> None:
    with database.write() as unit:
        unit.attempts.finish(*lease, JobState.SUCCEEDED, result={})


def broadcaster(api: Api) -> Broadcaster:
    return api.app.state.services.broadcaster


def path_of(lease: tuple[str, int], what: str = "events") -> str:
    return f"/v1/jobs/{lease[0]}/{what}/stream"
