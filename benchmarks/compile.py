"""Does torch.compile pay? Blocks of the full SAM3 with adapters, forward and backward, eager and compiled.

The vision encoder's blocks see the same shapes in each step. The detector's encoder layers see as many queries as the
batch happens to have: they are compiled with dynamic shapes, and graphs are counted, since a compilation takes longer
than many steps. Weights are random. Run it where training runs: `make bench NAME=compile ARGS='--device cuda'`.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from benchmarks import record
from benchmarks.full_size import ALPHA, RANK
from sam3_lora.config import LoraConfig, TrainingConfig
from sam3_lora.model import upstream
from sam3_lora.model.architecture import SAM3, SAM3_TINY, Architecture
from sam3_lora.model.build import build_model
from sam3_lora.training.setup import adapt, amp_dtype_of

PAYS = 1.1  # a gain that is worth a minute of compiling


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    warnings.filterwarnings("ignore")
    architecture = SAM3_TINY if options.tiny else SAM3
    amp_dtype = amp_dtype_of(TrainingConfig(), options.device)
    model = build_model(architecture).train()
    upstream.set_activation_checkpointing(model, "off")
    adapt(model, LoraConfig(rank=RANK, alpha=ALPHA), TrainingConfig(), amp_dtype)
    model.to(options.device)
    rows = []
    for name, (block, inputs) in blocks(model, architecture, options.device, options.queries).items():
        rows.append(measure(name, block, inputs, amp_dtype, options))
        print(f"  {rows[-1]}", flush=True)
    if not options.tiny or options.output is not None:
        print(f"written to {record.write('compile', rows, path=options.output, precision=str(amp_dtype))}")
    for row in rows:
        print(f"compile-{row['block']} ratio={row['times_faster']:.2f} target={PAYS:.2f}")
    return 0


def blocks(
    model: Any, architecture: Architecture, device: str, queries: Sequence[int]
) -> dict[str, tuple[nn.Module, list[dict[str, Tensor]]]]:
    """Blocks by name, each with inputs of all the shapes that it will see."""
    trunk, layer = model.backbone.vision_backbone.trunk, model.transformer.encoder.layers[0]
    side = architecture.image_size // architecture.patch_size
    windowed = next(block for block in trunk.blocks if block.window_size > 0)
    tokens = torch.randn(1, side, side, architecture.vit_width, device=device)
    width = architecture.d_model
    found: dict[str, tuple[nn.Module, list[dict[str, Tensor]]]] = {"vision-windowed": (windowed, [{"x": tokens}])}
    if whole := [block for block in trunk.blocks if block.window_size == 0]:
        found["vision-global"] = whole[0], [{"x": tokens}]
    found["detr-encoder"] = (
        layer,
        [
            {
                "tgt": torch.randn(count, side * side, width, device=device),
                "memory": torch.randn(count, architecture.text_context, width, device=device),
                "query_pos": torch.randn(count, side * side, width, device=device),
                "memory_key_padding_mask": torch.zeros(
                    count, architecture.text_context, dtype=torch.bool, device=device
                ),
            }
            for count in queries
        ],
    )
    return found


def measure(
    name: str, block: Any, inputs: list[dict[str, Tensor]], amp_dtype: torch.dtype | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Median seconds of a forward and backward over all shapes, eager and compiled, and what compiling took."""

    def run(call: Callable[..., Tensor]) -> float:
        began = time.perf_counter()
        for values in inputs:
            first, *others = values
            leaf = values[first].detach().requires_grad_()
            with torch.autocast(options.device, dtype=amp_dtype, enabled=amp_dtype is not None):
                output = call(**{first: leaf, **{other: values[other] for other in others}})
            torch.autograd.backward(output.float().square().mean())
        if options.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(block, dynamic=True if len(inputs) > 1 else None)
    run(block)
    compiling = run(compiled)
    eager, fast = [], []
    for _ in range(options.steps):  # in turns: the machine may be busy now and then
        eager.append(run(block))
        fast.append(run(compiled))
    return {
        "block": name,
        "shapes": len(inputs),
        "eager_seconds": round(median(eager), 4),
        "compiled_seconds": round(median(fast), 4),
        "times_faster": round(median(eager) / median(fast), 3),
        "first_call_seconds": round(compiling, 1),
        "graphs": counters["stats"]["unique_graphs"],
    }


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks compile", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cpu")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 2, 3], help="queries that a batch may have")
    parser.add_argument("--steps", type=int, default=3, help="passes that count")
    parser.add_argument("--tiny", action="store_true", help="the small architecture, to see that it runs")
    parser.add_argument("--output", type=Path, help="JSON file, instead of results/compile.json")
    return parser.parse_args(arguments)
