"""A real worker process: Celery on a real Valkey, killed, frozen and left without its broker."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from service.reconciler import Reconciler
from service.shared.clock import SystemClock
from service.shared.queue import CeleryQueue, Task
from service.shared.settings import Settings
from service.shared.states import DatasetState, JobState
from service.shared.unit_of_work import Database
from service.usecases.actions import cancel_job
from tests.stack import wait_until
from tests.worker import trainers
from tests.worker.conftest import add_dataset, add_job, job_of, zip_folder
from worker.app import without_library

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.shared.storage import Storage

WORKER = """
import sys
from service.shared.settings import load
from worker import device
from worker.app import work
kind, gpus, *trainer = sys.argv[1:]
work(load(), kind, device.find(int(gpus)) if kind == "gpu" else None, trainer=tuple(trainer))
"""
NEVER_S = 3600.0
both_databases = pytest.mark.parametrize(
    "settings", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)


class Workers:
    """Starts worker processes; kills those that are left."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, kind: str, trainer: str = "", *, gpus: int = 1, **settings: object) -> subprocess.Popen[bytes]:
        values = self._settings.model_dump(exclude_defaults=True) | settings
        environment = os.environ | {f"SAM3_{name.upper()}": str(value) for name, value in values.items()}
        command = trainers.write(
            self._folder, f"open({str(self.pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\n" + trainer
        )
        with (self._folder / f"{kind}-{len(self._started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", WORKER, kind, str(gpus), *command], env=environment, stdout=log, stderr=log
            )
        self._started.append(process)
        return process

    @property
    def pids(self) -> Path:
        """Process ids of all trainers so far."""
        return self._folder / "pids"

    def trainers(self) -> list[int]:
        return [int(pid) for pid in self.pids.read_text().split()] if self.pids.exists() else []

    def close(self) -> None:
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


