"""Two models measured on one dataset: which is better?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from sam3_lora.client import schemas
from sam3_lora.client._async.resources import AsyncCollection, AsyncResource
from sam3_lora.client.errors import WorkFailedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sam3_lora.client._async.datasets import AsyncDataset
    from sam3_lora.client._async.models import AsyncModel


class AsyncComparison(schemas.Comparison, AsyncResource):
    """A comparison of the service."""

    COLLECTION = "/comparisons"

    async def wait(self, *, timeout_s: float | None = None) -> Self:
        """Wait until it has ended; then `result` says which model is better, and all figures.

        Raises:
            WorkFailedError: if it failed.
            WaitTimeoutError: if it takes longer; it goes on.
        """
        await self._until(lambda now: now.is_terminal, timeout_s)
        if self.error is not None:
            raise WorkFailedError(f"comparison {self.id} failed: {self.error.message} {self.error.hint}")
        return self

    async def delete(self) -> None:
        """Delete it with its report."""
        await self._transport.request("DELETE", self._path)


class AsyncComparisons(AsyncCollection[AsyncComparison]):
    """`client.comparisons`."""

    KIND = AsyncComparison

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
        return await self._create(body)

    def list(self, *, model: str | None = None, limit: int | None = None) -> AsyncIterator[AsyncComparison]:
        """Comparisons, the newest first; `model`: only those of this one."""
        return self._every(limit, model=model)
