"""Measurements in processes of their own. Imports nothing that takes time: starting is measured, too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


def measure_apart(benchmark: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a benchmark with arguments that make it measure one thing; its last line, as JSON, is what it found."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", benchmark, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))
