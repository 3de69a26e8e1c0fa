"""One job from claim to end, with a real database, storage and trainer process."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from service.shared.errors import LeaseLostError, StorageError
from service.shared.states import JobState
from service.usecases.actions import cancel_job, pause_job, resume_job, stop_job
from service.usecases.retries import retry_job
from tests.coco.datasets import records, write_split
from tests.worker import trainers
from tests.worker.conftest import add_dataset, add_job, both_databases, job_of, points_of, zip_folder
from worker.runner import TrainingRunner
from worker.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from service.shared.settings import Settings
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database


class Rig:
    """A runner whose trainer is a given program."""

    def __init__(self, settings: Settings, database: Database, storage: Storage, folder: Path, archive: Path) -> None:
        self.settings, self.database, self.storage = settings, database, storage
        self.workspace = Workspace(settings.data_dir / "workspace")
        self.draining = threading.Event()
        self._folder = folder
        self.dataset_id = add_dataset(database, storage, archive)

    def runner(self, body: str, gpus: int = 1) -> TrainingRunner:
        return TrainingRunner(
            self.settings,
            self.database,
            self.storage,
            self.workspace,
            worker_id="worker-1",
            device="CPU",
            gpus=gpus,
            is_draining=self.draining.is_set,
            trainer=tuple(trainers.write(self._folder, body)),
        )

    def run(self, body: str, job_id: str | None = None, **job: Any) -> Any:
        """The job after one attempt with that trainer."""
        job_id = job_id or add_job(self.database, self.dataset_id, **job)
        assert self.runner(body).run_next()
        return job_of(self.database, job_id)

    def run_and(self, meanwhile: Callable[[str], None], body: str, **job: Any) -> Any:
        """As `run`; calls `meanwhile` once the trainer has reported its phase."""
        job_id = add_job(self.database, self.dataset_id, **job)

        def wait_and_act() -> None:
            while job_of(self.database, job_id).phase != "training":
                time.sleep(0.02)
            meanwhile(job_id)

        thread = threading.Thread(target=wait_and_act)
        thread.start()
        job_after = self.run(body, job_id)
        thread.join()
        return job_after

    def events(self, job_id: str) -> list[tuple[str, str]]:
        with self.database.read() as unit:
            return [(event.type, event.message) for event in unit.events.list(job_id, limit=1000)]

    def make_due(self, job_id: str) -> None:
        """Wait out the backoff."""
        deadline = time.monotonic() + 5
        while (not_before := job_of(self.database, job_id).not_before) is not None:
            if not_before.timestamp() <= time.time():
                return
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def rig(settings: Settings, database: Database, storage: Storage, tmp_path: Path, dataset_zip: Path) -> Iterator[Rig]:
    rig = Rig(settings, database, storage, tmp_path, dataset_zip)
    yield rig
    leftovers = [path for path in (settings.data_dir / "workspace").glob("worker-*/*") if path.name != "lock"]
    assert leftovers == []
    rig.workspace.close()


def test_nothing_to_do(rig: Rig) -> None:
    assert rig.runner("").run_next() is False


@both_databases
def test_success_leaves_everything_a_client_may_ask_for(rig: Rig) -> None:
    body = trainers.CONTRACT + "say('resolved', config={'lora': 1}, trainable_parameters=7, trainable_percent=0.5)\n"
    job = rig.run(body + "print('a line of log', file=sys.stderr)\ntrain(4)", keep_checkpoints=2)
    assert job.state is JobState.SUCCEEDED
    assert job.error is None
    assert {**job.result, "model_id": None} == {"model_id": None, "steps": 40, "peak_memory_bytes": 123, "first": 1}
    assert job.peak_memory_bytes == 123
    assert job.trainable == {"parameters": 7, "percent": 0.5}
    assert job.resolved["run"]["config"] == {"lora": 1}
    assert job.progress["percent"] == 100
    with rig.database.read() as unit:
        checkpoints = unit.checkpoints.list(job.id)
        log = unit.logs.read(job.id).decode()
        model = unit.models.get(job.result["model_id"])
        events = unit.events.list(job.id, limit=1000)
    metrics = points_of(rig.database, job.id)
    assert sorted((each.kind, each.epoch) for each in checkpoints) == [("best", 4), ("epoch", 3), ("epoch", 4)]
    assert job.best["value"] == 1.0
    assert job.best["checkpoint_id"] == next(each.id for each in checkpoints if each.kind == "best")
    best = next(each for each in checkpoints if each.kind == "best")
    assert (model.job_id, model.epoch, model.archive_sha256) == (job.id, 4, best.archive_sha256)
    assert [(file.name, file.sha256, file.storage_key) for file in model.files] == [
        (file.name, file.sha256, file.storage_key) for file in best.files
    ]
    assert {(point.name, point.step): point.value for point in metrics}["train/loss", 20] == 0.5
    assert any(point.name == "sys/mem_used_bytes" and point.value > 1e6 for point in metrics)
    assert log == "a line of log\n"
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    announced = [event for event in events if event.type == "checkpoint"]
    assert [event.data["epoch"] for event in announced if event.data["kind"] == "epoch"] == [1, 2, 3, 4]
    assert announced[-1].data["checkpoint_id"] == job.best["checkpoint_id"]
    published = {file.storage_key: file for each in checkpoints for file in each.files}
    assert set(rig.storage.list(f"jobs/{job.id}")) == set(published)
    for key, file in published.items():
        content = b"".join(rig.storage.get_range(key))
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size_bytes, file.sha256)


def test_trainer_gets_a_run_configuration_with_the_splits_of_the_dataset(rig: Rig) -> None:
    body = """
    import sys
    config = json.load(open(sys.argv[sys.argv.index("--config") + 1]))
    d = config["dataset"]
    assert os.path.isfile(d["train_ann_file"]) and os.path.isdir(d["train_img_folder"])
    assert "/valid" in d["val_ann_file"]
    assert config["model"] == {"base": "sam3-tiny", "checkpoint": None, "adapter": None}
    assert sys.argv[sys.argv.index("--lease-timeout") + 1] == "5"
    say("error", "as expected", "error", code="diverged", hint="try less", retryable=False); sys.exit(10)
    """
    job = rig.run(body)
    assert job.error == {
        "code": "diverged",
        "message": "as expected",
        "hint": "try less",
        "retryable": False,
        "attempt": 1,
    }


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("say('error', 'no memory', code='gpu_oom', hint='h', retryable=False); sys.exit(10)", "gpu_oom", "no memory"),
        ("say('error', 'odd', code='made_up', retryable=False); sys.exit(10)", "internal", "odd"),
        ("say('result')", "internal", "without a best checkpoint"),
        (trainers.CONTRACT + "\ncheckpoint('epoch', 1)\nsay('result')", "internal", "without a best checkpoint"),
        ("sys.exit(0)", "internal", "without a result"),
        (
            "say('checkpoint', folder='../../..', kind='epoch', epoch=1, step=1); time.sleep(9)",
            "checkpoint_invalid",
            "outside",
        ),
        (
            "say('checkpoint', folder='none', kind='epoch', epoch=1, step=1); say('result')",
            "internal",
            "without a best",
        ),
    ],
)
def test_final_failures(rig: Rig, body: str, code: str, said: str) -> None:
    job = rig.run(body)
    assert job.state is JobState.FAILED
    assert job.error["code"] == code
    assert said in job.error["message"]
    assert not rig.runner("").run_next()


@both_databases
@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "internal"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "internal"),
        ("say('error', 'full', code='storage_full', retryable=True); sys.exit(10)", "storage_full"),
        ("sys.exit(12)", "worker_lost"),
        ("sys.exit(10)", "internal"),
        ("raise RuntimeError('bug')", "internal"),
    ],
)
def test_transient_failures_are_tried_again_until_attempts_are_used_up(rig: Rig, body: str, code: str) -> None:
    job = rig.run(body, max_attempts=2)
    assert job.state is JobState.QUEUED
    assert job.not_before is not None
    rig.make_due(job.id)
    job = rig.run(body, job.id)
    assert (job.state, job.attempt, job.error["code"]) == (JobState.FAILED, 2, code)


def test_next_attempt_resumes_from_the_newest_intact_checkpoint(rig: Rig) -> None:
    crash = trainers.CONTRACT + "\nfor e in (1, 2, 3): checkpoint('epoch', e)\nos.kill(os.getpid(), signal.SIGKILL)"
    job = rig.run(crash, keep_checkpoints=3)
    with rig.database.read() as unit:
        newest = next(each for each in unit.checkpoints.list(job.id) if each.epoch == 3)
    damaged = next(file for file in newest.files if file.name == "adapter_model.safetensors")
    (rig.settings.storage_dir / damaged.storage_key).write_text("adapter of epoch x")
    rig.make_due(job.id)
    job = rig.run(trainers.CONTRACT + "\ntrain(5)", job.id)
    assert job.state is JobState.SUCCEEDED
    assert job.result["first"] == 3  # after epoch 2


def test_what_is_published_is_never_a_mixture_of_two_checkpoints(rig: Rig) -> None:
    body = trainers.CONTRACT + "\nfor e in range(1, 60): checkpoint('best', e, e / 60)\nsay('result')"
    job = rig.run(body)
    assert job.state is JobState.SUCCEEDED
    with rig.database.read() as unit:
        (best,) = unit.checkpoints.list(job.id)
    content = {file.name: b"".join(rig.storage.get_range(file.storage_key)) for file in best.files}
    assert best.epoch == 59
    assert content["adapter_model.safetensors"] == b"adapter of best 59"
    with rig.database.read() as unit:
        announced = [event.data for event in unit.events.list(job.id, limit=1000) if event.type == "checkpoint"]
    assert 1 <= len(announced) <= 59


@both_databases
def test_cancel_saves_and_ends(rig: Rig) -> None:
    def cancel(job_id: str) -> None:
        with rig.database.write() as unit:
            cancel_job(unit, job_id)

    job = rig.run_and(cancel, trainers.CONTRACT + "\ntrain(1000, 0.4)")
    assert job.state is JobState.CANCELLED
    with rig.database.read() as unit:
        assert unit.checkpoints.list(job.id)


def test_cancel_wins_over_a_trainer_that_ignores_it(rig: Rig) -> None:
    def cancel(job_id: str) -> None:
        with rig.database.write() as unit:
            cancel_job(unit, job_id)

    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN); say('phase', phase='training'); time.sleep(60)"
    assert rig.run_and(cancel, body).state is JobState.CANCELLED


def test_stop_finishes_early_and_succeeds(rig: Rig) -> None:
    def stop(job_id: str) -> None:
        with rig.database.write() as unit:
            stop_job(unit, job_id)

    job = rig.run_and(stop, trainers.CONTRACT + "\ntrain(1000, 0.4)")
    assert job.state is JobState.SUCCEEDED
    assert job.result["steps"] < 10_000


@both_databases
def test_pause_saves_and_resume_goes_on_from_there(rig: Rig) -> None:
    def pause(job_id: str) -> None:
        with rig.database.write() as unit:
            pause_job(unit, job_id)

    job = rig.run_and(pause, trainers.CONTRACT + "\ntrain(1000, 0.4)")
    assert (job.state, job.lost_attempts) == (JobState.PAUSED, 0)
    assert not rig.runner("").run_next()
    with rig.database.read() as unit:
        saved = max(each.epoch for each in unit.checkpoints.list(job.id))
    with rig.database.write() as unit:
        resume_job(unit, job.id)
    job = rig.run(trainers.CONTRACT + "\ntrain(first)", job.id)
    assert (job.state, job.attempt, job.result["first"]) == (JobState.SUCCEEDED, 2, saved + 1)


@both_databases
def test_a_retry_takes_over_checkpoints_and_evaluations_and_goes_on(rig: Rig) -> None:
    evaluated = """
