"""The OpenAPI document: what FastAPI makes of the routes, and what it cannot know of them.

That is what stands around every operation: keys and scopes, errors of the middleware, headers of all answers; problems
instead of FastAPI's own errors; bodies that are read by hand; links.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from service.api.authentication import PUBLIC, accepted_scopes
from service.api.bodies import JSON, MERGE_PATCH
from service.api.deprecation import describe_headers
from service.api.errors import PROBLEM_JSON, Problem, problem_responses
from service.api.examples import ANSWERS, REQUESTS
from service.api.links import add_links
from service.api.openai.schemas.uploads import OpenAIUploadCreate
from service.api.response_headers import HEADERS, headers
from service.api.schemas.datasets import DatasetCreate
from service.api.schemas.uploads import UploadCreate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI
    from pydantic import BaseModel

    from service.usecases.access import Scope

MODELS: tuple[type[BaseModel], ...] = (Problem, DatasetCreate, UploadCreate, OpenAIUploadCreate)
"""Schemas that no route declares: of errors, and of bodies that are read by hand."""
KEY = "apiKey"
SECURITY_SCHEMES = {
    KEY: {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "sam3_...",
        "description": "An API key, as `POST /api_keys` makes it. Only where the operator requires keys.",
    }
}
MEANINGS = {
    400: "The request cannot be read: what is in the body is cut off, not of its media type, or repeats a key.",
    401: "No API key came with the request, or one that is not known, was revoked or has expired. Only where the "
    "operator requires keys.",
    404: "There is no such thing, or not in the project of the API key.",
    406: "There is no answer in the media type that was asked for.",
    408: "The body came too slowly.",
    409: "It does not fit the present state; `code` says what stands in the way.",
    410: "The time in which it could be done is over.",
    412: "What the request is about is not in the version that it names.",
    413: "The body is larger than this server takes.",
    415: "The body is not of a media type that is taken here.",
    416: "The range holds no byte of it.",
    421: "The request is for a host name that this server is not known by. Only where no keys are required.",
    422: "The request can be read but breaks rules: `errors` names each place.",
    429: "Too many requests, or too much that waits already.",
    500: "Something unexpected happened: the server's log has it under the `request_id`.",
    503: "The database, storage or whatever else is needed does not answer now.",
    507: "No space is left to store it.",
}
FORBIDDEN = (
    "The API key lacks the scope `{scope}`, which the operation needs. Also where something would be changed: a page "
    "of another site asks for it, or a quota has no room for it."
)
ALSO_SENT = {
    401: ("WWW-Authenticate",),
    403: ("x-should-retry",),
    409: ("x-should-retry",),
    416: ("Content-Range",),
    429: ("Retry-After",),
    503: ("Retry-After",),
    507: ("Retry-After",),
}
CLAUSE = re.compile(r"[.;:](?:\s|$)")
UNCOUNTED = (401, 421, 500)
"""Errors that are answered without looking at how much of the key's limit is left."""


def describe(app: FastAPI, *, keys_required: bool) -> None:
    """Have the application's document say all of it; `keys_required`: whether each request needs an API key."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(generate(), keys_required=keys_required)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any], *, keys_required: bool) -> None:
    components = document["components"]
    schemas = components["schemas"]
    for model in MODELS:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for name, found in (REQUESTS | {name: [answer] for name, answer in ANSWERS.items()}).items():
        schemas[name]["examples"] = found
    components["securitySchemes"] = SECURITY_SCHEMES
    components["headers"] = HEADERS
    for path, method, operation in operations(document):
        _summarise(operation)
        _settle_parameters(operation)
        _take_merge_patches(method, operation)
        _require_key(path, method, operation, keys_required=keys_required)
        _add_problems(path, method, operation)
        _add_headers(path, operation)
    for methods in document["webhooks"].values():
        methods["post"]["responses"].pop("422")
    add_links(document)
    describe_headers(document)
    _share_problems(document)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method and operation of all that can be asked for."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _summarise(operation: dict[str, Any]) -> None:
    """The beginning of what is said of it, instead of its name; where that is long, the route gives a `summary`."""
    described = operation.get("description", "")
    if described and operation["summary"] == operation["operationId"].replace("_", " ").title():
        operation["summary"] = " ".join(CLAUSE.split(described, maxsplit=1)[0].split())


def _settle_parameters(operation: dict[str, Any]) -> None:
    """One parameter of each name, none of them null; what a route says itself goes before what FastAPI makes of it."""
    if found := operation.get("parameters"):
        operation["parameters"] = list({(each["name"], each["in"]): each for each in found}.values())
        for each in operation["parameters"]:
            each["schema"] = _without_null(each["schema"])


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter's schema without null: one that is not given is left out."""
    if "anyOf" not in schema:
        return schema
    kinds = [kind for kind in schema["anyOf"] if kind != {"type": "null"}]
    others = {name: value for name, value in schema.items() if name != "anyOf"}
    return others | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds})


