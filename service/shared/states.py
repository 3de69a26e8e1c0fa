"""States of jobs, datasets and other work, and every move between them: who may make which.

A move that is not listed is refused here and again by a database trigger. Terminal states are never left.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class DatasetState(StrEnum):
    PROCESSING = "processing"
    READY = "ready"
    INVALID = "invalid"
    FAILED = "failed"


class WorkState(StrEnum):
    """States of a piece of work that is no job: queued > running > succeeded or failed, or back to queued."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Actor(StrEnum):
    """Who makes a move."""

    API = "api"
    INGEST = "ingest"
    WORKER = "worker"
    REAPER = "reaper"


class JobRequest(StrEnum):
    """What a user asked of a job and no worker has done yet; delivered by the heartbeat's answer.

    A stop outlives the loss of its worker. Resume marks a job that was put back and is not running again yet.
    """

    CANCEL = "cancel"
    STOP = "stop"
    PAUSE = "pause"
    RESUME = "resume"


class JobAction(StrEnum):
    """What a user may do with a job, depending on its state (`ACTIONS`)."""

    CANCEL = "cancel"
    STOP = "stop"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    DELETE = "delete"


INITIAL = frozenset({JobState.VALIDATING_FILES, JobState.QUEUED})
LEASED = frozenset({JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING})
"""States in which a worker holds the job."""
TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
LIVE = tuple(state for state in JobState if state not in TERMINAL)
"""States of jobs that have not ended."""

_S = JobState
_BOTH = frozenset({Actor.WORKER, Actor.REAPER})
JOB_MOVES: dict[tuple[JobState, JobState], frozenset[Actor]] = {
    (_S.VALIDATING_FILES, _S.QUEUED): frozenset({Actor.INGEST}),
    (_S.VALIDATING_FILES, _S.FAILED): frozenset({Actor.INGEST, Actor.REAPER}),
    (_S.VALIDATING_FILES, _S.CANCELLED): frozenset({Actor.API}),
    (_S.QUEUED, _S.RUNNING): frozenset({Actor.WORKER}),
    (_S.QUEUED, _S.CANCELLED): frozenset({Actor.API}),
    (_S.QUEUED, _S.PAUSED): frozenset({Actor.API}),
    (_S.RUNNING, _S.SUCCEEDED): frozenset({Actor.WORKER}),
    (_S.RUNNING, _S.FAILED): _BOTH,
    (_S.RUNNING, _S.QUEUED): _BOTH,
    (_S.RUNNING, _S.CANCELLING): frozenset({Actor.API}),
    (_S.RUNNING, _S.PAUSING): frozenset({Actor.API}),
    (_S.CANCELLING, _S.CANCELLED): _BOTH,
    (_S.PAUSING, _S.PAUSED): _BOTH,
    (_S.PAUSING, _S.SUCCEEDED): frozenset({Actor.WORKER}),
    (_S.PAUSING, _S.FAILED): frozenset({Actor.WORKER}),
    (_S.PAUSING, _S.CANCELLING): frozenset({Actor.API}),
    (_S.PAUSED, _S.QUEUED): frozenset({Actor.API}),
    (_S.PAUSED, _S.CANCELLED): frozenset({Actor.API}),
}

ACTIONS: dict[JobAction, frozenset[JobState]] = {
    JobAction.CANCEL: frozenset({_S.VALIDATING_FILES, _S.QUEUED, _S.RUNNING, _S.PAUSING, _S.PAUSED}),
    JobAction.STOP: frozenset({_S.RUNNING}),
    JobAction.PAUSE: frozenset({_S.QUEUED, _S.RUNNING}),
    JobAction.RESUME: frozenset({_S.PAUSED}),
    JobAction.RETRY: frozenset({_S.FAILED, _S.CANCELLED}),
    JobAction.DELETE: TERMINAL,
}
"""States in which each action changes something. Repeating one that was already taken changes nothing."""

DATASET_MOVES: dict[tuple[DatasetState, DatasetState], frozenset[Actor]] = {
    (DatasetState.PROCESSING, DatasetState.READY): frozenset({Actor.INGEST}),
    (DatasetState.PROCESSING, DatasetState.INVALID): frozenset({Actor.INGEST}),
    (DatasetState.PROCESSING, DatasetState.FAILED): frozenset({Actor.INGEST, Actor.REAPER}),
}


def allowed_actions(state: JobState, request: JobRequest | None = None) -> list[JobAction]:
    """What a user may do with a job in this state, of which `request` was asked."""
    settled = {JobAction.STOP, JobAction.PAUSE} if request is JobRequest.STOP else set()
    return [action for action, states in ACTIONS.items() if state in states and action not in settled]


def sources(to: JobState, by: Actor) -> frozenset[JobState]:
    """States from which `by` may move a job to `to`."""
    return frozenset(old for (old, new), actors in JOB_MOVES.items() if new is to and by in actors)
