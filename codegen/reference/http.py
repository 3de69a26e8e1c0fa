"""The HTTP interface, from the OpenAPI document that the service itself serves."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from codegen.openapi import METHODS
from codegen.reference.fields import Fields, cell

REQUESTS = """# HTTP requests

Every path is also served below `/v1`. A running service has the same as an OpenAPI 3.1 document at `/openapi.json`,
and as a page to try it at `/docs`. Bodies are JSON where nothing else is said; their fields are in
[bodies](schemas.md). Errors are `application/problem+json` ([Problem](schemas.md#problem)); quote their `request_id`.
Times are RFC 3339 in UTC.
"""
BODIES = """# Bodies of requests and answers

What [requests](http.md) take and answer, as their OpenAPI document says. Answers may gain fields, and texts that are
one of several names may gain names, within a version of the API.
"""


def page(document: dict[str, Any]) -> str:
    """Every operation, by tag."""
    fields = _fields(document, "schemas.md")
    parts = [REQUESTS]
    for tag in document["tags"]:
        parts.append(f"## {tag['name']}\n\n{tag['description']}\n")
        parts += [
            _operation(fields, f"{method.upper()} {path}", methods[method])
            for path, methods in document["paths"].items()
            for method in METHODS
            if tag["name"] in methods.get(method, {}).get("tags", ())
        ]
    return "\n".join(parts)


def schemas_page(document: dict[str, Any]) -> str:
    """Every object that a body may be or have."""
    fields = _fields(document, "")
    parts = [BODIES]
    for name, schema in sorted(document["components"]["schemas"].items()):
        if schema.get("properties"):
            described = schema.get("description", "").strip()
            parts.append(f"## {name}\n\n{described}\n\n{fields.table(schema)}")
    return "\n".join(parts)


def _fields(document: dict[str, Any], page: str) -> Fields:
    schemas = document["components"]["schemas"]
    return Fields(schemas, lambda name: f"[{name}]({page}#{name.lower()})" if "properties" in schemas[name] else name)


def _operation(fields: Fields, title: str, operation: dict[str, Any]) -> str:
    parts = [f"### `{title}`\n\n{operation.get('description', operation['summary']).strip()}\n"]
    if rows := list(_parameters(fields, operation)):
        parts.append("\n".join(["| parameter | in | type | |", "|---|---|---|---|", *rows]) + "\n")
    if body := operation.get("requestBody"):
        kinds = [f"{fields.type(each.get('schema'))} (`{kind}`)" for kind, each in body["content"].items()]
        parts.append(f"Body: {' or '.join(kinds)}.\n")
    answers, errors = [], []
    for status, answer in sorted(operation["responses"].items()):
        if status.startswith(("4", "5")):
            errors.append(f"{status} {_phrase(status)}")
        else:
            told = answer.get("description", "")
            told = "" if told == "Successful Response" else cell(told)  # FastAPI's own word
            answers.append(f"| {status} | {_content(fields, answer)} | {told} |")
    parts.append("\n".join(["| answer | body | |", "|---|---|---|", *answers]) + "\n")
    if errors:
        parts.append(f"Errors: {', '.join(errors)}.\n")
    return "\n".join(parts)


def _parameters(fields: Fields, operation: dict[str, Any]) -> Iterator[str]:
    for each in operation.get("parameters", ()):
        name = f"`{each['name']}`" + (" (required)" if each.get("required") and each["in"] != "path" else "")
        told = cell(each.get("description", ""))
        yield f"| {name} | {each['in']} | {fields.type(each.get('schema'))} | {told} |"


def _content(fields: Fields, answer: dict[str, Any]) -> str:
    content = answer.get("content", {})
    told = {kind: fields.type(each.get("schema")) for kind, each in content.items()}
    return "; ".join(name if kind == "application/json" else f"`{kind}`" for kind, name in told.items())


def _phrase(status: str) -> str:
    return HTTPStatus(int(status)).phrase.lower() if status.isdigit() else ""
