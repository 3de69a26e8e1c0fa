"""What a user may do with a job that exists. Repeating an action that was taken changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.shared.db.repositories.events import NewEvent
from service.shared.errors import JobInUseError, StateConflictError, invalid
from service.shared.queue import Task
from service.shared.states import ACTIONS, LEASED, TERMINAL, Actor, JobAction, JobRequest, JobState, allowed_actions

if TYPE_CHECKING:
    from service.shared.db.models import Job
    from service.shared.unit_of_work import UnitOfWork

MAX_METADATA = 16


def cancel_job(unit: UnitOfWork, job_id: str) -> Job:
    """Cancel the job, at once where no worker holds it, else through its worker, which saves a checkpoint first.

    Raises:
        NotFoundError: if there is no such job.
        StateConflictError: if it has already ended otherwise.
    """
    job = unit.jobs.get(job_id, lock=True)
    if job.state in (JobState.CANCELLING, JobState.CANCELLED):
        return job
    check_allowed(job, JobAction.CANCEL)
    if job.state in LEASED:
        changes = {"request": JobRequest.CANCEL}
        return unit.jobs.move(job_id, JobState.CANCELLING, Actor.API, reason="Cancel requested", changes=changes)
    return unit.jobs.move(job_id, JobState.CANCELLED, Actor.API, reason="Cancelled by request")


def stop_job(unit: UnitOfWork, job_id: str) -> Job:
    """Have a running job finish its step, evaluate, save and succeed; it stays `running` until then.

    The request outlives a lost worker: the next one trains no further than it must.

    Raises:
        NotFoundError: if there is no such job.
        StateConflictError: if it is neither running nor has succeeded.
    """
    job = unit.jobs.get(job_id, lock=True)
    if job.request is JobRequest.STOP or job.state is JobState.SUCCEEDED:
        return job
    check_allowed(job, JobAction.STOP)
    return unit.jobs.request(job_id, JobRequest.STOP, "Stop requested")


def pause_job(unit: UnitOfWork, job_id: str) -> Job:
    """Hold the job: at once while it is queued, else once its worker has saved a checkpoint.

    Raises:
        NotFoundError: if there is no such job.
        StateConflictError: if it is neither queued nor running.
    """
    job = unit.jobs.get(job_id, lock=True)
    if job.state in (JobState.PAUSING, JobState.PAUSED):
        return job
    check_allowed(job, JobAction.PAUSE)
    if job.request is JobRequest.STOP:
        raise StateConflictError(f"Job {job_id} was asked to stop and will end soon, with what it has learnt.")
    if job.state in LEASED:
        changes = {"request": JobRequest.PAUSE}
        return unit.jobs.move(job_id, JobState.PAUSING, Actor.API, reason="Pause requested", changes=changes)
    return unit.jobs.move(job_id, JobState.PAUSED, Actor.API, reason="Paused by request")


def resume_job(unit: UnitOfWork, job_id: str) -> Job:
    """Put a paused job back into the queue; it goes on from its last checkpoint.

    Raises:
        NotFoundError: if there is no such job.
        StateConflictError: if it is not paused.
    """
    job = unit.jobs.get(job_id, lock=True)
    if job.request is JobRequest.RESUME:
        return job
    check_allowed(job, JobAction.RESUME)
    changes = {"request": JobRequest.RESUME, "not_before": None}
    unit.ring_after_commit(Task.TRAIN, job_id)
    return unit.jobs.move(job_id, JobState.QUEUED, Actor.API, reason="Resumed by request", changes=changes)


def delete_job(unit: UnitOfWork, job_id: str) -> None:
    """Delete an ended job for clients at once; its files and rows follow.

    Raises:
        NotFoundError: if there is no such job.
        StateConflictError: if it has not ended.
        JobInUseError: if an unfinished job goes on, or starts, from one of its checkpoints.
    """
    check_allowed(unit.jobs.get(job_id, lock=True), JobAction.DELETE)
    if waiting := unit.jobs.waiting_for_checkpoints_of(job_id):
        raise JobInUseError(f"Job {waiting[0]} starts from a checkpoint of {job_id}: wait until it has ended.")
    unit.jobs.mark_deleted(job_id)


def change_job(unit: UnitOfWork, job: Job, changes: dict[str, Any]) -> Job:
    """Set any of name, tags, priority; merge `metadata`, where None removes a key.

    Args:
        job: locked.

    Raises:
        StateConflictError: if the priority of an ended job would change.
        InvalidRequestError: if there would be too much metadata.
    """
    values = dict(changes)
    if "metadata" in values:
        merged = job.labels | values.pop("metadata")
        values["labels"] = {key: value for key, value in merged.items() if value is not None}
        if len(values["labels"]) > MAX_METADATA:
            message = f"there would be {len(values['labels'])} keys, at most {MAX_METADATA} are kept"
            raise invalid("/metadata", "too_long", message)
    changed = {name: value for name, value in values.items() if value != getattr(job, name)}
    if not changed:
        return job
    if "priority" in changed and job.state in TERMINAL:
        raise StateConflictError(f"Job {job.id} is {job.state}: its priority no longer matters.")
    told = {
        "metadata" if name == "labels" else name: {"from": getattr(job, name), "to": value}
        for name, value in changed.items()
    }
    event = NewEvent("message", f"Changed: {', '.join(sorted(told))}", {"changed": told})
    return unit.jobs.change(job.id, event, **changed)


def check_allowed(job: Job, action: JobAction) -> None:
    """Raise StateConflictError, naming state, reason and what leads on, unless the action is possible."""
    if job.state in ACTIONS[action]:
        return
    reason = f" ({job.status_reason})" if job.status_reason else ""
    message = f"Job {job.id} is {job.state}{reason}: {action} is not possible now."
    # Deletion is never what was wanted instead.
    possible = [each for each in allowed_actions(job.state, job.request) if each is not JobAction.DELETE]
    if possible:
        message += f" Possible: {', '.join(possible)}."
    elif action is JobAction.RETRY and job.state is JobState.SUCCEEDED:
        message += " To train like it once more, clone it."
    raise StateConflictError(message)
