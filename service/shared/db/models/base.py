"""What all tables share: constraint names, and column types that mean the same on PostgreSQL and SQLite."""

from __future__ import annotations

import contextlib
import json
import re
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import JSON, DateTime, Dialect, MetaData, String, Text, TypeDecorator
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sam3_lora.events import finite

# What no database text can hold: NUL in PostgreSQL, lone surrogates in either (they have no UTF-8).
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
ESCAPED_NUL = r"\u0000"
_PLAIN = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS  # no JSON, and so a mistake
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def storable(value: Any) -> Any:
    """Copy of a JSON value whose strings any database can hold; what it cannot becomes U+FFFD."""
    if isinstance(value, str):
        return value if value.isascii() and "\0" not in value else UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {storable(key): storable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [storable(inner) for inner in value]
    return value


def to_json(value: Any) -> str:
    """A JSON value as text that any database can hold: as `storable`, and numbers that are not finite become null."""
    # Nearly always there is nothing to replace, and one look at the text is far cheaper than one at every value.
    with contextlib.suppress(TypeError):  # a lone surrogate, an integer of more than 64 bits, a key that is no text
        text = orjson.dumps(value, option=_PLAIN).decode()  # with null for NaN and infinities
        if ESCAPED_NUL not in text:
            return text
    return _JSON.encode(storable(finite(value)))


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, UTC both ways; a naive datetime is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime: times are stored in UTC")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class StorableText(TypeDecorator[str]):
    """Text that is made storable on its way in, whatever a trainer printed or a client sent."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else str(storable(value))


class StorableName(TypeDecorator[str]):
    """A short `StorableText`: ids, names, codes. Longer text is cut, on SQLite too, which would take it all."""

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else self.stored(value)

    def stored(self, value: str) -> str:
        """The text as it is kept."""
        return str(storable(value))[: self.length]


class StorableJson(TypeDecorator[Any]):
    """A JSON value, as `to_json` writes it, which the engine has to be given; None is SQL NULL."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        kind = JSONB if dialect.name == "postgresql" else JSON
        return dialect.type_descriptor(kind(none_as_null=True))


Id = StorableName(48)
DEFAULT_PROJECT = "default"
PROJECT = "project"
"""Of a session's `info`: the only project that it sees, or None."""
ALL_PROJECTS = "all_projects"
EVERYBODY = {ALL_PROJECTS: True}
"""Execution options of a statement that has to see every project, such as one about the queue."""


class OfProject:
    """Mixed into a row that belongs to a project: transactions of a project see no other's (`unit_of_work`)."""

    project: Mapped[str] = mapped_column(StorableName(64), server_default=DEFAULT_PROJECT)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as it stands
        str: StorableText,
        datetime: UtcDateTime,
        dict[str, Any]: StorableJson,
        list[str]: StorableJson,
        list[Any]: StorableJson,
    }
