"""`make demo`: start the service, upload a dataset, tune `sam3-tiny` on it, and use the adapter. All over HTTP."""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sam3_lora.client import Client, schemas
from sam3_lora.client.errors import ClientError
from sam3_lora.coco.archive import extract
from sam3_lora.coco.layout import Split, find_layout
from sam3_lora.synthetic.coco_export import write_dataset
from worker import tether

HERE = Path(__file__).parent
CONCEPTS = ("heart", "cross")
TRAIN_IMAGES, VALID_IMAGES = 280, 40
START_TIMEOUT_S = 120.0
# Small model, new shapes, two minutes: high rank and rate. The defaults of the service suit SAM3 itself.
CONFIG: dict[str, Any] = {
    "lora": {"rank": 16, "alpha": 32},
    "dataset": {"min_scale": 0.8, "horizontal_flip": 0.5},
    "training": {
        "max_epochs": 10,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "max_grad_norm": 1.0,
        "use_amp": False,
        "mask_points": 3136,
        "num_workers": 0,
    },
    "evaluation": {"every_epochs": 5},
}

console = Console(highlight=False)


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


def main() -> int:
    options = _parse()
    warnings.filterwarnings("ignore")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sam3-demo-") as scratch:
        try:
            with running_service(Path(scratch) / "service") as url, Client(url) as client:
                _run(client, options, Path(scratch), began)
        except (DemoError, ClientError) as error:
            console.print(f"demo: {error}", style="red", markup=False)
            return 1
    return 0


def _run(client: Client, options: argparse.Namespace, scratch: Path, began: float) -> None:
    archive = Path(options.dataset) if options.dataset else draw_dataset(scratch)
    console.print(f"Uploading {archive.name} ({archive.stat().st_size / 1e6:.1f} MB)")
    dataset = client.datasets.upload(archive).wait()
    summary = dataset.summary or schemas.DatasetSummary()
    console.print(
        f"Dataset {dataset.id}: {summary.images} images, {summary.instances} objects, "
        f"{summary.errors} errors, {summary.warnings} warnings"
    )
    job = client.jobs.create(dataset, name="demo", base_model="sam3-tiny", config=CONFIG)
    console.print(f"Job {job.id} posted; a worker trains it in a process of its own")
    with watched() as show:
        job.wait(progress=show, check=False)
    if job.status != "succeeded":
        console.print("".join(job.logs())[-3000:], markup=False)
        raise DemoError(f"the job is {job.status}: {job.status_reason if job.error is None else job.error.message}")
    adapter = HERE / "data" / "adapter"
    shutil.rmtree(adapter, ignore_errors=True)
    job.download(adapter)
    console.print(f"Adapter downloaded to {_shown(adapter)}, sha256 checked")
    unpacked = extract(archive, scratch / "unpacked").root
    layout = find_layout(unpacked)
    split: Split = layout.validation or layout.test or layout.train
    from demo.picture import draw  # torch and sam3: seconds

    found = draw(adapter, split, HERE / "overlay.png")
    console.print(f"{found} objects found with the adapter; look at {_shown(HERE / 'overlay.png')}")
    report(job, began)


def draw_dataset(scratch: Path) -> Path:
    """Draw hearts and crosses among shapes that the base knows, as a zip in Roboflow's layout."""
    console.print(
        f"Drawing {TRAIN_IMAGES + VALID_IMAGES} images of {' and '.join(CONCEPTS)}, which sam3-tiny never saw"
    )
    write_dataset(scratch / "drawn", concepts=CONCEPTS, train=TRAIN_IMAGES, valid=VALID_IMAGES, seed=7)
    return Path(shutil.make_archive(str(scratch / "shapes"), "zip", scratch / "drawn"))


@contextmanager
def watched() -> Iterator[Callable[[schemas.Job], object]]:
    """What to call with every news of a job: a bar on a terminal, a line per phase and tenth elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("step {task.fields[step]}  loss {task.fields[loss]}  {task.fields[eta]} left"),
        TimeElapsedColumn(),
    )
    shown: tuple[object, ...] = ()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("queued", total=100.0, step="-", loss="-", eta="-")

        def show(job: schemas.Job) -> None:
            nonlocal shown
            progress = {} if job.progress is None else job.progress.model_dump()
            fields: dict[str, Any] = {
                "step": f"{progress.get('step') or '-'}/{progress.get('steps') or '-'}",
                "loss": f"{progress['loss']:.0f}" if progress.get("loss") is not None else "-",
                "eta": f"{progress['eta_s']:.0f} s" if progress.get("eta_s") is not None else "-",
            }
            name = job.phase if job.status == "running" and job.phase else job.status
            percent = progress.get("percent") or 0.0
            bar.update(task, description=name, completed=percent, **fields)
            line = (name, int(percent // 10))
            if not console.is_terminal and line != shown:
                shown = line
                console.print(f"  {name:<20} step {fields['step']}  loss {fields['loss']}  {fields['eta']} left")

        yield show


def report(job: schemas.Job, began: float) -> None:
    """The table, and the last line that scripts read."""
    result, trainable = job.result or schemas.JobResult(), job.trainable or schemas.JobTrainable()
    base, tuned = (result.base or {})["metrics"], (result.best or {})["evaluation"]["metrics"]
    table = Table("metric", "base", "tuned", title="on the validation images")
    for name in ("segm_mAP", "segm_mAP50", "bbox_mAP", "cgF1", "IL_FPR"):
        table.add_row(name, _figure(base[name]), _figure(tuned[name]))
    console.print(table)
    percent, train_seconds = trainable.percent or 0, result.train_seconds or 0
    console.print(
        f"{trainable.parameters:,} trainable parameters ({percent:.2f} % of sam3-tiny), "
        f"{result.steps} steps in {train_seconds:.0f} s"
    )
    total = time.monotonic() - began
    print(
        f"demo: job={job.status} segm_mAP_base={_figure(base['segm_mAP'])} "
        f"segm_mAP_tuned={_figure(tuned['segm_mAP'])} trainable_percent={percent:.2f} "
        f"train_seconds={train_seconds:.0f} total_seconds={total:.0f}"
    )


@contextmanager
def running_service(folder: Path) -> Iterator[str]:
    """The embedded service on a free port, gone with all its processes at the end.

    Raises:
        DemoError: with the end of its output, if it does not come up.
    """
    folder.mkdir()
    ready, output = folder / "url", folder / "output.log"
    command = [sys.executable, "-m", "service.embedded", "--data-dir", str(folder / "data"), "--port", "0"]
    console.print("Starting the service: broker, API, workers, reconciler")
    with output.open("wb") as log:  # tethered: it ends with the demo, however that ends
        process = subprocess.Popen(
            tether.command([*command, "--ready-file", str(ready)]), stdout=log, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready.exists() or not ready.read_text().strip():
            if process.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"the service did not start:\n{output.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)
        yield ready.read_text().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _figure(value: float | None) -> str:
    return "null" if value is None else f"{value:.3f}"


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--dataset", help="zip or tar of a COCO dataset, instead of the drawn one")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
