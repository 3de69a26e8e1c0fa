"""What a job leaves behind beside checkpoints: rows exist only for files that are complete in storage."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from service.shared.db.models.base import Base, Id, StorableName
from service.shared.db.models.jobs import Name


class Artifact(Base):
    """A file of the job's run directory, under its path there: `report.html`, `evaluation/tuned/truth.json`."""

    __tablename__ = "artifacts"

    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(Name, primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(StorableName(64))
    storage_key: Mapped[str] = mapped_column(StorableName(300), index=True)
    created_at: Mapped[datetime]
