"""`sam3-service`: the processes of the service, one command each."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated

import structlog
import typer

from sam3_lora.commands.version import Version
from service import reconciler as reconciler_process
from service.embedded import database_to_migrate, serve
from service.main import create_app
from service.operate import gc as gc_command
from service.operate.backup import backup
from service.operate.doctor import doctor
from service.server import Server, configured, listening
from service.shared import checks, tracing
from service.shared import log as logs
from service.shared.db import migrate as migrations
from service.shared.db.repositories.quotas import Limits, limits_of
from service.shared.errors import ServiceError, SettingsError, StorageError
from service.shared.private_files import keep_private
from service.shared.redaction import secrets_of
from service.shared.settings import Settings, load
from service.shared.staging import delete_leftovers
from service.shared.unit_of_work import UnitOfWork, opened
from service.usecases import access
from service.usecases.access import Scope

log = structlog.get_logger(__name__)
app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def prepare(version: Version = False) -> None:  # noqa: ARG001 - acts by itself
    """The SAM3 LoRA training service."""
    keep_private()


@app.command()
def migrate() -> None:
    """Create the database schema, or bring it up to date."""
    migrations.upgrade(_settings(database_to_migrate))


@app.command()
def api() -> None:
    """Serve the HTTP API."""
    settings = _settings()
    logs.configure(settings.log_level, "api", secrets_of(settings, os.environ))
    logs.catch_rest()
    with _refusals():
        tracing.start("sam3-api")
        checks.require(settings, checks.data_dir, checks.database, listening)
    delete_leftovers(settings.staging_dir, datetime.now(UTC) - timedelta(seconds=settings.staging_retention_s))
    application = create_app(settings)
    try:
        application.state.services.storage.check()
    except StorageError as error:  # it may come back: until then /readyz says so
        log.error("storage_unusable", error=error.message)
    config = configured(application, host=settings.host, port=settings.port, timeout_graceful_shutdown=10)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # each stream is one; the usual soft limit is 1024
    gc.collect()
    gc.freeze()  # what is there now stays: looking through it again and again would stop all requests for 0.2 s
    gc.set_threshold(10_000)  # 700 by default: a tenth of the time of all requests, and pauses of 20 ms, for 1 MB
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once it has shut down
        Server(config).run()
    tracing.stop()


@app.command()
def reconciler() -> None:
    """Announce waiting work again and take work from lost workers."""
    reconciler_process.main()


app.command("serve")(serve)
app.command("doctor")(doctor)
app.command("gc")(gc_command.gc)
app.command("backup")(backup)

keys = typer.Typer(no_args_is_help=True, help="API keys, straight in the database: how the first one is made.")
app.add_typer(keys, name="keys")


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="Who or what uses it.")],
    project: Annotated[str | None, typer.Option(help="Project that it is for; none for --scope admin.")] = None,
    scope: Annotated[list[Scope] | None, typer.Option(help="May be repeated; default: read and write.")] = None,
    expires_in_days: Annotated[float | None, typer.Option(min=0.001, help="Days after which it ends.")] = None,
) -> None:
    """Make a key and print its secret, this once."""
    lasts_s = None if expires_in_days is None else round(expires_in_days * 86400)
    scopes = scope or [Scope.READ, Scope.WRITE]
    with _unit() as unit:
        new = access.create_key(unit, access.EVERYTHING, name=name, project=project, scopes=scopes, lasts_s=lasts_s)
    typer.echo(f"{new.key.id} for {new.key.project or 'all projects'}: {', '.join(new.key.scopes)}", err=True)
    typer.echo(new.secret)


@keys.command("list")
def list_keys() -> None:
    """List all keys."""
    with _unit() as unit:
        for key in unit.api_keys.list():
            state = "revoked" if key.revoked_at else "active"
            used = "never" if key.last_used_at is None else f"{key.last_used_at:%Y-%m-%d %H:%M}"
            about = f"{key.project or '*'}  {','.join(key.scopes)}  {state}  {used}  {_plain(key.name)}"
            typer.echo(f"{key.id}  ...{key.hint}  {about}")


@keys.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="Id of the key.")]) -> None:
    """Revoke a key at once."""
    with _unit() as unit:
        access.revoke_key(unit, access.EVERYTHING, key_id)


def _plain(text: str) -> str:
    """Text of a client with what a terminal would obey made visible."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


quotas = typer.Typer(no_args_is_help=True, help="What projects may use.")
app.add_typer(quotas, name="quotas")


@quotas.command("set")
def set_quota(
    project: Annotated[str, typer.Argument(help="The project; it need not have anything yet.")],
    active_jobs: Annotated[int | None, typer.Option(min=0, help="Jobs that have not ended.")] = None,
    running_gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of running jobs together.")] = None,
    gpu_seconds_per_month: Annotated[int | None, typer.Option(min=0, help="In a calendar month, UTC.")] = None,
    stored_bytes: Annotated[int | None, typer.Option(min=0, help="Of everything that is kept in storage.")] = None,
    datasets: Annotated[int | None, typer.Option(min=0, help="Datasets.")] = None,
) -> None:
    """Give a project limits of its own, in place of all that it had; what is omitted is unlimited."""
    limits = Limits(active_jobs, running_gpus, gpu_seconds_per_month, stored_bytes, datasets)
    with _unit() as unit:
        unit.quotas.set(project, limits)


@quotas.command("list")
def list_quotas() -> None:
    """List the projects that have limits of their own, after the limits of all others."""
    with _unit() as unit:
        typer.echo(f"*  {_shown(unit.quotas.default)}")
        for row in unit.quotas.list():
            typer.echo(f"{row.project}  {_shown(limits_of(row))}")


@quotas.command("remove")
def remove_quota(project: Annotated[str, typer.Argument(help="The project.")]) -> None:
    """Give a project the limits of all others again."""
    with _unit() as unit:
        unit.quotas.remove(project)


def _shown(limits: Limits) -> str:
    given = [f"{name}={value}" for name, value in asdict(limits).items() if value is not None]
    return " ".join(given) or "unlimited"


@contextlib.contextmanager
def _unit() -> Iterator[UnitOfWork]:
    with opened(_settings()) as database, database.write() as unit:
        try:
            yield unit
        except ServiceError as error:
            typer.echo(error.message, err=True)
            raise typer.Exit(1) from None


def _settings(*needed: checks.Check) -> Settings:
    """The settings, and that these checks let the process start."""
    with _refusals():
        settings = load()
        checks.require(settings, *needed)
        return settings


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except SettingsError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from None


def main() -> None:
    app()


if __name__ == "__main__":
    main()
