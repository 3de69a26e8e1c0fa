"""A training step of the full SAM3 on a CPU, against the step that public trainers take.

840 M parameters with random weights, one image at 1008 pixels with one prompt that has two objects. Each way to train
has a process of its own, so that its peak memory is its own. The reference is measured once, without a step to warm up:
it takes minutes. Ours take one step to warm up, in which features of frozen blocks are computed, then a few that count.

`python -m benchmarks train-cpu --help` lists what else can be measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch

from benchmarks import record
from benchmarks.apart import measure_apart
from benchmarks.full_size import ALPHA, RANK, ReferenceStep, our_step, random_batch, random_model
from sam3_lora.config import LoraConfig
from sam3_lora.model.architecture import SAM3, SAM3_TINY, Architecture
from sam3_lora.model.upstream import Recomputed

REFERENCE = "reference"
OURS = ("vision+detector", "last quarter+detector", "detector")  # the last 8 of 32 blocks
TARGETS = {"vision+detector": 2.5, "detector": 25.0}  # times faster than the reference


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    if options.part is not None:
        print(json.dumps(measure(options.part, options)))
        return 0
    rows = []
    for name in (*OURS, REFERENCE):
        print(f"measuring {name}", flush=True)
        rows.append(measure_apart("train-cpu", [*arguments, "--part", name]))
        print(f"  {rows[-1]['seconds']:.1f} s a step, peak {rows[-1]['peak_gb']:.1f} GB", flush=True)
    details = {
        "prompts": options.prompts,
        "threads": torch.get_num_threads(),
        "recomputed": options.recomputed,
        "tiny": options.tiny,
    }
    if not options.tiny or options.output is not None:
        print(f"written to {record.write('train-cpu', rows, path=options.output, **details)}")
    report(rows)
    return 0


def lora_of(name: str, architecture: Architecture) -> LoraConfig:
    config = LoraConfig(rank=RANK, alpha=ALPHA, apply_to_vision_encoder=name != "detector")
    return config.model_copy(update={"vision_layers": architecture.vit_depth // 4} if "quarter" in name else {})


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step and peak memory of this process."""
    warnings.filterwarnings("ignore")
    architecture = SAM3_TINY if options.tiny else SAM3
    model = random_model(architecture)
    batch = random_batch(1, options.prompts, architecture.image_size)
    times = []
    if name == REFERENCE:
        reference = ReferenceStep(model)
        for _ in range(options.reference_steps):
            began = time.monotonic()
            reference(batch.datapoint)
            times.append(time.monotonic() - began)
    else:
        stepper = our_step(model, lora_of(name, architecture), recomputed=options.recomputed)
        for _ in range(1 + options.steps):
            began = time.monotonic()
            if not stepper([batch]).applied:
                raise RuntimeError("a step was not finite")
            times.append(time.monotonic() - began)
        times = times[1:]
    return {
        "step": name,
        "seconds": round(median(times), 3),
        "all_seconds": [round(value, 3) for value in times],
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def report(rows: list[dict[str, Any]]) -> None:
    """A Markdown table, and a line for each target."""
    reference = next(row["seconds"] for row in rows if row["step"] == REFERENCE)
    print("\n| step | trainable | seconds | peak GB | times faster |\n|---|---|---|---|---|")
    for row in rows:
        faster = reference / row["seconds"]
        print(
            f"| {row['step']} | {row['trainable_parameters']:,} | {row['seconds']:.1f} | {row['peak_gb']:.1f} "
            f"| {faster:.1f} |"
        )
    print()
    for row in rows:
        if row["step"] in TARGETS:
            name = f"train-cpu-{row['step'].replace('+', '-')}"
            print(f"{name} ratio={reference / row['seconds']:.2f} target={TARGETS[row['step']]:.2f}")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks train-cpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=1, help="texts asked about the image")
    parser.add_argument("--steps", type=int, default=3, help="steps that count of ours, after one to warm up")
    parser.add_argument("--reference-steps", type=int, default=1, help="steps of the reference, with none to warm up")
    parser.add_argument("--recomputed", choices=get_args(Recomputed), default="encoders", help="activations, of ours")
    parser.add_argument("--tiny", action="store_true", help="the small architecture, to see that it runs")
    parser.add_argument("--part", choices=[*OURS, REFERENCE], help="measure this one in this process, as JSON")
    parser.add_argument("--output", type=Path, help="JSON file, instead of results/train-cpu.json")
    return parser.parse_args(arguments)
