"""Does the API bear a team for ten minutes? 200 pollers, 50 followers of streams and steady submits, by Locust.

`sam3-service api` and the reconciler are processes; this one is the workers: it claims jobs, writes their events and
metrics once a second and ends them, by the code that a worker does it with. Everything, Locust too, shares the machine.
An error is any answer but the expected one, and any event that is missing or out of order. Memory is the API's: at the
end against the end of the first quarter, when caches and pools are full.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks import record
from benchmarks.api_process import free_port, running
from benchmarks.environments import python_with
from benchmarks.live_job import observer_of, open_database, ready_dataset, running_job, tell
from service.shared.db.repositories.events import NewEvent
from service.shared.settings import Settings
from service.shared.states import JobState
from service.shared.unit_of_work import Database
from tests.servers import fresh_database, postgres_server, redis_server

LOCUST = "locust==2.47.0"
USERS_FILE = Path(__file__).with_name("locustfile.py")
RUNNING = 20
JOB_S = 30  # seconds that a job runs here


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    python = python_with(LOCUST)
    rows: list[dict[str, Any]] = []
    for kind in options.databases:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            url = ""
            if kind == "postgresql":
                url = stack.enter_context(fresh_database(stack.enter_context(postgres_server())))
            (Path(folder) / "broker").mkdir()
            broker = stack.enter_context(redis_server(Path(folder) / "broker"))
            settings = Settings(data_dir=Path(folder) / "data", database_url=url, broker_url=broker, port=free_port())
            rows.append({"database": kind, **measure(settings, python, options)})
        print(f"  {rows[-1]}", flush=True)
    details = {"users": vars(options) | {"output": None}}
    print(f"written to {record.write('load', rows, path=options.output, **details)}")
    return report(rows)


def measure(settings: Settings, python: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the users met, and the API's memory meanwhile, in MB."""
    database = open_database(settings)
    dataset_id = ready_dataset(database)
    values = {"data_dir": settings.data_dir, "database_url": settings.database_url, "port": settings.port}
    values |= {"broker_url": settings.broker_url, "log_level": "WARNING"}
    environment = {f"SAM3_{name.upper()}": str(value) for name, value in values.items()}
    jobs_file, figures = settings.data_dir / "running", settings.data_dir / "figures.json"
    users = {
        "LOAD_JOBS": jobs_file,
        "LOAD_DATASET": dataset_id,
        "LOAD_FIGURES": figures,
        "LOAD_POLLERS": options.pollers,
        "LOAD_FOLLOWERS": options.followers,
        "LOAD_SUBMITTERS": options.submitters,
    }
    total = options.pollers + options.followers + options.submitters
    command = [python, "-m", "locust", "--headless", "--only-summary", "--locustfile", USERS_FILE]
    command += ["--host", f"http://127.0.0.1:{settings.port}", "--users", total, "--spawn-rate", max(1, total // 10)]
    command += ["--run-time", f"{options.seconds}s", "--stop-timeout", 0]
    with (
        running(["-m", "service.cli", "api"], settings.port, **environment) as api,
        _reconciler(environment),
        _workers(database, dataset_id, settings.data_dir / "logs-of-jobs", jobs_file),
        _Memory(api.pid) as memory,
    ):
        subprocess.run(
            [str(part) for part in command],
            env=os.environ | {name: str(value) for name, value in users.items()},
            check=False,  # it fails if any request did: those are reported below
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    database.close()
    return {**json.loads(figures.read_text()), **memory.figures()}


@contextlib.contextmanager
def _reconciler(environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "service.reconciler"], env=os.environ | environment)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def _workers(database: Database, dataset_id: str, folder: Path, jobs_file: Path) -> Iterator[None]:
    """Keeps so many jobs running, each for `JOB_S` seconds, from when the first ones do until this is left."""
    stop, started = threading.Event(), threading.Event()
    folder.mkdir()

    def work() -> None:
        held: list[_Run] = []
        number = 0
        while not stop.is_set():
            turn_at = time.monotonic()
            while len(held) < RUNNING:
                # They end one after the other, not all at once.
                held.append(_Run(database, dataset_id, folder, turn_at + JOB_S * (1 - number % RUNNING / RUNNING)))
                number += 1
            jobs_file.with_suffix(".new").write_text("\n".join(run.job.id for run in held))
            jobs_file.with_suffix(".new").replace(jobs_file)
            started.set()
            for run in held:
                run.step()
            for run in [run for run in held if turn_at > run.until]:
                run.end()
                held.remove(run)
            stop.wait(max(0.0, turn_at + 1 - time.monotonic()))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while not started.wait(0.1):
            if not thread.is_alive():
                raise RuntimeError("no job could be started")
        yield
    finally:
        stop.set()
        thread.join()


class _Run:
    """A job that is being trained, as far as the database can tell."""

    def __init__(self, database: Database, dataset_id: str, folder: Path, until: float) -> None:
        self._database = database
        self._steps = 0
        self.until = until
        self.job = running_job(database, dataset_id, priority=90)  # claimed before those that users submit
        self._log = folder / self.job.id
        self._observer = observer_of(database, self.job, self._log)

    def step(self) -> None:
        self._steps += 1
        tell(self._observer, self._log, self._steps)
        self._observer.flush()
        with self._database.write() as unit:
            unit.events.append(self.job.id, self.job.epoch, [NewEvent("message", f"step {self._steps}", {})])
            unit.attempts.heartbeat(self.job.id, self.job.epoch)

    def end(self) -> None:
        with self._database.write() as unit:
            unit.attempts.finish(self.job.id, self.job.epoch, JobState.SUCCEEDED, result={})


class _Memory:
    """Resident memory of a process, in MB, once a second while this is entered."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._seen: list[float] = []

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def figures(self) -> dict[str, float]:
        """Medians of ten seconds at the end of the first quarter and at the end."""
        quarter = self._seen[: max(1, len(self._seen) // 4)]
        return {"early_mb": round(median(quarter[-10:])), "late_mb": round(median(self._seen[-10:]))}

    def _watch(self) -> None:
        while not self._stop.wait(1):
            self._seen.append(self._process.memory_info().rss / 1e6)


def report(rows: list[dict[str, Any]]) -> int:
    """A Markdown table, and the lines for scripts; 1 if there was an error."""
    print("\n| database | request | number | failed | p50 ms | p99 ms |\n" + "|---" * 6 + "|")
    for row in rows:
        for each in row["requests"]:
            values = (each[name] for name in ("request", "requests", "failures", "p50_ms", "p99_ms"))
            print(f"| {row['database']} | " + " | ".join(map(str, values)) + " |")
        for error in row["errors"]:
            print(f"  {row['database']}: {error}")
    print()
    failed = 0
    for row in rows:
        failures, number = (sum(each[name] for each in row["requests"]) for name in ("failures", "requests"))
        print(f"load-{row['database']}-failed ratio={failures / number:.4f} target=0.00 (at most)")
        print(f"load-{row['database']}-memory ratio={row['late_mb'] / row['early_mb']:.2f} target=1.10 (at most)")
        failed += failures
    return int(failed > 0)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks load", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--pollers", type=int, default=200)
    parser.add_argument("--followers", type=int, default=50)
    parser.add_argument("--submitters", type=int, default=4, help="each creates a job every two seconds")
    parser.add_argument("--databases", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"])
    parser.add_argument("--output", type=Path, help="JSON file, instead of results/load.json")
    return parser.parse_args(arguments)
