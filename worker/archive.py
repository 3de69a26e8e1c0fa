"""A dataset's archive, from storage to an extracted folder in the workspace."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sam3_lora.coco.archive import extract
from service.shared.errors import NotFoundError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from service.shared.db.models import Dataset
    from service.shared.storage import Storage, StoredFile
    from worker.workspace import Workspace


@contextlib.contextmanager
def unpacked(
    dataset: Dataset,
    storage: Storage,
    workspace: Workspace,
    *,
    on_chunk: Callable[[], None],
    insist: Callable[[Callable[[], StoredFile]], StoredFile],
) -> Iterator[Path]:
    """The extracted dataset, fetched only if no worker of this machine has it yet.

    Args:
        on_chunk: called after each mebibyte fetched, and while another worker does it; what it raises ends that and
            passes through.
        insist: fetches, and again while storage is away, such as `Lease.insist`.

    Raises:
        ArchiveError: if the archive is unsafe or damaged.
        StorageError: if storage does not give back what was uploaded.
    """

    def fetch_and_extract(destination: Path) -> None:
        if dataset.storage_key is None:
            raise StorageError(f"The archive of dataset {dataset.id} was deleted.")
        with workspace.attempt(f"fetch-{dataset.id}") as folder:
            key, target = dataset.storage_key, folder / "archive"

            def fetch() -> StoredFile:
                on_chunk()
                return storage.fetch(key, target, on_chunk=on_chunk)

            try:
                fetched = insist(fetch)
            except NotFoundError:
                raise StorageError(f"Storage has lost the archive of dataset {dataset.id}: upload it again.") from None
            if fetched.sha256 != dataset.sha256:
                raise StorageError(
                    f"Storage holds a damaged archive of dataset {dataset.id}: delete all datasets of SHA-256 "
                    f"{dataset.sha256}, which share it, and upload it again."
                )
            extract(folder / "archive", destination)

    with workspace.dataset(dataset.sha256, fetch_and_extract, on_chunk) as root:
        yield root
