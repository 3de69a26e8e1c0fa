"""A job of several processes through a worker: the real one, and what its trainer is told."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from sam3_lora.config import JobConfig
from sam3_lora.synthetic.coco_export import write_dataset
from service.shared.states import JobState
from tests.stack import wait_until
from tests.worker import trainers
from tests.worker.conftest import add_dataset, add_job, both_databases, job_of, zip_folder
from tests.worker.test_training_runner import Rig, rig  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.shared.settings import Settings
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database

SMALL = {
    "lora": {"rank": 2},
    "dataset": {"generic_negatives": 0},
    "training": {"batch_size": 1, "use_amp": False, "num_workers": 0, "num_threads": 1},
    "evaluation": {"baseline": False, "absent_prompts": []},
}


@pytest.fixture
def worker(settings: Settings, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A training worker as operators start it, of two processes, without a broker."""
    values = settings.model_dump(exclude_defaults=True) | {"broker_url": f"redis+socket://{tmp_path}/none.sock"}
    environment = os.environ | {f"SAM3_{name.upper()}": str(value) for name, value in values.items()}
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.app", "--queue", "gpu", "--gpus", "2"],
            env=environment | {"CUDA_VISIBLE_DEVICES": ""},
            stdout=log,
            stderr=log,
        )
    yield process
    process.kill()
    process.wait()


def test_a_job_with_two_processes_is_trained_and_killed_as_one(
    settings: Settings, database: Database, storage: Storage, tmp_path: Path, worker: subprocess.Popen[bytes]
) -> None:
    write_dataset(tmp_path / "data", concepts=["heart", "cross"], train=4, valid=1, seed=1)
    dataset_id = add_dataset(database, storage, zip_folder(tmp_path / "data", tmp_path / "data.zip"))

    def add(epochs: int, gpus: int, **values: int) -> str:
        sections = {**SMALL, "training": {**SMALL["training"], "max_epochs": epochs}}
        config = JobConfig.model_validate(sections).model_dump(mode="json")
        return add_job(database, dataset_id, resolved={"config": config}, max_runtime_s=600, gpus=gpus, **values)

    too_large = add(1, gpus=3, priority=100)
    first = add(1, gpus=2)
    wait_until(lambda: job_of(database, first).finished_at, 180)
    job = job_of(database, first)
    assert job.state is JobState.SUCCEEDED, (job.error, (tmp_path / "worker.log").read_text()[-3000:])
    assert job.result is not None
    assert (job.result["processes"], job.result["steps"]) == (2, 2)  # of four images
    assert job.best is not None
    assert job_of(database, too_large).attempt == 0
    with database.read() as unit:
        assert b"[rank 1] " in unit.logs.read(first)
        [attempt] = unit.attempts.list(first)
        assert list(unit.workers.sizes("gpu", within_s=5).values()) == [2]
    assert attempt.ended_at is not None
    assert job.gpu_seconds == pytest.approx(2 * (attempt.ended_at - attempt.started_at).total_seconds())

    second = add(5000, gpus=2)
    wait_until(lambda: len(trainers_of(worker)) == 2)
    processes = trainers_of(worker)
    assert job_of(database, second).state is JobState.RUNNING
    worker.kill()
    wait_until(lambda: not any(lives(process) for process in processes), 3)


def trainers_of(worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(worker.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "sam3_lora.training.process" in process.cmdline() and "worker.tether" not in process.cmdline():
                found.append(process)
    return found


def lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


@both_databases
def test_the_limit_of_the_runtime_is_one_of_the_clock(rig: Rig) -> None:  # noqa: F811
    body = trainers.CONTRACT + "\nassert options.processes == 4\ntrain(3, 0.7)"
    runner = rig.runner(body, gpus=4)
    # Four GPUs for 50 seconds so far; of 60 seconds are ten left.
    job_id = add_job(rig.database, rig.dataset_id, gpus=4, max_runtime_s=60, gpu_seconds=200.0)
    assert runner.run_next()
    job = job_of(rig.database, job_id)
    assert job.state is JobState.SUCCEEDED, job.error
    spent = add_job(rig.database, rig.dataset_id, gpus=4, max_runtime_s=60, gpu_seconds=240.0)
    assert runner.run_next()
    job = job_of(rig.database, spent)
    assert job.error is not None
    assert job.error["code"] == "time_limit"
