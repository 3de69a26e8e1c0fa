"""One estimate from claim to answer: `sam3-lora inspect` in a child process, which needs torch but no weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from service.shared.db.repositories.estimates import WORK_S
from worker import tether
from worker.failures import Failure
from worker.supervisor import scrubbed

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from service.shared.db.models import Estimate
    from service.shared.unit_of_work import Database

log = structlog.get_logger(__name__)

# For a GPU, of which this machine may have none.
INSPECT = (sys.executable, "-m", "sam3_lora.cli", "inspect", "--json", "--device", "cuda")
EXIT_USAGE = 2  # sam3_lora.cli: the configuration is at fault
TICK_S = 0.1
MAX_MESSAGE = 1000


class Estimator:
    """Answers the questions that one CPU worker claims, one at a time."""

    def __init__(
        self, database: Database, *, is_draining: Callable[[], bool], inspect: tuple[str, ...] = INSPECT
    ) -> None:
        """`inspect`: the command that `--config FILE` is added to."""
        self._database = database
        self._is_draining = is_draining
        self._inspect = inspect

    def run_next(self) -> bool:
        """Answer the question that has waited longest; False if none is due."""
        with self._database.write() as unit:
            estimate = unit.estimates.claim()
        if estimate is None:
            return False
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            answer = self._ask(estimate, Path(folder))
        with self._database.write() as unit:
            if answer is None:
                unit.estimates.put_back(estimate.id)
            elif isinstance(answer, Failure):
                unit.estimates.finish(estimate.id, error=answer.to_dict())
            else:
                unit.estimates.finish(estimate.id, result=answer)
        log.info("estimated", estimate_id=estimate.id, took_s=round(time.monotonic() - started, 1))
        return True

    def _ask(self, estimate: Estimate, folder: Path) -> dict[str, Any] | Failure | None:
        """The numbers, or why there are none; None if the worker shuts down meanwhile."""
        config = {**estimate.config, "model": {"base": estimate.base_model}}
        # Without annotations to read, a batch of a usual dataset is assumed.
        nowhere = {"train_img_folder": str(folder / "none"), "train_ann_file": str(folder / "none.json")}
        (folder / "run.json").write_text(json.dumps(config | {"dataset": {**config["dataset"], **nowhere}}))
        command = tether.command([*self._inspect, "--config", str(folder / "run.json")], expendable=True)
        with (folder / "out").open("w+b") as out, (folder / "err").open("w+b") as err:
            environment = scrubbed(os.environ) | {"TMPDIR": str(folder)}
            with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment
            ) as process:
                try:
                    returncode = self._wait(process)
                finally:
                    process.kill()
            return None if returncode is None else _answer(returncode, out, err)

    def _wait(self, process: subprocess.Popen[bytes]) -> int | None:
        """Its exit status, that of a killed process when it takes too long; None if the worker shuts down."""
        deadline = time.monotonic() + WORK_S / 2  # before another worker tries
        while time.monotonic() < deadline:
            if self._is_draining():
                return None
            try:
                return process.wait(TICK_S)
            except subprocess.TimeoutExpired:
                continue
        process.kill()
        return process.wait()


def _answer(returncode: int, out: IO[bytes], err: IO[bytes]) -> dict[str, Any] | Failure:
    out.seek(0)
    err.seek(0)
    said = err.read().decode(errors="replace").strip()
    if returncode == EXIT_USAGE:
        return Failure("config_invalid", said.removeprefix("error: ")[:MAX_MESSAGE])
    try:
        values = json.loads(out.read())
        return {
            "modules": len(values["adapted_modules"]),
            "components": sorted({module["component"] for module in values["adapted_modules"]}),
            **{name: values[name] for name in ("trainable_parameters", "total_parameters", "trainable_percent")},
            **{name: values[name] for name in ("peak_memory_bytes", "needed_bytes", "batch")},
        }
    except (ValueError, KeyError, TypeError):
        log.error("estimate_failed", status=returncode, said=said[-MAX_MESSAGE:])
        hint = "The log of the cpu worker has the details."
        return Failure("internal", f"the estimate exited with status {returncode}", hint, retryable=True)
