"""Who asks: the API key of a request, before anything else of it is looked at, and what its scopes allow."""

from __future__ import annotations

import re
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import structlog
from anyio import to_thread
from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response

from service.api.errors import of_database_error, of_service_error
from service.api.rates import WINDOW_S
from service.api.sites import require_own_page, require_own_site
from service.shared.errors import ForbiddenError, ServiceError, UnauthorizedError
from service.usecases.access import EVERYTHING, MAX_SECRET_LENGTH, Access, Scope, access_of, hash_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Send
    from starlette.types import Scope as Connection

    from service.api.rates import Rates, Standing
    from service.shared.clock import Clock
    from service.shared.settings import Settings
    from service.shared.unit_of_work import Database

SIGN_IN = "/ui/sign-in"
PUBLIC = frozenset({"/", "/livez", "/readyz", "/version", "/openapi.json", "/docs", SIGN_IN})
PUBLIC_FOLDER = "/ui/static/"
PAGES = "/ui"
SESSION_COOKIE = "sam3_session"
BEARER = re.compile(r"Bearer +(\S+) *", re.IGNORECASE)
KNOWN_FOR_S = 5.0  # how long a key that was revoked may still be taken
TRUSTED_FOR_S = 600.0  # as long while the database is away: what says so, such as /metrics, needs a key as well
MAX_KNOWN = 10_000
USE_NOTED_EVERY = timedelta(minutes=1)
# Of operations whose scope does not follow from their method.
SCOPES = {
    "predict": Scope.PREDICT,
    "get_prediction": Scope.PREDICT,
    "list_models": Scope.PREDICT,
    "get_model": Scope.PREDICT,
    "estimate_job": Scope.READ,
    "create_api_key": Scope.KEYS,
    "list_api_keys": Scope.KEYS,
    "get_api_key": Scope.KEYS,
    "rotate_api_key": Scope.KEYS,
    "revoke_api_key": Scope.KEYS,
    "get_me": None,
    "list_workers": Scope.ADMIN,
    "scrape": Scope.ADMIN,
    "list_quotas": Scope.ADMIN,
    "get_project_quota": Scope.ADMIN,
    "set_quota": Scope.ADMIN,
    "remove_quota": Scope.ADMIN,
}


class Authentication:
    """Gives each request its `Access`, or an error instead of an answer."""

    def __init__(self, app: ASGIApp, *, database: Database, settings: Settings, clock: Clock, rates: Rates) -> None:
        self._app = app
        self._database = database
        self._settings = settings
        self._clock = clock
        self._known: dict[tuple[bool, str], tuple[Access, float]] = {}
        self._rates = rates

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        if not self._settings.require_keys:
            try:
                require_own_site(self._settings, scope["method"], Headers(scope=scope))
            except ServiceError as error:
                await of_service_error(Request(scope), error)(scope, receive, send)
                return
        path = scope["path"]
        is_public = path.removeprefix("/v1") in PUBLIC or path.startswith(PUBLIC_FOLDER)
        if not self._settings.require_keys or is_public:
            state["access"] = EVERYTHING
            await self._app(scope, receive, send)
            return
        limits: dict[str, str] = {}

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(limits)
            await send(message)

        try:
            access = await self._authenticate(scope)
            standing = self._rates.hit(f"requests:{access.key_id}", self._settings.requests_per_minute)
            limits |= _headers(standing)
            standing.require(f"This key may make {standing.limit} requests a minute: slow down.")
        except ServiceError as error:
            is_page = path == PAGES or path.startswith(f"{PAGES}/")
            asks = isinstance(error, UnauthorizedError) and is_page
            answer = to_sign_in(Request(scope)) if asks else of_service_error(Request(scope), error)
            await answer(scope, receive, send_with_limits)
            return
        except SQLAlchemyError as error:
            await of_database_error(Request(scope), error)(scope, receive, send)
            return
        state["access"] = access
        with structlog.contextvars.bound_contextvars(**access.named()):
            await self._app(scope, receive, send_with_limits)

    async def _authenticate(self, scope: Connection) -> Access:
        address = (scope.get("client") or ("", 0))[0]
        failures = f"failures:{address}"
        standing = self._rates.look(failures, self._settings.max_failed_keys)
        standing.require("Too many wrong API keys came from this address: wait a minute.")
        headers = Headers(scope=scope)
        match = BEARER.fullmatch(headers.get("authorization", ""))
        if match is not None:
            secret = match[1]
        elif (
            cookie := Request(scope).cookies.get(SESSION_COOKIE)
        ) is not None:  # which a browser sends whoever made it ask
            secret = cookie
            require_own_page(scope["method"], headers)
        else:
            raise UnauthorizedError("Send an API key, as in `Authorization: Bearer sam3_...`.")
        secret_sha256 = hash_of(secret[: MAX_SECRET_LENGTH + 1])
        is_key = match is not None
        access, until = self._known.get((is_key, secret_sha256), (None, 0.0))
        if access is not None and time.monotonic() < until:
            return access
        try:
            access = await to_thread.run_sync(self._look_up, is_key, secret_sha256)
        except SQLAlchemyError:
            if access is None or time.monotonic() > until + TRUSTED_FOR_S:
                raise
            return access
        if access is None:
            self._known.pop((is_key, secret_sha256), None)
            if not is_key:
                raise UnauthorizedError("This session has ended: sign in again.")
            self._rates.hit(failures, self._settings.max_failed_keys)
            raise UnauthorizedError("This API key is not known, or it was revoked or has expired.")
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[is_key, secret_sha256] = (access, time.monotonic() + KNOWN_FOR_S)
        return access

    def _look_up(self, is_key: bool, secret_sha256: str) -> Access | None:
        # Found by its hash: an index tells nobody how much of a secret was right.
        with self._database.read() as unit:
            key = (unit.api_keys if is_key else unit.page_sessions).find(secret_sha256)
        if key is None:
            return None
        if key.last_used_at is None or self._clock.now() - key.last_used_at > USE_NOTED_EVERY:
            with self._database.write() as unit:
                unit.api_keys.note_use(key.id)
        return access_of(key)


def to_sign_in(request: Request) -> Response:
    """Send a browser to where it may sign in, and from there back to the page; no part of a page is answered so."""
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    if "hx-request" in request.headers:
        return Response(status_code=401, headers={"HX-Refresh": "true"})
    return RedirectResponse(f"{SIGN_IN}?{urlencode({'next': here})}", 303)


def _headers(standing: Standing) -> dict[str, str]:
    return {
        "RateLimit-Policy": f'"key";q={standing.limit};w={WINDOW_S}',
        "RateLimit": f'"key";r={standing.remaining};t={standing.resets_s}',
    }


def accepted_scopes(operation: str, method: str) -> tuple[Scope, ...]:
    """Scopes of which a key must have one for an operation, by its name, the least first; none: any key will do."""
    is_reading = method in ("GET", "HEAD")
    needed = SCOPES.get(operation, Scope.READ if is_reading else Scope.WRITE)
    if needed is Scope.PREDICT and is_reading:
        return Scope.PREDICT, Scope.READ  # what models there are is also told to those who may not ask them
    return () if needed is None else (needed,)


async def authorised(request: Request) -> Access:
    """What the request may do.

    Raises:
        ForbiddenError: if its key does not have the scope that the operation needs.
    """
    access: Access = request.scope["state"]["access"]
    accepted = accepted_scopes(request.scope["route"].name, request.method)
    if accepted and not any(access.allows(scope) for scope in accepted):
        raise ForbiddenError(f"This API key lacks the scope {accepted[0].value!r}, which the operation needs.")
    return access
