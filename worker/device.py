"""What a worker trains on, told without loading a GPU library."""

from __future__ import annotations

import os
import re
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/gpus")


def name() -> str:
    """Model of the NVIDIA GPU that a trainer will see first, or `CPU`."""
    gpus = [path.read_text() for path in sorted(DRIVER.glob("*/information"))]
    models = [match[1].strip() for text in gpus if (match := re.search(r"^Model:(.*)$", text, re.MULTILINE))]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not models or chosen in ("", "-1"):
        return "CPU"
    first = (chosen or "0").split(",")[0]
    return models[int(first)] if first.isdigit() and int(first) < len(models) else models[0]
