"""`sam3-lora evaluate`: adapters and bases measured on annotated images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from sam3_lora.commands.terminal import console, fail, figure, quiet, wrong_option
from sam3_lora.errors import Sam3LoraError


def evaluate(
    images: Annotated[Path, typer.Option(help="Folder that the annotations' file names are relative to.")],
    annotations: Annotated[Path, typer.Option(help="COCO JSON.")],
    adapter: Annotated[Path | None, typer.Option(help="Adapter folder; without it only the base is measured.")] = None,
    base: Annotated[str, typer.Option(help="Base model where no adapter is given: sam3 or sam3-tiny.")] = "sam3",
    against: Annotated[
        str | None, typer.Option(help="Adapter folder, sam3 or sam3-tiny to measure it against; default: its base.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Official weights (sam3.pt) instead of the hub.")] = None,
    max_images: Annotated[int | None, typer.Option(min=1, help="Only the first so many images, by id.")] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Folder to write truth and predictions into, as COCO JSON, and of two models report.html."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all metrics, per category too, as JSON.")] = False,
) -> None:
    """Measure base and adapter, or any two models, on annotated images, as validation in training does."""
    quiet()
    from sam3_lora.evaluation.compare import Candidate, compare
    from sam3_lora.lora.adapter import read_info

    try:
        models = {"base" if adapter is None else "tuned": Candidate(adapter, base)}
        if against is not None:
            models = {"against": Candidate.named(against), **models}
        elif adapter is not None:
            models = {"base": Candidate(base=read_info(adapter).base_model), **models}
        with Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("evaluating", total=None)
            found = compare(
                images,
                annotations,
                models,
                checkpoint=checkpoint,
                max_images=max_images,
                export=export,
                on_image=lambda done, total: bar.update(task, completed=done, total=total),
            )
            if export is not None and len(models) > 1:
                from sam3_lora.evaluation.report import Pair, write_report

                judged = base if adapter is None else str(adapter)
                pair = None if against is None else Pair("against", list(models)[-1], against, judged)
                title = f"Adapter {judged}" if pair is None else f"{judged} against {against}"
                write_report(export, export / "report.html", images=images, title=title, pair=pair)
    except OSError as error:
        fail(wrong_option("--export", f"cannot be written: {error}"))
    except Sam3LoraError as error:
        fail(error)
    if as_json:
        values = {name: evaluation.to_dict() for name, evaluation in found.items()}
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return
    table = Table("metric", *found, title=f"{next(iter(found.values())).images} images")
    for metric in next(iter(found.values())).metrics:
        table.add_row(metric, *(figure(evaluation.metrics[metric]) for evaluation in found.values()))
    console.print(table)
