"""Examples in the documentation, as they are written."""

from __future__ import annotations

import re
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
