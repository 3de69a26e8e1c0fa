"""Read JSON as RFC 8259 means it: no duplicate keys, no NaN, no unbounded size, depth or digits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pathlib import Path


class JsonError(ValueError):
    """The file is not JSON that can be accepted; the text says where and why."""


def read(path: Path, max_bytes: int) -> Any:
    """The value in a UTF-8 file of at most `max_bytes`; a byte order mark is accepted.

    Raises:
        JsonError: for anything else.
    """
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise JsonError(f"the file is larger than {max_bytes:,} bytes")
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise JsonError(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise JsonError("nested too deeply") from error
    except JsonError:
        raise
    except ValueError as error:  # the interpreter's cap on digits of an integer
        raise JsonError("a number has too many digits") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonError(f"duplicate key {key[:100]!r} in one object")
            seen.add(key)
    return record


def _constant(name: str) -> NoReturn:
    raise JsonError(f"{name} is not a JSON number")
