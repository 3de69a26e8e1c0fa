"""`sam3-lora models`: ask a tuned model of a service, take it away."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sam3_lora.commands.bytes_shown import bytes_shown
from sam3_lora.commands.service import Json, Key, Url, connected, show, show_list

app = typer.Typer(no_args_is_help=True, help="Tuned models of a service.")
ModelId = Annotated[str, typer.Argument(help="The model.")]
SUFFIXES = {"native": ".zip", "peft": "-peft.zip", "merged": ".safetensors"}


class Form(StrEnum):
    NATIVE = "native"
    PEFT = "peft"
    MERGED = "merged"


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Models, the newest first."""
    with connected(url, key) as client:
        found = list(client.models.list(limit=limit))
    rows = [(m.id, m.name, m.base_model, m.metric, None if m.value is None else f"{m.value:.3f}") for m in found]
    show_list(found, ("id", "name", "base", "metric", "value"), rows, as_json=as_json)


@app.command()
def predict(
    model: ModelId,
    image: Annotated[Path, typer.Argument(help="Image file.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What to find; may be repeated.")] = None,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Least score of a detection.")] = 0.5,
    untuned: Annotated[bool, typer.Option("--untuned", help="Ask the base model instead.")] = False,
    output: Annotated[Path | None, typer.Option(help="PNG to draw the detections on.")] = None,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Find things in an image; without a prompt, all that the model was tuned on."""
    with connected(url, key) as client:
        found = client.models.get(model).predict(
            image, prompt or (), min_score=min_score, untuned=untuned, overlay=output
        )
    lines = []
    for answer in found.results or []:
        scores = ", ".join(f"{each.score:.2f}" for each in answer.detections)
        lines.append((answer.prompt, f"{len(answer.detections)} found{f': {scores}' if scores else ''}"))
    show(found, lines or [("nothing", "was asked")], as_json=as_json)


@app.command()
def download(
    model: ModelId,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
    form: Annotated[
        Form,
        typer.Option("--format", help="native: the adapter's files. peft: for transformers. merged: whole weights."),
    ] = Form.NATIVE,
    url: Url = None,
    key: Key = None,
) -> None:
    """Download a model in one of its forms."""
    target = output or Path(f"{model}{SUFFIXES[form]}")
    with connected(url, key) as client, bytes_shown("downloading") as tell:
        client.models.get(model).download(target, form=form.value, on_progress=tell)
    typer.echo(target)
