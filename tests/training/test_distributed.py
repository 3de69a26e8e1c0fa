"""Two processes under torchrun do what one does at the same global batch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sam3_lora.config import RunConfig
from sam3_lora.events import Event, EventType
from sam3_lora.synthetic.coco_export import ANNOTATIONS
from sam3_lora.training.run import train

ROOT = Path(__file__).parents[2]
# Nothing is drawn at random within a step, so that only the order of additions differs.
EXACT: dict[str, dict[str, Any]] = {
    "lora": {"dropout": 0.0},
    "training": {"mask_points": None, "max_epochs": 2},
    "dataset": {"limit_images": 5},  # a last batch of one image for two processes
}


def exact(make_config: Callable[..., RunConfig], name: str, *, batch_size: int, **sections: Any) -> RunConfig:
    merged = {key: {**EXACT.get(key, {}), **sections.get(key, {})} for key in {**EXACT, **sections}}
    merged["training"]["batch_size"] = batch_size
    return make_config(name, **merged)


@pytest.fixture
def boxes_only(drawn: Path, tmp_path: Path) -> Path:
    """The drawn annotations with masks for the first image alone."""
    body = json.loads((drawn / "train" / ANNOTATIONS).read_text())
    first = body["images"][0]["id"]
    for annotation in body["annotations"]:
        if annotation["image_id"] != first:
            annotation.pop("segmentation")
    file = tmp_path / "boxes_only.json"
    file.write_text(json.dumps(body))
    return file


def run_world(bases: Path, tmp_path: Path, *runs: dict[str, Any]) -> list[dict[str, Any]]:
    files = []
    for number, values in enumerate(runs):
        file = tmp_path / f"world_{number}.json"
        file.write_text(json.dumps(values))
        files.append(str(file))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "tests/training/world.py", str(bases), *files],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def losses_of(config: RunConfig, resume: Path | None = None) -> dict[int, float]:
    losses: dict[int, float] = {}

    def observe(event: Event) -> None:
        if event.type is EventType.METRICS and "train/loss" in event.data["values"]:
            losses[event.data["step"]] = event.data["values"]["train/loss"]

    train(config, reporter=observe, resume=resume)
    return losses


def by_step(losses: dict[str, float]) -> dict[int, float]:
    return {int(step): loss for step, loss in losses.items()}


def test_two_processes_equal_one(make_config: Callable[..., RunConfig], bases: Path, tmp_path: Path, boxes_only: Path):
    settings = {"dataset": {"train_ann_file": str(boxes_only), "limit_images": None}}
    plain = exact(make_config, "plain", batch_size=2)
    masks_rare = exact(make_config, "masks_rare", batch_size=2, **settings)
    parts = exact(make_config, "parts", batch_size=2)
    values = [c.model_dump(mode="json") for c in (plain, masks_rare, parts)]
    values[2]["interrupt"] = {"rank": 1, "step": 3}
    found = run_world(bases, tmp_path, *values)
    assert [result["end"] for result in found] == ["done", "done", "interrupted"]

    alone = exact(make_config, "alone", batch_size=4)
    expected = losses_of(alone)
    assert len(expected) == 4  # of 4 and 1 images, twice
    assert by_step(found[0]["losses"]) == pytest.approx(expected, rel=1e-4)
    tuned = [load_file(c.output.dir / "checkpoints" / "epoch_2" / "adapter_model.safetensors") for c in (plain, alone)]
    for name, value in tuned[1].items():
        torch.testing.assert_close(tuned[0][name], value, rtol=1e-2, atol=1e-4, msg=name)
    reports = [json.loads((c.output.dir / "report.json").read_text()) for c in (plain, alone)]
    assert [report["processes"] for report in reports] == [2, 1]
    assert reports[0]["base"] == reports[1]["base"]  # each process evaluated half of the images

    expected_rare = losses_of(exact(make_config, "alone_rare", batch_size=4, **settings))
    assert by_step(found[1]["losses"]) == pytest.approx(expected_rare, rel=1e-4)

    # Two processes stopped after step 3, since one of them was asked to; one process goes on.
    assert len(found[2]["losses"]) == 3
    resumed = losses_of(exact(make_config, "parts", batch_size=4), resume=parts.output.dir)
    assert {**by_step(found[2]["losses"]), **resumed} == pytest.approx(expected, rel=1e-4)


def test_without_torchrun_a_process_is_alone(make_config: Callable[..., RunConfig]):
    config = make_config("alone", training={"max_epochs": 1})
    train(config)
    assert json.loads((config.output.dir / "report.json").read_text())["processes"] == 1
    assert not torch.distributed.is_initialized()
