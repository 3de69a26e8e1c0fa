"""What every benchmark writes beside its figures: when, on what machine and with which versions."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

RESULTS = Path(__file__).with_name("results")


def write(name: str, rows: list[dict[str, Any]], *, path: Path | None = None, **details: Any) -> Path:
    """Write `rows` and `details` of a benchmark as JSON; `path` defaults to `results/NAME.json`."""
    target = path or RESULTS / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    body = {
        "benchmark": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "sam3": version("sam3")},
        **details,
        "rows": rows,
    }
    target.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    return target


def machine() -> dict[str, Any]:
    """Processor, cores, memory, GPU. No host name: results are published."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
