"""The campaign's trainer: honours the whole contract in a tenth of a second, and leaves a journal of when it ran.

Its loss at a step is a pure function of the seed and of the state that checkpoints carry, so that a curve shows
whether every step was taken exactly once, whatever happened meanwhile. A job of `REAL_RANK` is passed on to the real
trainer. Signals have it fail as trainers do. Runs without site packages: `python -IS trainer.py JOURNAL --config ...`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import select
import shutil
import signal
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

STEPS = 5  # of an epoch
REAL_RANK = 3
BEAT_S = 0.1
GPU_OOM, GARBAGE, HANG = signal.SIGRTMIN + 1, signal.SIGRTMIN + 2, signal.SIGRTMIN + 3
EXIT_FAILED, EXIT_INTERRUPTED, EXIT_LEASE_LOST, EXIT_GARBAGE = 10, 11, 12, 77
PACES_S = (0.02, 0.05, 0.1, 0.2)


def after(state: int, seed: int, step: int) -> int:
    """The state after a step."""
    return int.from_bytes(hashlib.sha256(f"{state} {seed} {step}".encode()).digest()[:6], "big")


def loss_of(state: int, step: int) -> float:
    return round(5 / (1 + step / 10) + state % 10_000 / 100_000, 6)


def curve(seed: int, steps: int) -> list[float]:
    """The losses of an uninterrupted run, from step 1 on."""
    state, losses = seed, []
    for step in range(1, steps + 1):
        state = after(state, seed, step)
        losses.append(loss_of(state, step))
    return losses


def state_at(seed: int, step: int) -> int:
    """The state of an uninterrupted run after a step."""
    state = seed
    for each in range(1, step + 1):
        state = after(state, seed, each)
    return state


def adapter(state: int) -> bytes:
    """A safetensors file of one tensor, `state`, and some ballast."""
    content = struct.pack("<2q", state, state) + bytes(4096)
    tensors = {
        "state": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]},
        "ballast": {"dtype": "U8", "shape": [4096], "data_offsets": [16, len(content)]},
    }
    header = json.dumps(tensors).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + content


class Journal:
    """One line per moment of a trainer's life; each is appended whole, whoever else writes."""

    def __init__(self, path: Path, run: Path) -> None:
        job, _, epoch = run.parent.name.rpartition("-")[0].rpartition("-e")
        self._facts = {"job": job, "epoch": int(epoch), "pid": os.getpid()}
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, what: str, **facts: Any) -> None:
        line = json.dumps(self._facts | {"what": what, "t": time.monotonic(), **facts}) + "\n"
        os.write(self._file, line.encode())


