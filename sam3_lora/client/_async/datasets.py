"""Datasets: uploaded, fetched or drawn; checked; waited for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from anyio import sleep

from sam3_lora.client import schemas
from sam3_lora.client._archives import Source
from sam3_lora.client._async import uploads
from sam3_lora.client._async.lists import every
from sam3_lora.client._async.resources import AsyncResource
from sam3_lora.client._patience import in_thread_async
from sam3_lora.client.errors import DatasetNotReadyError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sam3_lora.client._async.transport import AsyncTransport

FIRST_POLL_S, LONGEST_POLL_S = 0.5, 5.0


class AsyncDataset(schemas.Dataset, AsyncResource):
    """A dataset of the service."""

    async def refresh(self) -> Self:
        """Look at it again."""
        return await self._look(f"/datasets/{self.id}")

    async def wait(self, *, timeout_s: float | None = None, check: bool = True) -> Self:
        """Wait until it has been checked.

        Args:
            check: raise if it cannot be trained on.

        Raises:
            DatasetNotReadyError: with the report, if it cannot be trained on.
            WaitTimeoutError: if that takes longer.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        delay = FIRST_POLL_S
        while (await self.refresh()).status == "processing":
            if end is not None and time.monotonic() + delay > end:
                raise WaitTimeoutError(f"dataset {self.id} is still being checked")
            await sleep(delay)
            delay = min(LONGEST_POLL_S, 1.5 * delay)
        if check and self.status != "ready":
            raise DatasetNotReadyError(self, await self.report())
        return self

    async def report(self) -> schemas.DatasetValidation:
        """Every fault that the check found, with what to do about it, and counts by category."""
        return schemas.DatasetValidation.model_validate(
            await self._transport.json("GET", f"/datasets/{self.id}/validation")
        )

    async def delete(self) -> None:
        """Delete it. Jobs that have ended keep what they have."""
        await self._transport.request("DELETE", f"/datasets/{self.id}")


class AsyncDatasets:
    """`client.datasets`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

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
        return AsyncDataset.made(self._transport, await self._transport.json("POST", "/datasets", json=body))

    async def get(self, dataset_id: str) -> AsyncDataset:
        """One dataset.

        Raises:
            NotFoundError: if there is none.
        """
        return AsyncDataset.made(self._transport, await self._transport.json("GET", f"/datasets/{dataset_id}"))

    def list(self, *, status: str | None = None, limit: int | None = None) -> AsyncIterator[AsyncDataset]:
        """Datasets, the newest first; `status`: only those that are e.g. `ready`."""
        return every(
            self._transport,
            "/datasets",
            lambda body: AsyncDataset.made(self._transport, body),
            limit,
            status=status,
        )
