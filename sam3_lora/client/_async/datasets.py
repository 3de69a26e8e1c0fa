"""Datasets: uploaded, fetched or drawn; checked; waited for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sam3_lora.client import schemas
from sam3_lora.client._archives import Source
from sam3_lora.client._async import uploads
from sam3_lora.client._async.resources import AsyncCollection, AsyncResource
from sam3_lora.client._patience import in_thread_async
from sam3_lora.client.errors import DatasetNotReadyError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class AsyncDataset(schemas.Dataset, AsyncResource):
    """A dataset of the service."""

    COLLECTION = "/datasets"

    async def wait(self, *, timeout_s: float | None = None, check: bool = True) -> Self:
        """Wait until it has been checked.

        Args:
            check: raise if it cannot be trained on.

        Raises:
            DatasetNotReadyError: with the report, if it cannot be trained on.
            WaitTimeoutError: if that takes longer.
        """
        await self._until(lambda now: now.status != "processing", timeout_s)
        if check and self.status != "ready":
            raise DatasetNotReadyError(self, await self.report())
        return self

    async def report(self) -> schemas.DatasetValidation:
        """Every fault that the check found, with what to do about it, and counts by category."""
        return schemas.DatasetValidation.model_validate(await self._transport.json("GET", f"{self._path}/validation"))

    async def delete(self) -> None:
        """Delete it. Jobs that have ended keep what they have."""
        await self._transport.request("DELETE", self._path)


class AsyncDatasets(AsyncCollection[AsyncDataset]):
    """`client.datasets`."""

    KIND = AsyncDataset

    async def upload(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        on_progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> AsyncDataset:
        """Make a dataset of an archive, or of a folder, which is sent as the archive that it would be.

        It is sent in parts. After whatever went wrong, also this program's end, the same call goes on where it was.

        Args:
            name: for people; None: that of the file.
            on_progress: called with bytes that have arrived, and of all of them.

        Raises:
            LocalFileError: if there is nothing to send, or it changed meanwhile.
        """
        source = await in_thread_async(Source, Path(path))
        upload_id = await uploads.send(self._transport, source, on_progress)
        dataset = await self.create({"type": "upload", "upload_id": upload_id}, name=name or Path(source.filename).stem)
        await in_thread_async(uploads.forget, self._transport, source)
        return dataset

    async def create(
        self, source: dict[str, Any], *, name: str | None = None, sha256: str | None = None
    ) -> AsyncDataset:
        """Make a dataset of what the service gets itself.

        Args:
            source: `{"type": "uri", "uri": ...}`, `{"type": "path", "path": ...}` where the operator allows it,
                `{"type": "upload", "upload_id": ...}`, or `{"type": "demo"}`: drawn scenes to try the service with.
            sha256: that the archive must have.
        """
        body = {"source": source, "name": name, "sha256": sha256}
        return await self._create(body)

    def list(self, *, status: str | None = None, limit: int | None = None) -> AsyncIterator[AsyncDataset]:
        """Datasets, the newest first; `status`: only those that are e.g. `ready`."""
        return self._every(limit, status=status)
