"""Every error as `application/problem+json` (RFC 9457), with a member that OpenAI clients read as well."""

import sys
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Field
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.api.schemas.lists import Read
from service.shared.db.models.base import storable
from service.shared.errors import ConflictError, DatabaseUnavailableError, QuotaExceededError, ServiceError

log = structlog.get_logger(__name__)

PROBLEM_JSON = "application/problem+json"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class Fault(Read):
    """What is wrong in one place of a request."""

    pointer: str
    """JSON Pointer into the body, or /query/..., /path/..., /header/..."""
    code: str
    """Stable name of the fault, for programs."""
    message: str
    """What is wrong there."""


class OpenAIError(Read):
    """The error as OpenAI's clients read it."""

    message: str
    """The same as `detail`."""
    type: str
    """invalid_request_error, or server_error where the status is 500 or more."""
    param: str | None
    """The first place that is wrong; null where no place is named."""
    code: str
    """The same as `code` outside."""


class Problem(Read):
    """What went wrong and what to do about it."""

    type: str = Field(examples=["urn:sam3-lora:problem:dataset_in_use"])
    """`urn:sam3-lora:problem:` and the code."""
    title: str
    """What kind of error it is, in a few words."""
    status: int
    """HTTP status of the answer."""
    detail: str
    """What went wrong this time and what to do about it."""
    instance: str
    """Path of the request."""
    code: str
    """Stable name of the error, for programs."""
    request_id: str
    """The `X-Request-Id` of the answer, under which the log has it."""
    errors: list[Fault]
    """Every place in the request that is wrong; empty where the error is not about places."""
    error: OpenAIError
    """The same, as OpenAI clients expect it."""


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the errors of an operation."""
    content = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def problem(
    request: Request,
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    errors: list[dict[str, str]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    body = problem_body(
        status,
        code,
        title,
        detail,
        instance=quote(storable(request.url.path), safe="/%:@!$&'()*+,;=~-._"),
        request_id=request.scope.get("state", {}).get("request_id", ""),
        errors=errors or [],
    )
    return JSONResponse(storable(body), status, headers, media_type=PROBLEM_JSON)


def problem_body(
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    instance: str,
    request_id: str,
    errors: Sequence[dict[str, str]] = (),
) -> dict[str, Any]:
    """A `Problem` as JSON."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {
        "type": f"urn:sam3-lora:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": instance,
        "code": code,
        "request_id": request_id,
        "errors": list(errors),
        "error": {"message": detail, "type": kind, "param": errors[0]["pointer"] if errors else None, "code": code},
    }


def of_service_error(request: Request, error: ServiceError) -> JSONResponse:
    headers = {"x-should-retry": "false"} if isinstance(error, ConflictError | QuotaExceededError) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (429, 503, 507):
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status >= 500:
        log.error("request_failed", code=error.code, error=error.message)
    return problem(request, error.status, error.code, error.title, error.message, errors=error.errors, headers=headers)


def of_database_error(request: Request, error: Exception) -> JSONResponse:
    log.error("database_failed", error=str(error))
    return of_service_error(
        request,
        DatabaseUnavailableError(
            "The database does not answer. Repeat the request; one that creates something, with its Idempotency-Key."
        ),
    )


def of_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    # The rejected input is never sent back: it may not be expressible as JSON at all.
    faults = []
    for item in error.errors():
        place = [str(part).replace("~", "~0").replace("/", "~1") for part in item["loc"]]
        pointer = "".join(f"/{part}" for part in (place[1:] if place[:1] == ["body"] else place))
        message = str(item["msg"]).removeprefix("Value error, ")
        faults.append({"pointer": pointer, "code": str(item["type"]), "message": message})
    detail = "; ".join(f"{fault['pointer'] or '/'}: {fault['message']}" for fault in faults[:5])
    return problem(request, 422, "invalid_request", "Invalid request", detail, errors=faults)


def of_http_exception(request: Request, error: HTTPException) -> JSONResponse:
    phrase = HTTPStatus(error.status_code).phrase.capitalize()
    code = phrase.lower().replace(" ", "_")
    headers = dict(error.headers or {})
    detail = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"There is nothing at {request.url.path}."
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed_methods(request))
        detail = f"{request.method} is not possible here; allowed: {headers['Allow']}."
    return problem(request, error.status_code, code, phrase, detail, headers=headers)


def internal_error(request: Request) -> JSONResponse:
    """A problem that tells nothing of the inside; call it while the exception is handled, so that it is logged."""
    log.error("unhandled_exception", exc_info=sys.exc_info())
    detail = "Something unexpected happened; the server's log has it under this request_id."
    return problem(request, 500, "internal", "Internal server error", detail)


def install(app: FastAPI) -> None:
    """Make every error of the application a problem."""
    handlers: dict[type[Exception], Any] = {
        ServiceError: of_service_error,
        RequestValidationError: of_validation_error,
        HTTPException: of_http_exception,
        OperationalError: of_database_error,
        InterfaceError: of_database_error,
        PoolTimeoutError: of_database_error,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _allowed_methods(request: Request) -> list[str]:
    """Methods of all routes of the path: Starlette names those of the first one only."""
    possible = [
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]
    # A path that is spelt out, such as /jobs/estimate, is no job's id.
    spelt_out = request.app.openapi()["paths"].get(request.url.path.removeprefix("/v1"))
    if spelt_out is None:
        return possible
    return [method for method in possible if ("get" if method == "HEAD" else method.lower()) in spelt_out]
