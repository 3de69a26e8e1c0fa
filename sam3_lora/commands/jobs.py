"""`sam3-lora jobs`: submit a run's configuration to a service, watch it, take away what it made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from sam3_lora.client.errors import JobNotSucceededError
from sam3_lora.client.progress import told_best
from sam3_lora.commands.bytes_shown import bytes_shown
from sam3_lora.commands.datasets import send
from sam3_lora.commands.service import (
    EXIT_REFUSED,
    Json,
    Key,
    Url,
    connected,
    notes,
    show,
    show_list,
    write_json,
)
from sam3_lora.config import DatasetOptions, ModelConfig

if TYPE_CHECKING:
    from sam3_lora.client._sync.client import Client
    from sam3_lora.client._sync.jobs import Job

app = typer.Typer(no_args_is_help=True, help="Training jobs of a service.")
JobId = Annotated[str, typer.Argument(help="The job.")]
ON_THIS_MACHINE = ("model", "output")  # sections that a service decides itself
DATASET_PREFIX = "ds_"


@app.command()
def submit(
    config: Annotated[Path, typer.Argument(help="YAML run configuration, as `sam3-lora train` takes it.")],
    dataset: Annotated[str, typer.Option(help="Folder or archive to upload, or the id of a dataset of the service.")],
    name: Annotated[str | None, typer.Option(help="For people; else the configuration's file name.")] = None,
    base_model: Annotated[str | None, typer.Option(help="sam3 or sam3-tiny; else as the configuration says.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of one worker that train together.")] = 1,
    priority: Annotated[int, typer.Option(min=0, max=100, help="Higher runs earlier.")] = 50,
    tag: Annotated[list[str] | None, typer.Option(help="To find it by; may be repeated.")] = None,
    key_of_job: Annotated[
        str | None,
        typer.Option("--idempotency-key", help="Names this very job: repeated with it, the command makes no other."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Wait for its end, and show how it comes along.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Create a job; with --watch, exit code 1 says that it did not succeed."""
    settings, base = _read(config)
    with connected(url, key) as client:
        dataset_id = _dataset(client, dataset)
        job = client.jobs.create(
            dataset_id,
            name=name or config.stem,
            base_model=base_model or base,
            config=settings,
            resources={"gpus": gpus},
            priority=priority,
            tags=tag or [],
            idempotency_key=key_of_job,
        )
        notes.print(f"job {job.id} is {job.status}: {client.base_url}/ui/jobs/{job.id}", markup=False)
        if watch:
            _watch(job)
        _show(job, as_json=as_json)


@app.command()
def watch(job: JobId, as_json: Json = False, url: Url = None, key: Key = None) -> None:
    """Wait for a job's end, and show how it comes along; exit code 1 if it does not succeed."""
    with connected(url, key) as client:
        found = client.jobs.get(job)
        _watch(found)
        _show(found, as_json=as_json)


