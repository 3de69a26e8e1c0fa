"""Uploads in parts: what is announced, which parts have arrived, and what they made together."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from service.shared.db.models.base import Base, Id, OfProject, StorableName
from service.shared.db.models.jobs import Name


class Upload(OfProject, Base):
    """A file that arrives in parts of `part_bytes`, in any order; the last may be shorter.

    One with a `purpose` was announced as OpenAI's clients do: its parts have any size up to `part_bytes`, and which of
    them make the file, in which order, is told at the end.
    """

    __tablename__ = "uploads"
    __table_args__ = (Index(None, "expires_at"), Index(None, "storage_key"))

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    filename: Mapped[str] = mapped_column(Name)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    part_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(StorableName(64))
    """As announced, if it was; as found once it is complete."""
    storage_key: Mapped[str | None] = mapped_column(StorableName(300))
    """The whole file, once it is complete; datasets may share it."""
    purpose: Mapped[str | None] = mapped_column(Name)
    dataset_id: Mapped[str | None] = mapped_column(Id)
    """With a `purpose`: what was made of the file when it was complete."""
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]

    @property
    def part_count(self) -> int:
        return -(-self.size_bytes // self.part_bytes)


class UploadPart(Base):
    """A part that is complete in storage; part rows go when the whole file is there."""

    __tablename__ = "upload_parts"
    __table_args__ = (Index(None, "storage_key"),)

    upload_id: Mapped[str] = mapped_column(Id, ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """From 1."""
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(StorableName(64))
    storage_key: Mapped[str] = mapped_column(StorableName(300))

    @property
    def id(self) -> str:
        """Of these bytes: a part that takes the place of another has its own. The key ends with it."""
        return self.storage_key.rpartition("/")[2].rpartition("-")[2]
