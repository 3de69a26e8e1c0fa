"""`sam3-service backup`: an embedded service's data as one folder, taken while it runs.

What it makes is itself a `data_dir`: to restore it, copy it to where the service is to run, and start that there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from sqlalchemy.exc import DBAPIError

from sam3_lora.version import VERSION
from service.shared import checks
from service.shared import log as logs
from service.shared.db.migrate import open_engine
from service.shared.errors import ConflictError, ServiceError
from service.shared.redaction import secrets_of
from service.shared.settings import Settings, load
from service.shared.storage import Storage
from service.shared.unit_of_work import opened
from service.shared.vault import KEY_FILE
from service.usecases.stored_files import FOLDERS, damaged, orphans_of

if TYPE_CHECKING:
    from collections.abc import Callable

MANIFEST = "backup.json"
DATABASE = "service.db"
STORAGE = "storage"
ROUNDS = 5


class BackupError(ConflictError):
    """There can be no backup here; the message says what to do instead."""


@dataclass(frozen=True)
class Backup:
    created_at: str
    version: str
    files: int
    bytes: int
    missing: list[str]
    """Keys of files that rows name and the backup lacks: storage had lost them before."""


def backup(
    folder: Annotated[Path, typer.Argument(help="New folder, or an earlier backup, which is brought up to date.")],
) -> None:
    """Copy database, files and key of an embedded service into a folder, while it runs. Ends with 1 if files lack."""
    try:
        settings = load()
        logs.configure("ERROR", "backup", secrets_of(settings, os.environ))
        checks.require(settings, checks.database)
        made = make_backup(settings, folder.expanduser().resolve(), lambda line: typer.echo(line, err=True))
    except (ServiceError, DBAPIError, OSError) as error:
        typer.echo(error.message if isinstance(error, ServiceError) else checks.first_line(error), err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{folder}: {made.files} files of {made.bytes} bytes. To restore, copy it to a new --data-dir.")
    if made.missing:
        typer.echo(f"{len(made.missing)} files are missing, which `sam3-service gc --dry-run` tells of", err=True)
        raise typer.Exit(1)


def make_backup(settings: Settings, folder: Path, say: Callable[[str], object] = lambda _: None) -> Backup:
    """Copy everything that the database names, and the database, as they are at one moment.

    Files are copied before the database and after it: the first has what may be deleted meanwhile, the second what may
    have been added. Where a file came and went between the two, it is all done once more. An earlier backup in the
    folder stays whole until the new database takes the place of its own: what only that named goes afterwards.

    Raises:
        BackupError: if this is no embedded service, the folder holds something else, or the database is damaged or
            cannot be copied.
        OSError: if a file cannot be copied.
    """
    source = settings.storage_dir
    if source is None or not settings.database_url.startswith("sqlite"):
        raise BackupError("This is for SQLite and a folder of files: for others see Backup in docs/operations.md.")
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise BackupError(f"{folder} holds something else: name a new folder, or an earlier backup.")
    if folder.is_relative_to(source) or source.is_relative_to(folder):
        raise BackupError(f"{folder} is part of what is to be copied: name a folder elsewhere.")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (folder / MANIFEST).exists():
        _write(folder / MANIFEST, "{}")  # from here on it is a backup, if not a complete one
    new = folder / f"{DATABASE}.new"
    copied = settings.model_copy(
        update={"database_url": f"sqlite:///{new}", "storage_url": (folder / STORAGE).as_uri()}
    )
    storage = Storage(copied)
    try:
        for _ in range(ROUNDS):
            _copy_files(source, folder / STORAGE, say)
            _copy_database(settings, new)
            _copy_files(source, folder / STORAGE, say)
            missing, unneeded = _compare(copied, storage)
            if not missing:
                break
            say(f"{len(missing)} files that rows name are not there, such as {missing[0]}: once more")
        new.rename(folder / DATABASE)
    finally:
        new.unlink(missing_ok=True)
    storage.delete_all(unneeded)
    if (settings.data_dir / KEY_FILE).exists():
        shutil.copy2(settings.data_dir / KEY_FILE, folder / KEY_FILE)
    files = [path for path in (folder / STORAGE).rglob("*") if path.is_file()]
    os.sync()
    size = sum(path.stat().st_size for path in files)
    made = Backup(datetime.now(UTC).isoformat(), VERSION, len(files), size, missing)
    _write(folder / MANIFEST, json.dumps(asdict(made)))
    return made


def _copy_files(source: Path, target: Path, say: Callable[[str], object]) -> None:
    """Copy what is not there yet: a file never changes once it has its name."""
    copied = 0
    for folder in FOLDERS:
        for path in sorted((source / folder).rglob("*")):
            copy = target / path.relative_to(source)
            if "#" in path.name or not path.is_file() or copy.exists():  # with a #, it is still being written
                continue
            copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                shutil.copy2(path, copy.with_name(f"{copy.name}#1"))
                copy.with_name(f"{copy.name}#1").rename(copy)
                copied += 1
    say(f"{copied} files copied")


def _copy_database(settings: Settings, path: Path) -> None:
    """A consistent copy of the SQLite database, whoever writes meanwhile."""
    path.unlink(missing_ok=True)
    engine = open_engine(settings)
    driver = cast("Any", engine.dialect.loaded_dbapi)
    try:
        with contextlib.closing(driver.connect(path)) as target, engine.connect() as connection:
            cast("Any", connection.connection.driver_connection).backup(target)
            (found,) = target.execute("PRAGMA integrity_check").fetchone()
            if found != "ok":
                raise BackupError(f"The database is damaged ({found}): restore an earlier backup.")
            target.execute("PRAGMA journal_mode=DELETE")  # one file, which is whole
    except driver.Error as error:  # nothing translates what the driver itself is asked for
        raise BackupError(f"The database could not be copied to {path.parent}: {checks.first_line(error)}.") from error
    finally:
        engine.dispose()


def _compare(copied: Settings, storage: Storage) -> tuple[list[str], list[str]]:
    """Files that rows of the copied database name and the copy lacks, and those that it has beyond them."""
    with opened(copied) as database:
        unneeded = [
            key
            for folder in FOLDERS
            for page in storage.pages(folder)
            for key in orphans_of(database, [file.key for file in page])
        ]
        return [file.key for file, _ in damaged(database, storage)], unneeded


def _write(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(f"{text}\n")
    new.rename(path)
