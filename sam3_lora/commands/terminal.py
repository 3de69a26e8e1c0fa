"""What commands share: exit codes; and of those that work on this machine, the terminal and how faults end."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console

from sam3_lora.errors import ConfigError, Sam3LoraError

if TYPE_CHECKING:
    from collections.abc import Iterator

console = Console(stderr=True)
EXIT_FAILED = 1
"""What was asked for did not succeed."""
EXIT_USAGE = 2
"""Something in the command or its configuration is wrong."""
EXIT_INTERRUPTED = 130


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def wrong_option(option: str, message: str) -> ConfigError:
    return ConfigError(f"{option}: {message}", errors=[{"pointer": option, "code": "invalid", "message": message}])


@contextmanager
def errors_named() -> Iterator[None]:
    """End the command with the text and exit code of an error that the library raised on purpose."""
    try:
        yield
    except Sam3LoraError as error:
        fail(error)


def fail(error: Sam3LoraError) -> NoReturn:
    console.quiet &= isinstance(error, ConfigError)  # which every process has; any other may be this one's alone
    console.print(f"error: {error.message}", style="red", markup=False)
    if isinstance(error, ConfigError):
        for fault in error.errors:
            console.print(f"  {fault['pointer'] or '/'}: {fault['message']}", markup=False)
    if error.hint:
        console.print(f"hint: {error.hint}", markup=False)
    raise typer.Exit(EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED)


def quiet() -> None:
    """Upstream's import-time warnings tell a user nothing; warnings of the log do, unless a run tells them itself."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    handler = logging.StreamHandler()  # without one, sam3 logs something while imported, which sets up its own
    handler.setLevel(logging.WARNING)
    handler.addFilter(lambda record: record.name != "sam3_lora.training")
    logging.basicConfig(format="%(levelname)s: %(message)s", handlers=[handler])