@pytest.fixture
def workers(settings: Settings, tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(settings, tmp_path)
    yield workers
    workers.close()


@pytest.fixture
def job_id(database: Database, storage: Storage, dataset_zip: Path) -> str:
    return add_job(database, add_dataset(database, storage, dataset_zip))


@pytest.fixture
def ringer(settings: Settings, redis_url: str) -> Iterator[CeleryQueue]:
    queue = CeleryQueue(settings.model_copy(update={"broker_url": redis_url}), SystemClock())
    yield queue
    queue.close()


@contextlib.contextmanager
def reconciling(settings: Settings, storage: Storage, queue: CeleryQueue) -> Iterator[None]:
    """A reconciler that rings through the queue."""
    stop = threading.Event()
    database = Database(settings, SystemClock(), queue)
    reconciler = Reconciler(settings, database, storage, queue, SystemClock())
    thread = threading.Thread(target=reconciler.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        database.close()


def freeze(worker: subprocess.Popen[bytes], database: Database) -> None:
    """Stop the process at a moment when it does not hold SQLite's write lock, which nobody could take from it."""
    for _ in range(50):
        worker.send_signal(signal.SIGSTOP)
        wait_until(lambda: all(state_of(stat) == "T" for stat in Path(f"/proc/{worker.pid}/task").glob("*/stat")))
        driver: Any = database.engine.dialect.dbapi
        with contextlib.closing(driver.connect(database.engine.url.database, timeout=0.1)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except driver.OperationalError:
                worker.send_signal(signal.SIGCONT)
                time.sleep(0.05)
    raise AssertionError("the worker always holds the lock")


def is_alive(pid: int) -> bool:
    try:
        return state_of(Path(f"/proc/{pid}/stat")) not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def state_of(stat: Path) -> str:
    return stat.read_text().rpartition(")")[2].split()[0]


@both_databases
def test_doorbell_rung_twice_trains_once(
    workers: Workers, database: Database, ringer: CeleryQueue, redis_url: str, job_id: str
) -> None:
    assert ringer.ring(Task.TRAIN, job_id)
    assert ringer.ring(Task.TRAIN, job_id)
    worker = workers.start("gpu", trainers.CONTRACT + "\ntrain(2)", broker_url=redis_url, poll_interval_s=NEVER_S)
    wait_until(lambda: job_of(database, job_id).state is JobState.SUCCEEDED)
    wait_until(lambda: ringer.depth(Task.TRAIN) == 0)
    # Rung while the worker is idle: only the message can bring it, its clock is off.
    second = add_job(database, job_of(database, job_id).dataset_id)
    assert ringer.ring(Task.TRAIN, second)
    assert ringer.ring(Task.TRAIN, second)
    wait_until(lambda: job_of(database, second).state is JobState.SUCCEEDED)
    wait_until(lambda: ringer.depth(Task.TRAIN) == 0)
    assert [job_of(database, each).attempt for each in (job_id, second)] == [1, 1]
    assert len(workers.trainers()) == 2
    with database.read() as unit:
        assert unit.workers.count_alive("gpu", within_s=5) == 1
    worker.terminate()
    assert worker.wait(10) == 0
    with database.read() as unit:
        assert unit.workers.count_alive("gpu", within_s=5) == 0


def test_polling_finds_work_without_a_broker(workers: Workers, database: Database, job_id: str, tmp_path: Path) -> None:
    worker = workers.start(
        "gpu", trainers.CONTRACT + "\ntrain(1)", broker_url=f"redis+socket://{tmp_path}/none.sock", poll_interval_s=0.2
    )
    wait_until(lambda: job_of(database, job_id).state is JobState.SUCCEEDED)
    second = add_job(database, job_of(database, job_id).dataset_id)
    wait_until(lambda: job_of(database, second).state is JobState.SUCCEEDED)
    worker.terminate()
    worker.wait(10)


def test_garbage_in_the_queue_harms_nothing(
    workers: Workers, database: Database, redis_url: str, ringer: CeleryQueue, job_id: str
) -> None:
    import redis

    with redis.Redis.from_url(redis_url.replace("redis+socket", "unix")) as client:
        for message in (b"\x80\x04garbage", b"{}", b'{"body": "e30=", "headers": {}, "properties": {}}'):
            client.lpush("gpu", message)
    ringer._app.send_task(Task.TRAIN.value, args=[1, 2, 3], queue="gpu")
    ringer._app.send_task("os.system", args=["touch /tmp/pwned"], queue="gpu")
    ringer.ring(Task.TRAIN, job_id)
    worker = workers.start("gpu", trainers.CONTRACT + "\ntrain(1)", broker_url=redis_url)
    wait_until(lambda: job_of(database, job_id).state is JobState.SUCCEEDED)
    assert worker.poll() is None


@pytest.mark.parametrize("with_broker", [True, False])
def test_sigterm_puts_the_job_back_and_leaves_nothing(
    workers: Workers, database: Database, job_id: str, redis_url: str, tmp_path: Path, with_broker: bool
) -> None:
    broker_url = redis_url if with_broker else f"redis+socket://{tmp_path}/none.sock"
    worker = workers.start("gpu", trainers.CONTRACT + "\ntrain(1000, 0.3)", broker_url=broker_url)
    wait_until(lambda: job_of(database, job_id).phase == "training")
    wait_until(lambda: job_of(database, job_id).best)
    worker.terminate()
    worker.wait(60)
    job = job_of(database, job_id)
    assert (job.state, job.lost_attempts, job.not_before) == (JobState.QUEUED, 0, None)
    assert not any(map(is_alive, workers.trainers()))
    with database.read() as unit:
        assert unit.checkpoints.list(job_id)[0].kind == "interrupt"


@both_databases
def test_kill_9_of_the_worker(
    workers: Workers,
    settings: Settings,
    database: Database,
    storage: Storage,
    ringer: CeleryQueue,
    redis_url: str,
    job_id: str,
) -> None:
    body = trainers.CONTRACT + "\ntrain(1000 if first == 1 else first, 0.2)"
    worker = workers.start("gpu", body, broker_url=redis_url)
    wait_until(lambda: job_of(database, job_id).best)
    worker.kill()
    worker.wait()
    (pid,) = workers.trainers()
    wait_until(lambda: not is_alive(pid), 3)
    with reconciling(settings, storage, ringer):
        workers.start("gpu", body, broker_url=redis_url, poll_interval_s=NEVER_S)
        wait_until(lambda: job_of(database, job_id).state is JobState.SUCCEEDED, 30)
    job = job_of(database, job_id)
    assert (job.attempt, job.lost_attempts) == (2, 1)
    assert job.result is not None
    assert job.result["first"] > 1  # it went on from the checkpoint that was published
    assert [folder.name for folder in (settings.data_dir / "workspace").glob(f"worker-{worker.pid}-*")] == []


def test_frozen_worker_wakes_to_find_its_writes_refused(
    workers: Workers,
    settings: Settings,
    database: Database,
    storage: Storage,
    ringer: CeleryQueue,
    redis_url: str,
    job_id: str,
) -> None:
    worker = workers.start(
        "gpu", trainers.CONTRACT + "\ntrain(1000, 0.3)", broker_url=redis_url, poll_interval_s=NEVER_S
    )
    wait_until(lambda: job_of(database, job_id).best)
    freeze(worker, database)
    (pid,) = workers.trainers()
    wait_until(lambda: not is_alive(pid), settings.self_fence_s + 1.0)  # it fenced itself, before the lease ran out
    assert job_of(database, job_id).state is JobState.RUNNING
    with reconciling(settings, storage, ringer):
        wait_until(lambda: job_of(database, job_id).state is JobState.QUEUED)
    with database.write() as unit:
        cancel_job(unit, job_id)
    with database.read() as unit:
        before = [event.id for event in unit.events.list(job_id, limit=1000)]
    worker.send_signal(signal.SIGCONT)
    time.sleep(1.5)
    with database.read() as unit:
        assert [event.id for event in unit.events.list(job_id, limit=1000)] == before
    assert job_of(database, job_id).state is JobState.CANCELLED
    assert worker.poll() is None
    second = add_job(database, job_of(database, job_id).dataset_id)
    ringer.ring(Task.TRAIN, second)
    wait_until(lambda: job_of(database, second).best)  # and it works on


@both_databases
def test_dataset_is_checked_and_its_waiting_jobs_are_trained_or_failed(
    workers: Workers,
    database: Database,
    storage: Storage,
    ringer: CeleryQueue,
    redis_url: str,
    dataset_zip: Path,
    tmp_path: Path,
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "readme.txt").write_text("no annotations here")
    archives = [dataset_zip, zip_folder(broken, tmp_path / "broken.zip"), broken / "readme.txt"]
    datasets = [add_dataset(database, storage, archive, ready=False) for archive in archives]
    jobs = [add_job(database, each, state=JobState.VALIDATING_FILES) for each in datasets]
    workers.start("cpu", broker_url=redis_url, poll_interval_s=NEVER_S)
    gpu = {"broker_url": redis_url, "poll_interval_s": NEVER_S}
    # Started after the jobs are queued it would find them by itself; here only the ingest's ring can tell it.
    workers.start("gpu", trainers.CONTRACT + "\ntrain(1)", **gpu)
    for dataset_id in datasets:
        ringer.ring(Task.INGEST, dataset_id)
    wait_until(lambda: all(job_of(database, each).finished_at for each in jobs), 40)
    with database.read() as unit:
        good, no_layout, no_archive = (unit.datasets.get(each) for each in datasets)
    assert (good.state, no_layout.state, no_archive.state) == (
        DatasetState.READY,
        DatasetState.INVALID,
        DatasetState.INVALID,
    )
    assert good.report is not None
    assert (good.report["status"], good.report["summary"]["images"]) == ("valid", 16)
    assert no_layout.report is not None
    assert no_layout.report["issues"][0]["code"] == "annotation_file_missing"
    assert no_archive.report is not None
    assert no_archive.report["issues"][0]["code"] == "archive_invalid"
    ended = [job_of(database, each) for each in jobs]
    assert [job.state for job in ended] == [JobState.SUCCEEDED, JobState.FAILED, JobState.FAILED]
    assert ended[1].error is not None
    assert ended[1].error["code"] == "dataset_invalid"


def test_import_of_the_worker_leaves_the_web_framework_and_torch_out() -> None:
    code = "import sys, worker.app; print({'fastapi', 'starlette', 'uvicorn', 'torch', 'sam3'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_everything_that_keeps_the_worker_from_starting_is_named(tmp_path: Path) -> None:
    def start(**variables: str) -> tuple[int, list[str]]:
        done = subprocess.run(
            [sys.executable, "-m", "worker.app", "--queue", "gpu"],
            env=os.environ | {"SAM3_DATA_DIR": str(tmp_path / "data"), "CUDA_VISIBLE_DEVICES": ""} | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr.splitlines()

    status, lines = start(SAM3_POL_INTERVAL_S="1", SAM3_PORT="x", SAM3_SELF_FENCE_S="40")
    assert status == 2
    assert [line.partition(": ")[0] for line in lines] == ["cannot start"] * 3
    for said in ("did you mean SAM3_POLL_INTERVAL_S", "SAM3_PORT: ", "two trainers of one job"):
        assert any(said in line for line in lines), (said, lines)
    status, lines = start()
    assert status == 2
    assert lines == [
        "cannot start: the database has no schema yet: run `sam3-service migrate`, or `sam3-service serve`, which does"
    ]
    assert not (tmp_path / "data").exists()


def test_trackers_without_their_library_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    settings = Settings(data_dir=tmp_path, trackers=("mlflow", "wandb"))
    (said,) = without_library(settings)
    assert said == "SAM3_TRACKERS: wandb is not installed: pip install 'sam3-lora-service[service,train,wandb]'"
