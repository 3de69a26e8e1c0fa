"""A small campaign on each backend, on real processes; `make faults` is the large one."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.faults.plan import draw

if TYPE_CHECKING:
    from pathlib import Path

JOBS, FAULTS = 12, 6


@pytest.mark.timeout(900)  # a minute on a machine that does nothing else
@pytest.mark.parametrize("backend", ["embedded", "production"])
def test_nothing_is_lost_doubled_left_or_stuck(backend: str, tmp_path: Path) -> None:
    sizes = ["--jobs", str(JOBS), "--faults", str(FAULTS), "--real", "0", "--seed", "3"]
    command = [sys.executable, "-m", "tests.faults", "--backend", backend, *sizes, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    [report] = tmp_path.glob("*.json")
    found = json.loads(report.read_text())
    assert done.returncode == 0, (found["violations"], done.stderr[-2000:])
    [line] = done.stdout.splitlines()
    assert line.startswith("faults: jobs=")
    assert line.endswith(f"faults={FAULTS} lost=0 doubled=0 orphans=0 overlaps=0 stuck=0")
    assert found["jobs"] >= JOBS
    assert found["seen"]["trainers started"] >= JOBS / 2


def test_a_seed_gives_one_plan() -> None:
    plans = [draw(seed, "production", jobs=40, faults=50, real=1, disks=True) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    assert {job.is_real for job in plans[0].jobs} == {True, False}
