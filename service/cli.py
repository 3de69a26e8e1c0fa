"""`sam3-service`: the processes of the service, one command each."""

from __future__ import annotations

import contextlib
import resource
from datetime import UTC, datetime, timedelta

import structlog
import typer
import uvicorn

from service import reconciler as reconciler_process
from service.embedded import serve
from service.main import create_app
from service.server import Server
from service.shared import log as logs
from service.shared.db import migrate as migrations
from service.shared.errors import SettingsError, StorageError
from service.shared.settings import Settings, load
from service.shared.staging import delete_leftovers

log = structlog.get_logger(__name__)
app = typer.Typer(no_args_is_help=True, add_completion=False, help="The SAM3 LoRA training service.")


@app.command()
def migrate() -> None:
    """Create the database schema, or bring it up to date."""
    migrations.upgrade(_settings())


@app.command()
def api() -> None:
    """Serve the HTTP API."""
    settings = _settings()
    logs.configure(settings.log_level)
    delete_leftovers(settings.staging_dir, datetime.now(UTC) - timedelta(seconds=settings.staging_retention_s))
    application = create_app(settings)
    try:
        application.state.services.storage.check()
    except StorageError as error:  # it may come back: until then /readyz says so
        log.error("storage_unusable", error=error.message)
    config = uvicorn.Config(
        application,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # each stream is one; the usual soft limit is 1024
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again once it has shut down
        Server(config).run()


@app.command()
def reconciler() -> None:
    """Announce waiting work again and take work from lost workers."""
    reconciler_process.main()


app.command("serve")(serve)


def _settings() -> Settings:
    try:
        return load()
    except SettingsError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from None


def main() -> None:
    app()


if __name__ == "__main__":
    main()
