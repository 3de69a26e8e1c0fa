"""Examples in the documentation, as they are written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8000"
"""Of the service that examples ask."""


def examples(document: str, kind: str) -> list[str]:
    """The examples of this kind in a document, a path from the root."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"<!-- test: {kind} -->\n```\w+\n(.*?)```", text, re.DOTALL)


def example(document: str, kind: str) -> str:
    """The one example of this kind in a document."""
    (found,) = examples(document, kind)
    return found


def run(command: str, folder: Path, url: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A reader's command, in their folder, with everything installed and a service at `url`."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SAM3_API_URL": url,
        "XDG_CACHE_HOME": str(folder / "cache"),
        **variables,
    }
    shell = ["bash", "-c", command]
    return subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, check=False)
