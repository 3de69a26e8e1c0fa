# Made from `_async` by `make generate`: change it there.
"""The service, as a program sees it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self

from sam3_lora.client import schemas
from sam3_lora.client._sync.checkpoints import Checkpoints
from sam3_lora.client._sync.comparisons import Comparisons
from sam3_lora.client._sync.datasets import Datasets
from sam3_lora.client._sync.jobs import Jobs
from sam3_lora.client._sync.models import Models
from sam3_lora.client._sync.sweeps import Sweeps
from sam3_lora.client._sync.transport import Transport
from sam3_lora.version import VERSION

if TYPE_CHECKING:
    from types import TracebackType

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE, KEY_VARIABLE = "SAM3_API_URL", "SAM3_API_KEY"


class Client:
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
        self._transport = Transport(
            base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL,
            api_key=api_key or os.environ.get(KEY_VARIABLE),
            timeout_s=timeout_s,
            retry_for_s=retry_for_s,
            agent=f"sam3-lora-client/{VERSION}",
            **options,
        )
        self.datasets = Datasets(self._transport)
        self.jobs = Jobs(self._transport)
        self.checkpoints = Checkpoints(self._transport)
        self.models = Models(self._transport)
        self.comparisons = Comparisons(self._transport)
        self.sweeps = Sweeps(self._transport)

    @property
    def base_url(self) -> str:
        """Where the service is."""
        return self._transport.base_url

    def recipe(self, base_model: str = "sam3") -> schemas.Recipe:
        """What a job for a base may say: schema, defaults, and a template to begin with."""
        return schemas.Recipe.model_validate(self._transport.json("GET", f"/recipes/{base_model}"))

    def queue(self) -> schemas.Queue:
        """How many jobs wait and run, and who could take them."""
        return schemas.Queue.model_validate(self._transport.json("GET", "/queue"))

    def ready(self) -> schemas.Readiness:
        """Whether the service can do its work, and what is amiss otherwise."""
        return schemas.Readiness.model_validate(self._transport.json("GET", "/readyz"))

    def close(self) -> None:
        """Close its connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
