"""`sam3-lora inspect`: what a configuration would adapt, and what it would take."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from sam3_lora import config as configuration
from sam3_lora.commands.terminal import console, errors_named, quiet


class DeviceKind(StrEnum):
    """What a memory estimate can be for."""

    CPU = "cpu"
    CUDA = "cuda"


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
    quiet()
    with errors_named():
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