@app.command("list")
def list_(
    status: Annotated[list[str] | None, typer.Option(help="Only in this state; may be repeated.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Jobs, the newest first."""
    with connected(url, key) as client:
        found = list(client.jobs.list(status=status or None, tag=tag, limit=limit))
    rows = [(job.id, job.name, job.status, _percent(job), told_best(job)) for job in found]
    show_list(found, ("id", "name", "status", "progress", "best"), rows, as_json=as_json)


@app.command("show")
def show_one(job: JobId, as_json: Json = False, url: Url = None, key: Key = None) -> None:
    """One job."""
    with connected(url, key) as client:
        _show(client.jobs.get(job), as_json=as_json)


@app.command()
def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """The log of a job's trainer."""
    with connected(url, key) as client:
        for text in client.jobs.get(job).logs(follow_on=follow):
            sys.stdout.write(text)
            sys.stdout.flush()


@app.command()
def events(
    job: JobId,
    after: Annotated[int, typer.Option(min=0, help="Only what follows this event.")] = 0,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """What happens to a job, until it has ended; with --json, one object a line."""
    with connected(url, key) as client:
        for event in client.jobs.get(job).events(after=after):
            told = event.model_dump_json() if as_json else f"{event.created_at:%Y-%m-%d %H:%M:%S}  {event.message}"
            sys.stdout.write(told + "\n")
            sys.stdout.flush()


@app.command()
def cancel(job: JobId, as_json: Json = False, url: Url = None, key: Key = None) -> None:
    """Cancel a job; a running one saves a checkpoint first."""
    with connected(url, key) as client:
        _show(client.jobs.get(job).cancel(), as_json=as_json)


@app.command()
def stop(job: JobId, as_json: Json = False, url: Url = None, key: Key = None) -> None:
    """End a job early and well: it evaluates, saves and succeeds."""
    with connected(url, key) as client:
        _show(client.jobs.get(job).stop(), as_json=as_json)


@app.command()
def pause(job: JobId, as_json: Json = False, url: Url = None, key: Key = None) -> None:
    """Hold a job; a running one saves a checkpoint and frees its worker."""
    with connected(url, key) as client:
        _show(client.jobs.get(job).pause(), as_json=as_json)


@app.command()
def resume(job: JobId, as_json: Json = False, url: Url = None, key: Key = None) -> None:
    """Queue a paused job again."""
    with connected(url, key) as client:
        _show(client.jobs.get(job).resume(), as_json=as_json)


@app.command()
def retry(
    job: JobId,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Train from the beginning.")] = False,
    max_runtime_s: Annotated[int | None, typer.Option(min=1, help="Another limit of its seconds.")] = None,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Make a new job of one that failed or was cancelled; it goes on from the last good checkpoint."""
    limits = None if max_runtime_s is None else {"max_runtime_s": max_runtime_s}
    with connected(url, key) as client:
        _show(client.jobs.get(job).retry(from_scratch=from_scratch, limits=limits), as_json=as_json)


@app.command()
def delete(job: JobId, url: Url = None, key: Key = None) -> None:
    """Delete a job that has ended."""
    with connected(url, key) as client:
        client.jobs.get(job).delete()


@app.command()
def download(
    job: JobId,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to make.")] = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Download the adapter of a job's best checkpoint; hashes are checked, and a broken download goes on."""
    target = output or Path(job)
    with connected(url, key) as client, bytes_shown("downloading") as tell:
        client.jobs.get(job).best_checkpoint().download(target, on_progress=tell)
    typer.echo(target)


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """What a service takes of a run's configuration, and the base model that it names."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        notes.print(f"error: {path} cannot be read: {error}", style="red", markup=False)
        raise typer.Exit(EXIT_REFUSED) from None
    if not isinstance(values, dict):
        notes.print(f"error: {path} has no sections", style="red", markup=False)
        raise typer.Exit(EXIT_REFUSED)
    settings = {name: section for name, section in values.items() if name not in ON_THIS_MACHINE}
    model = values["model"] if isinstance(values.get("model"), dict) else {}
    left_out = ["output"] if "output" in values else []
    left_out += [f"model.{name}" for name in model if name != "base"]
    if isinstance(section := settings.get("dataset"), dict):
        known = DatasetOptions.model_fields
        # Where the data lies is this machine's business; a name that nobody knows is for the service to refuse.
        local = [name for name in section if name not in known and name.endswith(("_folder", "_file"))]
        settings["dataset"] = {name: value for name, value in section.items() if name not in local}
        left_out += [f"dataset.{name}" for name in local]
    if left_out:
        notes.print(f"left out, the service decides it: {', '.join(left_out)}", style="dim", markup=False)
    return settings, str(model.get("base", ModelConfig().base))


def _dataset(client: Client, given: str) -> str:
    path = Path(given)
    if given.startswith(DATASET_PREFIX) and not path.exists():
        return given
    dataset = send(client, path, None)
    notes.print(f"dataset {dataset.id}, being checked", markup=False)
    return dataset.wait().id


def _watch(job: Job) -> None:
    try:
        job.wait(progress=True)
    except KeyboardInterrupt:
        notes.print(f"\nit goes on without you: sam3-lora jobs watch {job.id}", markup=False)
        raise
    except JobNotSucceededError:
        if job.error is not None:
            notes.print(f"the end of its log: sam3-lora jobs logs {job.id}", style="dim", markup=False)
        raise


def _show(job: Job, *, as_json: bool) -> None:
    if as_json:
        write_json(job)
        return
    lines = (
        ("id", job.id),
        ("name", job.name),
        ("status", job.status),
        ("reason", job.status_reason),
        ("phase", job.phase),
        ("progress", _percent(job) or None),
        ("best", told_best(job) or None),
        ("model", job.result and job.result.model_id),
        ("error", job.error and f"{job.error.code}: {job.error.message}"),
        ("hint", job.error and job.error.hint),
        ("possible", ", ".join(job.allowed_actions) or None),
    )
    show(job, lines, as_json=False)


def _percent(job: Job) -> str:
    percent = job.progress.percent if job.progress else None
    return "" if percent is None or job.is_terminal else f"{percent:.0f} %"
