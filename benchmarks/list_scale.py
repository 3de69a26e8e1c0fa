"""Does listing jobs take as long with 100,000 of them as with 1,000?

Each database gets so many jobs of several projects with tags and metadata: a hundredth is queued, the others ended.
`sam3-service api` is asked for pages over 2 connections, plain and narrowed down, from the start and from somewhere in
the middle. A second installation has as many jobs in its queue alone.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, insert, text

from benchmarks import record
from benchmarks.api import served
from benchmarks.http_load import Load, drive, request
from benchmarks.live_job import open_database
from service.shared.db.models import Dataset, Job, JobLabel
from service.shared.ids import new_id
from service.shared.settings import Settings
from service.shared.states import JobState
from tests.servers import fresh_database, postgres_server

CONNECTIONS = 2  # more than cores would measure how threads wait for each other
ROUNDS = 10
ROWS_AT_ONCE = 5000
PROJECTS, DATASETS = 10, 20  # so that each has a page of them
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
INTERVAL = timedelta(seconds=7)


@dataclass(frozen=True)
class Installation:
    """What there is to list."""

    jobs: list[str]
    datasets: list[str]
    middle: datetime


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    counts = (options.few, options.many)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, postgres_server() as server:
        for database in ("sqlite", "postgresql"):
            for state in ("mixed", "queued"):
                with contextlib.ExitStack() as stack:
                    asked = {}
                    for count in counts:
                        data_dir = Path(folder) / f"{database}-{state}-{count}"
                        url = stack.enter_context(fresh_database(server)) if database == "postgresql" else ""
                        settings = Settings(data_dir=data_dir, database_url=url)
                        made = fill(settings, count, state)
                        address = stack.enter_context(served(settings, ["-m", "service.cli", "api"]))
                        asked[count] = address, queries(made, state)
                    for what in asked[options.few][1]:
                        servers = {count: (address, known[what]) for count, (address, known) in asked.items()}
                        for count, load in measure(servers, options.seconds).items():
                            rows.append({"database": database, "state": state, "jobs": count, "list": what})
                            rows[-1] |= load.to_dict()
                            print(f"  {rows[-1]}", flush=True)
    print(f"written to {record.write('list_scale', rows, path=options.output, connections=CONNECTIONS)}")
    report(rows, options.few, options.many)
    return 0


def queries(made: Installation, state: str) -> dict[str, str]:
    """What each kind of list is asked for by."""
    count, middle = len(made.jobs), quote(made.middle.isoformat())
    lists = {
        "first page": "",
        "middle page": f"&after={made.jobs[count // 2]}",
        "page of 100": "&limit=100",
        "status": "&status=succeeded,failed",
        "project": "&project=project-3",
        "dataset": f"&dataset_id={made.datasets[3]}",
        "common tag": "&tag=common",
        "rare tag": "&tag=rare",
        "metadata": "&metadata[ticket]=A-7",
        "before": f"&created_before={middle}",
        "tag from the middle": f"&tag=common&after={made.jobs[count // 2]}",
    }
    if state == "queued":
        lists = {name: lists[name] for name in ("first page", "middle page", "page of 100")}
    return lists


def measure(servers: dict[int, tuple[tuple[str, int], str]], seconds: float) -> dict[int, Load]:
    """Latencies of one list of each server, asked in turns so that what disturbs the machine disturbs all alike.

    Args:
        servers: address and query by the number of jobs.
    """
    found: dict[int, Load] = {}
    for _ in range(ROUNDS):
        for count, (address, query) in servers.items():
            asked = request("GET", f"/v1/jobs?order=desc{query}", address)
            drive(address, partial(_same, asked), status=200, connections=1, seconds=0.1)  # until caches are warm
            load = drive(address, partial(_same, asked), status=200, connections=CONNECTIONS, seconds=seconds / ROUNDS)
            found[count] = found[count] + load if count in found else load
    return found


def _same(asked: bytes, _number: int) -> bytes:
    return asked


def fill(settings: Settings, count: int, state: str) -> Installation:
    """Jobs, one every few seconds, with what belongs to them."""
    chance = random.Random(0)
    database = open_database(settings)
    now = BEGIN
    made = Installation(
        [new_id("job") for _ in range(count)], [new_id("ds") for _ in range(DATASETS)], BEGIN + INTERVAL * (count // 2)
    )
    with database.engine.begin() as connection, _unguarded(connection):
        connection.execute(insert(Dataset), [_dataset(dataset_id) for dataset_id in made.datasets])
        for first in range(0, count, ROWS_AT_ONCE):
            ids = made.jobs[first : first + ROWS_AT_ONCE]
            jobs = []
            for number, job_id in enumerate(ids, start=first):
                now = BEGIN + INTERVAL * number
                chosen = JobState.QUEUED if state == "queued" else _state(number)
                jobs.append(_job(job_id, number, chosen, chance.choice(made.datasets), now))
            connection.execute(insert(Job), jobs)
            labels = [
                {"job_id": job["id"], "key": key, "value": value, "created_at": job["created_at"]}
                for job in jobs
                for key, value in [*(("", tag) for tag in job["tags"]), *job["metadata"].items()]
            ]
            connection.execute(insert(JobLabel), labels)
    _analyse(database.engine.dialect.name, database.engine.connect())
    database.close()
    return made


@contextlib.contextmanager
def _unguarded(connection: Connection) -> Iterator[None]:
    """Without the triggers that let rows begin in their first state alone."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        yield
        return
    triggers = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")).all()
    for name, _ in triggers:
        connection.exec_driver_sql(f"DROP TRIGGER {name}")
    yield
    for _, sql in triggers:
        connection.exec_driver_sql(sql)


