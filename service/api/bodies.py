"""Reading JSON bodies strictly: bounded, no duplicate keys, nothing that JSON cannot say or databases cannot hold."""

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from sam3_lora.config import Section, parse
from sam3_lora.errors import ConfigError
from service.shared.db.models.base import UNSTORABLE
from service.shared.errors import (
    InvalidRequestError,
    MalformedRequestError,
    PayloadTooLargeError,
    RequestTimeoutError,
    UnsupportedMediaTypeError,
    fault,
    invalid,
)

S = TypeVar("S", bound=Section)
JSON, MERGE_PATCH = "application/json", "application/merge-patch+json"
MAX_DEPTH = 64
EXACT = 2**53  # up to here doubles hold every integer


class StrictRequest(Request):
    """A request whose JSON has already been read and validated."""

    parsed: Any

    async def json(self) -> Any:
        return self.parsed


class StrictJsonRoute(APIRoute):
    """Checks a JSON body against the route's schema before FastAPI sees it, and names every fault."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        schema: type[Section] = self.body_field.field_info.annotation  # type: ignore[assignment]
        is_optional = not self.body_field.field_info.is_required()

        async def handle_strictly(request: Request) -> Response:
            if is_optional and is_empty(request):
                return await handle(request)
            strict = StrictRequest(request.scope, request.receive)
            # FastAPI takes an instance of the schema as it is.
            strict.parsed = validated(schema, parse_json(await read_json_body(strict)))
            return await handle(strict)

        return handle_strictly


def validated(schema: type[S], values: Any) -> S:
    """The values as the schema has them.

    Raises:
        InvalidRequestError: naming every fault.
    """
    try:
        return parse(schema, values)
    except ConfigError as error:
        detail = error.message.removeprefix("invalid configuration: ")
        raise InvalidRequestError(detail, errors=error.errors) from None


def is_empty(request: Request) -> bool:
    """Whether the request declares no body at all."""
    return "transfer-encoding" not in request.headers and request.headers.get("content-length", "0") == "0"


def is_json(request: Request) -> bool:
    """Whether the body is declared as JSON; that of a PATCH is a merge patch (RFC 7396)."""
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return declared == JSON or (request.method == "PATCH" and declared == MERGE_PATCH)


async def read_json_body(request: Request) -> bytes:
    """The body.

    Raises:
        UnsupportedMediaTypeError: if it is not declared as JSON.
        PayloadTooLargeError: as soon as it is longer than `max_json_bytes`.
        RequestTimeoutError: if it is not there after `upload_idle_timeout_s`: so little takes no longer.
        MalformedRequestError: if the connection breaks.
    """
    settings = request.app.state.services.settings
    if not is_json(request):
        raise UnsupportedMediaTypeError("Send the body as Content-Type: application/json.")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaTypeError(f"Send the body as it is, without Content-Encoding: {encoding[:40]}.")
    body = bytearray()
    try:
        async with asyncio.timeout(settings.upload_idle_timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > settings.max_json_bytes:
                    raise PayloadTooLargeError(f"The body is larger than {settings.max_json_bytes} bytes.")
    except TimeoutError:
        raise RequestTimeoutError(
            f"The body was not complete after {settings.upload_idle_timeout_s:g} seconds."
        ) from None
    except ClientDisconnect:
        raise MalformedRequestError("The connection broke before the body was complete.") from None
    request._body = bytes(body)  # FastAPI asks for the body again; the stream is spent
    return request._body


def parse_json(body: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        MalformedRequestError: if it is not UTF-8, not JSON, too deep, or repeats a key.
        InvalidRequestError: if it holds a number or text that cannot be stored.
    """
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError:
        raise MalformedRequestError("The body is not UTF-8.") from None
    except json.JSONDecodeError as error:
        raise MalformedRequestError(f"The body is not JSON: {error}.") from None
    except RecursionError:
        raise MalformedRequestError("The body is nested too deeply.") from None
    except ValueError:  # the interpreter's limit on the digits of an integer
        raise MalformedRequestError("The body holds a number with too many digits.") from None
    # Only an escape can be what no text holds, and so few brackets cannot nest too deeply: most bodies need no look.
    if b"\\u" in body or body.count(b"{") + body.count(b"[") > MAX_DEPTH:
        _check_text(value, "", 0)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise MalformedRequestError(f"The key {twice!r} appears twice in one object.")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequestError(
        f"{name} is not a number that JSON allows: send a finite number.",
        errors=[fault("", "non_finite_number", f"{name} is not finite")],
    )


def _finite(text: str) -> float | int:
    """A number; 61.0 is the integer 61, as JSON Schema has it and as JavaScript writes it."""
    value = float(text)
    if not math.isfinite(value):
        _refuse_constant(text[:20])
    return int(value) if value.is_integer() and abs(value) <= EXACT else value


def _check_text(value: Any, pointer: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise MalformedRequestError("The body is nested too deeply.")
    if isinstance(value, str) and UNSTORABLE.search(value):
        raise invalid(pointer, "invalid_text", "text holds a NUL character or a lone surrogate")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_text(key, pointer, depth)
            _check_text(inner, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}", depth + 1)
    if isinstance(value, list):
        for index, inner in enumerate(value):
            _check_text(inner, f"{pointer}/{index}", depth + 1)
