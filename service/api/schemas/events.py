"""Events of jobs as clients see them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from sam3_lora.config import without_paths
from sam3_lora.events import EventType, Level
from service.api.schemas.lists import Read, Separated
from service.shared.db.models import JobEvent

EventName = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class EventQuery(BaseModel):
    """Which events."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    after: int = Field(0, ge=0, lt=2**63, examples=[12])
    """Only events with a higher `seq`."""
    before: int | None = Field(None, ge=1, lt=2**63)
    """Only events with a lower `seq`."""
    limit: int = Field(100, ge=1, le=1000)
    """Largest number of events."""
    order: Literal["asc", "desc"] = "asc"
    """By `seq`."""
    type: Annotated[list[EventName], Separated] = Field([], max_length=20, examples=[["status", "checkpoint"]])
    """Only events of these types; repeat it, or separate them by commas."""
    level: Annotated[list[Level], Separated] = Field([], max_length=10, examples=[["warning", "error"]])
    """Only events of these levels; repeat it, or separate them by commas."""


class EventRead(Read):
    """Something that has happened to a job."""

    id: str
    """Opaque."""
    object: Literal["job.event"] = "job.event"
    seq: int
    """Counts from 1 without gaps per job."""
    job_id: str
    """The job."""
    attempt: int
    """The attempt in which it happened; 0 before the first."""
    created_at: datetime
    """When it was written down."""
    type: str
    """status, phase, resolved, message, checkpoint, evaluation, artifact, result, error; new types may be added. An
    `artifact` is a file or folder of the run that can be fetched from now on: `data.place`, such as `report.json`."""
    level: str
    """info, warning or error."""
    message: str
    """For people."""
    data: dict[str, Any]
    """For programs; what it holds depends on the type."""


class EventPage(Read):
    object: Literal["list"] = "list"
    data: list[EventRead]
    """The events, in the order that was asked for."""
    first_seq: int | None
    """Of the first event in `data`; null if there is none."""
    last_seq: int
    """Of the last event in `data`, else `after`. In ascending order give it as `after`, in descending as `before`,
    to get what follows."""
    has_more: bool
    """Whether more follow in this order."""


def event_read(event: JobEvent) -> EventRead:
    return EventRead(
        id=event.id,
        seq=event.seq,
        job_id=event.job_id,
        attempt=event.attempt,
        created_at=event.created_at,
        type=event.type,
        level=event.level,
        message=event.message,
        data=data_of(event),
    )


def data_of(event: JobEvent) -> dict[str, Any]:
    """What the event holds for programs."""
    # Workers of earlier releases stored what the trainer reported as it was.
    return without_paths(event.data) if event.type == EventType.RESOLVED else event.data
