"""People who have signed in to the pages with a key."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from service.shared.db.models.base import Base, Id, StorableName


class PageSession(Base):
    """What a cookie stands for: a key, for a while. Of the cookie only a hash is kept."""

    __tablename__ = "page_sessions"
    __table_args__ = (Index(None, "expires_at"), Index(None, "key_id"))

    secret_sha256: Mapped[str] = mapped_column(StorableName(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(Id, ForeignKey("api_keys.id", ondelete="CASCADE"))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
