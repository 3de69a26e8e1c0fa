"""How torch's CPU threads wait for each other; torch-free, since it must be said before torch is imported."""

from __future__ import annotations

import os


def wait_without_spinning() -> None:
    """Let threads sleep while they wait, unless the environment says otherwise.

    By default they spin, at full load, for the slowest among them. Where another process has one of the cores that one
    is not even running: a training step took ten times as long on two cores of which one was busy.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
