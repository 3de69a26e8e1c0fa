# Made from `_async` by `make generate`: change it there.
"""Two models measured on one dataset: which is better?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from sam3_lora.client import schemas
from sam3_lora.client._sync.resources import Collection, Resource
from sam3_lora.client.errors import WorkFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sam3_lora.client._sync.datasets import Dataset
    from sam3_lora.client._sync.models import Model


class Comparison(schemas.Comparison, Resource):
    """A comparison of the service."""

    COLLECTION = "/comparisons"

    def wait(self, *, timeout_s: float | None = None) -> Self:
        """Wait until it has ended; then `result` says which model is better, and all figures.

        Raises:
            WorkFailedError: if it failed.
            WaitTimeoutError: if it takes longer; it goes on.
        """
        self._until(lambda now: now.is_terminal, timeout_s)
        if self.error is not None:
            raise WorkFailedError(f"comparison {self.id} failed: {self.error.message} {self.error.hint}")
        return self

    def delete(self) -> None:
        """Delete it with its report."""
        self._transport.request("DELETE", self._path)


class Comparisons(Collection[Comparison]):
    """`client.comparisons`."""

    KIND = Comparison

    def create(
        self,
        first: str | Model,
        second: str | Model,
        dataset: str | Dataset,
        **members: Any,
    ) -> Comparison:
        """Have two models measured on the same images; the second is judged by the first.

        Args:
            first: a model, its id, or the name of a base (`sam3`, `sam3-tiny`), untuned.
            second: as `first`.
            members: any further member of a comparison's body, e.g. `metric="cgF1"`, `max_images=100`.
        """
        models = [each if isinstance(each, str) else each.id for each in (first, second)]
        dataset_id = dataset if isinstance(dataset, str) else dataset.id
        body = {"models": models, "dataset_id": dataset_id, **members}
        return self._create(body)

    def list(self, *, model: str | None = None, limit: int | None = None) -> Iterator[Comparison]:
        """Comparisons, the newest first; `model`: only those of this one."""
        return self._every(limit, model=model)
