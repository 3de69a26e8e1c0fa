"""Seconds from the start of a process to its first training step, by phase, with the full SAM3's weights on disk.

Random weights in one safetensors file (3.4 GB, in the temporary folder). Cold: the file was thrown out of the page
cache before; warm: it is in there. Libraries are warm both times, since other processes share them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.apart import measure_apart

_BEGAN = time.monotonic()


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    if options.part is not None:
        print(json.dumps(measure(options.part, options)))
        return 0
    from benchmarks import record

    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        weights = Path(folder) / "sam3.safetensors"
        print("writing random weights", flush=True)
        measure_apart("startup", [*arguments, "--part", str(weights), "--write"])
        for state in ("cold", "warm", "warm"):
            if state == "cold":
                _forget(weights)
            rows.append({"state": state, **measure_apart("startup", [*arguments, "--part", str(weights)])})
            print(f"  {rows[-1]}", flush=True)
    if not options.tiny or options.output is not None:
        print(f"written to {record.write('startup', rows, path=options.output, tiny=options.tiny)}")
    report(rows)
    return 0


def measure(weights: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each phase of a start with these weights; with `--write`, write them instead."""
    marks = {"interpreter": _BEGAN}

    def done(phase: str) -> None:
        marks[phase] = time.monotonic()

    import torch

    done("import torch")
    import sam3.model.sam3_image  # noqa: F401

    done("import sam3")
    from benchmarks.full_size import ALPHA, RANK, random_model
    from sam3_lora.config import LoraConfig
    from sam3_lora.lora.adapter import fingerprint
    from sam3_lora.lora.inject import inject
    from sam3_lora.model import weights as base_weights
    from sam3_lora.model.architecture import SAM3, SAM3_TINY
    from sam3_lora.model.precision import hold_frozen_weights

    architecture = SAM3_TINY if options.tiny else SAM3
    if options.write:
        from safetensors.torch import save_file

        tensors = random_model(architecture).state_dict()
        save_file({k: v.contiguous() for k, v in tensors.items() if not v.is_complex()}, weights)
        os.sync()
        return {}
    vars(base_weights)["SAM3"] = architecture
    done("import the trainer")
    model = base_weights.load_base("sam3", checkpoint=weights)
    done("build and load")
    fingerprint(model)
    done("fingerprint")
    inject(model, LoraConfig(rank=RANK, alpha=ALPHA))
    done("inject adapters")
    hold_frozen_weights(model, torch.bfloat16)
    done("convert frozen weights")
    times = list(marks.values())
    phases = {name: after - before for name, before, after in zip(list(marks)[1:], times, times[1:], strict=False)}
    return {name: round(seconds, 2) for name, seconds in {**phases, "all": times[-1] - times[0]}.items()}


def _forget(file: Path) -> None:
    """Throw a file out of the page cache."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def report(rows: list[dict[str, Any]]) -> None:
    """A Markdown table, and the line for scripts: what reading costs beside all else."""
    phases = [name for name in rows[0] if name != "state"]
    print("\n| phase | " + " | ".join(row["state"] for row in rows) + " |\n" + "|---" * (1 + len(rows)) + "|")
    for phase in phases:
        print(f"| {phase} | " + " | ".join(f"{row[phase]:.1f}" for row in rows) + " |")
    cold, warm = rows[0]["all"], min(row["all"] for row in rows[1:])
    print(f"\nstartup ratio={warm / cold:.2f} target=1.00 (warm start to cold start)")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks startup", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the weights are written (default: the temporary folder)")
    parser.add_argument("--tiny", action="store_true", help="the small architecture, to see that it runs")
    parser.add_argument("--part", type=Path, help="measure one start with this file, as JSON")
    parser.add_argument("--write", action="store_true", help="with --part: write the file")
    parser.add_argument("--output", type=Path, help="JSON file, instead of results/startup.json")
    return parser.parse_args(arguments)
