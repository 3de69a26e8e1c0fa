"""Training steps of the full SAM3 on a GPU: images a second, peak memory, and the share of the matmul rate.

840 M parameters with random weights at 1008 pixels; each image has prompts of which every second has two objects.
FLOPs are those of the operations that a step without recomputation calls (torch.utils.flop_counter: matmuls,
convolutions, attention), so that recomputing is no achievement; the limit is the rate of a large bf16 matmul, measured
in the same process. The reference is the float32 step of public trainers, see `full_size.py`.

Run it on a machine with a GPU: `make bench NAME=train-gpu`. `--device cpu --tiny` shows that it runs.
"""

from __future__ import annotations

import argparse
import gc
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import record
from benchmarks.full_size import ReferenceStep, our_step, random_batch, random_model
from benchmarks.train_cpu import OURS, REFERENCE, lora_of
from sam3_lora.model.architecture import SAM3, SAM3_TINY, Architecture
from sam3_lora.model.upstream import Recomputed

TARGETS = {  # name: (what is measured, of which step and batch, the target)
    "train-gpu-vision-detector": ("faster", "vision+detector", 4.0),
    "train-gpu-detector": ("faster", "detector", 20.0),
    "train-gpu-mfu": ("mfu", "vision+detector", 0.4),
}
MOST_GB = 12.0  # of vision+detector with one image


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    warnings.filterwarnings("ignore")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device: run this where there is one")
        return 1
    architecture = SAM3_TINY if options.tiny else SAM3
    limit = matmul_rate(options.device, 512 if options.tiny else 8192)
    print(f"bf16 matmul: {limit / 1e12:.1f} TFLOP/s", flush=True)
    rows = []
    for name in (*OURS, REFERENCE):
        for images in options.images if name != REFERENCE else options.images[:1]:
            for recomputed in ("off", "encoders", "on") if name != REFERENCE else ("on",):
                rows.append(measure(name, images, recomputed, architecture, limit, options))
                print(f"  {rows[-1]}", flush=True)
    details = {"prompts_per_image": options.prompts, "matmul_tflops": round(limit / 1e12, 2), "tiny": options.tiny}
    if not options.tiny or options.output is not None:
        print(f"written to {record.write('train-gpu', rows, path=options.output, **details)}")
    report(rows)
    return 0


def measure(
    name: str,
    images: int,
    recomputed: Recomputed,
    architecture: Architecture,
    limit: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Median seconds of a step, or the error that ended it."""
    gc.collect()
    cuda = options.device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
    row: dict[str, Any] = {"step": name, "images": images, "recomputed": recomputed}
    try:
        step = _build(name, images, recomputed, architecture, options)
        step()  # warm-up, in which features of frozen blocks are computed
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = _seconds(step, options.steps, options.device)
        row |= {"seconds": round(seconds, 4), "images_per_second": round(images / seconds, 3)}
        if cuda:
            row["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        if name != REFERENCE and recomputed == "off":
            with FlopCounterMode(display=False) as counter:
                step()
            flops = counter.get_total_flops()
            row |= {"tflops": round(flops / 1e12, 3), "mfu": round(flops / seconds / limit, 4)}
    except torch.OutOfMemoryError as error:
        row["error"] = str(error).partition(".")[0]
    return row


def _build(
    name: str, images: int, recomputed: Recomputed, architecture: Architecture, options: argparse.Namespace
) -> Callable[[], object]:
    model, batch = random_model(architecture), random_batch(images, options.prompts, architecture.image_size)
    if name == REFERENCE:
        reference = ReferenceStep(model.to(options.device))
        data = batch.to(torch.device(options.device)).datapoint
        return lambda: reference(data)
    stepper = our_step(model, lora_of(name, architecture), device=options.device, recomputed=recomputed)
    return lambda: stepper([batch])


def matmul_rate(device: str, size: int) -> float:
    """FLOP/s of a bf16 matmul of this size."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: a @ b, 20, device)


def _seconds(call: Callable[[], object], repeats: int, device: str) -> float:
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - began)
    return median(times[1:])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def report(rows: list[dict[str, Any]]) -> None:
    """A Markdown table, and a line for each target."""
    reference = next((row.get("seconds") for row in rows if row["step"] == REFERENCE), None)
    print("\n| step | images | recomputed | seconds | images/s | peak GB | TFLOP | MFU |\n" + "|---" * 8 + "|")
    columns = ("step", "images", "recomputed", "seconds", "images_per_second", "peak_gb", "tflops", "mfu")
    for row in rows:
        print("| " + " | ".join(str(row.get(column, row.get("error", ""))) for column in columns) + " |")
    print()
    for target, (kind, step, wanted) in TARGETS.items():
        own = [row for row in rows if row["step"] == step and "seconds" in row]
        if kind == "mfu":
            value = max((row.get("mfu", 0.0) for row in own), default=0.0) / wanted
            print(f"{target} ratio={value:.2f} target=1.00 (1 is {wanted:.0%} of the matmul rate)")
        elif reference is not None and own:
            fastest = min(row["seconds"] for row in own if row["images"] == 1)
            print(f"{target} ratio={reference / fastest:.2f} target={wanted:.2f}")
    lean = [row["peak_gb"] for row in rows if row["step"] == OURS[0] and row["images"] == 1 and "peak_gb" in row]
    if lean:
        print(f"train-gpu-memory ratio={min(lean) / MOST_GB:.2f} target=1.00 (met at or below; 1 is {MOST_GB:g} GB)")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks train-gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 4], help="images in a batch")
    parser.add_argument("--prompts", type=int, default=2, help="texts asked about each image")
    parser.add_argument("--steps", type=int, default=10, help="steps that count, after two to warm up")
    parser.add_argument("--tiny", action="store_true", help="the small architecture, to see that it runs")
    parser.add_argument("--output", type=Path, help="JSON file, instead of results/train-gpu.json")
    return parser.parse_args(arguments)
