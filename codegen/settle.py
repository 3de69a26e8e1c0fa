"""Made code in the form that all code here has."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "pyproject.toml"
# Docstrings and comments stay as they were made.
COMMANDS = (["check", "--fix", "--exit-zero", "--quiet", "--ignore", "D,E501"], ["format", "--quiet"])


def settled(files: dict[str, str]) -> dict[str, str]:
    """These modules, by name, formatted and with their imports in order."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        for command in COMMANDS:
            subprocess.run([sys.executable, "-m", "ruff", *command, "--config", str(CONFIG), scratch], check=True)
        return {name: (folder / name).read_text(encoding="utf-8") for name in files}
