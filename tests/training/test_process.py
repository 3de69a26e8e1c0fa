"""The trainer process as a worker starts it, with a real run in it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sam3_lora import child
from sam3_lora.events import Event, EventType
from tests.training.trainers import LEASE_S, stepped


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


# A network namespace of its own, in which not even the loopback device is up.
ALONE = """
import ctypes, os, socket
NEW_NET, NEW_USER = 0x40000000, 0x10000000
if ctypes.CDLL(None).unshare(NEW_NET | (NEW_USER if os.geteuid() else 0)) != 0:
    sys.exit(77)
try:
    socket.create_connection(("127.0.0.1", 9))
except ConnectionRefusedError:
    sys.exit("there is a network")
except OSError:
    pass
"""


def test_no_network_is_needed(start, make_config):
    trainer = start(config=make_config(training={"max_epochs": 1}), first=ALONE)
    ended = trainer.end()
    if ended == 77:
        pytest.skip("namespaces are not allowed here")
    assert ended == 0, trainer.log
    assert trainer.events[-1].type is EventType.RESULT


def test_nothing_but_events_on_stdout(start, make_config):
    trainer = start(config=make_config(training={"max_epochs": 1}))  # sam3 prints; from_line would raise in the reader
    assert trainer.end() == 0
    assert len(trainer.events) > 10