for model, value in (("base", 0.1), ("tuned", 0.5)):
    epoch = 0 if model == "base" else 1
    say("evaluation", model=model, epoch=epoch, step=10 * epoch, metrics={"segm_mAP": value})
    (run / "evaluation" / model).mkdir(parents=True)
    (run / "evaluation" / model / "evaluation.json").write_text(model)
    say("artifact", place=f"evaluation/{model}")
for e in (1, 2, 3):
    drawn = run / "epoch_samples" / str(e)
    drawn.mkdir(parents=True)
    (drawn / "index.json").write_text("[]")
    say("artifact", place=f"epoch_samples/{e}")
for e in (1, 2): checkpoint('epoch', e)
checkpoint('best', 1, 0.5)
say("evaluation", model="tuned", epoch=3, step=30, metrics={"segm_mAP": 0.7})  # it ends before it is saved
say('error', 'odd', code='internal'); sys.exit(10)
"""
    failed = rig.run(trainers.CONTRACT + evaluated)
    assert failed.state is JobState.FAILED
    with rig.database.write() as unit:
        retry = retry_job(unit, failed.id, from_scratch=False)
    crash = trainers.CONTRACT + "\nsay('message', f'begins with {first}')\nos.kill(os.getpid(), signal.SIGKILL)"
    job = rig.run(crash, retry.id)
    assert ("message", "begins with 3") in rig.events(job.id)
    with rig.database.read() as unit:
        own, old = unit.checkpoints.list(job.id), unit.checkpoints.list(failed.id)
    assert [(each.kind, each.epoch, each.value) for each in own] == [("epoch", 2, None), ("best", 1, 0.5)]
    assert job.best["checkpoint_id"] == own[1].id
    assert not {f.storage_key for each in own for f in each.files} & {f.storage_key for each in old for f in each.files}
    assert {f.sha256 for each in own for f in each.files} <= {f.sha256 for each in old for f in each.files}
    for each in old:  # what it has taken over it no longer needs of the old one
        for file in each.files:
            rig.storage.delete(file.storage_key)
    rig.make_due(job.id)
    there = (
        "\nsay('message', ' '.join(open(run / 'evaluation' / m / 'evaluation.json').read() for m in ('base', 'tuned')))"
    )
    job = rig.run(trainers.CONTRACT + there + "\ntrain(3)", job.id)
    assert (job.state, job.result["first"]) == (JobState.SUCCEEDED, 3)
    assert ("message", "base tuned") in rig.events(job.id)
    with rig.database.read() as unit:
        adopted = [event.data for event in unit.events.list_evaluations(job.id) if event.attempt == 1]
        assert [(each["model"], each["step"]) for each in adopted] == [("base", 0), ("tuned", 10)]
        assert {file.name for file in unit.artifacts.list(job.id, "evaluation/base")} == {
            "evaluation/base/evaluation.json"
        }
        # Of the epochs until the checkpoint, not of the one after, which is trained again.
        drawn = {file.name for file in unit.artifacts.list(job.id, "epoch_samples")}
        assert drawn == {"epoch_samples/1/index.json", "epoch_samples/2/index.json"}


def test_a_retry_without_an_intact_checkpoint_begins_anew_and_says_so(rig: Rig) -> None:
    evaluated = """
