"""One thread for torch: the models here are small, and spinning threads on a busy machine cost minutes."""

import logging
import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _same_umask() -> Iterator[None]:
    """Commands that run in this process keep their files private; those of later tests other users have to read."""
    before = os.umask(0)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def _same_logging() -> Iterator[None]:
    """Commands that run in this process log to the streams of their test, which are closed when it has ended."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
