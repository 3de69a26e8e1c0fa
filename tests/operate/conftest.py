from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from service.shared.settings import Settings
from tests.servers import fresh_database, postgres_server_url, redis_url, s3  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SAM3_"):
            monkeypatch.delenv(name)


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
