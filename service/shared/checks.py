"""What every process looks at before it starts: each fault by itself, with what to do about it.

`require` refuses a start that could not work or would lose work. What may come back by itself, such as a database
that is away, refuses none: processes wait for it, and `/readyz` tells.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from service.shared.db.engine import check_sqlite, create_engine
from service.shared.db.migrate import Schema, schema_of
from service.shared.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from sqlalchemy import Connection

    from service.shared.settings import Settings

    Check: TypeAlias = Callable[[Settings], Iterator["Finding"]]

log = structlog.get_logger(__name__)

OLDEST_POSTGRESQL = 14
# Locks and shared memory of files do not reach across machines on these, or not reliably; SQLite's WAL needs both.
NETWORK_FILE_SYSTEMS = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ncpfs", "ceph", "lustre", "gpfs", "glusterfs", "beegfs",
    "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.juicefs", "fuse.ceph", "fuse.mount-s3",
}  # fmt: skip
MOUNTS = Path("/proc/self/mountinfo")
# What only an operator can put right; libpq tells it in its text alone.
REFUSALS = {
    "password authentication failed": "correct user and password in SAM3_DATABASE_URL",
    "no password supplied": "give the password in SAM3_DATABASE_URL",
    "no pg_hba.conf entry": "let this machine and user in (pg_hba.conf)",
    "certificate verify failed": "correct sslmode and sslrootcert in SAM3_DATABASE_URL",
    "unsupported startup parameter": "this is PgBouncer: set SAM3_DATABASE_POOLER=true, and transaction mode there",
    'role "': "create the role that SAM3_DATABASE_URL names",
    'database "': "create the database that SAM3_DATABASE_URL names",
}


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """What a check has found; `advice` says what to do."""

    check: str
    level: Level
    message: str
    advice: str = ""
    may_pass: bool = False
    """Of a fault: it may go away without anybody's doing."""

    def __str__(self) -> str:
        return self.message + (f": {self.advice}" if self.advice else "")


def ok(check: str, message: str) -> Finding:
    return Finding(check, Level.OK, message)


def warning(check: str, message: str, advice: str) -> Finding:
    return Finding(check, Level.WARNING, message, advice)


def fault(check: str, message: str, advice: str, *, may_pass: bool = False) -> Finding:
    return Finding(check, Level.FAULT, message, advice, may_pass)


def require(settings: Settings, *checks: Check) -> None:
    """Let a process start.

    Raises:
        SettingsError: with one line for each fault that keeps it from working until somebody does something.
    """
    findings = [finding for check in checks for finding in check(settings)]
    lasting = [str(each) for each in findings if each.level is Level.FAULT and not each.may_pass]
    if lasting:
        raise SettingsError("\n".join(lasting))
    for each in findings:
        if each.level is not Level.OK:
            log.warning("start_check", check=each.check, found=each.message, advice=each.advice)


def data_dir(settings: Settings) -> Iterator[Finding]:
    """Whether the folder of this machine's data can be written."""
    advice = "choose another SAM3_DATA_DIR (--data-dir), or let this user write there"
    yield written("data_dir", settings.data_dir, advice)


def database(settings: Settings) -> Iterator[Finding]:
    """Whether there is a database, of a kind and with a schema that this version works with."""
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        path = Path(str(url.database))
        try:
            check_sqlite()
        except SettingsError as error:
            yield fault("database", error.message.partition(": ")[0], error.message.partition(": ")[2])
            return
        unfit = list(_unfit_place(path.parent))
        yield from unfit
        if unfit:
            return
        if not path.exists():
            yield _absent(settings)
            return
    engine = create_engine(settings.database_url, pooler=settings.database_pooler)
    try:
        with engine.execution_options(read_only=True).connect() as connection:
            yield from _server(connection)
            yield _schema(connection, settings)
    except SQLAlchemyError as error:
        yield unreachable(error)
    finally:
        engine.dispose()


