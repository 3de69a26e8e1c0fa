"""What the holder of a job's lease writes, and how an attempt ends: by its worker or by the reaper."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update

from service.shared.db.models import Attempt, Job
from service.shared.db.repositories.fencing import write_fenced
from service.shared.errors import StateConflictError
from service.shared.states import LEASED, Actor, JobRequest, JobState
from service.shared.tallies import TallyName

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from service.shared.clock import Clock
    from service.shared.db.repositories.jobs import JobRepository
    from service.shared.db.repositories.tallies import TallyRepository
    from service.shared.db.repositories.usage import UsageRepository
    from service.shared.retry import RetryPolicy

REPORTABLE = frozenset({"phase", "progress", "resolved", "trainable", "peak_memory_bytes"})

UNKNOWN_ERROR = {"code": "internal", "message": "The attempt failed.", "hint": "", "retryable": False}


@dataclass(frozen=True)
class Lease:
    """A held lease as the reaper sees it."""

    id: str
    epoch: int
    hb_seq: int


class AttemptRepository:
    def __init__(
        self,
        session: Session,
        clock: Clock,
        jobs: JobRepository,
        retry: RetryPolicy,
        tallies: TallyRepository,
        usage: UsageRepository,
    ) -> None:
        self._session = session
        self._clock = clock
        self._jobs = jobs
        self._retry = retry
        self._tallies = tallies
        self._usage = usage

    def heartbeat(self, job_id: str, epoch: int) -> JobRequest | None:
        """Renew the lease; what the user has asked of the running job, if anything.

        Raises:
            LeaseLostError: if `epoch` no longer holds the job.
        """
        beat = {"hb_seq": Job.hb_seq + 1, "last_heartbeat_at": self._clock.now()}
        return write_fenced(self._session, job_id, epoch, **beat).request

    def report(self, job_id: str, epoch: int, **values: Any) -> Job:
        """Set any of `phase`, `progress`, `resolved`, `trainable`, `peak_memory_bytes` on the job.

        `resolved` is what the trainer reported as used; it is kept under `resolved["run"]`. Of `progress`, numbers
        are kept.

        Raises:
            LeaseLostError: if `epoch` no longer holds the job.
        """
        if unknown := values.keys() - REPORTABLE:
            raise TypeError(f"not reportable: {sorted(unknown)}")
        job = write_fenced(self._session, job_id, epoch, updated_at=self._clock.now())
        if "resolved" in values:
            values["resolved"] = job.resolved | {"run": values["resolved"]}
        if values.get("progress") is not None:
            numbers = {name: value for name, value in values["progress"].items() if _is_number(value)}
            values["progress"] = numbers | {"updated_at": self._clock.now().isoformat()}
        return write_fenced(self._session, job_id, epoch, **values) if values else job

    def finish(
        self,
        job_id: str,
        epoch: int,
        outcome: JobState,
        *,
        reason: str | None = None,
        error: dict[str, Any] | None = None,
        result: dict[str, Any] | None = None,
        peak_memory_bytes: int | None = None,
    ) -> Job:
        """End the attempt: the job, in the state it went to.

        `outcome` is succeeded (with `result`), failed (with `error`), cancelled, or queued. Queued with an
        `error` (`{code, message, hint, retryable}`) is a transient failure: it counts, the next attempt waits,
        and without attempts left the job fails with that error. Queued without an error is a drain: it does not
        count and is due at once. A job that is being cancelled becomes cancelled whatever the outcome; one that
        is being paused becomes paused where it would have been queued.

        Raises:
            LeaseLostError: if `epoch` no longer holds the job.
        """
        now = self._clock.now()
        job = write_fenced(self._session, job_id, epoch, updated_at=now)
        values: dict[str, Any] = {}
        if peak_memory_bytes is not None:
            values["peak_memory_bytes"] = max(peak_memory_bytes, job.peak_memory_bytes or 0)
        if result is not None:
            values["result"] = result
        to = self._settled(job, outcome)
        if to is JobState.QUEUED and error is not None:
            self._tallies.count(TallyName.LOST, str(error["code"]))
            to, retry_values = self._after_failure(job, now)
            values |= retry_values
        if to is JobState.FAILED:
            values["error"] = UNKNOWN_ERROR | (error or {}) | {"attempt": job.attempt}
        return self._end(job, to, Actor.WORKER, at=now, reason=reason or (error or {}).get("message"), **values)

    def leases(self) -> Sequence[Lease]:
        """Every held lease."""
        rows = self._session.execute(select(Job.id, Job.epoch, Job.hb_seq).where(Job.state.in_(LEASED)))
        return [Lease(*row) for row in rows]

    def reap(self, lease: Lease) -> Job:
        """Take a job away from a worker that has stopped renewing: queued again, failed, cancelled or paused.

        Raises:
            NotFoundError: if there is no such job.
            StateConflictError: if the lease was renewed or ended meanwhile.
        """
        now = self._clock.now()
        job = self._jobs.get(lease.id, lock=True)  # before its attempt, as its worker does
        if job.state not in LEASED or Lease(job.id, job.epoch, job.hb_seq) != lease:
            raise StateConflictError(f"lease {lease.epoch} of {lease.id} was renewed or has ended")
        values: dict[str, Any] = {}
        to = self._settled(job, JobState.QUEUED)
        if to is JobState.QUEUED:
            to, values = self._after_failure(job, now)
        if to is JobState.FAILED:
            values["error"] = {
                "code": "worker_lost",
                "message": f"The worker was lost {job.lost_attempts + 1} times without a result.",
                "hint": "Look at the job's log for what was last done; the machine may lack memory.",
                "retryable": True,
                "attempt": job.attempt,
            }
        at = job.last_heartbeat_at or now
        self._tallies.count(TallyName.LOST, "worker_lost")
        return self._end(job, to, Actor.REAPER, at=at, reason="The worker was lost", **values)

    def list(self, job_id: str) -> Sequence[Attempt]:
        """Attempts of a job, oldest first."""
        return self._session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.epoch)).all()

    @staticmethod
    def _settled(job: Job, outcome: JobState) -> JobState:
        if job.state is JobState.CANCELLING:
            return JobState.CANCELLED
        if job.state is JobState.PAUSING and outcome is JobState.QUEUED:
            return JobState.PAUSED
        return outcome

    def _after_failure(self, job: Job, now: datetime) -> tuple[JobState, dict[str, Any]]:
        lost = job.lost_attempts + 1
        if lost >= job.max_attempts:
            return JobState.FAILED, {"lost_attempts": lost}
        not_before = now + timedelta(seconds=self._retry.delay_s(lost))
        return JobState.QUEUED, {"lost_attempts": lost, "not_before": not_before}

    def _end(
        self,
        job: Job,
        to: JobState,
        by: Actor,
        *,
        at: datetime,
        reason: str | None,
        **values: Any,
    ) -> Job:
        opened = update(Attempt).where(Attempt.job_id == job.id, Attempt.epoch == job.epoch)
        started_at = self._session.scalar(
            opened.values(ended_at=at, outcome=to, reason=reason).returning(Attempt.started_at)
        )
        if started_at is not None:
            gpu_seconds = job.gpus * max(0.0, (at - started_at).total_seconds())
            self._tallies.count(TallyName.GPU_SECONDS, amount=gpu_seconds)
            values["gpu_seconds"] = Job.gpu_seconds + gpu_seconds
            self._usage.note_attempt(job, started_at, at)
        return self._jobs.move(job.id, to, by, epoch=job.epoch, reason=reason, changes=values)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