class Run:
    def __init__(self, options: argparse.Namespace, config: dict[str, Any]) -> None:
        self.folder = Path(config["output"]["dir"])
        self.seed = config["training"]["seed"]
        self.epochs = config["training"]["max_epochs"]
        self.step, self.state, self.ended = 0, self.seed, 0  # the last: epochs that were evaluated and saved
        self.journal = Journal(options.journal, self.folder)
        self.wanted: set[int] = set()
        self._lease_s = options.lease_timeout
        for number in (signal.SIGTERM, signal.SIGUSR1, GPU_OOM, GARBAGE, HANG):
            signal.signal(number, lambda number, _: self.wanted.add(number))
        if options.resume is not None:
            kept = json.loads((options.resume / "training_state.pt").read_text())
            self.step, self.state, self.ended = kept["step"], kept["state"], kept["ended"]
        self.journal.write("start", step=self.step)
        threading.Thread(target=self._keep, daemon=True).start()

    def train(self) -> int:
        say("phase", phase="training")
        for epoch in range(self.ended + 1, self.epochs + 1):
            while self.step < epoch * STEPS:
                self.step += 1
                self.state = after(self.state, self.seed, self.step)
                say("metrics", step=self.step, epoch=epoch, values={"train/loss": loss_of(self.state, self.step)})
                if (code := self._pause(PACES_S[self.seed % len(PACES_S)])) is not None:
                    return code
            steps = self.epochs * STEPS
            say(
                "progress",
                epoch=epoch,
                epochs=self.epochs,
                step=self.step,
                steps=steps,
                percent=100 * self.step / steps,
            )
            self._evaluate(epoch)
            self._save("best", epoch)
            self.ended = epoch
            self._save("epoch", epoch)
            if signal.SIGUSR1 in self.wanted:
                break
        say("result", steps=self.step, peak_memory_bytes=123)
        self.journal.write("end", step=self.step)
        return 0

    def _pause(self, seconds: float) -> int | None:
        """Let a step take its time; the exit code if this is where the run ends."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.01)
        if HANG in self.wanted:
            while signal.SIGTERM not in self.wanted:
                time.sleep(0.05)
        if GPU_OOM in self.wanted:
            hint = "Lower training.batch_size."
            say("error", "CUDA out of memory", "error", code="gpu_oom", hint=hint, retryable=False)
            return EXIT_FAILED
        if GARBAGE in self.wanted:
            sys.stdout.buffer.write(os.urandom(3000) + b'\n{"type": "result"}\n[1, 2]\nnull\n')
            sys.stdout.flush()
            return EXIT_GARBAGE
        if signal.SIGTERM in self.wanted:
            self._save("interrupt", -(-self.step // STEPS))
            self.journal.write("end", step=self.step)
            return EXIT_INTERRUPTED
        return None

    def _evaluate(self, epoch: int) -> None:
        fresh, place = self.folder / "evaluation" / ".new", self.folder / "evaluation" / "tuned"
        fresh.mkdir(parents=True)
        (fresh / "metrics.json").write_text(json.dumps({"step": self.step}))
        shutil.rmtree(place, ignore_errors=True)
        fresh.rename(place)
        say("artifact", place="evaluation/tuned")
        metrics = {"segm_mAP": epoch / self.epochs}
        say("evaluation", model="tuned", epoch=epoch, step=self.step, metrics=metrics, per_category={}, images=1)

    def _save(self, kind: str, epoch: int) -> None:
        name = "best" if kind == "best" else f"{kind}_{self.step}"
        fresh, place = (self.folder / "checkpoints" / (mark + name) for mark in (".new-", ""))
        fresh.mkdir(parents=True)
        (fresh / "adapter_model.safetensors").write_bytes(adapter(self.state))
        (fresh / "adapter_config.json").write_text(json.dumps({"step": self.step}))
        if kind != "best":
            kept = {"step": self.step, "state": self.state, "ended": self.ended}
            (fresh / "training_state.pt").write_text(json.dumps(kept))
        (fresh / "checkpoint.json").write_text(json.dumps({"epoch": epoch, "step": self.step}))
        shutil.rmtree(place, ignore_errors=True)
        fresh.rename(place)
        folder, value = str(place.relative_to(self.folder)), epoch / self.epochs
        say("checkpoint", folder=folder, kind=kind, epoch=epoch, step=self.step, metric="val/segm_mAP", value=value)

    def _keep(self) -> None:
        """Fence the process, and note that it lives: never once its lease is over, in one thread for that."""
        deadline = time.monotonic() + self._lease_s
        while True:
            ready, _, _ = select.select([0], [], [], BEAT_S)
            if time.monotonic() > deadline or (ready and not os.read(0, 4096)):
                os._exit(EXIT_LEASE_LOST)
            if ready:
                deadline = time.monotonic() + self._lease_s
            self.journal.write("beat", step=self.step)


def say(type_: str, message: str = "", level: str = "info", **data: Any) -> None:
    sys.stdout.write(json.dumps({"type": type_, "level": level, "message": message, "data": data}) + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("journal", type=Path)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--lease-timeout", type=float, required=True)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    config = json.loads(options.config.read_text())
    if config["lora"]["rank"] == REAL_RANK:
        say("phase", phase="loading_model")
        os.execv(sys.executable, [sys.executable, "-m", "sam3_lora.training.process", *sys.argv[2:]])
    try:
        return Run(options, config).train()
    except OSError as error:  # no space is left, most often
        say("error", str(error), "error", code="internal", hint="", retryable=True)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
