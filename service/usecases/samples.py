"""The sample images of a job, at its end or after an epoch: what the run's index says, and the files it names."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.shared.errors import NotFoundError, StorageError
from service.shared.sample_files import EPOCHS_PLACE, INDEX, epochs_drawn, samples_place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.shared.db.models import Artifact
    from service.shared.storage import Storage
    from service.shared.unit_of_work import UnitOfWork


@dataclass(frozen=True)
class Samples:
    """Rows of the index (see `sam3_lora.evaluation.samples`), and its files by name; empty while there are none."""

    rows: list[dict[str, Any]]
    files: Mapping[str, Artifact]
    epoch: int | None = None
    """Null: of the end of the job."""


def epochs_with_samples(unit: UnitOfWork, job_id: str) -> list[int]:
    """Epochs of a job, ascending, after which samples were drawn."""
    return epochs_drawn(unit.artifacts.list(job_id, EPOCHS_PLACE, INDEX))


def list_samples(unit: UnitOfWork, storage: Storage, job_id: str, epoch: int | None = None) -> Samples:
    """The samples at the end of a job, worst first; or those of an epoch, the same images after each.

    Raises:
        NotFoundError: if there is no such job, or it has no samples of that epoch.
        StorageError: if storage does not give back the index.
    """
    unit.jobs.get(job_id)
    place = samples_place(epoch)
    files = {file.name.removeprefix(f"{place}/"): file for file in unit.artifacts.list(job_id, place)}
    index = files.get(INDEX)
    if index is None and epoch is not None:
        raise NotFoundError(f"Job {job_id} has no samples of epoch {epoch}; `epochs` says of which it has.")
    if index is None:
        return Samples([], {}, epoch)
    content = b"".join(storage.get_range(index.storage_key))
    if hashlib.sha256(content).hexdigest() != index.sha256:
        raise StorageError(f"The index of the samples of job {job_id} is damaged in storage.")
    return Samples(json.loads(content), files, epoch)


def get_sample(unit: UnitOfWork, job_id: str, position: int, panel: str, epoch: int | None = None) -> Artifact:
    """The file of one panel.

    Raises:
        NotFoundError: if there is no such job, or it has no such sample.
    """
    unit.jobs.get(job_id)
    try:
        return unit.artifacts.get(job_id, f"{samples_place(epoch)}/{position}-{panel}.jpg")
    except NotFoundError:
        which = "" if epoch is None else f" of epoch {epoch}"
        raise NotFoundError(f"Job {job_id} has no sample {position}{which} with a panel {panel!r}.") from None