say("evaluation", model="base", epoch=0, step=0, metrics={"segm_mAP": 0.1})
(run / "evaluation" / "base").mkdir(parents=True)
(run / "evaluation" / "base" / "evaluation.json").write_text("base")
say("artifact", place="evaluation/base")
checkpoint('epoch', 1)
say('error', 'odd', code='internal'); sys.exit(10)
"""
    failed = rig.run(trainers.CONTRACT + evaluated)
    for key in rig.storage.list(f"jobs/{failed.id}"):
        (rig.settings.storage_dir / key).write_text("damaged")
    with rig.database.write() as unit:
        retry = retry_job(unit, failed.id, from_scratch=False)
    job = rig.run(trainers.CONTRACT + "\ntrain(1)", retry.id)
    assert (job.state, job.result["first"]) == (JobState.SUCCEEDED, 1)
    assert any("training begins anew" in message for _, message in rig.events(job.id)[2:])
    with rig.database.read() as unit:
        assert unit.artifacts.list(job.id, "evaluation/base") == unit.events.list_evaluations(job.id) == []


def test_a_job_is_given_the_adapter_to_start_from_only_until_it_has_a_checkpoint(rig: Rig) -> None:
    earlier = rig.run(trainers.CONTRACT + "\ntrain(1)")
    say_adapter = """
