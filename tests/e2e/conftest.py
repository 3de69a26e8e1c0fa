"""The service that most documents are read beside; a test that needs another has its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.servers import s3  # noqa: F401
from tests.stack import Service, started

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with started(folder, folder / "data") as running:
        yield running
