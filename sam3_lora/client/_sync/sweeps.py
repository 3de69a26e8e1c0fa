# Made from `_async` by `make client`: change it there.
"""Parameter sweeps: many jobs that differ in some settings, and the best of them."""

from __future__ import annotations

import time
from time import sleep
from typing import TYPE_CHECKING, Any, Literal, Self

from sam3_lora.client import schemas
from sam3_lora.client._sync.lists import every
from sam3_lora.client._sync.resources import Resource
from sam3_lora.client.errors import WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sam3_lora.client._sync.transport import Transport

POLL_S = 2.0


class Sweep(schemas.Sweep, Resource):
    """A sweep of the service."""

    def refresh(self) -> Self:
        """Look at it again."""
        return self._look(f"/sweeps/{self.id}")

    def wait(self, *, timeout_s: float | None = None) -> Self:
        """Wait until all its jobs have ended; then `best` names the best of them, if one succeeded.

        Raises:
            WaitTimeoutError: if that takes longer; they go on.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not (self.refresh()).is_terminal:
            if end is not None and time.monotonic() + POLL_S > end:
                raise WaitTimeoutError(f"sweep {self.id} is still {self.status}")
            sleep(POLL_S)
        return self

    def cancel(self) -> Self:
        """Cancel every job of it that has not ended."""
        return self._take(self._transport.json("POST", f"/sweeps/{self.id}/cancel"))

    def delete(self) -> None:
        """Delete it, once it has ended, with its jobs; their models stay."""
        self._transport.request("DELETE", f"/sweeps/{self.id}")


class Sweeps:
    """`client.sweeps`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

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
        return Sweep.made(self._transport, self._transport.json("POST", "/sweeps", json=body))

    def get(self, sweep_id: str) -> Sweep:
        """One sweep.

        Raises:
            NotFoundError: if there is none.
        """
        return Sweep.made(self._transport, self._transport.json("GET", f"/sweeps/{sweep_id}"))

    def list(self, *, limit: int | None = None) -> Iterator[Sweep]:
        """Sweeps, the newest first."""
        return every(self._transport, "/sweeps", lambda body: Sweep.made(self._transport, body), limit)
