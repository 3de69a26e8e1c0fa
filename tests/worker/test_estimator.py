"""From a question to its answer, with real child processes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from sam3_lora.config import JobConfig
from tests.worker import trainers
from worker import device
from worker.estimator import Estimator

if TYPE_CHECKING:
    from pathlib import Path

    from service.shared.db.models import Estimate
    from service.shared.unit_of_work import Database

ID = "a" * 64
ANSWER = """
values = {"adapted_modules": [{"component": "scoring"}], "trainable_parameters": 1, "total_parameters": 2,
          "trainable_percent": 50.0, "peak_memory_bytes": {}, "needed_bytes": {}, "batch": {}}
"""


def ask(database: Database, **config: Any) -> None:
    values = JobConfig.model_validate(config).model_dump(mode="json")
    with database.write() as unit:
        unit.estimates.ask(ID, base_model="sam3-tiny", config=values)


def found(database: Database) -> Estimate:
    with database.read() as unit:
        return unit.estimates.get(ID)


def estimator(database: Database, folder: Path, program: str, draining: threading.Event | None = None) -> Estimator:
    inspect = tuple(trainers.write(folder, program))
    return Estimator(database, is_draining=(draining or threading.Event()).is_set, inspect=inspect)


def test_the_real_estimate_of_the_small_base(database: Database) -> None:
    ask(database, lora={"rank": 2})
    assert Estimator(database, is_draining=lambda: False).run_next()
    result = found(database).result
    assert result is not None, found(database).error
    assert result["modules"] == 47
    assert result["trainable_parameters"] == 41728
    assert "detr_decoder" in result["components"]
    peak = result["peak_memory_bytes"]["peak"]
    assert 10**7 < peak < result["needed_bytes"]["cuda"] < result["needed_bytes"]["cpu"]
    assert result["batch"]["assumed"]


def test_nothing_to_estimate(database: Database, tmp_path: Path) -> None:
    assert not estimator(database, tmp_path, "").run_next()


def test_the_program_gets_the_configuration_and_its_answer_is_kept(database: Database, tmp_path: Path) -> None:
    ask(database, lora={"rank": 7})
    check = "config = json.load(open(sys.argv[2])); assert config['lora']['rank'] == 7, config\n"
    check += "assert config['model'] == {'base': 'sam3-tiny'} and not [n for n in os.environ if 'SAM3' in n]\n"
    assert estimator(database, tmp_path, check + ANSWER.strip() + "\nprint(json.dumps(values))").run_next()
    result = found(database).result
    assert result is not None
    assert (result["modules"], result["components"], result["trainable_percent"]) == (1, ["scoring"], 50.0)
    assert not estimator(database, tmp_path, "").run_next()


@pytest.mark.parametrize(
    ("program", "code", "said", "retryable"),
    [
        ("sys.stderr.write('error: 29 suits no patch'); sys.exit(2)", "config_invalid", "29 suits no patch", False),
        ("sys.stderr.write('x' * 10**6); sys.exit(2)", "config_invalid", "x" * 1000, False),
        ("sys.exit(1)", "internal", "status 1", True),
        ("os.kill(os.getpid(), signal.SIGKILL)", "internal", "status -9", True),
        ("print('no json')", "internal", "status 0", True),
        ("print('[]')", "internal", "status 0", True),
    ],
)
def test_failures_are_named(
    database: Database, tmp_path: Path, program: str, code: str, said: str, retryable: bool
) -> None:
    ask(database)
    assert estimator(database, tmp_path, program).run_next()
    error = found(database).error
    assert error is not None
    assert (error["code"], error["retryable"]) == (code, retryable)
    assert said in error["message"]
    assert len(error["message"]) <= 1000


def test_a_worker_that_shuts_down_puts_the_question_back(database: Database, tmp_path: Path) -> None:
    ask(database)
    draining = threading.Event()
    draining.set()
    assert estimator(database, tmp_path, "time.sleep(60)", draining).run_next()
    estimate = found(database)
    assert (estimate.attempts, estimate.result, estimate.error) == (0, None, None)
    assert estimator(database, tmp_path, ANSWER.strip() + "\nprint(json.dumps(values))").run_next()
    assert found(database).result is not None


def test_a_machine_without_a_gpu_tells_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    here = device.find()
    assert here.name == "CPU"
    assert here.memory_bytes is not None
    assert 2**28 < here.memory_bytes < 2**50
