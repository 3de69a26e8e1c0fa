"""Small programs that stand for a trainer and follow its contract: real processes, each with one behaviour."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PREAMBLE = """
import json, os, signal, subprocess, sys, threading, time
def say(type, message="", level="info", **data):
    sys.stdout.write(json.dumps({"type": type, "level": level, "message": message, "data": data}) + "\\n")
    sys.stdout.flush()
"""


def write(folder: Path, body: str, name: str = "trainer.py") -> list[str]:
    """The command of a trainer with the given body."""
    path = folder / name
    path.write_text(PREAMBLE + textwrap.dedent(body))
    return [sys.executable, "-IS", str(path)]


# A trainer that honours the whole contract: it fences itself, saves on SIGTERM, finishes early on SIGUSR1, resumes.
CONTRACT = """
import argparse, pathlib, select
options = argparse.ArgumentParser()
options.add_argument("--config"); options.add_argument("--lease-timeout", type=float); options.add_argument("--resume")
options.add_argument("--processes", type=int, default=1)
options = options.parse_args()
config = json.load(open(options.config))
run = pathlib.Path(config["output"]["dir"])
wanted = {}
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: wanted.setdefault(number, True))

def fence():
    while select.select([0], [], [], options.lease_timeout)[0] and os.read(0, 4096): pass
    os._exit(12)
threading.Thread(target=fence, daemon=True).start()

def checkpoint(kind, epoch, value=None):
    name = "best" if kind == "best" else f"{kind}_{epoch}"
    fresh, place, old = (run / "checkpoints" / (mark + name) for mark in (".new-", "", ".old-"))
    fresh.mkdir(parents=True)
    (fresh / "adapter_model.safetensors").write_text(f"adapter of {kind} {epoch}")
    (fresh / "adapter_config.json").write_text("{}")
    if kind != "best": (fresh / "training_state.pt").write_text(str(epoch))
    (fresh / "checkpoint.json").write_text(json.dumps({"epoch": epoch, "step": epoch * 10}))
    if place.exists(): place.rename(old)
    fresh.rename(place)
    if old.exists():
        for file in old.iterdir(): file.unlink()
        old.rmdir()
    say("checkpoint", folder=str(place.relative_to(run)), kind=kind, epoch=epoch, step=epoch * 10,
        metric="val/segm_mAP", value=value)

first = int((pathlib.Path(options.resume) / "training_state.pt").read_text()) + 1 if options.resume else 1
say("phase", phase="training")

def train(epochs, pause_s=0.0):
    for epoch in range(first, epochs + 1):
        say("progress", epoch=epoch, epochs=epochs, step=epoch * 10, steps=epochs * 10, percent=100 * epoch / epochs,
            eta_s=None, images_per_s=None)
        say("metrics", step=epoch * 10, epoch=epoch, values={"train/loss": 1 / epoch, "val/segm_mAP": None})
        checkpoint("epoch", epoch)
        checkpoint("best", epoch, epoch / epochs)
        if not pause_s: time.sleep(0.01)
        end = time.monotonic() + pause_s
        while time.monotonic() < end and not wanted: time.sleep(0.01)
        if signal.SIGTERM in wanted:
            checkpoint("interrupt", epoch)
            sys.exit(11)
        if signal.SIGUSR1 in wanted: break
    say("result", steps=epoch * 10, peak_memory_bytes=123, first=first)
"""
