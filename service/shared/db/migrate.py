"""Bring a database to the present schema with the migrations that are installed beside the service."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from sqlalchemy import make_url

from service.shared.db.engine import create_engine

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from service.shared.settings import Settings


def upgrade(settings: Settings) -> None:
    """Create or upgrade the schema; does nothing where it is up to date. Safe to run from several processes."""
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
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7083251946)")
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(resources.files("migrations")).replace("%", "%%"))
    return config
