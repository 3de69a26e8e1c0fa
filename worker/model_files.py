"""A model's adapter, from storage to a folder of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.shared.errors import NotFoundError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from service.shared.db.models import Model
    from service.shared.storage import Storage


def fetch_model(model: Model, storage: Storage, folder: Path, *, on_chunk: Callable[[], None]) -> None:
    """Write the adapter's files into `folder`, which is made.

    Args:
        on_chunk: called after each mebibyte; what it raises ends the fetching and passes through.

    Raises:
        StorageError: if storage does not give back what was published.
    """
    folder.mkdir(parents=True)
    for file in model.files:
        try:
            fetched = storage.fetch(file.storage_key, folder / file.name, on_chunk=on_chunk)
            intact = fetched.sha256 == file.sha256
        except NotFoundError:
            intact = False
        if not intact:
            raise StorageError(f"Storage holds a damaged {file.name} of model {model.id}.")
