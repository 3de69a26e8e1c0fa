"""The service, as a program sees it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self

from sam3_lora.client import schemas
from sam3_lora.client._async.checkpoints import AsyncCheckpoints
from sam3_lora.client._async.comparisons import AsyncComparisons
from sam3_lora.client._async.datasets import AsyncDatasets
from sam3_lora.client._async.jobs import AsyncJobs
from sam3_lora.client._async.models import AsyncModels
from sam3_lora.client._async.sweeps import AsyncSweeps
from sam3_lora.client._async.transport import AsyncTransport
from sam3_lora.version import VERSION

if TYPE_CHECKING:
    from types import TracebackType

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE, KEY_VARIABLE = "SAM3_API_URL", "SAM3_API_KEY"


class AsyncClient:
    """One service, and one key for it. Use it with `with`, or close it.

    What can be repeated safely is, until it has come to nothing for `retry_for_s` seconds: everything, since requests
    that create something carry an idempotency key.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retry_for_s: float = 60.0,
        **options: Any,
    ) -> None:
        """Connect to nothing yet.

        Args:
            base_url: e.g. `https://train.example.org`; None: the variable SAM3_API_URL, else this machine's port 8000.
            api_key: None: the variable SAM3_API_KEY, else none.
            timeout_s: seconds without a byte after which a connection counts as lost.
            retry_for_s: seconds for which a request that gets nowhere is tried again; 0: never.
            options: further arguments of `httpx.AsyncClient`, such as `verify` or `proxy`.
        """
        self._transport = AsyncTransport(
            base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL,
            api_key=api_key or os.environ.get(KEY_VARIABLE),
            timeout_s=timeout_s,
            retry_for_s=retry_for_s,
            agent=f"sam3-lora-client/{VERSION}",
            **options,
        )
        self.datasets = AsyncDatasets(self._transport)
        self.jobs = AsyncJobs(self._transport)
        self.checkpoints = AsyncCheckpoints(self._transport)
        self.models = AsyncModels(self._transport)
        self.comparisons = AsyncComparisons(self._transport)
        self.sweeps = AsyncSweeps(self._transport)

    @property
    def base_url(self) -> str:
        """Where the service is."""
        return self._transport.base_url

    async def recipe(self, base_model: str = "sam3") -> schemas.Recipe:
        """What a job for a base may say: schema, defaults, and a template to begin with."""
        return schemas.Recipe.model_validate(await self._transport.json("GET", f"/recipes/{base_model}"))

    async def queue(self) -> schemas.Queue:
        """How many jobs wait and run, and who could take them."""
        return schemas.Queue.model_validate(await self._transport.json("GET", "/queue"))

    async def ready(self) -> schemas.Readiness:
        """Whether the service can do its work, and what is amiss otherwise."""
        return schemas.Readiness.model_validate(await self._transport.json("GET", "/readyz"))

    async def close(self) -> None:
        """Close its connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
