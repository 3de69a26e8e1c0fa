"""The sample images of a job: what the run's index says about them, and the files it names."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.shared.errors import NotFoundError, StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.shared.db.models import Artifact
    from service.shared.storage import Storage
    from service.shared.unit_of_work import UnitOfWork

FOLDER = "samples"
INDEX = f"{FOLDER}/index.json"


@dataclass(frozen=True)
class Samples:
    """Rows of the index (see `sam3_lora.evaluation.samples`), and its files by name; empty while there are none."""

    rows: list[dict[str, Any]]
    files: Mapping[str, Artifact]


def list_samples(unit: UnitOfWork, storage: Storage, job_id: str) -> Samples:
    """The samples of a job, worst first.

    Raises:
        NotFoundError: if there is no such job.
        StorageError: if storage does not give back the index.
    """
    unit.jobs.get(job_id)
    files = {file.name.removeprefix(f"{FOLDER}/"): file for file in unit.artifacts.list(job_id, FOLDER)}
    index = files.get(INDEX.removeprefix(f"{FOLDER}/"))
    if index is None:
        return Samples([], {})
    content = b"".join(storage.get_range(index.storage_key))
    if hashlib.sha256(content).hexdigest() != index.sha256:
        raise StorageError(f"The index of the samples of job {job_id} is damaged in storage.")
    return Samples(json.loads(content), files)


def get_sample(unit: UnitOfWork, job_id: str, position: int, panel: str) -> Artifact:
    """The file of one panel.

    Raises:
        NotFoundError: if there is no such job, or it has no such sample.
    """
    unit.jobs.get(job_id)
    try:
        return unit.artifacts.get(job_id, f"{FOLDER}/{position}-{panel}.jpg")
    except NotFoundError:
        raise NotFoundError(f"Job {job_id} has no sample {position} with a panel {panel!r}.") from None
