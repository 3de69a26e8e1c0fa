# Made from `_async` by `make generate`: change it there.
"""What the things that the service has are alike in: they know where they came from, and can be looked at again."""

from __future__ import annotations

import time
from time import sleep
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, PrivateAttr

from sam3_lora.client._sync.lists import every
from sam3_lora.client.errors import WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sam3_lora.client._sync.transport import Transport

FIRST_POLL_S, LONGEST_POLL_S = 0.5, 5.0


class Resource(BaseModel):
    """Something with an id, as the service last told of it."""

    COLLECTION: ClassVar[str]
    """Path of all of its kind."""

    id: str
    _transport: Transport = PrivateAttr()

    @classmethod
    def made(cls, transport: Transport, body: dict[str, Any]) -> Self:
        """From the JSON of an answer."""
        found = cls.model_validate(body)
        found._transport = transport
        return found

    def refresh(self) -> Self:
        """Look at it again."""
        return self._take(self._transport.json("GET", self._path))

    @property
    def _path(self) -> str:
        return f"{self.COLLECTION}/{self.id}"

    def _take(self, body: dict[str, Any]) -> Self:
        """Become what the service tells now."""
        fresh = type(self).model_validate(body)
        for name in ("__dict__", "__pydantic_extra__", "__pydantic_fields_set__"):
            object.__setattr__(self, name, getattr(fresh, name))
        return self

    def _until(self, is_over: Callable[[Self], bool], timeout_s: float | None) -> Self:
        """Look again, ever more rarely, until it is over.

        Raises:
            WaitTimeoutError: if that takes longer; it goes on.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        delay = FIRST_POLL_S
        while not is_over(self.refresh()):
            if end is not None and time.monotonic() + delay > end:
                raise WaitTimeoutError(f"{self.COLLECTION[1:-1]} {self.id} is still {getattr(self, 'status', '')}")
            sleep(delay)
            delay = min(LONGEST_POLL_S, 1.5 * delay)
        return self


R = TypeVar("R", bound=Resource)


class Collection(Generic[R]):
    """All of one kind that the service has."""

    KIND: type[R]

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, id_: str) -> R:
        """The one with this id.

        Raises:
            NotFoundError: if there is none.
        """
        return self._made(self._transport.json("GET", f"{self.KIND.COLLECTION}/{id_}"))

    def _create(self, body: dict[str, Any], **request: Any) -> R:
        return self._made(self._transport.json("POST", self.KIND.COLLECTION, json=body, **request))

    def _every(self, limit: int | None, **query: Any) -> Iterator[R]:
        return every(self._transport, self.KIND.COLLECTION, self._made, limit, **query)

    def _made(self, body: dict[str, Any]) -> R:
        return self.KIND.made(self._transport, body)
