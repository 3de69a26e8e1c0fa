"""What the things that the service has are alike in: they know where they came from, and can be looked at again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, PrivateAttr

if TYPE_CHECKING:
    from sam3_lora.client._async.transport import AsyncTransport


class AsyncResource(BaseModel):
    """Something with an id, as the service last told of it."""

    _transport: AsyncTransport = PrivateAttr()

    @classmethod
    def made(cls, transport: AsyncTransport, body: dict[str, Any]) -> Self:
        """From the JSON of an answer."""
        found = cls.model_validate(body)
        found._transport = transport
        return found

    def _take(self, body: dict[str, Any]) -> Self:
        """Become what the service tells now."""
        fresh = type(self).model_validate(body)
        for name in ("__dict__", "__pydantic_extra__", "__pydantic_fields_set__"):
            object.__setattr__(self, name, getattr(fresh, name))
        return self

    async def _look(self, path: str) -> Self:
        return self._take(await self._transport.json("GET", path))
