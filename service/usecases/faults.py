"""Telling everything that is wrong with a request at once."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from service.shared.errors import InvalidRequestError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Faults:
    """What was found to be wrong so far."""

    def __init__(self) -> None:
        self._found: list[ServiceError] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep an error that names places in the request, so that what does not depend on them is looked at too."""
        try:
            yield
        except ServiceError as error:
            if not error.errors:
                raise
            self._found.append(error)

    def tell(self) -> None:
        """Raise what was found, if anything: the only error itself, else an InvalidRequestError of all places."""
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            message = "; ".join(error.message.removesuffix(".") for error in self._found)
            raise InvalidRequestError(message, errors=[fault for error in self._found for fault in error.errors])
