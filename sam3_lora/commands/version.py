"""The option `--version` of every program."""

from typing import Annotated

import typer

from sam3_lora.version import VERSION


def _tell(asked: bool) -> None:
    if asked:
        typer.echo(f"sam3-lora-service {VERSION}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_tell, is_eager=True, help="Print the version, and exit.")]
