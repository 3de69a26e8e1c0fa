"""The command line: train, inspect, evaluate, predict, merge, export and validate on this machine, or ask a service."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from sam3_lora import config as configuration
from sam3_lora.commands import convert, datasets, jobs, models
from sam3_lora.errors import ConfigError, Sam3LoraError
from sam3_lora.events import Event, EventType

if TYPE_CHECKING:
    from types import FrameType

    from sam3_lora.training.progress import Report
    from sam3_lora.training.run import Stop

app = typer.Typer(no_args_is_help=True, help="LoRA fine-tuning of SAM3 on COCO-format data.")
app.add_typer(jobs.app, name="jobs")
datasets.app.add_typer(convert.app, name="convert")
app.add_typer(datasets.app, name="datasets")
app.add_typer(models.app, name="models")
console = Console(stderr=True)
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class AdapterFormat(StrEnum):
    """What `export` writes."""

    PEFT = "peft"
    NATIVE = "native"


class DeviceKind(StrEnum):
    """What a memory estimate can be for."""

    CPU = "cpu"
    CUDA = "cuda"


class ConsoleReporter:
    """Shows a run: live bars on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.training: TaskID | None = None
        self.asking: TaskID | None = None
        self.lines = 0

    def __call__(self, event: Event) -> None:
        if event.type is EventType.PROGRESS and "images_total" in event.data:
            self._show_asking(event.data["images_done"], event.data["images_total"])
        elif event.type is EventType.PROGRESS:
            self._show_training(event.data)
        elif event.message:
            style = {"warning": "yellow", "error": "red"}.get(event.level, "")
            self.progress.console.print(event.message, style=style, highlight=False, soft_wrap=True)

    def _show_training(self, data: dict[str, Any]) -> None:
        epoch = f"epoch {data['epoch']}/{data['epochs']}"
        loss = "nan" if data["loss"] is None else f"{data['loss']:.4g}"
        if self.training is None:
            self.training = self.progress.add_task(epoch, total=data["steps"], loss="")
        self.progress.update(self.training, description=epoch, completed=data["step"], loss=f"  loss {loss}")
        if not console.is_terminal and data["percent"] >= self.lines * 10:
            self.lines = int(data["percent"] // 10) + 1
            console.print(
                f"{epoch} step {data['step']}/{data['steps']} loss {loss} "
                f"{data['images_per_s']:.2f} images/s, {data['eta_s']:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )

    def _show_asking(self, done: int, total: int) -> None:
        """A bar while the model is asked about images; without a terminal, the log's own lines must do."""
        if self.asking is None:
            self.asking = self.progress.add_task("images", total=total, loss="")
        self.progress.update(self.asking, completed=done, total=total)
        if done == total:
            self.progress.remove_task(self.asking)
            self.asking = None


class _Interrupt:
    """First Ctrl-C saves and leaves; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)

    def __call__(self) -> Stop | None:
        from sam3_lora.training.run import Stop

        return Stop.INTERRUPT if self.asked else None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        console.print("saving a checkpoint; press Ctrl-C again to stop at once", style="yellow")


@app.command()
def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="YAML run configuration.")],
    resume: Annotated[Path | None, typer.Option(help="Run directory or checkpoint folder to go on from.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the final report as JSON on standard output.")] = False,
) -> None:
    """Train an adapter as a YAML configuration says; under torchrun, on several GPUs or machines."""
    _quiet()
    leads = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started, one speaks
    console.quiet = not leads
    try:
        run_config = configuration.load(config)
        from sam3_lora.training.run import InterruptedRunError
        from sam3_lora.training.run import train as run
    except ConfigError as error:
        _fail(error)
    reporter = ConsoleReporter()
    try:
        with reporter.progress:
            report = run(run_config, reporter=reporter, should_stop=_Interrupt(), resume=resume)
    except InterruptedRunError as error:
        where = (
            "nothing was trained yet" if error.checkpoint is None else f"go on with --resume {run_config.output.dir}"
        )
        console.print(f"interrupted; {where}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except Sam3LoraError as error:
        _fail(error)
    if as_json and leads:
        sys.stdout.write(json.dumps(report.to_dict(), indent=2) + "\n")
    elif leads:
        _show_report(report, run_config.output.dir)


@app.command()
def predict(
    image: Annotated[Path, typer.Option(help="Image file.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What to find; may be repeated.")] = None,
    box: Annotated[
        list[str] | None, typer.Option(help="An example of it as X,Y,WIDTH,HEIGHT in pixels; may be repeated.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="Adapter folder; without it the base model answers.")] = None,
    base: Annotated[str, typer.Option(help="Base model where no adapter is given: sam3 or sam3-tiny.")] = "sam3",
    checkpoint: Annotated[Path | None, typer.Option(help="Official weights (sam3.pt) instead of the hub.")] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Least score of a detection.")] = 0.5,
    output: Annotated[Path | None, typer.Option(help="PNG to draw the detections on.")] = None,
) -> None:
    """Find prompts in an image, or what looks like the boxes; prints COCO results as JSON."""
    _quiet()
    from sam3_lora.coco.overlay import draw_instances
    from sam3_lora.data.exemplars import BOX_ALONE
    from sam3_lora.data.images import read_rgb
    from sam3_lora.evaluation.coco_metrics import to_results
    from sam3_lora.evaluation.predict import open_predictor

    with _errors_named():
        boxes = [_box(text) for text in box or []]
        if not prompt and not boxes:
            raise _wrong_option("--prompt", "give a prompt, a box, or both")
        texts = prompt or [BOX_ALONE]
        predictor, _ = open_predictor(adapter, base=base, checkpoint=checkpoint)
        pixels = read_rgb(image)
        found = predictor.predict(pixels, texts, boxes_xywh=boxes, min_score=threshold)
    answers = []
    for number, (text, detections) in enumerate(zip(texts, found, strict=True), start=1):
        results = to_results(detections, 1, number)
        for entry in results:
            entry["segmentation"]["counts"] = entry["segmentation"]["counts"].decode()
        answers.append({"prompt": text, "presence": detections.presence, "detections": results})
    sys.stdout.write(json.dumps({"image": str(image), "answers": answers}) + "\n")
    if output is not None:
        masks = [m.numpy() for d in found for m in (d.masks_KHW if d.masks_KHW is not None else [])]
        labels = [f"{t} {s:.2f}" for t, d in zip(texts, found, strict=True) for s in d.scores_K.tolist()]
        colours = [number for number, d in enumerate(found) for _ in d.scores_K]
        draw_instances(pixels, masks, labels, colours, width=max(480, pixels.shape[1])).save(output)


@app.command()
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
    _quiet()
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
        _fail(_wrong_option("--export", f"cannot be written: {error}"))
    except Sam3LoraError as error:
        _fail(error)
    if as_json:
        values = {name: evaluation.to_dict() for name, evaluation in found.items()}
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return
    table = Table("metric", *found, title=f"{next(iter(found.values())).images} images")
    for metric in next(iter(found.values())).metrics:
        table.add_row(metric, *(_figure(evaluation.metrics[metric]) for evaluation in found.values()))
    console.print(table)


@app.command()
def inspect(
    config: Annotated[Path, typer.Option("--config", "-c", help="YAML run configuration.")],
    device: Annotated[
        DeviceKind | None, typer.Option(help="Kind of device to estimate for, here or not; default: as configured.")
    ] = None,
    memory_gb: Annotated[
        float | None, typer.Option(min=0, help="Free memory of that device; default: what is free here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every adapted module as JSON.")] = False,
) -> None:
    """Show what a configuration would adapt and how much memory it needs, without weights."""
    _quiet()
    with _errors_named():
        run_config = configuration.load(config)
        from sam3_lora.training.estimate import RECOMPUTED, assumed_batch, inspect_run, largest_batch
        from sam3_lora.training.setup import choose_resolution, prepare_data

        assumed = not run_config.dataset.train_ann_file.exists()
        if assumed:
            batch = assumed_batch(run_config)
        else:
            resolution = choose_resolution(run_config.model, run_config.dataset.resolution)
            batch = largest_batch(run_config, prepare_data(run_config, resolution))
        with console.status("estimating memory"):
            free = None if memory_gb is None else int(memory_gb * 1e9)
            found = inspect_run(run_config, batch, device_type=None if device is None else device.value, free=free)
    injection, memory = found.injection, found.memory
    if as_json:
        values = {
            **injection.to_dict(),
            "peak_memory_bytes": memory.to_dict(),
            "needed_bytes": {kind.value: memory.needed_on(kind.value) for kind in DeviceKind},
            "batch": {**asdict(batch), "assumed": assumed},
            "device": found.device_type,
            "recomputed": found.recomputed,
        }
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return
    table = Table("component", "modules", "rank", "trainable parameters", title=f"LoRA on {run_config.model.base}")
    for component in run_config.lora.components:
        modules = [module for module in injection.modules if module.component == component]
        count = sum(module.parameters for module in modules)
        table.add_row(component, str(len(modules)), str(run_config.lora.rank_of(component)), f"{count:,}")
    console.print(table)
    whose = "assumed, since the annotations are not there" if assumed else "the largest of this data"
    console.print(
        f"{injection.trainable_parameters:,} of {injection.total_parameters:,} parameters are trained "
        f"({injection.trainable_percent:.2f} %)\n"
        f"peak memory about {memory.peak / 1e9:.1f} GB: weights {memory.weights / 1e9:.1f}, adapters with optimiser "
        f"{memory.adapters / 1e9:.1f}, activations {memory.activations / 1e9:.1f} "
        f"(recomputed on a {found.device_type}: {RECOMPUTED[found.recomputed]})\n"
        f"for a batch of {batch.images} images, {batch.queries} queries, {batch.objects} objects ({whose}); "
        "where it does not fit, queries are computed in smaller passes",
        highlight=False,
    )


@app.command()
def merge(
    adapter: Annotated[Path, typer.Option(help="Adapter folder.")],
    output: Annotated[Path, typer.Option(help="File to write: .pt (loads into stock sam3) or .safetensors.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Official weights (sam3.pt) instead of the hub.")] = None,
) -> None:
    """Fold an adapter into its base: one file of plain SAM3 weights."""
    _quiet()
    from sam3_lora.lora.export import export_merged

    with _errors_named():
        export_merged(adapter, output, checkpoint=checkpoint)
    console.print(f"merged weights: {output} ({output.stat().st_size / 1e6:.1f} MB)", highlight=False)


@app.command()
def export(
    adapter: Annotated[Path, typer.Option(help="Adapter folder.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    form: Annotated[
        AdapterFormat,
        typer.Option("--format", help="peft: for transformers' Sam3Model; native: the adapter alone, as it is."),
    ],
) -> None:
    """Write an adapter as a folder to give away, without any training state."""
    _quiet()
    from sam3_lora.lora.export import export_native
    from sam3_lora.lora.huggingface import export_peft

    with _errors_named():
        (export_peft if form is AdapterFormat.PEFT else export_native)(adapter, output)
    console.print(f"{form} adapter: {output}", highlight=False)


@app.command()
def validate(
    folder: Annotated[Path, typer.Argument(help="Folder with a COCO dataset.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Check a dataset: every fault with its place. Exit code 1 if it cannot be trained on."""
    from sam3_lora.coco.isolation import validate_isolated

    report = validate_isolated(folder).to_dict()
    if as_json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        for issue in report["issues"]:
            where = " ".join(str(issue[key]) for key in ("file", "image", "pointer") if issue[key])
            console.print(f"{issue['severity']}: {issue['code']}: {issue['message']} [{where}]", markup=False)
        summary = report["summary"]
        console.print(
            f"{report['status']}: {summary['images']} images, {summary['instances']} objects, "
            f"{summary['errors']} errors, {summary['warnings']} warnings"
        )
    if report["summary"]["errors"]:
        raise typer.Exit(EXIT_FAILED)


def _show_report(report: Report, folder: Path) -> None:
    table = Table("metric", "base", "tuned", title=f"{report.steps} steps in {report.train_seconds:.0f} s")
    tuned = (report.best or {}).get("evaluation") or {"metrics": {}}
    base = report.base or {"metrics": {}}
    for name in tuned["metrics"]:
        table.add_row(name, _figure(base["metrics"].get(name)), _figure(tuned["metrics"][name]))
    if tuned["metrics"]:
        console.print(table)
    console.print(f"adapter: {folder / report.checkpoint} ({report.trainable_percent:.2f} % of the parameters)")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _box(text: str) -> list[float]:
    """X,Y,WIDTH,HEIGHT as numbers."""
    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError:
        raise _wrong_option("--box", f"{text!r} is not X,Y,WIDTH,HEIGHT") from None
    if not (width > 0 and height > 0 and math.isfinite(x + y + width + height)):
        raise _wrong_option("--box", f"{text!r} has no extent")
    return [x, y, width, height]


def _wrong_option(option: str, message: str) -> ConfigError:
    return ConfigError(f"{option}: {message}", errors=[{"pointer": option, "code": "invalid", "message": message}])


@contextmanager
def _errors_named() -> Iterator[None]:
    """End the command with the text and exit code of an error that the library raised on purpose."""
    try:
        yield
    except Sam3LoraError as error:
        _fail(error)


def _fail(error: Sam3LoraError) -> NoReturn:
    console.quiet &= isinstance(error, ConfigError)  # which every process has; any other may be this one's alone
    console.print(f"error: {error.message}", style="red", markup=False)
    if isinstance(error, ConfigError):
        for fault in error.errors:
            console.print(f"  {fault['pointer'] or '/'}: {fault['message']}", markup=False)
    if error.hint:
        console.print(f"hint: {error.hint}", markup=False)
    raise typer.Exit(EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED)


def _quiet() -> None:
    """Upstream's import-time warnings tell a user nothing; warnings of the log do, unless a run tells them itself."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    handler = logging.StreamHandler()  # without one, sam3 logs something while imported, which sets up its own
    handler.setLevel(logging.WARNING)
    handler.addFilter(lambda record: record.name != "sam3_lora.training")
    logging.basicConfig(format="%(levelname)s: %(message)s", handlers=[handler])


def train_command() -> None:
    """Entry point of `train.py`."""
    typer.run(train)


def main() -> None:
    """Entry point of the `sam3-lora` command."""
    try:
        app()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sam3_lora"):
            raise
        console.print(
            f"{error.name} is not installed: pip install 'sam3-lora-service[train]'", highlight=False, markup=False
        )
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
