"""`sam3-service gc`: deletes what no row needs, and reports rows whose files are gone.

The reconciler does the first by itself each hour; this shows it, does it now, and finds what is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from sqlalchemy.exc import SQLAlchemyError

from service.shared import checks
from service.shared import log as logs
from service.shared.errors import ConflictError, ServiceError
from service.shared.redaction import secrets_of
from service.shared.scratch import remove_abandoned
from service.shared.settings import load
from service.shared.staging import leftovers
from service.shared.storage import Storage
from service.shared.unit_of_work import opened
from service.usecases.stored_files import FOLDERS, damaged, delete_orphans, orphans_of, recognises

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from service.shared.settings import Settings
    from service.shared.unit_of_work import Database

SHOWN = 20
PROGRESS_EVERY = 20_000
SHORTEST_GRACE_H = 1.0  # from a file's end to its row; an attempt that stores waits storage_retry_s for storage
MISSING_STATUS, REFUSED_STATUS = 1, 2


class UnrecognisedError(ConflictError):
    """The database knows nothing of what storage holds."""


@dataclass
class Found:
    """How many there are, and the first of them."""

    count: int = 0
    bytes: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str, size_bytes: int = 0) -> None:
        self.count += 1
        self.bytes += size_bytes
        if len(self.first) < SHOWN:
            self.first.append(name)


@dataclass
class Summary:
    dry_run: bool
    older_than_s: float
    objects: int = 0
    """Files that storage holds, those that are too young to be judged left out."""
    orphans: Found = field(default_factory=Found)
    """Files in storage that no row names; deleted, unless it was a dry run."""
    local: Found = field(default_factory=Found)
    """What broken uploads and dead workers have left on this machine; deleted, unless it was a dry run."""
    missing: Found = field(default_factory=Found)
    """Files that rows name and storage lacks, as `kind owner key`; the rows stay."""
    altered: Found = field(default_factory=Found)
    """Files that rows name and storage has in another size; both stay."""


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing; tell what would be.")] = False,
    older_than: Annotated[
        float, typer.Option(min=SHORTEST_GRACE_H, help="Hours since it was written, of what may be deleted.")
    ] = 24,
    force: Annotated[
        bool, typer.Option("--force", help="Also where the database names no file of this storage.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Delete files that nothing needs. Ends with 1 if rows lack their files, with 2 if it refuses or cannot look."""
    try:
        settings = load()
        logs.configure("ERROR", "gc", secrets_of(settings, os.environ))
        checks.require(settings, checks.database)
        with opened(settings) as database:
            summary = collect(
                settings,
                database,
                Storage(settings),
                older_than_s=older_than * 3600,
                dry_run=dry_run,
                force=force,
                say=lambda line: typer.echo(line, err=True),
            )
    except (ServiceError, SQLAlchemyError, OSError) as error:
        typer.echo(error.message if isinstance(error, ServiceError) else checks.first_line(error), err=True)
        raise typer.Exit(REFUSED_STATUS) from None
    typer.echo(json.dumps(asdict(summary), indent=2) if as_json else _table(summary))
    if summary.missing.count or summary.altered.count:
        raise typer.Exit(MISSING_STATUS)


def collect(
    settings: Settings,
    database: Database,
    storage: Storage,
    *,
    older_than_s: float,
    dry_run: bool,
    force: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> Summary:
    """Look through storage, this machine and the rows, a page at a time, beside whoever writes meanwhile.

    Args:
        older_than_s: longer than anything takes between a file and its row.

    Raises:
        UnrecognisedError: if the database names no file of this storage, without `force` and unless it is a dry run.
    """
    if not (dry_run or force or recognises(database, storage)):
        raise UnrecognisedError(
            "The database names none of the files in storage: one of them is probably another's. Correct "
            "SAM3_DATABASE_URL or SAM3_STORAGE_URL; if they are right, --dry-run shows and --force deletes."
        )
    before = datetime.now(UTC) - timedelta(seconds=older_than_s)
    summary = Summary(dry_run, older_than_s)
    for folder in FOLDERS:
        _sweep(database, storage, folder, before, summary, say)
    say("rows: looking for their files")
    for file, size_bytes in damaged(database, storage):
        found = summary.missing if size_bytes is None else summary.altered
        found.add(f"{file.kind} {file.owner} {file.key}", file.size_bytes or 0)
    _sweep_machine(settings, storage, before, summary)
    return summary


def _sweep(
    database: Database,
    storage: Storage,
    folder: str,
    before: datetime,
    summary: Summary,
    say: Callable[[str], object],
) -> None:
    looked = 0
    for page in storage.pages(folder, unchanged_since=before):
        sizes = {file.key: file.size_bytes for file in page}
        keys = list(sizes)
        gone = orphans_of(database, keys) if summary.dry_run else delete_orphans(database, storage, keys)
        for key in gone:
            summary.orphans.add(key, sizes[key])
        looked += len(page)
        if looked % PROGRESS_EVERY < len(page):
            say(f"{folder}: {looked} files")
    summary.objects += looked
    say(f"{folder}: {looked} files, all looked at")


def _sweep_machine(settings: Settings, storage: Storage, before: datetime, summary: Summary) -> None:
    files: Iterable[Path] = [*leftovers(settings.staging_dir, before), *storage.unfinished(before)]
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            summary.local.add(str(path), path.stat().st_size)
            if not summary.dry_run:
                path.unlink()
    for folder in remove_abandoned(settings.data_dir / "workspace", dry_run=summary.dry_run):
        summary.local.add(str(folder))


def _table(summary: Summary) -> str:
    done = "would be deleted" if summary.dry_run else "deleted"
    lines = [f"{summary.objects} files in storage, older than {summary.older_than_s / 3600:g} hours"]
    for name, found, what in (
        ("files that no row names", summary.orphans, done),
        ("left on this machine", summary.local, done),
        ("files that rows name and storage lacks", summary.missing, "the rows stay"),
        ("files of another size than their rows say", summary.altered, "both stay"),
    ):
        lines.append(f"{found.count} {name} ({found.bytes} bytes): {what}")
        lines += [f"    {each}" for each in found.first]
        if found.count > len(found.first):
            lines.append(f"    and {found.count - len(found.first)} more")
    return "\n".join(lines)
