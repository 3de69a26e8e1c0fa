"""What one of everything costs the database, on PostgreSQL, and what that sums up to for 10, 100 and 1,000 GPUs.

An installation with a thousand jobs that run and ten thousand that have ended; each kind of work is done many times by
the code that does it in a worker, the API or the reconciler. Counted are the seconds that the caller waits, the CPU
seconds of all of PostgreSQL's processes, and the bytes of its write-ahead log. The sums are for jobs of an hour with a
step a second, each watched by somebody who asks for it every five seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import text

from benchmarks import record
from benchmarks.list_scale import fill
from benchmarks.live_job import NoQueue, observer_of, open_database, tell
from service.reconciler import Reconciler
from service.shared.clock import SystemClock
from service.shared.db.models import Job
from service.shared.ids import new_id
from service.shared.settings import Settings
from service.shared.states import JobState
from service.shared.storage import Storage
from service.shared.unit_of_work import Database
from tests.servers import fresh_database, postgres_server

POINTS = 2000  # of each metric of a run, at most
GPUS = (10, 100, 1000)
JOB_S, STEP_S, BEAT_S, POLL_S, ASKED_EVERY_S = 3600.0, 1.0, 5.0, 30.0, 5.0


@dataclass(frozen=True)
class Cost:
    """Of one, in milliseconds and bytes."""

    wait_ms: float
    cpu_ms: float
    log_bytes: float


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    with tempfile.TemporaryDirectory() as folder, postgres_server() as server, fresh_database(server) as url:
        settings = Settings(data_dir=Path(folder), database_url=url)
        fill(settings, options.ended, "mixed")
        open_database(settings).close()
        database = Database(settings, SystemClock(), NoQueue())
        jobs = _running(database, options.running)
        costs, sizes = measure(settings, database, jobs, options.times)
        database.close()
    rows = [{"what": what, **asdict(cost)} for what, cost in costs.items()]
    path = record.write("scaling", rows, path=options.output, sizes=sizes, running=options.running, ended=options.ended)
    print(f"written to {path}")
    report(costs, sizes)
    return 0


def measure(
    settings: Settings, database: Database, jobs: list[Job], times: int
) -> tuple[dict[str, Cost], dict[str, float]]:
    """The cost of each kind of work, and how much is stored of a job."""
    meter = _Meter(database)
    turns = _endless(jobs)

    def look() -> None:
        with database.write() as unit:
            unit.jobs.claim("worker", gpus=1)

    def be_present() -> None:
        with database.write() as unit:
            unit.workers.beat(f"worker-{next(turns).id}", kind="gpu", host="host", pid=1, device="GPU", gpus=1)

    def renew() -> None:
        job = next(turns)
        with database.write() as unit:
            unit.attempts.heartbeat(job.id, job.epoch)

    folder = settings.data_dir / "logs"
    folder.mkdir()
    observers = [observer_of(database, job, folder / job.id) for job in jobs]
    seconds = iter(range(10**9))

    def train_for_a_second() -> None:
        number = next(seconds)
        observer = observers[number % len(jobs)]
        tell(observer, folder / jobs[number % len(jobs)].id, number // len(jobs))
        observer.flush()

    def read() -> None:
        with database.read() as unit:
            unit.jobs.versions([next(turns).id])

    reconciler = Reconciler(settings, database, Storage(settings), NoQueue(), SystemClock())
    reconciler.run_once()
    costs = {
        "presence of a worker": meter.cost(be_present, times),
        "lease of a job, renewed": meter.cost(renew, times),
        "idle worker's look for jobs": meter.cost(look, times),
        "second of a run: a step's metrics, progress, a line of log": meter.cost(train_for_a_second, times),
        "look of the API whether a job has changed": meter.cost(read, times),
        "pass of the reconciler": meter.cost(reconciler.run_once, max(3, times // 100)),
        "job from creation to its end, without its run": meter.cost(lambda: _live(database, jobs[0]), times // 4),
    }
    before = meter.size()
    observer = observer_of(database, jobs[0], folder / "whole")
    for step in range(10**6, 10**6 + POINTS):
        tell(observer, folder / "whole", step)
    observer.finish()
    return costs, {"points of a run in the database, bytes": float(meter.size() - before)}


class _Meter:
    """Reads what PostgreSQL has used."""

    def __init__(self, database: Database) -> None:
        self._database = database
        with database.engine.connect() as connection:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        self._server = psutil.Process(pid).parent()

    def cost(self, once: Callable[[], None], times: int) -> Cost:
        for _ in range(max(1, times // 10)):
            once()
        cpu_s, log_bytes, began = self._cpu_s(), self._log_bytes(), time.perf_counter()
        for _ in range(times):
            once()
        took_s = time.perf_counter() - began
        used_s, written = self._cpu_s() - cpu_s, self._log_bytes() - log_bytes
        cost = Cost(*(round(value, 3) for value in (took_s / times * 1e3, used_s / times * 1e3, written / times)))
        print(f"  {cost}", flush=True)
        return cost

    def size(self) -> int:
        return int(self._ask("SELECT pg_database_size(current_database())"))

    def _cpu_s(self) -> float:
        if self._server is None:
            raise RuntimeError("PostgreSQL runs on another machine")
        ended = self._server.cpu_times()
        living = [process.cpu_times() for process in self._server.children(recursive=True)]
        total = ended.user + ended.system + ended.children_user + ended.children_system
        return float(total + sum(times.user + times.system for times in living))

    def _log_bytes(self) -> int:
        return int(self._ask("SELECT pg_current_wal_lsn() - '0/0'"))

    def _ask(self, question: str) -> Any:
        with self._database.engine.connect() as connection:
            return connection.execute(text(question)).scalar_one()


def _running(database: Database, count: int) -> list[Job]:
    """So many jobs that workers hold, and none that waits."""
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM jobs WHERE state NOT IN ('succeeded', 'failed', 'cancelled')"))
        dataset_id = connection.execute(text("SELECT min(id) FROM datasets")).scalar_one()
    with database.write() as unit:
        unit.jobs.add_all({_job(dataset_id): [] for _ in range(count)})
    claimed = []
    for number in range(count):
        with database.write() as unit:
            claimed.append(unit.jobs.claim(f"worker-{number}", "GPU", gpus=1))
    return [job for job in claimed if job is not None]


def _job(dataset_id: str) -> Job:
    return Job(
        id=new_id("job"),
        name="benchmark",
        state=JobState.QUEUED,
        base_model="sam3",
        dataset_id=dataset_id,
        config={"lora": {"rank": 16}},
        resolved={"config": {f"section_{number}": {"key": number, "other": "value"} for number in range(40)}},
        seed=0,
        priority=50,
        max_runtime_s=3600,
        max_attempts=3,
        tags=["a"],
        labels={"ticket": "A-1"},
    )


def _live(database: Database, like: Job) -> None:
    """A job's whole life, but for its run."""
    with database.write() as unit:
        unit.jobs.add(_job(like.dataset_id))
    with database.write() as unit:
        job = unit.jobs.claim("worker", "GPU", gpus=1)
    if job is None:
        raise RuntimeError("there is no job to claim")
    with database.write() as unit:
        unit.attempts.finish(job.id, job.epoch, JobState.SUCCEEDED, result={"steps": 1})


