"""The trainer process as a worker starts it, with a real run in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sam3_lora import child
from sam3_lora.config import RunConfig
from sam3_lora.events import Event, EventType

START = """
import sys
from pathlib import Path
from sam3_lora.model import weights
weights.BASES = Path(sys.argv.pop(1))
from sam3_lora.training.process import main
sys.exit(main(sys.argv[1:]))
"""
LEASE_S = 4.0


class Trainer:
    """A trainer process; renews its lease until told to stop."""

    def __init__(self, bases: Path, config: RunConfig, *arguments: str) -> None:
        path = config.output.dir.with_suffix(".json")
        path.write_text(config.model_dump_json())
        command = [sys.executable, "-c", START, str(bases), "--config", str(path), *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.events: list[Event] = []
        self.renewing = True
        self._log = ""
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._read, self._renew, self._read_log)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.events.append(Event.from_line(line))

    def _read_log(self) -> None:
        self._log = self.process.stderr.read()

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
        raise AssertionError(f"no such event; exit {self.process.poll()}: {self._log[-2000:]}")

    def end(self, timeout_s: float = 90) -> int:
        code = self.process.wait(timeout_s)
        for thread in self._threads:
            thread.join(10)
        return code


@pytest.fixture
def start(bases: Path, make_config) -> Iterator[Callable[..., Trainer]]:
    trainers = []

    def make(*arguments: str, config: RunConfig | None = None) -> Trainer:
        trainers.append(Trainer(bases, config or make_config(training={"max_epochs": 1000}), *arguments))
        return trainers[-1]

    yield make
    for trainer in trainers:
        trainer.process.kill()
        trainer.end()
        for stream in (trainer.process.stdin, trainer.process.stdout, trainer.process.stderr):
            stream.close()


def stepped(event: Event) -> bool:
    return event.type is EventType.PROGRESS


def test_run_to_the_end_and_a_resumed_interruption(start, make_config):
    config = make_config(training={"max_epochs": 1})
    trainer = start(config=config)
    assert trainer.end() == 0
    assert trainer.events[-1].type is EventType.RESULT
    longer = make_config(training={"max_epochs": 1000})
    resumed = start("--resume", str(config.output.dir), "--lease-timeout", str(LEASE_S), config=longer)
    resumed.until(stepped)
    resumed.process.send_signal(signal.SIGTERM)
    assert resumed.end() == child.EXIT_INTERRUPTED
    saved = [e for e in resumed.events if e.type is EventType.CHECKPOINT][-1]
    assert saved.data["kind"] == "interrupt"
    assert (config.output.dir / saved.data["folder"] / "training_state.pt").is_file()


def test_finish_early(start):
    trainer = start()
    trainer.until(stepped)
    trainer.process.send_signal(signal.SIGUSR1)
    assert trainer.end() == 0
    assert trainer.events[-1].data["stopped_early"] is True


@pytest.mark.parametrize("how", ["silence", "eof"])
def test_lost_lease_ends_it_at_once(start, how: str):
    trainer = start("--lease-timeout", str(LEASE_S))
    trainer.until(stepped)
    trainer.renewing = False
    began = time.monotonic()
    if how == "eof":
        time.sleep(LEASE_S / 5)
        trainer.process.stdin.close()
    assert trainer.end() == child.EXIT_LEASE_LOST
    assert time.monotonic() - began < (LEASE_S + 2 if how == "silence" else LEASE_S)


def test_failure_is_an_event_with_a_code(start, make_config):
    config = make_config(dataset={"train_img_folder": "/nowhere"}, evaluation={"baseline": False})
    trainer = start(config=config)
    assert trainer.end() == child.EXIT_FAILED
    assert trainer.events[-1].type is EventType.ERROR
    assert trainer.events[-1].data["code"] == "dataset_invalid"


def test_broken_configuration_is_an_event_too(bases: Path, tmp_path: Path):
    path = tmp_path / "run.json"
    for content in ("{", '{"lora": {"rnk": 1}}'):
        path.write_text(content)
        done = subprocess.run(
            [sys.executable, "-m", "sam3_lora.training.process", "--config", str(path)],
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == child.EXIT_CONFIG
        event = Event.from_line(done.stdout.splitlines()[-1])
        assert event.type is EventType.ERROR


def test_nothing_but_events_on_stdout(start, make_config):
    trainer = start(config=make_config(training={"max_epochs": 1}))  # sam3 prints; from_line would raise in the reader
    assert trainer.end() == 0
    assert len(trainer.events) > 10
