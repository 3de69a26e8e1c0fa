"""The command line: train, evaluate, predict and export on this machine, or ask a service. `commands` has each."""

from __future__ import annotations

import sys

import typer

from sam3_lora.commands import convert, datasets, jobs, models
from sam3_lora.commands.adapters import export, merge
from sam3_lora.commands.evaluate import evaluate
from sam3_lora.commands.inspect import inspect
from sam3_lora.commands.predict import predict
from sam3_lora.commands.terminal import EXIT_FAILED, console
from sam3_lora.commands.train import train
from sam3_lora.commands.validate import validate
from sam3_lora.commands.version import Version

app = typer.Typer(no_args_is_help=True)


@app.callback()
def options(version: Version = False) -> None:
    """LoRA fine-tuning of SAM3 on COCO-format data."""


for command in (train, predict, evaluate, inspect, merge, export, validate):
    app.command()(command)
datasets.app.add_typer(convert.app, name="convert")
app.add_typer(jobs.app, name="jobs")
app.add_typer(datasets.app, name="datasets")
app.add_typer(models.app, name="models")


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
