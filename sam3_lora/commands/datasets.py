"""`sam3-lora datasets`: upload, have fetched, look at the check's report, list, delete."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sam3_lora.commands.bytes_shown import bytes_shown
from sam3_lora.commands.service import Json, Key, Url, connected, notes, show, show_list, write_json
from sam3_lora.commands.terminal import EXIT_FAILED

if TYPE_CHECKING:
    from sam3_lora.client._sync.client import Client
    from sam3_lora.client._sync.datasets import Dataset
    from sam3_lora.client.schemas import DatasetValidation

app = typer.Typer(no_args_is_help=True, help="Datasets of a service.")
DatasetId = Annotated[str, typer.Argument(help="The dataset.")]
SHOWN_ISSUES = 20


@app.command()
def upload(
    path: Annotated[Path, typer.Argument(help="Folder, or zip or tar archive, of images with COCO annotations.")],
    name: Annotated[str | None, typer.Option(help="For people; else the file's.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it has been checked.")] = True,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Upload a dataset; what has arrived is not sent again when it is repeated after a fault."""
    with connected(url, key) as client:
        dataset = send(client, path, name)
        if wait:
            dataset.wait()
        _show(dataset, as_json=as_json)


@app.command()
def fetch(
    place: Annotated[
        str,
        typer.Argument(
            help="https:// or s3:// URI, or absolute path on the service's workers, that its operator allows."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="For people; else the last part of the place.")] = None,
    sha256: Annotated[str | None, typer.Option(help="That the archive must have.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it has been fetched and checked.")] = True,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Have the service get a dataset itself. Of a folder in a bucket the URI ends with a slash."""
    kind = "uri" if "://" in place else "path"
    with connected(url, key) as client:
        dataset = client.datasets.create({"type": kind, kind: place}, name=name, sha256=sha256)
        if wait:
            dataset.wait()
        _show(dataset, as_json=as_json)


def send(client: Client, path: Path, name: str | None) -> Dataset:
    """Upload with its progress shown."""
    with bytes_shown("uploading") as tell:
        return client.datasets.upload(path, name=name, on_progress=tell)


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Datasets, the newest first."""
    with connected(url, key) as client:
        found = list(client.datasets.list(limit=limit))
    rows = [(each.id, each.name, each.status, each.summary and each.summary.images) for each in found]
    show_list(found, ("id", "name", "status", "images"), rows, as_json=as_json)


@app.command("show")
def show_one(dataset: DatasetId, as_json: Json = False, url: Url = None, key: Key = None) -> None:
    """One dataset."""
    with connected(url, key) as client:
        _show(client.datasets.get(dataset), as_json=as_json)


@app.command()
def report(dataset: DatasetId, as_json: Json = False, url: Url = None, key: Key = None) -> None:
    """What the check found, fault by fault; exit code 1 if the dataset cannot be trained on."""
    with connected(url, key) as client:
        found = client.datasets.get(dataset).wait(check=False)
        told = found.report()
        if as_json:
            write_json(told)
        else:
            _show_report(told)
        if found.status != "ready":
            raise typer.Exit(EXIT_FAILED)


@app.command()
def delete(dataset: DatasetId, url: Url = None, key: Key = None) -> None:
    """Delete a dataset."""
    with connected(url, key) as client:
        client.datasets.get(dataset).delete()


def _show(dataset: Dataset, *, as_json: bool) -> None:
    summary = dataset.summary
    lines = (
        ("id", dataset.id),
        ("name", dataset.name),
        ("status", dataset.status),
        ("images", summary and summary.images),
        ("annotations", summary and summary.instances),
        ("categories", summary and summary.categories),
        ("bytes", dataset.bytes),
        ("sha256", dataset.sha256),
    )
    show(dataset, lines, as_json=as_json)


def _show_report(told: DatasetValidation) -> None:
    notes.print(f"{told.dataset_id} is {told.status}")
    for issue in told.issues[:SHOWN_ISSUES]:
        where = issue.image or issue.file or "the dataset"
        count = f" ({issue.count} times)" if issue.count is not None and issue.count > 1 else ""
        typer.echo(f"{issue.severity}: {issue.code}: {where}: {issue.message}{count}")
    if len(told.issues) > SHOWN_ISSUES:
        notes.print(f"and {len(told.issues) - SHOWN_ISSUES} more: --json has all of them")
