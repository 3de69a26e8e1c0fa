# Made from `_async` by `make client`: change it there.
"""Two models measured on one dataset: which is better?"""

from __future__ import annotations

import time
from time import sleep
from typing import TYPE_CHECKING, Any, Self

from sam3_lora.client import schemas
from sam3_lora.client._sync.lists import every
from sam3_lora.client._sync.resources import Resource
from sam3_lora.client.errors import WaitTimeoutError, WorkFailedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sam3_lora.client._sync.datasets import Dataset
    from sam3_lora.client._sync.models import Model
    from sam3_lora.client._sync.transport import Transport

POLL_S = 1.0


class Comparison(schemas.Comparison, Resource):
    """A comparison of the service."""

    def refresh(self) -> Self:
        """Look at it again."""
        return self._look(f"/comparisons/{self.id}")

    def wait(self, *, timeout_s: float | None = None) -> Self:
        """Wait until it has ended; then `result` says which model is better, and all figures.

        Raises:
            WorkFailedError: if it failed.
            WaitTimeoutError: if it takes longer; it goes on.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not (self.refresh()).is_terminal:
            if end is not None and time.monotonic() + POLL_S > end:
                raise WaitTimeoutError(f"comparison {self.id} is still {self.status}")
            sleep(POLL_S)
        if self.error is not None:
            raise WorkFailedError(f"comparison {self.id} failed: {self.error.message} {self.error.hint}")
        return self

    def delete(self) -> None:
        """Delete it with its report."""
        self._transport.request("DELETE", f"/comparisons/{self.id}")


class Comparisons:
    """`client.comparisons`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

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
        return Comparison.made(self._transport, self._transport.json("POST", "/comparisons", json=body))

    def get(self, comparison_id: str) -> Comparison:
        """One comparison.

        Raises:
            NotFoundError: if there is none.
        """
        body = self._transport.json("GET", f"/comparisons/{comparison_id}")
        return Comparison.made(self._transport, body)

    def list(self, *, model: str | None = None, limit: int | None = None) -> Iterator[Comparison]:
        """Comparisons, the newest first; `model`: only those of this one."""
        return every(
            self._transport,
            "/comparisons",
            lambda body: Comparison.made(self._transport, body),
            limit,
            model=model,
        )
