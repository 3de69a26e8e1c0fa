"""`sam3-lora merge` and `sam3-lora export`: adapters on their way to others."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sam3_lora.commands.terminal import console, errors_named, quiet


class AdapterFormat(StrEnum):
    """What `export` writes."""

    PEFT = "peft"
    NATIVE = "native"


def merge(
    adapter: Annotated[Path, typer.Option(help="Adapter folder.")],
    output: Annotated[Path, typer.Option(help="File to write: .pt (loads into stock sam3) or .safetensors.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Official weights (sam3.pt) instead of the hub.")] = None,
) -> None:
    """Fold an adapter into its base: one file of plain SAM3 weights."""
    quiet()
    from sam3_lora.lora.export import export_merged

    with errors_named():
        export_merged(adapter, output, checkpoint=checkpoint)
    console.print(f"merged weights: {output} ({output.stat().st_size / 1e6:.1f} MB)", highlight=False)


def export(
    adapter: Annotated[Path, typer.Option(help="Adapter folder.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    form: Annotated[
        AdapterFormat,
        typer.Option("--format", help="peft: for transformers' Sam3Model; native: the adapter alone, as it is."),
    ],
) -> None:
    """Write an adapter as a folder to give away, without any training state."""
    quiet()
    from sam3_lora.lora.export import export_native
    from sam3_lora.lora.huggingface import export_peft

    with errors_named():
        (export_peft if form is AdapterFormat.PEFT else export_native)(adapter, output)
    console.print(f"{form} adapter: {output}", highlight=False)