def unreachable(error: SQLAlchemyError) -> Finding:
    """What it means that the database answers with this error."""
    reason = first_line(error.orig if isinstance(error, DBAPIError) else error)
    for sign, advice in REFUSALS.items():
        if sign in reason:
            return fault("database", f"the database refuses the connection ({reason})", advice)
    if "file is not a database" in reason or "malformed" in reason:
        return fault("database", f"the database is damaged ({reason})", "restore it from a backup")
    return fault("database", f"the database does not answer ({reason})", "start it, or wait for it", may_pass=True)


def written(check: str, folder: Path, advice: str) -> Finding:
    """Whether a folder can be written, or made where it is not there yet."""
    place = existing(folder)
    try:
        if not place.is_dir():
            return fault(check, f"{place} is not a folder", advice)
        if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
            return fault(check, f"{place} cannot be written", advice)
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
    except OSError as error:
        return fault(check, f"{place} cannot be written ({(error.strerror or str(error)).lower()})", advice)
    return ok(check, f"{folder} can be written")


def file_system(folder: Path) -> str:
    """Kind of the file system that a folder lies on; "" where the kernel does not tell."""
    if not MOUNTS.exists():
        return ""
    place, kind, longest = str(folder.resolve()), "", -1
    for line in MOUNTS.read_text().splitlines():
        mounted, _, source = line.partition(" - ")
        point = mounted.split()[4].replace("\\040", " ")
        is_below = point == "/" or place == point or place.startswith(f"{point}/")
        if is_below and len(point) >= longest:  # of those mounted over each other, the last
            kind, longest = source.split()[0], len(point)
    return kind


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def first_line(error: object) -> str:
    """What an error says, in short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _unfit_place(folder: Path) -> Iterator[Finding]:
    kind = file_system(existing(folder))
    if kind in NETWORK_FILE_SYSTEMS:
        advice = "use a local disk (SAM3_DATA_DIR, SAM3_DATABASE_URL), or PostgreSQL"
        yield fault("database", f"{folder} is on a network file system ({kind}), which would damage SQLite", advice)
    finding = written("database", folder, "put the SQLite file where this user can write")
    if finding.level is not Level.OK:
        yield finding


def _server(connection: Connection) -> Iterator[Finding]:
    if connection.dialect.name == "sqlite":
        yield ok("database", f"SQLite {connection.execute(text('SELECT sqlite_version()')).scalar()}")
        return
    number = int(str(connection.execute(text("SHOW server_version_num")).scalar()))
    version = str(connection.execute(text("SHOW server_version")).scalar())
    if number < OLDEST_POSTGRESQL * 10_000:
        yield fault("database", f"PostgreSQL {version} is too old", f"upgrade it to {OLDEST_POSTGRESQL} or later")
    elif connection.execute(text("SHOW lock_timeout")).scalar() != "10s":
        advice = "a pooler in between drops what is set at start: set SAM3_DATABASE_POOLER=true"
        yield fault("database", "the database does not keep this service's lock_timeout", advice)
    else:
        yield ok("database", f"PostgreSQL {version}")


def _schema(connection: Connection, settings: Settings) -> Finding:
    schema = schema_of(connection)
    if schema is Schema.PRESENT:
        return ok("schema", "the schema is that of this version")
    if schema is Schema.NEWER:
        advice = "this version still works with it: update this process soon"
        return warning("schema", "the schema is newer than this version", advice)
    if schema is Schema.TOO_NEW:
        return fault("schema_floor", "this version is too old for the schema", "update this process")
    if schema is Schema.ABSENT:
        return _absent(settings)
    return fault("schema", "the schema is older than this version", _migrate(settings))


def _absent(settings: Settings) -> Finding:
    return fault("schema", "the database has no schema yet", _migrate(settings))


def _migrate(settings: Settings) -> str:
    is_local = settings.database_url.startswith("sqlite")
    return "run `sam3-service migrate`" + (", or `sam3-service serve`, which does" if is_local else "")
