"""Do 500 clients that follow live jobs get every event, in order, and how soon?

The server is a process of its own, `sam3-service api`; this one is the worker, which writes an event of each job at a
time, and all the clients: plain sockets that count lines, since what they take is missing to the server. Latency is
the time from a commit to a client's having read the event.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import record
from benchmarks.live_job import open_database, running_job
from service.shared.db.models import Job
from service.shared.db.repositories.events import NewEvent
from service.shared.settings import Settings
from service.shared.states import JobState
from service.shared.unit_of_work import Database

START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 120.0


@dataclass
class Follower:
    """One client: numbers of the events it got, when, and whether the stream ended as it should."""

    job_id: str
    received: list[tuple[int, float]] = field(default_factory=list)
    is_done: bool = False

    async def follow(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /v1/jobs/{self.job_id}/events/stream HTTP/1.1\r\nHost: benchmark\r\n\r\n".encode())
        while line := await reader.readline():
            if line.startswith(b"id: "):
                self.received.append((int(line[4:]), time.monotonic()))
            elif line == b"event: done\n":
                self.is_done = True
                break
        writer.close()


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # each connection is an open file
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), port=_free_port(), max_streams=options.followers)
        database = open_database(settings)
        jobs = [running_job(database) for _ in range(options.jobs)]
        with api_process(settings) as server:
            row = measure(server, settings.port, database, jobs, options)
        database.close()
    print(f"  {row}", flush=True)
    if not options.quick or options.output is not None:
        print(f"written to {record.write('sse', [row], path=options.output, interval_s=options.interval)}")
    print(f"sse ratio={row['received'] / row['expected']:.4f} target=1.00")
    return 0


def measure(
    server: psutil.Process, port: int, database: Database, jobs: list[Job], options: argparse.Namespace
) -> dict[str, Any]:
    """Follow the jobs, write their events, and count."""
    followers = [Follower(jobs[number % len(jobs)].id) for number in range(options.followers)]
    committed: dict[tuple[str, int], float] = {}
    load = _Load(server)
    writer = threading.Thread(target=write, args=(database, jobs, followers, committed, options))
    writer.start()
    with load:
        asyncio.run(_follow_all(followers, port))
    writer.join()
    with database.read() as unit:
        last = {job.id: unit.jobs.get(job.id).last_event_seq for job in jobs}
    expected = sum(last[each.job_id] for each in followers)
    received = sum(_in_order(each, last[each.job_id]) for each in followers)
    waits_s = [
        max(0.0, at - committed[each.job_id, seq])
        for each in followers
        for seq, at in each.received
        if (each.job_id, seq) in committed
    ]
    median_s, p99_s = np.percentile(waits_s, [50, 99])
    return {
        "followers": options.followers,
        "jobs": options.jobs,
        "expected": expected,
        "received": received,
        "ended": sum(each.is_done for each in followers),
        "latency_p50_s": round(float(median_s), 3),
        "latency_p99_s": round(float(p99_s), 3),
        **load.figures(),
    }


def write(
    database: Database,
    jobs: list[Job],
    followers: list[Follower],
    committed: dict[tuple[str, int], float],
    options: argparse.Namespace,
) -> None:
    """One event of each job at a time, once every follower has got the first ones; then the end of each job."""
    while not all(each.received for each in followers):
        time.sleep(0.05)
    for number in range(options.events):
        for job in jobs:
            with database.write() as unit:
                unit.events.append(job.id, job.epoch, [NewEvent("message", f"event {number}", {"number": number})])
            committed[job.id, number + 3] = time.monotonic()  # after `queued` and `running`
        time.sleep(options.interval)
    for job in jobs:
        with database.write() as unit:
            unit.attempts.finish(job.id, job.epoch, JobState.SUCCEEDED, result={})


async def _follow_all(followers: list[Follower], port: int) -> None:
    tasks = []
    for each in followers:
        tasks.append(asyncio.create_task(each.follow(port)))
        await asyncio.sleep(0.002)  # else the listener's backlog is what is measured
    await asyncio.wait(tasks, timeout=END_TIMEOUT_S)


def _in_order(follower: Follower, last: int) -> int:
    """Events that came at their place, of 1 to `last`."""
    return sum(seq == number for (seq, _), number in zip(follower.received, range(1, last + 1), strict=False))


class _Load:
    """CPU seconds and largest memory of a process while this is entered."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._rss = 0
        self._cpu_s = self._took_s = 0.0

    def __enter__(self) -> None:
        self._cpu_s, self._took_s = -sum(self._process.cpu_times()[:2]), -time.monotonic()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._cpu_s += sum(self._process.cpu_times()[:2])
        self._took_s += time.monotonic()

    def figures(self) -> dict[str, float]:
        share = self._cpu_s / self._took_s
        return {"server_cores": round(share, 2), "server_rss_mb": round(self._rss / 1e6), "took_s": round(self._took_s)}

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self._rss = max(self._rss, self._process.memory_info().rss)


@contextlib.contextmanager
def api_process(settings: Settings) -> Iterator[psutil.Process]:
    """`sam3-service api`, once it answers."""
    values = {"data_dir": settings.data_dir, "port": settings.port, "max_streams": settings.max_streams}
    environment = os.environ | {f"SAM3_{name.upper()}": str(value) for name, value in values.items()}
    command = [sys.executable, "-m", "service.cli", "api"]
    with (settings.data_dir / "api.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(settings.port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((settings.data_dir / "api.log").read_text(errors="replace"))
            time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks sse", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--followers", type=int, help="clients (default: 500)")
    parser.add_argument("--jobs", type=int, default=5, help="jobs that they follow")
    parser.add_argument("--events", type=int, help="events of each job (default: 100)")
    parser.add_argument("--interval", type=float, default=0.2, help="seconds between a job's events")
    parser.add_argument("--quick", action="store_true", help="20 clients and 5 events, to see that it runs")
    parser.add_argument("--output", type=Path, help="JSON file, instead of results/sse.json")
    options = parser.parse_args(arguments)
    options.followers = options.followers or (20 if options.quick else 500)
    options.events = options.events or (5 if options.quick else 100)
    return options
