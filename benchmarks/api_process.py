"""The API as users run it, in a process of its own with its data in a folder, and how much memory that took."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from service.shared.db.migrate import upgrade
from service.shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

START_TIMEOUT_S = 60.0


@contextlib.contextmanager
def running(command: list[str], port: int, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that answers on this machine's port."""
    process = subprocess.Popen([sys.executable, *command], env=os.environ | environment)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/livez")
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command} did not start")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def api(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """`sam3-service api` on a fresh database."""
    upgrade(settings)
    values = {"SAM3_DATA_DIR": str(settings.data_dir), "SAM3_PORT": str(settings.port), "SAM3_LOG_LEVEL": "ERROR"}
    with running(["-m", "service.cli", "api"], settings.port, **values) as process:
        yield process


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def peak_mb(process: subprocess.Popen[bytes]) -> float:
    """Most memory that the process ever had resident, in MB (the kernel's VmHWM)."""
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
    kibibytes = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(kibibytes) * 1024 / 1e6
