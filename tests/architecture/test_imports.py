"""Who may import whom, where a static check cannot see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("service.main", ("torch", "torchvision", "sam3", "worker")),
        ("service.cli", ("torch", "torchvision", "sam3")),
        ("service.reconciler", ("torch", "torchvision", "sam3", "fastapi", "starlette", "uvicorn")),
        ("service.shared.unit_of_work", ("torch", "torchvision", "sam3", "fastapi", "starlette", "uvicorn")),
        ("worker.app", ("torch", "torchvision", "sam3", "fastapi", "starlette", "uvicorn")),
    ],
)
def test_a_process_leaves_out_what_it_must_not_load(module: str, banned: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {banned!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_the_import_contracts_hold() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    result = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
