"""Do claims stay as fast, and projects as equal, with 100,000 jobs in the queue as with 1,000?

Workers claim jobs of ten projects one after the other, on both databases, and end them at once. A claim is the
transaction that a worker makes. Projects are equal if after any number of claims none has two more than another.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks import record
from benchmarks.list_scale import PROJECTS, fill
from benchmarks.live_job import NoQueue
from service.shared.clock import SystemClock
from service.shared.settings import Settings
from service.shared.states import JobState
from service.shared.unit_of_work import Database
from tests.servers import fresh_database, postgres_server

HELD = 20  # jobs that run at any time


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, postgres_server() as server:
        for kind in ("sqlite", "postgresql"):
            for count in (options.few, options.many):
                with fresh_database(server) as url:
                    data_dir = Path(folder) / f"{kind}-{count}"
                    settings = Settings(data_dir=data_dir, database_url=url if kind == "postgresql" else "")
                    fill(settings, count, "queued")
                    database = Database(settings, SystemClock(), NoQueue())
                    rows.append({"database": kind, "queued": count, **measure(database, options.claims)})
                    database.close()
                    print(f"  {rows[-1]}", flush=True)
    print(f"written to {record.write('backlog', rows, path=options.output, held=HELD, projects=PROJECTS)}")
    report(rows)
    return 0


def measure(database: Database, claims: int) -> dict[str, Any]:
    """Latencies of so many claims, and by how much the projects came to differ."""
    taken: Counter[str] = Counter({f"project-{number}": 0 for number in range(PROJECTS)})
    held: list[tuple[str, int]] = []
    waits_s, most_apart = [], 0
    for number in range(claims):
        began = time.perf_counter()
        with database.write() as unit:
            job = unit.jobs.claim(f"worker-{number % HELD}", gpus=1)
        waits_s.append(time.perf_counter() - began)
        if job is None:
            raise RuntimeError("a job was queued and not claimed")
        taken[job.project] += 1
        most_apart = max(most_apart, max(taken.values()) - min(taken.values()))
        held.append((job.id, job.epoch))
        if len(held) >= HELD:
            with database.write() as unit:
                unit.attempts.finish(*held.pop(0), JobState.SUCCEEDED, result={})
    return {
        "claims": claims,
        "p50_ms": round(median(waits_s) * 1e3, 2),
        "p99_ms": round(quantiles(waits_s, n=100)[98] * 1e3, 2),
        "most_apart": most_apart,
    }


def report(rows: list[dict[str, Any]]) -> None:
    """The lines for scripts."""
    for few, many in zip(rows[::2], rows[1::2], strict=True):
        print(f"backlog-{few['database']}-p50 ratio={many['p50_ms'] / few['p50_ms']:.2f} target=1.50 (at most)")
        print(f"backlog-{few['database']}-p99 ratio={many['p99_ms'] / few['p99_ms']:.2f} target=1.50 (at most)")
    print(f"backlog-apart ratio={max(row['most_apart'] for row in rows):.2f} target=1.00 (at most)")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks backlog", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--few", type=int, default=1000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--claims", type=int, default=500)
    parser.add_argument("--output", type=Path, help="JSON file, instead of results/backlog.json")
    return parser.parse_args(arguments)
