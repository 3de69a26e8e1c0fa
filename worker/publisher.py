"""Checkpoints between a trainer's folder and storage: published whole or not at all, and found again to resume."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from functools import partial
from typing import TYPE_CHECKING, TypedDict

import structlog

from sam3_lora.errors import AdapterError, CheckpointError
from service.shared.db.repositories.checkpoints import CheckpointManifest
from service.shared.errors import NotFoundError
from service.shared.zip_layout import ZipLayout, members_of, reader_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sam3_lora.events import Event
    from service.shared.db.models import Checkpoint, Job
    from service.shared.storage import Storage, StoredFile
    from service.shared.unit_of_work import Database
    from worker.lease import Lease

log = structlog.get_logger(__name__)

SUMMARY = "checkpoint.json"
REQUIRED = ("adapter_model.safetensors", "adapter_config.json", SUMMARY)
RESUME_STATE = "training_state.pt"


class _Stored(TypedDict):
    """What a manifest says of a checkpoint's files."""

    archive_sha256: str
    crc32: dict[str, int]
    files: dict[str, StoredFile]


class Publisher:
    """Publishes the checkpoints of one attempt of a job."""

    def __init__(self, database: Database, storage: Storage, job: Job, lease: Lease, *, keep: int) -> None:
        """`keep`: resumable checkpoints that stay, besides the best."""
        self._database = database
        self._storage = storage
        self._job_id, self._epoch = job.id, job.epoch
        self._lease = lease
        self._keep = keep

    def publish(self, event: Event, run_dir: Path, scratch: Path) -> Checkpoint | None:
        """Store a checkpoint's files, make it visible, and withdraw those it replaces.

        None if the trainer has already replaced or removed it: it goes on while events wait to be read.

        Raises:
            CheckpointError: if the event names a folder outside of the run.
            LeaseLostError: if the job was taken away; nothing becomes visible then.
        """
        kind, step = str(event.data.get("kind")), int(event.data["step"])
        if not _take(run_dir, str(event.data.get("folder")), scratch, step):
            log.info("checkpoint_superseded", kind=kind, step=step)
            return None
        value = event.data.get("value")
        manifest = CheckpointManifest(
            kind=kind,
            epoch=int(event.data["epoch"]),
            step=step,
            metric=event.data.get("metric"),
            value=None if value is None else float(value),
            **self._store(scratch, f"{kind}-step-{step}"),
        )
        shutil.rmtree(scratch)
        checkpoint = self._lease.insist(lambda: self._announce(manifest))
        self._storage.discard(self._lease.insist(self._withdraw_replaced))
        return checkpoint

    def fetch_latest(self, job_id: str, folder: Path) -> tuple[Checkpoint, Path] | None:
        """The newest resumable checkpoint of a job whose files are what was published, and where they are now."""
        return self._fetch_first(job_id, folder, resumable=True)

    def adopt(self, newest: Checkpoint, path: Path) -> None:
        """Publish the best of another job, then its `newest` as it was fetched, as this one's own.

        In this order: a job that has a resumable checkpoint has taken over everything.
        """
        if best := self._fetch_first(newest.job_id, path.parent, resumable=False):
            self._publish_copy(*best)
        self._publish_copy(newest, path)

    def _fetch_first(self, job_id: str, folder: Path, *, resumable: bool) -> tuple[Checkpoint, Path] | None:
        with self._database.read() as unit:
            candidates = [each for each in unit.checkpoints.list(job_id) if (each.kind != "best") == resumable]
        for checkpoint in candidates:
            target = folder / checkpoint.id
            if self._fetch(checkpoint, target, resumable=resumable):
                return checkpoint, target
            shutil.rmtree(target, ignore_errors=True)
            log.warning("checkpoint_damaged", checkpoint_id=checkpoint.id)
        return None

    def fetch_adapter(self, checkpoint_id: str, folder: Path) -> Path:
        """The files of another job's checkpoint to start from.

        Raises:
            AdapterError: if it is no longer what was published.
        """
        with self._database.read() as unit:
            checkpoint = unit.checkpoints.find(checkpoint_id)
        if checkpoint is None or not self._fetch(checkpoint, folder, resumable=False):
            raise AdapterError(
                f"checkpoint {checkpoint_id}, which the job starts from, is missing or damaged",
                hint="name another one in init_from, or none",
            )
        return folder

    def _publish_copy(self, checkpoint: Checkpoint, folder: Path) -> None:
        manifest = CheckpointManifest(
            kind=checkpoint.kind,
            epoch=checkpoint.epoch,
            step=checkpoint.step,
            metric=checkpoint.metric,
            value=checkpoint.value,
            **self._store(folder, f"{checkpoint.kind}-step-{checkpoint.step}"),
        )
        self._lease.insist(lambda: self._announce(manifest))

    def _store(self, folder: Path, name: str) -> _Stored:
        # A name of its own for each: what a client downloads is never overwritten.
        prefix = f"jobs/{self._job_id}/e{self._epoch}/{name}-{secrets.token_hex(4)}"
        members = members_of(folder)
        return {
            "archive_sha256": ZipLayout(members).sha256(reader_of(folder)),
            "crc32": {member.name: member.crc32 for member in members},
            "files": {path.name: self._put(f"{prefix}/{path.name}", path) for path in sorted(folder.iterdir())},
        }

    def _put(self, key: str, path: Path) -> StoredFile:
        return self._lease.insist(lambda: self._storage.put_file(key, path, on_chunk=self._lease.check))

    def _announce(self, manifest: CheckpointManifest) -> Checkpoint:
        keys = {file.key for file in manifest.files.values()}
        with self._database.write() as unit:
            # Tried again after a commit whose answer was lost, it must not be published twice.
            for published in unit.checkpoints.list(self._job_id):
                if keys & {file.storage_key for file in published.files}:
                    return published
            return unit.checkpoints.publish(self._job_id, self._epoch, manifest)

    def _withdraw_replaced(self) -> Sequence[str]:
        """Hide the checkpoints that newer ones replace; the storage keys of their files."""
        with self._database.write() as unit:
            published = unit.checkpoints.list(self._job_id)
            best = [each.id for each in published if each.kind == "best"]
            resumable = [each.id for each in published if each.kind != "best"]
            replaced = best[1:] + resumable[self._keep :]
            return unit.checkpoints.remove(self._job_id, self._epoch, replaced) if replaced else []

    def _fetch(self, checkpoint: Checkpoint, target: Path, *, resumable: bool) -> bool:
        """Whether the files arrived as they were published, with the training state if it has to be resumable."""
        if resumable and RESUME_STATE not in {file.name for file in checkpoint.files}:
            return False
        target.mkdir(parents=True)
        for file in checkpoint.files:
            fetch = partial(self._storage.fetch, file.storage_key, target / file.name, on_chunk=self._lease.check)
            try:
                fetched = self._lease.insist(fetch)
            except NotFoundError:
                return False
            if fetched.sha256 != file.sha256:
                return False
        return True


def _take(run_dir: Path, name: str, scratch: Path, step: int) -> bool:
    """Link the files of a checkpoint into `scratch`, a new folder; False if it is not, or no longer, the one of `step`.

    The trainer may rename another folder into its place at any time; the links keep the files of one of them.
    """
    folder = (run_dir / name).resolve()
    if not folder.is_relative_to(run_dir.resolve()):
        raise CheckpointError(f"checkpoint folder {name!r} lies outside of the run")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        present = set(os.listdir(descriptor))  # noqa: PTH208 - of the open folder, whatever has its name by now
        for file in {*REQUIRED, *(present & {RESUME_STATE})}:
            os.link(file, scratch / file, src_dir_fd=descriptor, follow_symlinks=False)
        summary = json.loads((scratch / SUMMARY).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    finally:
        os.close(descriptor)
    return isinstance(summary, dict) and summary.get("step") == step
