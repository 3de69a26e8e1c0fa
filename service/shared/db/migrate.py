"""Bring a database to the present schema with the migrations that are installed beside the service."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import make_url, select

from service.shared.db.engine import LOCK_TIMEOUT_S, create_engine
from service.shared.db.models import SchemaFloor

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from service.shared.settings import Settings


class Schema(Enum):
    """A database's schema, seen from this version."""

    ABSENT = "absent"
    OLDER = "older"
    PRESENT = "present"
    NEWER = "newer"
    """This version works with it."""
    TOO_NEW = "too new"
    """It has left this version behind."""


def upgrade(settings: Settings) -> None:
    """Create or upgrade the schema; nothing where it is up to date or newer. Safe to run from several processes."""
    engine = open_engine(settings)
    try:
        upgrade_engine(engine)
    finally:
        engine.dispose()


def open_engine(settings: Settings) -> Engine:
    """The engine of the settings; the folder of an SQLite file is created if it is missing."""
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    return create_engine(settings.database_url, pooler=settings.database_pooler)


def upgrade_engine(engine: Engine) -> None:
    """Upgrade the database behind an engine, in one transaction that holds others off."""
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")  # whoever is first may take long
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7083251946)")
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")
        if schema_of(connection) in (Schema.NEWER, Schema.TOO_NEW):
            return
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def schema_of(connection: Connection) -> Schema:
    """How the schema of a database stands to this version."""
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None:
        return Schema.ABSENT
    head, known = _revisions()
    if current == head:
        return Schema.PRESENT
    if current in known:
        return Schema.OLDER
    floor = connection.execute(select(SchemaFloor.revision)).scalar()
    return Schema.TOO_NEW if floor is not None and floor > head else Schema.NEWER


@lru_cache(1)
def _revisions() -> tuple[str, frozenset[str]]:
    """The last revision of this version, and all of them."""
    scripts = ScriptDirectory.from_config(alembic_config())
    return str(scripts.get_current_head()), frozenset(script.revision for script in scripts.walk_revisions())


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(resources.files("migrations")).replace("%", "%%"))
    return config