adapter = config["model"]["adapter"]
content = adapter and (pathlib.Path(adapter) / "adapter_model.safetensors").read_text()
say("message", f"starts from {content}")
"""
    job = rig.run(
        trainers.CONTRACT + say_adapter + "checkpoint('epoch', 1); os.kill(os.getpid(), signal.SIGKILL)",
        init_checkpoint_id=earlier.best["checkpoint_id"],
    )
    assert ("message", "starts from adapter of best 1") in rig.events(job.id)
    rig.make_due(job.id)
    job = rig.run(trainers.CONTRACT + say_adapter + "train(2)", job.id)
    assert ("message", "starts from None") in rig.events(job.id)
    assert job.state is JobState.SUCCEEDED


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_an_adapter_to_start_from_that_is_lost_is_a_named_failure(rig: Rig, damage: str) -> None:
    earlier = rig.run(trainers.CONTRACT + "\ntrain(1)")
    for key in rig.storage.list(f"jobs/{earlier.id}"):
        if damage == "gone":
            rig.storage.delete(key)
        else:
            (rig.settings.storage_dir / key).write_text("x")
    job = rig.run("sys.exit(0)", init_checkpoint_id=earlier.best["checkpoint_id"])
    assert (job.state, job.error["code"]) == (JobState.FAILED, "adapter_invalid")
    assert "init_from" in job.error["hint"]


def test_the_images_of_a_validation_dataset_are_the_validation_set(rig: Rig, tmp_path: Path) -> None:
    write_split(tmp_path / "other" / "train", records(3, "other"), 500)
    other = add_dataset(rig.database, rig.storage, zip_folder(tmp_path / "other", tmp_path / "other.zip"))
    body = (
        trainers.CONTRACT
        + """
