"""Two models measured on one dataset: which is better?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

from anyio import sleep

from sam3_lora.client import schemas
from sam3_lora.client._async.lists import every
from sam3_lora.client._async.resources import AsyncResource
from sam3_lora.client.errors import WaitTimeoutError, WorkFailedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sam3_lora.client._async.datasets import AsyncDataset
    from sam3_lora.client._async.models import AsyncModel
    from sam3_lora.client._async.transport import AsyncTransport

POLL_S = 1.0


class AsyncComparison(schemas.Comparison, AsyncResource):
    """A comparison of the service."""

    async def refresh(self) -> Self:
        """Look at it again."""
        return await self._look(f"/comparisons/{self.id}")

    async def wait(self, *, timeout_s: float | None = None) -> Self:
        """Wait until it has ended; then `result` says which model is better, and all figures.

        Raises:
            WorkFailedError: if it failed.
            WaitTimeoutError: if it takes longer; it goes on.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not (await self.refresh()).is_terminal:
            if end is not None and time.monotonic() + POLL_S > end:
                raise WaitTimeoutError(f"comparison {self.id} is still {self.status}")
            await sleep(POLL_S)
        if self.error is not None:
            raise WorkFailedError(f"comparison {self.id} failed: {self.error.message} {self.error.hint}")
        return self

    async def delete(self) -> None:
        """Delete it with its report."""
        await self._transport.request("DELETE", f"/comparisons/{self.id}")


class AsyncComparisons:
    """`client.comparisons`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        first: str | AsyncModel,
        second: str | AsyncModel,
        dataset: str | AsyncDataset,
        **members: Any,
    ) -> AsyncComparison:
        """Have two models measured on the same images; the second is judged by the first.

        Args:
            first: a model, its id, or the name of a base (`sam3`, `sam3-tiny`), untuned.
            second: as `first`.
            members: any further member of a comparison's body, e.g. `metric="cgF1"`, `max_images=100`.
        """
        models = [each if isinstance(each, str) else each.id for each in (first, second)]
        dataset_id = dataset if isinstance(dataset, str) else dataset.id
        body = {"models": models, "dataset_id": dataset_id, **members}
        return AsyncComparison.made(self._transport, await self._transport.json("POST", "/comparisons", json=body))

    async def get(self, comparison_id: str) -> AsyncComparison:
        """One comparison.

        Raises:
            NotFoundError: if there is none.
        """
        body = await self._transport.json("GET", f"/comparisons/{comparison_id}")
        return AsyncComparison.made(self._transport, body)

    def list(self, *, model: str | None = None, limit: int | None = None) -> AsyncIterator[AsyncComparison]:
        """Comparisons, the newest first; `model`: only those of this one."""
        return every(
            self._transport,
            "/comparisons",
            lambda body: AsyncComparison.made(self._transport, body),
            limit,
            model=model,
        )