def _analyse(dialect: str, connection: Connection) -> None:
    """What a database does by itself from time to time."""
    with connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(
            text("ANALYZE" if dialect == "postgresql" else "PRAGMA optimize")
        )


def _dataset(dataset_id: str) -> dict[str, Any]:
    values = {"name": "d", "filename": "d.zip", "sha256": "0" * 64, "size_bytes": 1, "storage_key": "x"}
    return {"id": dataset_id, "state": "ready", "created_at": BEGIN, "updated_at": BEGIN, **values}


def _state(number: int) -> JobState:
    if number % 100 == 7:  # spread: pages hold as many of them, and so as much to work out, whatever the number of jobs
        return JobState.QUEUED
    return (JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)[number % 5]


def _job(job_id: str, number: int, state: JobState, dataset_id: str, created_at: datetime) -> dict[str, Any]:
    config = {"lora": {"rank": 16}, "training": {"max_epochs": 10}}
    return {
        "id": job_id,
        "name": f"job {number}",
        "project": f"project-{number % PROJECTS}",
        "state": state,
        "base_model": "sam3",
        "dataset_id": dataset_id,
        "config": config,
        "resolved": {"config": {**config, "more": ["x" * 40] * 40}},
        "seed": 0,
        "priority": 50,
        "max_runtime_s": 3600,
        "max_attempts": 3,
        # Every list fills its first page already where there are few jobs.
        "tags": ["common", *(["rare"] if number % 40 == 0 else [])],
        "metadata": {"ticket": f"A-{number % 40}"},
        "created_at": created_at,
        "updated_at": created_at,
        "queued_at": created_at,
        "gpu_seconds": 60.0,
    }


def report(rows: list[dict[str, Any]], few: int, many: int) -> None:
    """A Markdown table, and the lines for scripts."""
    found = {(row["database"], row["state"], row["list"], row["jobs"]): row for row in rows}
    print("\n| database | jobs are | list | p50 ms | p99 ms | p99 times |\n" + "|---" * 6 + "|")
    worst = dict.fromkeys(("sqlite", "postgresql"), 0.0)
    for (database, state, name, jobs), row in found.items():
        if jobs != many:
            continue
        small = found[database, state, name, few]
        times = row["p99_ms"] / small["p99_ms"]
        worst[database] = max(worst[database], times)
        medians, tails = (f"{small[key]} / {row[key]}" for key in ("p50_ms", "p99_ms"))
        print(f"| {database} | {state} | {name} | {medians} | {tails} | {times:.2f} |")
    print()
    for database, times in worst.items():
        print(f"list-scale-{database} ratio={times:.2f} target=1.50 (at most)")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks list-scale", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--few", type=int, default=1000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--output", type=Path, help="JSON file, instead of results/list_scale.json")
    return parser.parse_args(arguments)
