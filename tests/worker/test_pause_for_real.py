"""A paused training goes on where it was: the real trainer on the small base."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from sam3_lora.config import JobConfig
from sam3_lora.synthetic.coco_export import write_dataset
from service.shared.states import JobState
from service.usecases.actions import pause_job, resume_job, stop_job
from tests.worker.conftest import add_dataset, add_job, job_of, points_of, zip_folder
from worker.runner import TrainingRunner
from worker.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.shared.db.models import Job
    from service.shared.settings import Settings
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database, UnitOfWork

ENDLESS = {
    "lora": {"rank": 2},
    "dataset": {"generic_negatives": 0},
    "training": {"max_epochs": 5000, "batch_size": 2, "use_amp": False, "num_workers": 0, "num_threads": 1},
    "evaluation": {"baseline": False, "every_epochs": 5000, "absent_prompts": []},
}


def test_pause_resume_stop(settings: Settings, database: Database, storage: Storage, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"terminate_grace_s": 60.0})
    write_dataset(tmp_path / "data", concepts=["heart", "cross"], train=4, valid=1, seed=1)
    dataset_id = add_dataset(database, storage, zip_folder(tmp_path / "data", tmp_path / "data.zip"))
    config = JobConfig.model_validate(ENDLESS).model_dump(mode="json")
    job_id = add_job(database, dataset_id, resolved={"config": config}, max_runtime_s=600)
    workspace = Workspace(settings.data_dir / "workspace")
    runner = TrainingRunner(
        settings, database, storage, workspace, worker_id="worker-1", device="CPU", is_draining=lambda: False
    )

    def run_until(step: int, act: Callable[[UnitOfWork, str], Job]) -> Job:
        """The job after an attempt in which this was done once the step was reached."""

        def wait_and_act() -> None:
            while (job_of(database, job_id).progress or {}).get("step", 0) < step:
                assert not job_of(database, job_id).error
                time.sleep(0.05)
            with database.write() as unit:
                act(unit, job_id)

        thread = threading.Thread(target=wait_and_act)
        thread.start()
        assert runner.run_next()
        thread.join()
        return job_of(database, job_id)

    paused = run_until(2, pause_job)
    assert paused.state is JobState.PAUSED
    with database.read() as unit:
        [saved, *_] = unit.checkpoints.list(job_id)
    assert saved.kind == "interrupt"
    with database.write() as unit:
        resume_job(unit, job_id)
    stopped = run_until(saved.step + 2, stop_job)
    assert (stopped.state, stopped.attempt) == (JobState.SUCCEEDED, 2), stopped.error
    assert stopped.result is not None
    assert stopped.result["stopped_early"]
    assert stopped.result["steps"] >= saved.step + 2
    with database.read() as unit:
        messages = [event.message for event in unit.events.list(job_id, limit=1000)]
    steps = [point.step for point in points_of(database, job_id) if point.name == "train/loss"]
    assert any(message.startswith(f"resumed after step {saved.step} of") for message in messages)
    assert steps == sorted(set(steps))
    assert stopped.best is not None
    workspace.close()
