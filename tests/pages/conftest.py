"""Applications with pages: one that asks for keys, one that does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from service.shared.db.migrate import upgrade
from service.shared.settings import Settings
from tests.service.conftest import Api, empty, served

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def served_with_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("pages-keys"), require_keys=True, max_failed_keys=1000)
    upgrade(settings)
    with served(settings) as api:
        yield api


@pytest.fixture
def locked(served_with_keys: Api) -> Api:
    """An application that asks for keys, on SQLite, empty."""
    empty(served_with_keys.settings)
    return served_with_keys


@pytest.fixture(scope="session")
def served_open(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("pages-open"))
    upgrade(settings)
    with served(settings) as api:
        yield api


@pytest.fixture
def site(served_open: Api) -> Api:
    """An application that asks nobody for a key, on SQLite, empty."""
    empty(served_open.settings)
    return served_open