def _endless(jobs: list[Job]) -> Iterator[Job]:
    while True:
        yield from jobs


def report(costs: dict[str, Cost], sizes: dict[str, float]) -> None:
    """Markdown tables of the costs and of what they sum up to."""
    print("\n| one | waits, ms | CPU of PostgreSQL, ms | log, bytes |\n" + "|---" * 4 + "|")
    for what, cost in costs.items():
        print(f"| {what} | {cost.wait_ms:.1f} | {cost.cpu_ms:.2f} | {cost.log_bytes:,.0f} |")
    for what, size in sizes.items():
        print(f"\n{what}: {size:,.0f}")
    presence, lease, look, second, asked, sweep, life = costs.values()
    print("\n| GPUs | transactions/s | cores of PostgreSQL | log, MB/s |\n" + "|---" * 4 + "|")
    for gpus in GPUS:
        rates = {
            presence: gpus / BEAT_S,
            lease: gpus / BEAT_S,
            look: gpus / POLL_S,
            second: gpus / STEP_S,
            asked: gpus / ASKED_EVERY_S,
            life: gpus / JOB_S,
        }
        # A pass of the reconciler looks at every lease: measured with a thousand.
        cores = sum(rate * cost.cpu_ms for cost, rate in rates.items()) / 1e3 + sweep.cpu_ms / BEAT_S / 1e3
        log_mb = sum(rate * cost.log_bytes for cost, rate in rates.items()) / 1e6
        print(f"| {gpus:,} | {sum(rates.values()):,.0f} | {cores:.2f} | {log_mb:.2f} |")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks scaling", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--running", type=int, default=1000, help="jobs that run")
    parser.add_argument("--ended", type=int, default=10_000, help="jobs that have ended")
    parser.add_argument("--times", type=int, default=2000, help="how often everything is done")
    parser.add_argument("--output", type=Path, help="JSON file, instead of results/scaling.json")
    return parser.parse_args(arguments)
