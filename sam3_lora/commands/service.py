"""What all commands that ask a service share: where it is, how faults end, how answers are shown."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from sam3_lora.client import Client
from sam3_lora.client.errors import (
    ApiError,
    ClientError,
    ConnectionFailedError,
    DatasetNotReadyError,
    JobNotSucceededError,
    LocalFileError,
    ServerError,
    WorkFailedError,
)
from sam3_lora.commands.terminal import EXIT_FAILED, EXIT_INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EXIT_REFUSED = 2
"""The command is wrong, or the service refused it: the same again will be."""
EXIT_UNAVAILABLE = 3
"""The service cannot be reached, or failed: later it may do."""

Url = Annotated[
    str | None,
    typer.Option("--url", envvar="SAM3_API_URL", help="Where the service is.", show_default="http://127.0.0.1:8000"),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="SAM3_API_KEY",
        help="Key, where it asks for one. Better given as the variable: others see a command's arguments.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
notes = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def connected(url: str | None, key: str | None) -> Iterator[Client]:
    """The service; its refusals and failures end the command with a text and an exit code."""
    try:
        with Client(url, api_key=key) as client:
            yield client
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except ClientError as error:
        notes.print(f"error: {error.detail if isinstance(error, ApiError) else error}", style="red", markup=False)
        for fault in error.faults if isinstance(error, ApiError) else []:
            notes.print(f"  {fault.get('pointer') or '/'}: {fault.get('message')}", markup=False)
        if isinstance(error, ApiError) and error.request_id:
            notes.print(f"  request {error.request_id}", style="dim", markup=False)
        raise typer.Exit(_exit_code(error)) from None


def _exit_code(error: ClientError) -> int:
    if isinstance(error, ConnectionFailedError | ServerError):
        return EXIT_UNAVAILABLE
    if isinstance(error, DatasetNotReadyError | JobNotSucceededError | WorkFailedError):
        return EXIT_FAILED
    return EXIT_REFUSED if isinstance(error, ApiError | LocalFileError) else EXIT_FAILED


def show(found: BaseModel | Sequence[BaseModel], lines: Sequence[tuple[str, object]], *, as_json: bool) -> None:
    """Print one thing, as JSON or as names and values."""
    if as_json:
        write_json(found)
        return
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        if value is not None:
            sys.stdout.write(f"{name:<{width}}  {value}\n")


def show_list(
    found: Sequence[BaseModel], columns: Sequence[str], rows: Sequence[Sequence[object]], *, as_json: bool
) -> None:
    """Print several things: JSON, a table on a terminal, tab-separated lines elsewhere."""
    if as_json:
        write_json(found)
        return
    out = Console(highlight=False)
    if not out.is_terminal:
        for row in rows:
            sys.stdout.write("\t".join("" if value is None else str(value) for value in row) + "\n")
        return
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    out.print(table)


def _plain(found: BaseModel) -> Any:
    return found.model_dump(mode="json")


def write_json(found: BaseModel | Sequence[BaseModel]) -> None:
    body: Any = found.model_dump(mode="json") if isinstance(found, BaseModel) else [_plain(each) for each in found]
    sys.stdout.write(json.dumps(body, indent=2, ensure_ascii=False) + "\n")
