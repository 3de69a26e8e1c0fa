"""MLflow's tracking server as a process to compare with, from an environment of its own in the user's cache folder."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.environments import python_with

MLFLOW = "mlflow==3.17.2"
START_TIMEOUT_S = 120.0
CONNECTIONS = 32  # to its database


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Address of MLflow's server with an SQLite store in the folder."""
    python = python_with(MLFLOW)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--default-artifact-root", str(folder)]
    command = [str(python), "-m", "mlflow", "server", *store, "--port", str(port), "--workers", "1"]
    # Its pool has 15 connections, and a 16th request at once may wait 30 s for one, to be refused.
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": str(CONNECTIONS),
    }
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "mlflow.log").read_text(errors="replace"))
            time.sleep(0.2)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5):
            return True
    except OSError:
        return False
