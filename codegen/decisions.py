"""`docs/decisions/index.md`: the list of decisions, by their titles."""

from __future__ import annotations

from pathlib import Path

TARGET = Path(__file__).parents[1] / "docs" / "decisions" / "index.md"
HEAD = """# Decisions

Why things are as they are: a page each, with what was decided, what it rests on, and what it costs.

"""


def source() -> str:
    """Text of the page."""
    lines = []
    for file in sorted(TARGET.parent.glob("[0-9]*.md")):
        title = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        number, _, name = title.partition(". ")
        lines.append(f"{number}. [{name}]({file.name})")
    return HEAD + "\n".join(lines) + "\n"
