"""One training job from claim to end: fetch the dataset, run the trainer, publish, finish.

Every write is fenced by the lease; once it is lost the trainer is killed and nothing more is written.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import structlog

from sam3_lora.child import EXIT_FAILED
from sam3_lora.coco.layout import find_layout
from sam3_lora.config import RunConfig, parse
from sam3_lora.events import Event, EventType, Level, Phase
from service.shared import gpus, tracing
from service.shared.errors import LeaseLostError
from service.shared.origin import request_of
from service.shared.states import JobRequest, JobState
from worker import failures
from worker.archive import unpacked
from worker.artifacts import ArtifactPublisher
from worker.observer import Observer
from worker.phases import PhaseSpans
from worker.publisher import Publisher
from worker.supervisor import Ask, Cut, Ending, Limits, Trainer
from worker.vitals import vitals
from worker.work import Runner

if TYPE_CHECKING:
    from pathlib import Path

    from service.shared.db.models import Dataset, Job
    from service.shared.settings import Settings
    from service.shared.unit_of_work import UnitOfWork
    from worker.failures import Failure
    from worker.lease import Lease
    from worker.work import Me, Places

log = structlog.get_logger(__name__)

TRAINER = (sys.executable, "-m", "sam3_lora.training.process")


class _InterruptedError(Exception):
    """The user or a shutdown wants the job back before its trainer has started."""


@dataclass(frozen=True)
class Outcome:
    """Where a job goes after an attempt."""

    state: JobState
    reason: str | None = None
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    peak_memory_bytes: int | None = None


class TrainingRunner(Runner["Job"]):
    """Runs the jobs that one worker with GPUs claims, one at a time."""

    noun = "job"

    def __init__(
        self,
        *places: *Places,
        device: str | None,
        gpus: int = 1,
        trainer: tuple[str, ...] = TRAINER,
        **me: Unpack[Me],
    ) -> None:
        """Claim jobs that need at most so many `gpus`.

        Args:
            trainer: the command that `--config` and the other arguments of the trainer process are added to.
        """
        super().__init__(*places, **me)
        self._device = device
        self._gpus = gpus
        self._trainer = trainer

    def _claim(self, unit: UnitOfWork) -> Job | None:
        return unit.jobs.claim(self._worker_id, self._device, gpus=self._gpus)

    def _told(self, job: Job) -> tuple[dict[str, Any], dict[str, Any] | None]:
        return {"attempt": job.attempt, **request_of(job.origin)}, job.origin

    def _renew(self, unit: UnitOfWork, job: Job) -> JobRequest | None:
        return unit.attempts.heartbeat(job.id, job.epoch)

    def _work(self, job: Job, lease: Lease) -> None:
        outcome = self._attempt(job, lease)
        lease.insist(lambda: self._finish(job, outcome))
        code = (outcome.error or {}).get("code")
        tracing.note(state=outcome.state.value, error_code=code, failed=code)
        log.info("attempt_ended", state=outcome.state, reason=outcome.reason)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        with self._database.write() as unit:
            ended = unit.attempts.finish(
                job.id,
                job.epoch,
                outcome.state,
                reason=outcome.reason,
                error=outcome.error,
                result=outcome.result,
                peak_memory_bytes=outcome.peak_memory_bytes,
            )
            if ended.state is JobState.SUCCEEDED:
                unit.models.add_best(ended)

    def _attempt(self, job: Job, lease: Lease) -> Outcome:
        """Everything between claim and finish; only the loss of the lease is raised."""
        try:
            with self._workspace.attempt(f"{job.id}-e{job.epoch}") as folder:
                return self._train(job, lease, folder)
        except LeaseLostError:
            raise
        except _InterruptedError:
            return _put_back(lease.request)
        except Exception as error:  # the edge of a job: whatever happened is its error, and the worker goes on
            log.exception("attempt_failed")
            return _failed(failures.of_exception(error))

    def _train(self, job: Job, lease: Lease, folder: Path) -> Outcome:
        config = job.resolved["config"]
        publisher = Publisher(
            self._database, self._storage, job, lease, keep=int(config["training"]["keep_checkpoints"])
        )
        run_dir, log_file = folder / "run", folder / "trainer.log"
        (folder / "tmp").mkdir()
        log_file.touch()
        artifacts = ArtifactPublisher(self._database, self._storage, job, lease)
        observer = Observer(
            self._database,
            job,
            log_file,
            publish=lambda event: publisher.publish(event, run_dir, folder / "publish"),
            publish_artifact=lambda event: artifacts.publish(event, run_dir, folder / "publish"),
            insist=lease.insist,
        )
        log.info("attempt_began", gpus=job.gpus)
        observer(Event(EventType.PHASE, "Fetching the dataset", {"phase": Phase.DOWNLOADING_DATASET}))
        observer.flush()
        with contextlib.ExitStack() as stack:
            with tracing.span("fetch_dataset"):
                roots = [stack.enter_context(self._unpacked(dataset_id, lease)) for dataset_id in _datasets(job)]
            with tracing.span("fetch_checkpoint"):
                resume = self._fetch_checkpoint(job, publisher, artifacts, observer, folder / "resume")
                if resume is not None:
                    artifacts.fetch_evaluations(run_dir)
                adapter = None
                if resume is None and job.init_checkpoint_id is not None:
                    adapter = publisher.fetch_adapter(job.init_checkpoint_id, folder / "init")
            self._check(lease)
            (folder / "run.json").write_text(self._run_config(job, roots, run_dir, adapter).model_dump_json())
            command = [*self._trainer, "--config", str(folder / "run.json")]
            command += ["--lease-timeout", f"{self._settings.self_fence_s:g}"]
            command += [] if resume is None else ["--resume", str(resume)]
            command += [] if job.gpus == 1 else ["--processes", str(job.gpus)]
            ending = self._supervise(job, command, lease, observer, log_file, folder / "tmp")
        if ending.asked is Ask.DIE:
            lease.check()
            raise LeaseLostError(f"the lease of {job.id} was lost")
        lease.insist(observer.finish)
        has_best = lease.insist(lambda: self._has_best(job))
        return _outcome(ending, job, lease.request, self._settings, has_best=has_best)

    def _has_best(self, job: Job) -> bool:
        """Whether there is what becomes the job's model."""
        with self._database.read() as unit:
            return any(checkpoint.kind == "best" for checkpoint in unit.checkpoints.list(job.id))

    def _unpacked(self, dataset_id: str, lease: Lease) -> contextlib.AbstractContextManager[Path]:
        def find() -> Dataset:
            with self._database.read() as unit:
                return unit.datasets.get(dataset_id)

        def check() -> None:
            self._check(lease)

        dataset = lease.insist(find)
        return unpacked(dataset, self._storage, self._workspace, on_chunk=check, insist=lease.insist)

    def _fetch_checkpoint(
        self, job: Job, publisher: Publisher, artifacts: ArtifactPublisher, observer: Observer, folder: Path
    ) -> Path | None:
        """What the trainer goes on from: a checkpoint of an earlier attempt, else of the job that this one retries."""
        if own := publisher.fetch_latest(job.id, folder):
            return own[1]
        if job.resumes_from is None:
            return None
        adopted = publisher.fetch_latest(job.resumes_from, folder)
        if adopted is None:
            message = f"No intact checkpoint of {job.resumes_from} is left: training begins anew"
            observer(Event(EventType.MESSAGE, message, level=Level.WARNING))
            return None
        # First: a checkpoint says that all was taken over.
        artifacts.adopt(adopted[0], folder / "evaluated")
        publisher.adopt(*adopted)
        return adopted[1]

    def _supervise(
        self, job: Job, command: list[str], lease: Lease, observer: Observer, log_file: Path, temporary: Path
    ) -> Ending:
        limits = Limits(
            runtime_s=max(1.0, job.max_runtime_s - job.gpu_seconds / job.gpus),  # of all attempts together
            silence_s=self._settings.no_progress_timeout_s,
            grace_s=self._settings.terminate_grace_s,
            log_bytes=self._settings.max_log_bytes,
            memory_bytes=self._settings.trainer_memory_bytes,
        )

        def ask() -> Ask | None:
            if lease.is_lost:
                return Ask.DIE
            observer.tick()
            if lease.request in (JobRequest.CANCEL, JobRequest.PAUSE) or self._is_draining():
                return Ask.SAVE_AND_EXIT
            return Ask.FINISH if lease.request is JobRequest.STOP else None

        phases = PhaseSpans()

        def on_event(event: Event) -> None:
            phases(event)
            observer(event)

        with (
            tracing.span("trainer", gpus=job.gpus),
            Trainer(
                command, log=log_file, temporary=temporary, limits=limits, trackers=bool(self._settings.trackers)
            ) as trainer,
            lease.passed_on(trainer.renew),
        ):
            used = gpus.visible()[: job.gpus]
            observer.vitals = lambda: vitals(trainer.pid, used)
            try:
                ending = trainer.supervise(on_event, ask)
            finally:
                phases.end()
            tracing.note(exit_status=ending.returncode)
            return ending

    def _check(self, lease: Lease) -> None:
        """Stop before the trainer has started, if the lease is lost or the job is wanted back."""
        lease.check()
        if lease.request in (JobRequest.CANCEL, JobRequest.PAUSE) or self._is_draining():
            raise _InterruptedError

    def _run_config(self, job: Job, roots: list[Path], run_dir: Path, adapter: Path | None) -> RunConfig:
        """`roots`: the training dataset, then that of validation, if there is one."""
        layout = find_layout(roots[0])
        validation = layout.validation
        if len(roots) > 1:
            other = find_layout(roots[1])
            validation = other.validation or other.train
        config = job.resolved["config"]
        paths: dict[str, Any] = {
            "train_img_folder": str(layout.train.images),
            "train_ann_file": str(layout.train.annotations),
        }
        if validation is not None:
            paths["val_img_folder"] = str(validation.images)
            paths["val_ann_file"] = str(validation.annotations)
        checkpoint = self._settings.checkpoint if job.base_model == "sam3" else None
        return parse(
            RunConfig,
            {
                **config,
                "dataset": config["dataset"] | paths,
                "model": {
                    "base": job.base_model,
                    "checkpoint": None if checkpoint is None else str(checkpoint),
                    "adapter": None if adapter is None else str(adapter),
                },
                "output": {
                    "dir": str(run_dir),
                    "trackers": list(self._settings.trackers),
                    "project": self._settings.tracker_project,
                    "run_name": f"{job.name[:80]} {job.id}" if job.name else job.id,
                },
            },
        )