def _take_merge_patches(method: str, operation: dict[str, Any]) -> None:
    content = operation.get("requestBody", {}).get("content", {})
    if method == "patch" and JSON in content:
        content[MERGE_PATCH] = content[JSON]


def _scopes(method: str, operation: dict[str, Any]) -> tuple[Scope, ...]:
    return accepted_scopes(operation["operationId"], method.upper())


def _scope(method: str, operation: dict[str, Any]) -> Scope | None:
    """The least that is needed; None: nothing."""
    return next(iter(_scopes(method, operation)), None)


def _require_key(path: str, method: str, operation: dict[str, Any], *, keys_required: bool) -> None:
    if path in PUBLIC:
        operation["security"] = []
        return
    scope = _scope(method, operation)
    with_key: list[dict[str, list[str]]] = [{KEY: [each.value]} for each in _scopes(method, operation)] or [{KEY: []}]
    operation["security"] = with_key if keys_required else [{}, *with_key]
    if scope is not None:
        operation["x-required-scope"] = scope.value


def _add_problems(path: str, method: str, operation: dict[str, Any]) -> None:
    """Each error as what it means, also those that come before the operation."""
    responses, scope = operation["responses"], _scope(method, operation)
    statuses = {421, 422, 500} if "422" in responses else {421, 500}
    if path not in PUBLIC:
        statuses |= {401, 429, 503} if scope is None else {401, 403, 429, 503}
    if "requestBody" in operation:
        statuses.add(408)
    statuses |= {int(status) for status, given in responses.items() if PROBLEM_JSON in given.get("content", {})}
    for status in statuses:
        _, responses[str(status)] = _problem(status, scope)
    operation["responses"] = dict(sorted(responses.items()))


def _problem(status: int, scope: Scope | None) -> tuple[str, dict[str, Any]]:
    """What an error is called among the shared ones, and what it says."""
    name, meaning = f"Problem{status}", MEANINGS.get(status, HTTPStatus(status).phrase)
    if status == HTTPStatus.FORBIDDEN and scope is not None:
        name, meaning = f"{name}.{scope.value}", FORBIDDEN.format(scope=scope.value)
    described = problem_responses(status)[status] | {"description": meaning}
    return name, described | {"headers": headers(*ALSO_SENT.get(status, ()))}


def _add_headers(path: str, operation: dict[str, Any]) -> None:
    """Headers that the middleware sends with every answer."""
    for status, response in operation["responses"].items():
        counted = path not in PUBLIC and int(status) not in UNCOUNTED
        added = headers("X-Request-Id", *(("RateLimit", "RateLimit-Policy") if counted else ()))
        response["headers"] = response.get("headers", {}) | added


def _share_problems(document: dict[str, Any]) -> None:
    """Say what many operations answer in the same words once."""
    shared = document["components"].setdefault("responses", {})
    for _, method, operation in operations(document):
        for status, response in operation["responses"].items():
            if PROBLEM_JSON in response.get("content", {}):
                name, _ = _problem(int(status), _scope(method, operation))
                if shared.setdefault(name, response) == response:
                    operation["responses"][status] = {"$ref": f"#/components/responses/{name}"}
