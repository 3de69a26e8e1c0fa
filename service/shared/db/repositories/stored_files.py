"""What rows say is in storage: every file of every kind, in pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, func, null, select, true

from service.shared.db.models import (
    Artifact,
    CheckpointFile,
    ComparisonFile,
    Dataset,
    Export,
    ModelFile,
    Prediction,
    Upload,
    UploadPart,
)

if TYPE_CHECKING:
    from sqlalchemy.orm import InstrumentedAttribute, Session


@dataclass(frozen=True)
class NamedFile:
    """A file as a row names it. `owner`: id of the dataset, job or the like; `size_bytes`: None where no row tells."""

    kind: str
    owner: str
    key: str
    size_bytes: int | None


@dataclass(frozen=True)
class Kind:
    """Rows that name files in storage."""

    name: str
    owner: InstrumentedAttribute[Any]
    key: InstrumentedAttribute[Any]
    size_bytes: InstrumentedAttribute[Any] | None
    condition: ColumnElement[bool]


KINDS = (
    Kind("dataset", Dataset.id, Dataset.storage_key, Dataset.size_bytes, Dataset.deleted_at.is_(None)),
    Kind("upload", Upload.id, Upload.storage_key, Upload.size_bytes, true()),
    Kind("upload_part", UploadPart.upload_id, UploadPart.storage_key, UploadPart.size_bytes, true()),
    Kind("checkpoint", CheckpointFile.checkpoint_id, CheckpointFile.storage_key, CheckpointFile.size_bytes, true()),
    Kind("artifact", Artifact.job_id, Artifact.storage_key, Artifact.size_bytes, true()),
    Kind("model", ModelFile.model_id, ModelFile.storage_key, ModelFile.size_bytes, true()),
    Kind("export", Export.id, Export.storage_key, Export.size_bytes, true()),
    Kind("prediction", Prediction.id, Prediction.image_key, None, true()),
    Kind("prediction", Prediction.id, Prediction.overlay_key, Prediction.overlay_bytes, true()),
    Kind(
        "comparison", ComparisonFile.comparison_id, ComparisonFile.storage_key, ComparisonFile.size_bytes, true()
    ),
)  # fmt: skip


class StoredFileRepository:
    def __init__(self, session: Session) -> None:
        self._session = session

    def list(self, kind: Kind, *, after: str, limit: int) -> list[NamedFile]:
        """Files of a kind in the order of their keys, from beyond `after`; one that several rows share once."""
        size = null() if kind.size_bytes is None else func.max(kind.size_bytes)
        query = select(kind.key, func.min(kind.owner), size).where(kind.condition, kind.key > after)
        rows = self._session.execute(query.group_by(kind.key).order_by(kind.key).limit(limit))
        return [NamedFile(kind.name, owner, key, size_bytes) for key, owner, size_bytes in rows]
