"""Other forms of models: fetch the adapter, have a child process convert it, store the result."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import structlog

from service.shared.errors import LeaseLostError, NotFoundError
from service.shared.zip_layout import ZipLayout, members_of, reader_of
from worker import failures, tether
from worker.failures import Failure
from worker.lease import Lease
from worker.model_files import fetch_model
from worker.supervisor import scrubbed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.shared.db.models import Export, Model
    from service.shared.settings import Settings
    from service.shared.storage import Storage, StoredFile
    from service.shared.unit_of_work import Database
    from worker.workspace import Workspace

log = structlog.get_logger(__name__)

COMMAND = (sys.executable, "-m", "sam3_lora.cli")
TICK_S = 0.1
SAID_BYTES = 4000  # of the command's last words, for the error


class _DrainingError(Exception):
    """The worker shuts down before the export is made."""


class _ExportError(Exception):
    """The command failed; the text is what it said."""


class ExportRunner:
    """Makes the exports that one CPU worker claims, one at a time."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storage: Storage,
        workspace: Workspace,
        *,
        worker_id: str,
        is_draining: Callable[[], bool],
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        """`command`: the training library's command line."""
        self._settings = settings
        self._database = database
        self._storage = storage
        self._workspace = workspace
        self._worker_id = worker_id
        self._is_draining = is_draining
        self._command = command

    def run_next(self) -> bool:
        """Claim the oldest export that is due and make it; False if there is none."""
        claimed_at = time.monotonic()
        with self._database.write() as unit:
            export = unit.exports.claim(self._worker_id)
        if export is None:
            return False
        with structlog.contextvars.bound_contextvars(export_id=export.id, epoch=export.epoch):
            try:
                with Lease(lambda: self._beat(export), self._settings, claimed_at=claimed_at, name=export.id) as lease:
                    self._make_and_finish(export, lease)
            except LeaseLostError as error:
                log.warning("lease_lost", error=error.message)
        return True

    def _beat(self, export: Export) -> None:
        with self._database.write() as unit:
            unit.exports.heartbeat(export.id, export.epoch)

    def _make_and_finish(self, export: Export, lease: Lease) -> None:
        try:
            with self._workspace.attempt(export.id) as folder:
                stored, filename = self._make(export, lease, folder)
        except (LeaseLostError, NotFoundError):  # a model that was deleted took its exports along
            raise LeaseLostError(f"the lease of {export.id} was lost") from None
        except _DrainingError:
            lease.insist(lambda: self._give_back(export))
        except _ExportError as error:
            failure = Failure("export_failed", str(error), "The adapter may not fit this form.")
            lease.insist(lambda: self._fail(export, failure))
        except Exception as error:  # the edge of an export: whatever happened is its error, and the worker goes on
            log.exception("export_failed")
            failure = failures.of_exception(error)
            lease.insist(lambda: self._fail(export, failure))
        else:
            lease.insist(lambda: self._succeed(export, stored, filename))

    def _make(self, export: Export, lease: Lease, folder: Path) -> tuple[StoredFile, str]:
        def check() -> None:
            lease.check()
            if self._is_draining():
                raise _DrainingError

        with self._database.read() as unit:
            model = unit.models.get(export.model_id)
        fetch_model(model, self._storage, folder / "adapter", on_chunk=check)
        file = self._merged(model, folder, check) if export.format == "merged" else self._peft(model, folder, check)
        key = f"exports/{export.id}/e{export.epoch}/{file.name}"
        return self._storage.put_file(key, file, on_chunk=check), file.name

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
            _ExportError: if it fails or takes too long.
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
                    raise _ExportError(f"not made within {self._settings.export_timeout_s:g} s")
                time.sleep(TICK_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if status != 0:
            words = " ".join(said.read_bytes()[-SAID_BYTES:].decode(errors="replace").replace(str(folder), "").split())
            raise _ExportError(words or f"the command ended with status {status}")

    def _succeed(self, export: Export, stored: StoredFile, filename: str) -> None:
        with self._database.write() as unit:
            unit.exports.succeed(
                export.id,
                export.epoch,
                filename=filename,
                size_bytes=stored.size_bytes,
                sha256=stored.sha256,
                storage_key=stored.key,
            )

    def _fail(self, export: Export, failure: Failure) -> None:
        with self._database.write() as unit:
            unit.exports.fail(export.id, export.epoch, failure.to_dict())

    def _give_back(self, export: Export) -> None:
        with self._database.write() as unit:
            unit.exports.give_back(export.id, export.epoch)
