"""`sam3-lora train`, and `train.py`: a run, with its progress on the terminal."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from sam3_lora import config as configuration
from sam3_lora.commands.terminal import EXIT_INTERRUPTED, console, fail, figure, quiet
from sam3_lora.errors import ConfigError, Sam3LoraError
from sam3_lora.events import Event, EventType

if TYPE_CHECKING:
    from types import FrameType

    from sam3_lora.training.progress import Report
    from sam3_lora.training.run import Stop


def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="YAML run configuration.")],
    resume: Annotated[Path | None, typer.Option(help="Run directory or checkpoint folder to go on from.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the final report as JSON on standard output.")] = False,
) -> None:
    """Train an adapter as a YAML configuration says; under torchrun, on several GPUs or machines."""
    quiet()
    leads = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started, one speaks
    console.quiet = not leads
    try:
        run_config = configuration.load(config)
        from sam3_lora.training.run import InterruptedRunError
        from sam3_lora.training.run import train as run
    except ConfigError as error:
        fail(error)
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
        fail(error)
    if as_json and leads:
        sys.stdout.write(json.dumps(report.to_dict(), indent=2) + "\n")
    elif leads:
        _show_report(report, run_config.output.dir)


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
        elif event.message and event.type is not EventType.PHASE:  # the bars show what it does
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


def _show_report(report: Report, folder: Path) -> None:
    table = Table("metric", "base", "tuned", title=f"{report.steps} steps in {report.train_seconds:.0f} s")
    tuned = (report.best or {}).get("evaluation") or {"metrics": {}}
    base = report.base or {"metrics": {}}
    for name in tuned["metrics"]:
        table.add_row(name, figure(base["metrics"].get(name)), figure(tuned["metrics"][name]))
    if tuned["metrics"]:
        console.print(table)
    console.print(f"adapter: {folder / report.checkpoint} ({report.trainable_percent:.2f} % of the parameters)")
