"""All commands, as their own help tells them."""

from __future__ import annotations

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from sam3_lora.cli import app as library
from service.cli import app as service

HEAD = """# Commands

`sam3-lora` trains, evaluates, predicts and exports on this machine (`[train]`), and asks a service (nothing further);
`sam3-service` runs the service (`[service]`). What exit codes say:
[commands and the client](../client.md#from-a-shell).

"""


def page() -> str:
    """Text of the page."""
    parts = []
    for name, app in (("sam3-lora", library), ("sam3-service", service)):
        command = get_command(app)
        context = typer.Context(command, info_name=name)
        told = get_docs_for_click(obj=command, ctx=context, name=name)
        parts.append("\n".join(f"#{line}" if line.startswith("#") else line for line in told.splitlines()))
    return HEAD + "\n\n".join(parts) + "\n"
