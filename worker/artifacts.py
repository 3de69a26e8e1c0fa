"""What a run leaves behind beside checkpoints, between the trainer's folder and storage: whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from sam3_lora.errors import CheckpointError
from service.shared.db.repositories.events import NewEvent
from service.shared.errors import NotFoundError
from service.shared.sample_files import EPOCHS_PLACE, INDEX, epochs_drawn, samples_place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sam3_lora.events import Event
    from service.shared.db.models import Artifact, Checkpoint, Job
    from service.shared.storage import Storage, StoredFile
    from service.shared.unit_of_work import Database
    from worker.lease import Lease

log = structlog.get_logger(__name__)

MAX_FILES = 1000
NEEDED_TO_GO_ON = ("evaluation/base", "evaluation/tuned")


class ArtifactPublisher:
    """Publishes files of one attempt of a job, and brings back what a later attempt needs."""

    def __init__(self, database: Database, storage: Storage, job: Job, lease: Lease) -> None:
        self._database = database
        self._storage = storage
        self._job_id, self._epoch = job.id, job.epoch
        self._lease = lease

    def publish(self, event: Event, run_dir: Path, scratch: Path) -> str | None:
        """Store the files of an artifact's event and make them visible instead of earlier ones; the artifact's place.

        None if the trainer has already replaced it: an event of the newer one follows.

        Raises:
            CheckpointError: if the event names a place outside of the run, or something that is no plain file.
            LeaseLostError: if the job was taken away; nothing becomes visible then.
        """
        place = str(event.data.get("place"))
        names = _take(run_dir, place, scratch)
        if not names:
            log.info("artifact_superseded", place=place)
            return None
        # A key of its own for each: what a client downloads is never overwritten.
        prefix = f"jobs/{self._job_id}/e{self._epoch}/artifact-{secrets.token_hex(4)}"
        files = {name: self._put(f"{prefix}/{path.name}", path) for name, path in names.items()}
        shutil.rmtree(scratch)
        self._storage.discard(self._lease.insist(lambda: self._announce(place, files)))
        return place

    def fetch_evaluations(self, run_dir: Path) -> None:
        """Put what earlier attempts evaluated into the folder of a run that goes on; what is damaged is left out."""
        for place in NEEDED_TO_GO_ON:
            with self._database.read() as unit:
                files = unit.artifacts.list(self._job_id, place)
            if files and not all(self._fetch(file, run_dir / file.name) for file in files):
                shutil.rmtree(run_dir / place, ignore_errors=True)
                log.warning("artifact_damaged", place=place)

    def adopt(self, newest: Checkpoint, folder: Path) -> None:
        """Take over what another job evaluated up to the checkpoint that this one goes on from: files and events."""
        with self._database.read() as unit:
            drawn = epochs_drawn(unit.artifacts.list(newest.job_id, EPOCHS_PLACE, INDEX))
        for place in (*NEEDED_TO_GO_ON, *(samples_place(epoch) for epoch in drawn if epoch <= newest.epoch)):
            with self._database.read() as unit:
                files = unit.artifacts.list(newest.job_id, place)
            if not files or not all(self._fetch(file, folder / file.name) for file in files):
                continue
            prefix = f"jobs/{self._job_id}/e{self._epoch}/artifact-{secrets.token_hex(4)}"
            copies = {file.name: self._put(f"{prefix}/{Path(file.name).name}", folder / file.name) for file in files}
            self._storage.discard(self._lease.insist(partial(self._announce, place, copies)))
        self._lease.insist(lambda: self._adopt_events(newest.job_id, newest.step))

    def _adopt_events(self, job_id: str, last_step: int) -> None:
        with self._database.write() as unit:
            if not unit.events.list_evaluations(self._job_id):  # not yet taken over by an earlier attempt
                taken = [
                    NewEvent(event.type, event.message, event.data, event.level)
                    for event in unit.events.list_evaluations(job_id)
                    if event.data.get("step", 0) <= last_step
                ]
                unit.events.append(self._job_id, self._epoch, taken)

    def _put(self, key: str, path: Path) -> StoredFile:
        return self._lease.insist(lambda: self._storage.put_file(key, path, on_chunk=self._lease.check))

    def _announce(self, place: str, files: dict[str, StoredFile]) -> Sequence[str]:
        with self._database.write() as unit:
            return unit.artifacts.publish(self._job_id, self._epoch, place, files)

    def _fetch(self, file: Artifact, target: Path) -> bool:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            fetch = partial(self._storage.fetch, file.storage_key, target, on_chunk=self._lease.check)
            fetched = self._lease.insist(fetch)
        except NotFoundError:
            return False
        return fetched.sha256 == file.sha256


def _take(run_dir: Path, place: str, scratch: Path) -> dict[str, Path]:
    """Link a file, or the files of a folder, into `scratch`, a new folder: links by name; none if it was replaced.

    The trainer may rename another folder into its place at any time; the links are all of one of them or none.
    """
    path = (run_dir / place).resolve()
    if not path.is_relative_to(run_dir.resolve()) or path == run_dir.resolve():
        raise CheckpointError(f"artifact {place!r} lies outside of the run")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        if not path.is_dir():
            return {place: _linked(path.name, scratch, path.parent)}
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return {}
    try:
        present = sorted(os.listdir(descriptor))  # noqa: PTH208 - of the open folder, whatever has its name by now
        if len(present) > MAX_FILES:
            raise CheckpointError(f"artifact {place!r} has more than {MAX_FILES} files")
        links = {f"{place}/{name}": _linked(name, scratch, descriptor) for name in present}
        # Still in its place, it had not begun to vanish when it was listed.
        whole = os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return {}
    finally:
        os.close(descriptor)
    return links if whole else {}


def _linked(name: str, scratch: Path, folder: Path | int) -> Path:
    """A link in `scratch` to a plain file of a folder or of an open one."""
    link = scratch / name
    if isinstance(folder, int):
        os.link(name, link, src_dir_fd=folder, follow_symlinks=False)
    else:
        os.link(folder / name, link, follow_symlinks=False)
    if not stat.S_ISREG(link.lstat().st_mode):
        raise CheckpointError(f"{name!r} is no plain file")
    return link
