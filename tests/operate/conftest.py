from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from service.shared.clock import SystemClock
from service.shared.db.migrate import upgrade
from service.shared.settings import Settings
from service.shared.storage import Storage
from service.shared.unit_of_work import Database
from tests.everything import fill
from tests.servers import fresh_database, postgres_server_url, redis_url, s3  # noqa: F401
from tests.service.conftest import FakeQueue
from tests.service.webhooks import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SAM3_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _own_hooks() -> Iterator[None]:
    """What a command that runs in this process sets for its end must not stay for other tests."""
    hooks, thread_hook = sys.excepthook, threading.excepthook
    yield
    sys.excepthook, threading.excepthook = hooks, thread_hook
    logging.captureWarnings(capture=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of an installation without a schema."""
    if request.param == "sqlite":
        yield Settings(data_dir=tmp_path / "data")
        return
    with fresh_database(request.getfixturevalue("postgres_server_url")) as url:
        yield Settings(data_dir=tmp_path / "data", database_url=url)


def set_environment(monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"SAM3_{name.upper()}", str(value))


@dataclass(frozen=True)
class Installation:
    settings: Settings
    database: Database
    storage: Storage
    running_job: str


@pytest.fixture
def full(fresh: Settings, tmp_path: Path) -> Iterator[Installation]:
    """An installation with everything in it (`tests.everything`), on each database."""
    with filled(fresh, tmp_path) as installation:
        yield installation


@contextlib.contextmanager
def filled(settings: Settings, folder: Path) -> Iterator[Installation]:
    settings = settings.model_copy(update={"secret_key": KEY})
    upgrade(settings)
    database = Database(settings, SystemClock(), FakeQueue())
    storage = Storage(settings)
    scratch = folder / "scratch"
    scratch.mkdir()
    yield Installation(settings, database, storage, fill(database, settings, storage, scratch))
    database.close()
