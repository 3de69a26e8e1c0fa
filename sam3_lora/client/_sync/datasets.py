# Made from `_async` by `make generate`: change it there.
"""Datasets: uploaded, fetched or drawn; checked; waited for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sam3_lora.client import schemas
from sam3_lora.client._archives import Source
from sam3_lora.client._patience import in_thread
from sam3_lora.client._sync import uploads
from sam3_lora.client._sync.resources import Collection, Resource
from sam3_lora.client.errors import DatasetNotReadyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Dataset(schemas.Dataset, Resource):
    """A dataset of the service."""

    COLLECTION = "/datasets"

    def wait(self, *, timeout_s: float | None = None, check: bool = True) -> Self:
        """Wait until it has been checked.

        Args:
            check: raise if it cannot be trained on.

        Raises:
            DatasetNotReadyError: with the report, if it cannot be trained on.
            WaitTimeoutError: if that takes longer.
        """
        self._until(lambda now: now.status != "processing", timeout_s)
        if check and self.status != "ready":
            raise DatasetNotReadyError(self, self.report())
        return self

    def report(self) -> schemas.DatasetValidation:
        """Every fault that the check found, with what to do about it, and counts by category."""
        return schemas.DatasetValidation.model_validate(self._transport.json("GET", f"{self._path}/validation"))

    def delete(self) -> None:
        """Delete it. Jobs that have ended keep what they have."""
        self._transport.request("DELETE", self._path)


class Datasets(Collection[Dataset]):
    """`client.datasets`."""

    KIND = Dataset

    def upload(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        on_progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> Dataset:
        """Make a dataset of an archive, or of a folder, which is sent as the archive that it would be.

        It is sent in parts. After whatever went wrong, also this program's end, the same call goes on where it was.

        Args:
            name: for people; None: that of the file.
            on_progress: called with bytes that have arrived, and of all of them.

        Raises:
            LocalFileError: if there is nothing to send, or it changed meanwhile.
        """
        source = in_thread(Source, Path(path))
        upload_id = uploads.send(self._transport, source, on_progress)
        dataset = self.create({"type": "upload", "upload_id": upload_id}, name=name or Path(source.filename).stem)
        in_thread(uploads.forget, self._transport, source)
        return dataset

    def create(self, source: dict[str, Any], *, name: str | None = None, sha256: str | None = None) -> Dataset:
        """Make a dataset of what the service gets itself.

        Args:
            source: `{"type": "uri", "uri": ...}`, `{"type": "path", "path": ...}` where the operator allows it,
                `{"type": "upload", "upload_id": ...}`, or `{"type": "demo"}`: drawn scenes to try the service with.
            sha256: that the archive must have.
        """
        body = {"source": source, "name": name, "sha256": sha256}
        return self._create(body)

    def list(self, *, status: str | None = None, limit: int | None = None) -> Iterator[Dataset]:
        """Datasets, the newest first; `status`: only those that are e.g. `ready`."""
        return self._every(limit, status=status)
