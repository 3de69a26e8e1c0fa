"""Trackers get what the run writes itself, in one run of theirs over all resumes, and cannot disturb it."""

from __future__ import annotations

import importlib.util
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sam3_lora.config import RunConfig
from sam3_lora.errors import ConfigError
from sam3_lora.events import EventType
from sam3_lora.training import trackers
from sam3_lora.training.run import InterruptedRunError, train
from sam3_lora.training.trackers import Ended
from tests.training.recorder import Recorder, stop_after

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
Make = Callable[..., RunConfig]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return address


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def points_of(config: RunConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.output.dir / "logs" / "metrics.jsonl").read_text().splitlines()]


def test_mlflow_has_what_the_run_wrote_in_one_run_also_after_it_was_resumed(make_config: Make, store: str) -> None:
    from mlflow import MlflowClient

    config = make_config(output={"trackers": ["mlflow", "mlflow"], "project": "pallets", "run_name": "first"})
    events = Recorder()
    with pytest.raises(InterruptedRunError):
        train(config, reporter=events, should_stop=stop_after(4, events))
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("pallets")
    assert experiment is not None
    (stopped,) = client.search_runs([experiment.experiment_id])
    assert (stopped.info.run_name, stopped.info.status) == ("first", "KILLED")

    train(config, reporter=events, resume=config.output.dir)
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (stopped.info.run_id, "FINISHED")
    resolved = json.loads((config.output.dir / "config.resolved.json").read_text())
    assert run.data.params["lora.rank"] == str(resolved["lora"]["rank"])
    assert run.data.params["training.device"] == "cpu"
    for name in ("train/loss", "val/segm_mAP"):
        written = {point["step"]: point[name] for point in points_of(config) if point.get(name) is not None}
        history = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        assert history == pytest.approx(written)
        assert written
    assert not [event for event in events.of(EventType.MESSAGE) if "metrics" in event.message]


def logged(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format (blocks of 32 KiB, records in pieces) after W&B's own header."""
    at, found = 7, b""
    while at + 7 <= len(data):
        if at % 32768 > 32768 - 7:
            at += 32768 - at % 32768
        _crc, size, kind = struct.unpack_from("<IHB", data, at)
        found += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield found
            found = b""


def test_weights_and_biases_has_what_the_run_wrote(make_config: Make, offline: None) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    config = make_config(output={"trackers": ["wandb"]})
    train(config, reporter=Recorder())
    (file,) = config.output.dir.glob("logs/wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60
    while True:  # its own process writes the file, and goes on for a moment
        records = [Record.FromString(data) for data in logged(file.read_bytes())]
        exits = [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"]
        if exits or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert exits == [0]
    (begun, *_) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (begun.project, begun.display_name) == ("sam3-lora", config.output.dir.name)
    assert {item.key: json.loads(item.value_json) for item in begun.config.update}["lora"]["rank"] == config.lora.rank
    rows = [
        {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert losses == pytest.approx({p["step"]: p["train/loss"] for p in points_of(config) if "train/loss" in p})


def test_a_run_neither_fails_nor_waits_when_its_tracker_is_away(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:  # bound and silent: nobody ever accepts
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        events = Recorder()
        report = train(make_config(output={"trackers": ["mlflow"]}), reporter=events)
    assert report.steps == 6
    (warning,) = [e for e in events.of(EventType.MESSAGE) if e.message.startswith("no more metrics go to mlflow: ")]
    assert warning.level == "warning"


class Stuck:
    """A tracker that never answers."""

    def begin(self, run: trackers.Begun) -> str:
        threading.Event().wait()
        raise AssertionError

    def log(self, points: object) -> None: ...

    def end(self, ended: Ended) -> None: ...


@pytest.mark.parametrize("ended", [Ended.FINISHED, Ended.INTERRUPTED])
def test_one_that_never_answers_is_waited_for_a_while(
    ended: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", Stuck)
    monkeypatch.setattr(trackers, "BEGIN_TIMEOUT_S", 0.1)
    monkeypatch.setattr(trackers, "CLOSE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(trackers, "INTERRUPTED_TIMEOUT_S", 0.1)
    running = trackers.Trackers(["mlflow"], "p", "r", tmp_path)
    running.begin({}, {})
    running.log({"train/loss": 1.0}, step=1, epoch=1)
    running.end(ended)
    assert list(running.faults()) == ["no more metrics go to mlflow: not everything was sent before the run ended"]
    assert list(running.faults()) == []
    assert running.ids() == {}


class Refusing(Stuck):
    """A tracker whose library names the address, as they do."""

    def begin(self, run: trackers.Begun) -> str:
        raise ConnectionError("no answer from https://user:hidden@tracker.example/api")


def test_passwords_in_addresses_are_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", Refusing)
    running = trackers.Trackers(["mlflow"], "p", "r", tmp_path)
    running.begin({}, {})
    running.end(Ended.FINISHED)
    (told,) = running.faults()
    assert told == "no more metrics go to mlflow: ConnectionError: no answer from https://tracker.example/api"


def test_a_missing_library_is_named_before_anything_is_done(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    with pytest.raises(ConfigError, match="wandb is not installed") as caught:
        train(make_config(output={"trackers": ["wandb"]}))
    assert "sam3-lora-service[train,wandb]" in caught.value.hint
