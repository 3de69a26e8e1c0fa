"""Training with two processes against one, at the same global batch, on CPU cores of their own (gloo).

`sam3-tiny` trains on drawn images by `train.py`, alone and under torchrun, one thread for each process. Efficiency is
the time of one process divided by that of two, and by two.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks import record
from sam3_lora.synthetic.coco_export import ANNOTATIONS, write_dataset

ROOT = Path(__file__).parents[1]
GLOBAL_BATCH = 8
TARGET = 0.8


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = options.steps * GLOBAL_BATCH
        write_dataset(Path(folder) / "data", concepts=["heart", "cross"], train=images, valid=1, seed=0)
        for processes in (1, 2):
            rows.append(train(processes, Path(folder), options.steps))
            print(f"  {rows[-1]}", flush=True)
    if options.steps >= 20 or options.output is not None:
        print(f"written to {record.write('scale-ddp', rows, path=options.output, global_batch=GLOBAL_BATCH)}")
    efficiency = rows[0]["seconds"] / rows[1]["seconds"] / 2
    print(f"scale-ddp ratio={efficiency / TARGET:.2f} target=1.00 (efficiency {efficiency:.2f} of {TARGET})")
    return 0


def train(processes: int, folder: Path, steps: int) -> dict[str, Any]:
    """Run `train.py` and read what it took."""
    run = folder / f"run-{processes}"
    data = folder / "data" / "train"
    config = {
        "model": {"base": "sam3-tiny"},
        "lora": {"rank": 16, "alpha": 32},
        "dataset": {
            "train_img_folder": str(data),
            "train_ann_file": str(data / ANNOTATIONS),
            "val_fraction": 0.0,
            "generic_negatives": 0,
        },
        "training": {
            "max_epochs": 1,
            "batch_size": GLOBAL_BATCH // processes,
            "use_amp": False,
            "num_workers": 0,
            "num_threads": 1,
            "device": "cpu",
        },
        "output": {"dir": str(run), "tensorboard": False},
    }
    file = folder / f"run-{processes}.yaml"
    file.write_text(yaml.safe_dump(config))
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", str(processes), str(ROOT / "train.py"), "--config", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    report = json.loads((run / "report.json").read_text())
    seconds = report["train_seconds"]
    return {
        "processes": processes,
        "steps": report["steps"],
        "seconds": round(seconds, 2),
        "images_per_second": round(steps * GLOBAL_BATCH / seconds, 2),
    }


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks scale-ddp", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps")
    parser.add_argument("--output", type=Path, help="JSON file, instead of results/scale-ddp.json")
    return parser.parse_args(arguments)
