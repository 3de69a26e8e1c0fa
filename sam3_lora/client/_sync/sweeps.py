# Made from `_async` by `make generate`: change it there.
"""Parameter sweeps: many jobs that differ in some settings, and the best of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from sam3_lora.client import schemas
from sam3_lora.client._sync.resources import Collection, Resource

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Sweep(schemas.Sweep, Resource):
    """A sweep of the service."""

    COLLECTION = "/sweeps"

    def wait(self, *, timeout_s: float | None = None) -> Self:
        """Wait until all its jobs have ended; then `best` names the best of them, if one succeeded.

        Raises:
            WaitTimeoutError: if that takes longer; they go on.
        """
        return self._until(lambda now: now.is_terminal, timeout_s)

    def cancel(self) -> Self:
        """Cancel every job of it that has not ended."""
        return self._take(self._transport.json("POST", f"{self._path}/cancel"))

    def delete(self) -> None:
        """Delete it, once it has ended, with its jobs; their models stay."""
        self._transport.request("DELETE", self._path)


class Sweeps(Collection[Sweep]):
    """`client.sweeps`."""

    KIND = Sweep

    def create(
        self,
        name: str,
        job: Mapping[str, Any],
        parameters: Mapping[str, Mapping[str, Any]],
        *,
        method: Literal["grid", "random"] = "grid",
        trials: int | None = None,
        seed: int = 42,
    ) -> Sweep:
        """Create jobs that try different values.

        Args:
            job: what all have: a job's body, with its `dataset_id`.
            parameters: by path in `config`: `{"lora.rank": {"values": [8, 16]}}`, and for the method random also
                `{"training.learning_rate": {"min": 1e-5, "max": 1e-3, "scale": "log"}}`.
            trials: jobs of the method random.
        """
        body = {"name": name, "job": job, "parameters": parameters, "method": method, "trials": trials, "seed": seed}
        return self._create(body)

    def list(self, *, limit: int | None = None) -> Iterator[Sweep]:
        """Sweeps, the newest first."""
        return self._every(limit)
