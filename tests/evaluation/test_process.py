"""The process that compares: what it says and how it ends when it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from sam3_lora import child
from sam3_lora.synthetic.coco_export import ANNOTATIONS, write_dataset

if TYPE_CHECKING:
    from pathlib import Path


def run(folder: Path, values: dict[str, Any], *options: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and events; the process gets no lease byte, and its standard input is at its end."""
    (folder / "config.json").write_text(json.dumps(values))
    command = [sys.executable, "-m", "sam3_lora.evaluation.process", "--config", str(folder / "config.json"), *options]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=120, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    write_dataset(tmp_path / "data", concepts=["heart", "cross"], train=1, valid=1, seed=1)
    return {
        "models": [{"name": "before", "base": "sam3-tiny"}, {"name": "after", "base": "sam3-tiny"}],
        "images": str(tmp_path / "data" / "valid"),
        "annotations": str(tmp_path / "data" / "valid" / ANNOTATIONS),
        "title": "after against before",
        "output": str(tmp_path / "output"),
    }


def test_it_measures_and_writes_the_report(tmp_path: Path, config: dict[str, Any]) -> None:
    code, events = run(tmp_path, config)
    assert code == 0
    counts = [(e["data"]["images_done"], e["data"]["images_total"]) for e in events if e["type"] == "progress"]
    assert counts == [(1, 2), (2, 2)]
    assert events[-1]["type"] == "result"
    names = {path.relative_to(tmp_path / "output").as_posix() for path in (tmp_path / "output").rglob("*.*")}
    assert names == {"report.html", *(f"{n}/{f}.json" for n in (0, 1) for f in ("truth", "predictions", "evaluation"))}


def test_without_its_lease_it_ends(tmp_path: Path, config: dict[str, Any]) -> None:
    assert run(tmp_path, config, "--lease-timeout", "60")[0] == child.EXIT_LEASE_LOST
    assert not (tmp_path / "output" / "report.html").exists()


@pytest.mark.parametrize(
    ("values", "exit_code", "code"),
    [
        ({"models": []}, child.EXIT_CONFIG, "config_invalid"),
        ({"metrics": "cgF1"}, child.EXIT_CONFIG, "config_invalid"),
        ({"annotations": "/nowhere.json"}, child.EXIT_FAILED, "dataset_invalid"),
        (
            {"models": [{"name": "a", "base": "sam3-tiny"}, {"name": "b", "base": "sam3-tiny", "adapter": "/nowhere"}]},
            child.EXIT_FAILED,
            "adapter_invalid",
        ),
    ],
)
def test_what_is_wrong_has_a_code(
    tmp_path: Path, config: dict[str, Any], values: dict[str, Any], exit_code: int, code: str
) -> None:
    ended, events = run(tmp_path, config | values)
    assert (ended, [(event["type"], event["data"]["code"]) for event in events]) == (exit_code, [("error", code)])
