"""Every process makes files for its own user alone, also in a folder that is open to all."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.deploy.files import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PROCESSES = {
    "command": "from typer.testing import CliRunner; from service.cli import app; CliRunner().invoke(app, ['migrate'])",
    "worker": "from worker.app import main; main(['--queue', 'cpu'])",
    "reconciler": "from service.reconciler import main; main()",
    "embedded": "import typer; from service.embedded import serve; typer.run(serve)",
}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_starts_by_keeping_its_files_private(name: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    # Wrong settings end it before it needs anything; what it has set by then stays.
    script = f"""
import os
os.umask(0o022)
try:
    {PROCESSES[name]}
except SystemExit:
    pass
open("made", "w").close()
"""
    environment = os.environ | {"SAM3_PORT": "none", "SAM3_DATA_DIR": str(tmp_path / "data")}
    subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT)},
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o600
