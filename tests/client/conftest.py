"""A served application, and clients that are patient for a short time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sam3_lora.client import Client, _patience
from service.shared import log as logs
from service.shared.db.migrate import upgrade
from service.shared.settings import Settings
from tests.service.conftest import FAST_STREAMS, Api, empty, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory of earlier uploads, no key of whoever runs this; faults are tried again soon."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("SAM3_API_URL", "SAM3_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_patience, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(_patience, "LONGEST_DELAY_S", 0.2)


@pytest.fixture(scope="session", autouse=True)
def _quiet_server() -> None:
    logs.configure("ERROR", "test")


@pytest.fixture(scope="session")
def served_for_clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("client"), upload_idle_timeout_s=1)
    upgrade(settings)
    with served(settings.model_copy(update=FAST_STREAMS)) as api:
        yield api


@pytest.fixture
def api(served_for_clients: Api) -> Api:
    empty(served_for_clients.settings)
    return served_for_clients


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with Client(str(api.client.base_url), retry_for_s=10) as found:
        yield found
