"""What lists of jobs can be asked for."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Query
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    model_validator,
)

from sam3_lora.config import BaseName
from service.api.schemas.lists import PageQuery, Separated
from service.shared.db.repositories.job_filters import JobFilter
from service.shared.states import JobState

METADATA = re.compile(r"metadata\[(.{1,64})\]", re.DOTALL)
RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]")
MAX_METADATA = 16
METADATA_PARAMETER = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "description": "Only jobs whose metadata has these values, as in `metadata[ticket]=A-1`.",
    "schema": {
        "type": "object",
        "maxProperties": MAX_METADATA,
        "propertyNames": {"minLength": 1, "maxLength": 64},
        "additionalProperties": {"type": "string"},
    },
}


def _timestamp(value: Any) -> Any:
    if isinstance(value, str) and not RFC3339.match(value):
        raise ValueError("must be an RFC 3339 time, as in 2026-01-31T12:00:00Z")
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be a time of the years 1 to 9999 in UTC") from None


# AwareDatetime would also take numbers of seconds.
Timestamp = Annotated[AwareDatetime, BeforeValidator(_timestamp), AfterValidator(_in_utc)]


class LabelledQuery(BaseModel):
    """Lists that `metadata[KEY]=VALUE` narrows down."""

    metadata: dict[str, Annotated[str, StringConstraints(max_length=512)]] = Query({}, max_length=MAX_METADATA)
    """As `METADATA_PARAMETER` describes it."""

    @model_validator(mode="before")
    @classmethod
    def _collect_metadata(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Parameters named `metadata[KEY]` become one field, which no parameter of its own name can set."""
        rest = {name: value for name, value in values.items() if not METADATA.fullmatch(name)}
        found = {match[1]: value for name, value in values.items() if (match := METADATA.fullmatch(name))}
        return rest | ({"metadata": found} if found else {})


class JobQuery(LabelledQuery, PageQuery):
    status: Annotated[list[JobState], Separated] = Field([], max_length=20, examples=[["queued", "running"]])
    """Only jobs in these states; repeat it, or separate them by commas."""
    project: str | None = Field(None, max_length=64)
    """Only jobs of this project."""
    dataset_id: str | None = Field(None, max_length=48)
    """Only jobs that train on this dataset."""
    base_model: BaseName | None = None
    """Only jobs that adapt this model."""
    sweep_id: str | None = Field(None, max_length=48)
    """Only jobs of this sweep."""
    tag: list[Annotated[str, StringConstraints(max_length=64)]] = Field([], max_length=32, examples=[["nightly"]])
    """Only jobs with this tag; repeated, with all of them."""
    created_after: Timestamp | None = Field(None, examples=["2026-11-01T00:00:00Z"])
    """Only jobs created after this time."""
    created_before: Timestamp | None = Field(None, examples=["2026-12-01T00:00:00Z"])
    """Only jobs created before this time."""

    def matching(self) -> JobFilter:
        """The same for the repository."""
        return JobFilter(
            states=self.status,
            project=self.project,
            dataset_id=self.dataset_id,
            base_model=self.base_model,
            sweep_id=self.sweep_id,
            tags=self.tag,
            metadata=self.metadata,
            created_after=self.created_after,
            created_before=self.created_before,
        )
