"""A trainer process as a worker starts it, and what it says."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sam3_lora.config import RunConfig
from sam3_lora.events import Event, EventType

START = """
import sys
from pathlib import Path
from sam3_lora.model import weights
weights.BASES = Path(sys.argv.pop(1))
exec(sys.argv.pop(1))
from sam3_lora.training.process import main
sys.exit(main(sys.argv[1:]))
"""
LEASE_S = 4.0


class Trainer:
    """A trainer process; renews its lease until told to stop."""

    def __init__(self, bases: Path, config: RunConfig, *arguments: str, first: str = "") -> None:
        """`first`: code that runs before it begins."""
        path = config.output.dir.with_suffix(".json")
        path.write_text(config.model_dump_json())
        command = [sys.executable, "-c", START, str(bases), first, "--config", str(path), *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.events: list[Event] = []
        self.renewing = True
        self.log = ""
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._read, self._renew, self._read_log)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.events.append(Event.from_line(line))

    def _read_log(self) -> None:
        self.log = self.process.stderr.read()

    def _renew(self) -> None:
        while self.renewing and self.process.poll() is None:
            os.write(self.process.stdin.fileno(), b".")
            time.sleep(LEASE_S / 10)

    def until(self, condition: Callable[[Event], bool], timeout_s: float = 90) -> Event:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for event in list(self.events):
                if condition(event):
                    return event
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"no such event; exit {self.process.poll()}: {self.log[-2000:]}")

    def end(self, timeout_s: float = 90) -> int:
        code = self.process.wait(timeout_s)
        for thread in self._threads:
            thread.join(10)
        return code


def stepped(event: Event) -> bool:
    return event.type is EventType.PROGRESS
