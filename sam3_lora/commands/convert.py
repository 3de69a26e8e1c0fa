"""`sam3-lora datasets convert`: what other tools wrote, as a folder to upload. No service is asked."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sam3_lora.commands.service import Json, notes
from sam3_lora.commands.terminal import EXIT_FAILED, EXIT_INTERRUPTED, fail
from sam3_lora.convert.faults import ConversionError
from sam3_lora.errors import Sam3LoraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sam3_lora.convert.output import Summary

app = typer.Typer(no_args_is_help=True, help="Make a dataset to upload of what other tools wrote.")
Out = Annotated[Path, typer.Argument(help="Folder to make; images are linked or copied into it.")]
Valid = Annotated[
    float | None,
    typer.Option(min=0.001, max=0.9, help="Part of the training images for validation, where there is none; e.g. 0.1."),
]
SHOWN_FAULTS = 20


@app.command()
def yolo(
    data_yaml: Annotated[Path, typer.Argument(help="data.yaml of a YOLO segmentation dataset (Ultralytics).")],
    out: Out,
    root: Annotated[
        Path | None,
        typer.Option(help="Where the dataset lies, instead of what its `path` says.", show_default="beside it"),
    ] = None,
    valid: Valid = None,
    as_json: Json = False,
) -> None:
    """Convert outlines, and boxes, of a YOLO dataset; every fault is named with file and line."""
    from sam3_lora.convert.yolo import convert_yolo

    with _ended_well(), _images_shown() as tell:
        summary = convert_yolo(data_yaml, out, root=root, valid=valid, on_progress=tell)
    _show(summary, out, as_json=as_json)


@app.command()
def masks(
    images: Annotated[Path, typer.Argument(help="Folder of images.")],
    masks: Annotated[
        Path, typer.Argument(help="Folder of masks with the images' names, or with such a folder for each category.")
    ],
    out: Out,
    names: Annotated[
        Path | None,
        typer.Option(help='Values are classes: a name each line, the first for 1; or .json, {"1": "pallet"}.'),
    ] = None,
    category: Annotated[str | None, typer.Option(help="Every value above 0 is this category.")] = None,
    instances: Annotated[bool, typer.Option("--instances", help="With --category: each value is one object.")] = False,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="One object for all of a class in an image, not one for each connected part."),
    ] = False,
    ignore: Annotated[list[int] | None, typer.Option(help="A value that is no object, as 255 often is.")] = None,
    min_pixels: Annotated[int, typer.Option(min=1, help="Leave smaller objects out.")] = 1,
    valid: Valid = None,
    as_json: Json = False,
) -> None:
    """Convert masks, exactly: as run lengths, not as outlines."""
    with _ended_well(), _images_shown() as tell:
        from sam3_lora.convert.masks import convert_masks

        summary = convert_masks(
            images,
            masks,
            out,
            names=names,
            category=category,
            instances=instances,
            whole=whole,
            ignore=ignore or (),
            min_pixels=min_pixels,
            valid=valid,
            on_progress=tell,
        )
    _show(summary, out, as_json=as_json)


@contextmanager
def _images_shown() -> Iterator[Callable[[int, int], object]]:
    """What to call with images that are done, and all of them; nothing is shown where there is no terminal."""
    columns = (TextColumn("converting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes, disable=not notes.is_terminal) as progress:
        task = progress.add_task("converting", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def _ended_well() -> Iterator[None]:
    """Errors end the command with a text and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sam3_lora"):
            raise
        notes.print(f"{error.name} is not installed: pip install 'sam3-lora-service[convert]'", markup=False)
        raise typer.Exit(EXIT_FAILED) from None
    except ConversionError as error:
        _show_faults(error)
        raise typer.Exit(EXIT_FAILED) from None
    except Sam3LoraError as error:
        fail(error)


def _show_faults(error: ConversionError) -> None:
    hints: dict[str, None] = {}
    for fault in error.faults[:SHOWN_FAULTS]:
        notes.print(f"error: {fault}", style="red", markup=False)
        hints.setdefault(fault.hint)
    if error.count > SHOWN_FAULTS:
        notes.print(f"and {error.count - SHOWN_FAULTS:,} more", markup=False)
    for hint in filter(None, hints):
        notes.print(f"hint: {hint}", markup=False)
    notes.print("nothing was written", markup=False)


def _show(summary: Summary, out: Path, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(summary.to_dict() | {"folder": str(out)}, indent=2, ensure_ascii=False) + "\n")
    else:
        images = ", ".join(f"{count:,} {split}" for split, count in summary.images.items())
        sys.stdout.write(f"images       {images}\n")
        sys.stdout.write(f"annotations  {summary.annotations:,}\n")
        sys.stdout.write(f"categories   {', '.join(summary.categories)}\n")
    if summary.boxes_without_mask:
        text = (
            f"{summary.boxes_without_mask:,} annotations are boxes without a mask: they teach where, not which pixels"
        )
        notes.print(text, style="yellow", markup=False)
    for note in summary.notes:
        notes.print(note, style="yellow", markup=False)
    for reason, count in summary.left_out.items():
        notes.print(f"left out: {count:,} annotations, {reason}", style="yellow", markup=False)
    notes.print(f"next: sam3-lora datasets upload {out}", markup=False)