def _datasets(job: Job) -> list[str]:
    return [job.dataset_id] if job.validation_dataset_id is None else [job.dataset_id, job.validation_dataset_id]


def _outcome(ending: Ending, job: Job, request: JobRequest | None, settings: Settings, *, has_best: bool) -> Outcome:
    if ending.returncode == failures.EXIT_DONE and ending.result is not None:
        if not has_best:
            return _failed(failures.no_checkpoint())
        report = ending.result.data
        peak = report.get("peak_memory_bytes")
        return Outcome(
            JobState.SUCCEEDED,
            result={"model_id": None, **report},
            peak_memory_bytes=peak if isinstance(peak, int) else None,
        )
    if ending.cut is Cut.RUNTIME:
        return _failed(failures.time_limit(job.max_runtime_s))
    if ending.cut is Cut.NO_PROGRESS:
        return _failed(failures.no_progress(settings.no_progress_timeout_s))
    if ending.cut is Cut.MEMORY and settings.trainer_memory_bytes is not None:
        return _failed(failures.memory_limit(settings.trainer_memory_bytes))
    failure = failures.of_exit(ending.returncode, ending.error)
    was_put_back = ending.asked is Ask.SAVE_AND_EXIT and ending.returncode != EXIT_FAILED
    if was_put_back or request is JobRequest.CANCEL:
        return _put_back(request)
    return _failed(failure)


def _put_back(request: JobRequest | None) -> Outcome:
    """The end of an attempt that a user or a shutdown cut short; nothing failed."""
    match request:
        case JobRequest.CANCEL:
            return Outcome(JobState.CANCELLED, "Cancelled by request")
        case JobRequest.PAUSE:
            return Outcome(JobState.QUEUED, "Paused by request")
        case _:
            return Outcome(JobState.QUEUED, "The worker is shutting down")


def _failed(failure: Failure) -> Outcome:
    """Queued again (if attempts are left) or failed."""
    state = JobState.QUEUED if failure.retryable else JobState.FAILED
    return Outcome(state, failure.message, error=failure.to_dict())
