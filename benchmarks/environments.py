"""Python environments for what benchmarks compare with or drive by, and the product does not need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def python_with(requirement: str) -> Path:
    """The interpreter of an environment in the user's cache folder that has the requirement; installed once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    environment = cache / "sam3-lora" / "benchmarks" / requirement
    python = environment / "bin" / "python"
    if not (environment / "installed").exists():
        print(f"  installing {requirement} into {environment}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", requirement], check=True)
        (environment / "installed").touch()
    return python
