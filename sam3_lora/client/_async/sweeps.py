"""Parameter sweeps: many jobs that differ in some settings, and the best of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from sam3_lora.client import schemas
from sam3_lora.client._async.resources import AsyncCollection, AsyncResource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping


class AsyncSweep(schemas.Sweep, AsyncResource):
    """A sweep of the service."""

    COLLECTION = "/sweeps"

    async def wait(self, *, timeout_s: float | None = None) -> Self:
        """Wait until all its jobs have ended; then `best` names the best of them, if one succeeded.

        Raises:
            WaitTimeoutError: if that takes longer; they go on.
        """
        return await self._until(lambda now: now.is_terminal, timeout_s)

    async def cancel(self) -> Self:
        """Cancel every job of it that has not ended."""
        return self._take(await self._transport.json("POST", f"{self._path}/cancel"))

    async def delete(self) -> None:
        """Delete it, once it has ended, with its jobs; their models stay."""
        await self._transport.request("DELETE", self._path)


class AsyncSweeps(AsyncCollection[AsyncSweep]):
    """`client.sweeps`."""

    KIND = AsyncSweep

    async def create(
        self,
        name: str,
        job: Mapping[str, Any],
        parameters: Mapping[str, Mapping[str, Any]],
        *,
        method: Literal["grid", "random"] = "grid",
        trials: int | None = None,
        seed: int = 42,
    ) -> AsyncSweep:
        """Create jobs that try different values.

        Args:
            job: what all have: a job's body, with its `dataset_id`.
            parameters: by path in `config`: `{"lora.rank": {"values": [8, 16]}}`, and for the method random also
                `{"training.learning_rate": {"min": 1e-5, "max": 1e-3, "scale": "log"}}`.
            trials: jobs of the method random.
        """
        body = {"name": name, "job": job, "parameters": parameters, "method": method, "trials": trials, "seed": seed}
        return await self._create(body)

    def list(self, *, limit: int | None = None) -> AsyncIterator[AsyncSweep]:
        """Sweeps, the newest first."""
        return self._every(limit)
