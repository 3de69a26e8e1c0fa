"""Signing in with a key, and out again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from anyio import to_thread
from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from service.api.authentication import SESSION_COOKIE, SIGN_IN
from service.api.sites import require_own_page
from service.pages.rendering import PageRoute, page
from service.shared.errors import UnauthorizedError
from service.usecases.access import MAX_SECRET_LENGTH, SESSION_S, hash_of, sign_in

if TYPE_CHECKING:
    from service.shared.unit_of_work import Database

router = APIRouter(prefix="/ui", route_class=PageRoute, include_in_schema=False)

START = "/ui"
Next = Annotated[str, Query(max_length=2000)]


@router.get("/sign-in", name="page_sign_in")
def show_sign_in(request: Request, next: Next = START) -> Response:  # noqa: A002 - the usual name
    """The form."""
    return page(request, "sign_in.html", next=_here(next), problem=None, signed_out=True)


@router.post("/sign-in", name="page_sign_in_with_key")
async def sign_in_with_key(
    request: Request,
    key: Annotated[str, Form(max_length=MAX_SECRET_LENGTH)],
    next: Annotated[str, Form(max_length=2000)] = START,  # noqa: A002
) -> Response:
    """Begin a session and go where one wanted to."""
    require_own_page(request.method, request.headers)  # nobody is signed in as somebody else by another site
    found = request.app.state.services
    failures, most = f"failures:{request.client.host if request.client else ''}", found.settings.max_failed_keys
    found.rates.look(failures, most).require("Too many wrong API keys came from this address: wait a minute.")
    try:
        secret = await to_thread.run_sync(_begin, found.database, key.strip())
    except UnauthorizedError as error:
        found.rates.hit(failures, most)
        return page(request, "sign_in.html", 401, next=_here(next), problem=error.message, signed_out=True)
    answer = RedirectResponse(_here(next), 303)
    answer.set_cookie(
        SESSION_COOKIE, secret, max_age=SESSION_S, httponly=True, samesite="lax", secure=request.url.scheme == "https"
    )
    return answer


@router.post("/sign-out", name="page_sign_out")
def sign_out(request: Request) -> Response:
    """End the session, here and on the server."""
    require_own_page(request.method, request.headers)
    if secret := request.cookies.get(SESSION_COOKIE):
        with request.app.state.services.database.write() as unit:
            unit.page_sessions.end(hash_of(secret[: MAX_SECRET_LENGTH + 1]))
    answer = RedirectResponse(SIGN_IN, 303)
    answer.delete_cookie(SESSION_COOKIE, httponly=True, samesite="lax")
    return answer


def _begin(database: Database, key: str) -> str:
    with database.write() as unit:
        return sign_in(unit, key)


def _here(address: str) -> str:
    """The address, if it is one of our pages: a link must not lead elsewhere through the sign-in."""
    return address if address.startswith(f"{START}/") and "\\" not in address else START
