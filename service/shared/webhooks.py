"""What webhooks tell: the types of events, their messages in each format, and signatures (Standard Webhooks 1.0).

A message is made once, when the event happens, and sent unchanged however often. It names what happened to what and
where to read more, in a few kilobytes, and holds nothing that a reader of the job could not see.
"""

from __future__ import annotations

import base64
import secrets
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from standardwebhooks import Webhook

from service.shared.db.models.base import to_json
from service.shared.states import DatasetState, JobState, WorkState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from service.shared.db.models import Checkpoint, Comparison, Dataset, Job

SECRET_BYTES = 32  # the standard asks for 24 to 64
MAX_TEXT = 1000
TEST = "webhook.test"


class EventType(StrEnum):
    """What an endpoint can ask for."""

    JOB_QUEUED = "job.queued"
    JOB_STARTED = "job.started"
    JOB_PAUSED = "job.paused"
    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    JOB_CHECKPOINT = "job.checkpoint"
    DATASET_READY = "dataset.ready"
    DATASET_INVALID = "dataset.invalid"
    DATASET_FAILED = "dataset.failed"
    COMPARISON_SUCCEEDED = "comparison.succeeded"
    COMPARISON_FAILED = "comparison.failed"


class MessageFormat(StrEnum):
    STANDARD = "standard"
    OPENAI = "openai"


OF_JOB = {
    JobState.QUEUED: EventType.JOB_QUEUED,
    JobState.RUNNING: EventType.JOB_STARTED,
    JobState.PAUSED: EventType.JOB_PAUSED,
    JobState.SUCCEEDED: EventType.JOB_SUCCEEDED,
    JobState.FAILED: EventType.JOB_FAILED,
    JobState.CANCELLED: EventType.JOB_CANCELLED,
}
OF_DATASET = {
    DatasetState.READY: EventType.DATASET_READY,
    DatasetState.INVALID: EventType.DATASET_INVALID,
    DatasetState.FAILED: EventType.DATASET_FAILED,
}
OF_COMPARISON = {
    WorkState.SUCCEEDED: EventType.COMPARISON_SUCCEEDED,
    WorkState.FAILED: EventType.COMPARISON_FAILED,
}
OPENAI_NAMES = {
    EventType.JOB_SUCCEEDED: "fine_tuning.job.succeeded",
    EventType.JOB_FAILED: "fine_tuning.job.failed",
    EventType.JOB_CANCELLED: "fine_tuning.job.cancelled",
}
"""Those that OpenAI has a name for, as its clients parse it."""


def message(form: MessageFormat, message_id: str, kind: str, at: datetime, data: dict[str, Any]) -> str:
    """The body that tells of an event; `kind`: an `EventType`, or `TEST`."""
    if form is MessageFormat.OPENAI:
        name = OPENAI_NAMES[EventType(kind)] if kind != TEST else TEST
        body = {"id": message_id, "object": "event", "created_at": int(at.timestamp()), "type": name}
        return to_json(body | {"data": {"id": data["id"]}})
    return to_json({"type": kind, "timestamp": _time(at), "data": data})


def job_data(job: Job, state: JobState, seq: int) -> dict[str, Any]:
    """`seq`: the number of the job's last event: what has a higher one is newer."""
    return {
        "id": job.id,
        "object": "job",
        "seq": seq,
        "status": state,
        "name": job.name,
        "project": job.project,
        "base_model": job.base_model,
        "dataset_id": job.dataset_id,
        "sweep_id": job.sweep_id,
        "attempt": job.attempt,
        "best": job.best,
        "model_id": (job.result or {}).get("model_id"),
        "error": _error(job.error),
        "url": f"/v1/jobs/{job.id}",
    }


def checkpoint_data(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "id": checkpoint.id,
        "object": "checkpoint",
        "kind": checkpoint.kind,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "metric": checkpoint.metric,
        "value": checkpoint.value,
    }


def dataset_data(dataset: Dataset) -> dict[str, Any]:
    url = f"/v1/datasets/{dataset.id}"
    return {
        "id": dataset.id,
        "object": "dataset",
        "status": dataset.state,
        "name": dataset.name,
        "sha256": dataset.sha256 or None,
        "bytes": dataset.size_bytes,
        "summary": (dataset.report or {}).get("summary"),
        "error": _error(dataset.error),
        "url": url,
        "validation_url": f"{url}/validation",
    }


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    return {
        "id": comparison.id,
        "object": "comparison",
        "status": comparison.state,
        "name": comparison.name,
        "dataset_id": comparison.dataset_id,
        "models": [comparison.first_model, comparison.second_model],
        "metric": comparison.metric,
        "error": _error(comparison.error),
        "url": f"/v1/comparisons/{comparison.id}",
    }


def new_secret() -> str:
    """A key for signatures, as the standard writes it."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def signed(message_id: str, at: datetime, body: str, secrets_: Sequence[str]) -> dict[str, str]:
    """The headers that let a receiver verify a message with any of the secrets."""
    signatures = [Webhook(secret).sign(message_id, at, body) for secret in secrets_]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def _error(error: dict[str, Any] | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {name: value[:MAX_TEXT] if isinstance(value, str) else value for name, value in error.items()}


def _time(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
