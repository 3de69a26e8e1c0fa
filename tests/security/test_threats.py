"""The tables of docs/security.md: every control they name is there, and so is every test."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (?P<threat>[^|]+) \| (?P<control>[^|]+) \| (?P<tests>[^|]+) \|$", re.MULTILINE)
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
NAMED_FILE = re.compile(r"`([\w./-]+)`")
ROWS = [row for row in ROW.finditer((ROOT / "docs/security.md").read_text()) if row["threat"] != "threat"]


@cache
def shown_in(path: str) -> frozenset[str]:
    """What pytest collects of a file: functions of its own, not those that another of the same name hides."""
    tree = ast.parse((ROOT / path).read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert len(names) == len(set(names)), f"{path} defines a name twice"
    return frozenset(name for name in names if name.startswith("test_"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["threat"][:60])
def test_a_threat_has_a_control_and_a_test_that_are_there(row: re.Match[str]) -> None:
    named = NAMED_TEST.findall(row["tests"])
    assert named
    assert NAMED_TEST.sub("", row["tests"]).strip(" ,") == "", "only tests, separated by commas"
    for path, name in named:
        assert (ROOT / path).is_file(), path
        assert name in shown_in(path), f"{path}::{name}"
    files = NAMED_FILE.findall(row["control"])
    assert files or "none is set" in row["control"]
    for file in files:
        assert (ROOT / file).is_file(), file


def test_the_tables_are_read_whole() -> None:
    lines = [line for line in (ROOT / "docs/security.md").read_text().splitlines() if line.startswith("|")]
    others = [line for line in lines if line.startswith(("| threat |", "|---"))]
    assert len(ROWS) == len(lines) - len(others) > 40


def test_every_security_test_stands_in_a_table() -> None:
    named = {path for row in ROWS for path, _ in NAMED_TEST.findall(row["tests"])}
    own = {str(path.relative_to(ROOT)) for path in Path(__file__).parent.glob("test_*.py")}
    assert own - named == {"tests/security/test_threats.py"}