train_file, val_file = (config["dataset"][key] for key in ("train_ann_file", "val_ann_file"))
say("message", f"{len(json.load(open(train_file))['images'])} {len(json.load(open(val_file))['images'])}")
train(1)
"""
    )
    job = rig.run(body, validation_dataset_id=other)
    assert job.state is JobState.SUCCEEDED
    assert ("message", "12 3") in rig.events(job.id)


@both_databases
def test_drain_puts_the_job_back_at_once_without_counting_it(rig: Rig) -> None:
    job = rig.run_and(lambda _: rig.draining.set(), trainers.CONTRACT + "\ntrain(1000, 0.4)")
    assert (job.state, job.not_before, job.lost_attempts) == (JobState.QUEUED, None, 0)
    rig.draining.clear()
    job = rig.run(trainers.CONTRACT + "\ntrain(first)", job.id)
    assert job.state is JobState.SUCCEEDED
    assert job.result["first"] > 1


def test_runtime_limit_counts_all_attempts(rig: Rig) -> None:
    job = rig.run(trainers.CONTRACT + "\ntrain(1000, 0.4)", max_runtime_s=1)
    assert (job.state, job.error["code"]) == (JobState.FAILED, "time_limit")
    assert "retry it with a higher limits.max_runtime_s" in job.error["hint"].lower()


def test_memory_limit_is_the_end_of_the_job(rig: Rig) -> None:
    rig.settings = rig.settings.model_copy(update={"trainer_memory_bytes": 64 * 2**20})
    body = "held = bytearray(128 * 2**20)\nwhile True: say('progress'); time.sleep(0.1)"
    job = rig.run(body, max_attempts=3)
    assert (job.state, job.error["code"]) == (JobState.FAILED, "memory_limit")
    assert "0.1 GiB" in job.error["message"]


def test_dataset_archive_that_was_damaged_in_storage(rig: Rig) -> None:
    archive = next((rig.settings.storage_dir / "datasets").rglob("archive"))
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    job = rig.run("sys.exit(0)", max_attempts=1)
    assert job.state is JobState.FAILED
    assert "damaged archive" in job.error["message"]


def test_second_job_does_not_extract_again(rig: Rig) -> None:
    rig.run(trainers.CONTRACT + "\ntrain(1)")
    archive = next((rig.settings.storage_dir / "datasets").rglob("archive"))
    archive.unlink()
    assert rig.run(trainers.CONTRACT + "\ntrain(1)").state is JobState.SUCCEEDED


@both_databases
def test_lost_lease_kills_the_trainer_and_writes_nothing_more(rig: Rig, tmp_path: Path) -> None:
    def take_away(job_id: str) -> None:
        with rig.database.write() as unit:
            lease = next(each for each in unit.attempts.leases() if each.id == job_id)
            unit.attempts.reap(lease)

    pid_file = tmp_path / "pid"
    body = trainers.CONTRACT + f"\npathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\ntrain(1000, 0.4)"

    def take_away_when_started(job_id: str) -> None:
        while not pid_file.exists():
            time.sleep(0.01)
        while True:  # a heartbeat may come between
            try:
                return take_away(job_id)
            except Exception:  # noqa: BLE001
                time.sleep(0.01)

    job = rig.run_and(take_away_when_started, body)
    assert job.state is JobState.QUEUED
    assert not os.path.exists(f"/proc/{pid_file.read_text()}")  # noqa: PTH110
    types = [kind for kind, _ in rig.events(job.id)]
    assert types[-1] == "status"  # the reaper's own, and nothing after it


def test_database_away_for_a_moment_costs_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    write = rig.database.write
    away = threading.Event()

    def failing_write() -> Any:
        if away.is_set():
            raise OperationalError("BEGIN", {}, Exception("the database is away"))
        return write()

    def interrupt(_: str) -> None:
        away.set()
        time.sleep(0.8)
        away.clear()

    monkeypatch.setattr(rig.database, "write", failing_write)
    job = rig.run_and(interrupt, trainers.CONTRACT + "\ntrain(20, 0.1)")
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    points = [p for p in points_of(rig.database, job.id) if p.name == "train/loss"]
    assert len(points) == 20


class Away:
    """A storage whose operation of that name fails so many times, and is asked so often."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch, name: str, times: int) -> None:
        self.asked = 0
        works = getattr(rig.storage, name)

        def operation(*arguments: Any, **options: Any) -> Any:
            self.asked += 1
            if self.asked <= times:
                raise StorageError("Storage does not work at the moment.")
            return works(*arguments, **options)

        monkeypatch.setattr(rig.storage, name, operation)


