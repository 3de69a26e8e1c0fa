"""Headers of answers in the OpenAPI document: what each says, once, and references to that."""

from __future__ import annotations

from typing import Any

TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
HEADERS: dict[str, dict[str, Any]] = {
    "Accept-Ranges": {"schema": TEXT, "description": "`bytes`: a `Range` of it can be asked for."},
    "Cache-Control": {"schema": TEXT, "description": "Who may keep the answer, and whether it must ask again."},
    "Content-Disposition": {"schema": TEXT, "description": "What the file is called, and whether a browser shows it."},
    "Content-Location": {"schema": TEXT, "description": "Where the same can be read again."},
    "Content-Range": {"schema": TEXT, "description": "Which bytes of how many these are."},
    "ETag": {"schema": TEXT, "description": "Names this version: for `If-None-Match`, `If-Match` and `If-Range`."},
    "Idempotent-Replayed": {
        "schema": {"type": "string", "const": "true"},
        "description": "Only where the answer is that of an earlier request with the same `Idempotency-Key`.",
    },
    "Last-Modified": {"schema": TEXT, "description": "When this version came to be."},
    "Location": {"schema": TEXT, "description": "Path of what was made, or will be."},
    "Preference-Applied": {"schema": TEXT, "description": "`wait=SECONDS`: how long at most the answer was held."},
    "RateLimit": {
        "schema": TEXT,
        "description": 'What is left of the key\'s requests and for how many seconds, as `"key";r=599;t=42`. Only '
        "where a key is needed.",
    },
    "RateLimit-Policy": {
        "schema": TEXT,
        "description": 'The key\'s requests in so many seconds, as `"key";q=600;w=60`. Only where a key is needed.',
    },
    "Repr-Digest": {"schema": TEXT, "description": "`sha-256=:Base64:` of the whole file (RFC 9530)."},
    "Retry-After": {"schema": NUMBER, "description": "Seconds after which to ask again, if that makes sense."},
    "Vary": {"schema": TEXT, "description": "Headers of the request that decide about the answer."},
    "WWW-Authenticate": {"schema": TEXT, "description": "`Bearer`."},
    "X-Accel-Buffering": {"schema": TEXT, "description": "`no`: a proxy is to pass each event on at once."},
    "X-Request-Id": {"schema": TEXT, "description": "The request's own `X-Request-Id`, or a new one: quote it."},
    "x-should-retry": {
        "schema": {"type": "string", "const": "false"},
        "description": "Only where it does not help to repeat the request as it is.",
    },
}


def headers(*names: str) -> dict[str, Any]:
    """These, as the `headers` of a response."""
    assert HEADERS.keys() >= set(names)
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
