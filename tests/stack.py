"""A running service for tests: the embedded one as a process tree, or its parts against PostgreSQL and Valkey."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.servers import free_port, fresh_database, postgres_server, redis_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START_TIMEOUT_S = 90.0
NAMES = {
    "broker": "valkey-server",
    "api": "service.cli",
    "gpu-worker": "gpu",
    "cpu-worker": "cpu",
    "predictor": "predict",
    "reconciler": "service.reconciler",
}


@dataclass
class Service:
    process: subprocess.Popen[bytes]
    url: str
    data_dir: Path
    output: Path

    def child(self, name: str) -> psutil.Process | None:
        for process in self.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(NAMES[name] in part for part in process.cmdline()):
                    return process
        return None

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)


def command(data_dir: Path, port: int, ready_file: Path) -> list[str]:
    options = ["--data-dir", str(data_dir), "--port", str(port), "--ready-file", str(ready_file)]
    return [sys.executable, "-m", "service.embedded", *options]


@contextlib.contextmanager
def started(folder: Path, data_dir: Path, *, port: int = 0, **settings: object) -> Iterator[Service]:
    """The embedded service in `data_dir`; its output goes to `folder`."""
    ready, output = folder / "ready", folder / "output"
    environment = os.environ | {f"SAM3_{name.upper()}": str(value) for name, value in settings.items()}
    with output.open("wb") as log:
        process = subprocess.Popen(command(data_dir, port, ready), stdout=log, stderr=log, env=environment)
    try:
        wait_until(lambda: ready.exists() or process.poll() is not None, START_TIMEOUT_S)
        assert process.poll() is None, output.read_text()
        yield Service(process, ready.read_text().strip(), data_dir, output)
    finally:
        process.terminate()
        try:
            process.wait(25)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(is_so: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


@contextlib.contextmanager
def production(folder: Path, **settings: object) -> Iterator[str]:
    """URL of API, reconciler and workers as a deployment runs them, on a real PostgreSQL and Valkey."""
    port = free_port()
    with postgres_server() as server, fresh_database(server) as database, redis_server() as broker:
        values = {"data_dir": folder / "data", "database_url": database, "broker_url": broker, "port": port, **settings}
        environment = os.environ | {f"SAM3_{name.upper()}": str(value) for name, value in values.items()}
        run = [sys.executable, "-m"]
        subprocess.run([*run, "service.cli", "migrate"], env=environment, check=True, capture_output=True, timeout=60)
        programs = [
            ["service.cli", "api"],
            ["service.reconciler"],
            ["worker.app", "--queue", "gpu"],
            ["worker.app", "--queue", "cpu"],
            ["worker.app", "--queue", "predict"],
        ]
        processes = []
        with (folder / "output").open("wb") as log:
            for program in programs:
                processes.append(subprocess.Popen([*run, *program], stdout=log, stderr=log, env=environment))
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: _answers(url), START_TIMEOUT_S)
            yield url
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url + "/livez", timeout=5):
        return True
    return False
