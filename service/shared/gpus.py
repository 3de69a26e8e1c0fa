"""The GPUs that processes started here would see, told without loading a training framework."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/gpus")
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Gpu:
    """`name`: what CUDA_VISIBLE_DEVICES calls it, a number or an identifier."""

    name: str
    model: str


def visible() -> list[Gpu]:
    """NVIDIA GPUs in the order in which CUDA numbers them: those that CUDA_VISIBLE_DEVICES leaves, or all."""
    installed = _installed()
    if not installed:
        return []
    chosen = os.environ.get(VISIBLE)
    if chosen is None:
        return [Gpu(str(number), model) for number, (model, _) in enumerate(installed)]
    names = [name.strip() for name in chosen.split(",")]
    ends = [position for position, name in enumerate(names) if name in ("", "-1")]  # CUDA looks no further
    return [Gpu(name, _model(name, installed)) for name in names[: ends[0] if ends else None]]


def _installed() -> list[tuple[str, str]]:
    """Model and identifier of each GPU that the driver tells of."""
    found = []
    for path in sorted(DRIVER.glob("*/information")):
        facts = dict(re.findall(r"^([^:\n]+):[ \t]*(.*?)[ \t]*$", path.read_text(), re.MULTILINE))
        if "Model" in facts:
            found.append((facts["Model"], facts.get("GPU UUID", "")))
    return found


def _model(name: str, installed: list[tuple[str, str]]) -> str:
    if name.isdigit():
        return installed[int(name)][0] if int(name) < len(installed) else installed[0][0]
    return next((model for model, identifier in installed if identifier.startswith(name)), installed[0][0])
