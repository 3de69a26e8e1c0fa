"""Questions to a model about one image, and their answers; both are forgotten after a while."""

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from service.shared.db.models.base import Base, Id, OfProject, StorableName
from service.shared.db.models.work import Work


class Prediction(OfProject, Work, Base):
    __tablename__ = "predictions"
    __table_args__ = (Index(None, "state", "created_at", "id"), Index(None, "created_at"))

    model_id: Mapped[str] = mapped_column(Id, ForeignKey("models.id", ondelete="CASCADE"))
    image_key: Mapped[str] = mapped_column(StorableName(300), index=True)
    image_sha256: Mapped[str] = mapped_column(StorableName(64))
    width: Mapped[int]
    height: Mapped[int]
    """Pixels of the image as shown, after its EXIF orientation."""
    request: Mapped[dict[str, Any]]
    """`{prompts, boxes, min_score, overlay}`."""
    result: Mapped[list[Any] | None]
    """One answer for each prompt."""
    overlay_key: Mapped[str | None] = mapped_column(StorableName(300), index=True)
    overlay_bytes: Mapped[int | None] = mapped_column(BigInteger)
    overlay_sha256: Mapped[str | None] = mapped_column(StorableName(64))