def test_storage_away_while_the_dataset_is_fetched_costs_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away(rig, monkeypatch, "fetch", times=1)
    job = rig.run(trainers.CONTRACT + "\ntrain(1)")
    assert (job.state, job.attempt, away.asked) == (JobState.SUCCEEDED, 1, 2)


def test_storage_away_while_a_checkpoint_is_fetched_costs_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    job = rig.run(trainers.CONTRACT + "\ntrain(1)\nos.kill(os.getpid(), 9)")
    assert job.state is JobState.QUEUED
    rig.make_due(job.id)
    away = Away(rig, monkeypatch, "fetch", times=1)
    job = rig.run(trainers.CONTRACT + "\ntrain(2)", job.id)
    assert (job.state, job.attempt, job.result["first"]) == (JobState.SUCCEEDED, 2, 2)
    assert away.asked > 1


def test_files_that_cannot_be_deleted_stop_no_training(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away(rig, monkeypatch, "delete", times=10**6)
    job = rig.run(trainers.CONTRACT + "\ntrain(5)")
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    assert away.asked > 1
    with rig.database.read() as unit:
        assert len(unit.checkpoints.list(job.id)) == 3  # two to go on from, and the best


@both_databases
def test_stale_epoch_is_refused(rig: Rig) -> None:
    job_id = add_job(rig.database, rig.dataset_id)
    with rig.database.write() as unit:
        claimed = unit.jobs.claim("worker-0")
    assert claimed is not None
    with pytest.raises(LeaseLostError), rig.database.write() as unit:
        unit.attempts.heartbeat(job_id, claimed.epoch - 1)


def test_trainers_are_told_where_trackers_are_and_how_to_call_the_run(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "key-of-theirs")
    body = (
        trainers.CONTRACT
        + """
say('message', json.dumps({"output": config["output"], "key": os.environ.get("WANDB_API_KEY")}))
train(1)
"""
    )
    plain = rig.run(body)
    rig.settings = rig.settings.model_copy(update={"trackers": ("wandb",), "tracker_project": "pallets"})
    job = rig.run(body, name="first")
    (without, told) = (
        json.loads(message)
        for each in (plain, job)
        for kind, message in rig.events(each.id)
        if kind == "message" and message.startswith("{")
    )
    assert (without["output"]["trackers"], without["key"]) == ([], None)
    assert (told["output"]["trackers"], told["key"]) == (["wandb"], "key-of-theirs")
    assert (told["output"]["project"], told["output"]["run_name"]) == ("pallets", f"first {job.id}")
