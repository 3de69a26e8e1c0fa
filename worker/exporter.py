"""Other forms of models: fetch the adapter, have a child process convert it, store the result."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from service.shared.zip_layout import ZipLayout, members_of, reader_of
from worker import failures, tether
from worker.failures import WorkError
from worker.model_files import fetch_model
from worker.supervisor import scrubbed
from worker.work import WorkRunner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.shared.db.models import Export, Model
    from service.shared.db.repositories.models import ExportRepository
    from service.shared.unit_of_work import UnitOfWork
    from worker.lease import Lease
    from worker.work import Me, Places

COMMAND = (sys.executable, "-m", "sam3_lora.cli")
TICK_S = 0.1
SAID_BYTES = 4000  # of the command's last words, for the error


class ExportRunner(WorkRunner["Export"]):
    """Makes the exports that one CPU worker claims, one at a time."""

    noun = "export"

    def __init__(self, *places: *Places, command: tuple[str, ...] = COMMAND, **me: Unpack[Me]) -> None:
        """`command`: the training library's command line."""
        super().__init__(*places, **me)
        self._command = command

    def _rows(self, unit: UnitOfWork) -> ExportRepository:
        return unit.exports

    def _make(self, export: Export, folder: Path, lease: Lease) -> dict[str, Any]:
        check = partial(self._check, lease)
        with self._database.read() as unit:
            model = unit.models.get(export.model_id)
        fetch_model(model, self._storage, folder / "adapter", on_chunk=check)
        file = self._merged(model, folder, check) if export.format == "merged" else self._peft(model, folder, check)
        key = f"exports/{export.id}/e{export.epoch}/{file.name}"
        stored = self._storage.put_file(key, file, on_chunk=check)
        return {
            "filename": file.name,
            "size_bytes": stored.size_bytes,
            "sha256": stored.sha256,
            "storage_key": stored.key,
        }

    def _merged(self, model: Model, folder: Path, check: Callable[[], None]) -> Path:
        output = folder / f"{model.id}-merged.safetensors"
        arguments = ["merge", "--adapter", str(folder / "adapter"), "--output", str(output)]
        if model.base_model == "sam3" and self._settings.checkpoint is not None:
            arguments += ["--checkpoint", str(self._settings.checkpoint)]
        self._run(arguments, folder, check)
        return output

    def _peft(self, model: Model, folder: Path, check: Callable[[], None]) -> Path:
        made, output = folder / "peft", folder / f"{model.id}-peft.zip"
        self._run(
            ["export", "--format", "peft", "--adapter", str(folder / "adapter"), "--output", str(made)], folder, check
        )
        layout = ZipLayout(members_of(made))
        with output.open("xb") as file:
            file.writelines(layout.read(0, layout.size_bytes, reader_of(made)))
        return output

    def _run(self, arguments: list[str], folder: Path, check: Callable[[], None]) -> None:
        """Run the command to its end.

        Raises:
            WorkError: if it fails or takes too long.
        """
        said = folder / "said"
        deadline = time.monotonic() + self._settings.export_timeout_s
        (folder / "tmp").mkdir()
        with said.open("xb") as output:
            process = subprocess.Popen(
                tether.command([*self._command, *arguments], expendable=True),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=scrubbed(os.environ) | {"TMPDIR": str(folder / "tmp")},
                start_new_session=True,
            )
        try:
            while (status := process.poll()) is None:
                check()
                if time.monotonic() > deadline:
                    raise _failed(f"not made within {self._settings.export_timeout_s:g} s")
                time.sleep(TICK_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if status != 0:
            raise _failed(failures.last_words(said, SAID_BYTES) or f"the command ended with status {status}")


def _failed(reason: str) -> WorkError:
    return WorkError("export_failed", reason, "The adapter may not fit this form.")
