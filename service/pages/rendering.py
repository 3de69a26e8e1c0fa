"""From a template to an answer, and from an error to a page that says what to do."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.staticfiles import StaticFiles

from sam3_lora.version import VERSION
from service.api.errors import internal_error, of_database_error, of_service_error
from service.pages.formats import FILTERS
from service.shared.errors import NotFoundError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from starlette.types import Scope

HERE = Path(__file__).parent
STATIC = HERE / "static"
STATIC_URL = "/ui/static"
# Scripts and styles from here alone, none in the page itself; pictures also from memory, for what was just dropped.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'self'; frame-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin"}
LASTING = "public, max-age=31536000, immutable"


@cache
def static(name: str) -> str:
    """URL of a file of `static/`, another one whenever the file is another."""
    content = (STATIC / name).read_bytes()
    return f"{STATIC_URL}/{name}?v={hashlib.sha256(content).hexdigest()[:12]}"


class Files(StaticFiles):
    """Files of `static/`, which browsers keep for as long as their URL is asked for."""

    def __init__(self) -> None:
        super().__init__(directory=STATIC)

    def file_response(self, full_path: Any, stat_result: Any, scope: Scope, status_code: int = 200) -> Response:
        answer = super().file_response(full_path, stat_result, scope, status_code)
        if b"v=" in scope["query_string"]:
            answer.headers["Cache-Control"] = LASTING
        return answer


TEMPLATES = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters.update(FILTERS)
TEMPLATES.globals.update(static=static, version=VERSION)


def page(request: Request, template: str, status: int = 200, **found: Any) -> HTMLResponse:
    """A template, filled."""
    settings = request.app.state.services.settings
    access = request.scope["state"].get("access")
    context = {
        "path": request.url.path,
        "asks_for_keys": settings.require_keys,
        "project": None if access is None else access.project,
        **found,
    }
    return HTMLResponse(TEMPLATES.get_template(template).render(context), status, HEADERS)


def page_or_part(request: Request, name: str, **found: Any) -> HTMLResponse:
    """The page `name.html`, or the part of it that changes, `parts/name.html`, where a script asks."""
    return page(request, f"parts/{name}.html" if "hx-request" in request.headers else f"{name}.html", **found)


def error_page(request: Request, status: int, title: str, detail: str) -> HTMLResponse:
    """An error for people."""
    request_id = request.scope.get("state", {}).get("request_id", "")
    return page(request, "error.html", status, title=title, detail=detail, request_id=request_id)


class PageRoute(APIRoute):
    """A route whose errors are pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def answer_with_pages(request: Request) -> Response:
            try:
                return await answer(request)
            except ServiceError as error:
                of_service_error(request, error)  # logs what is the server's fault
                return error_page(request, error.status, error.title, error.message)
            except RequestValidationError:
                return error_page(request, 422, "This address is not right", "Go back, and follow a link from there.")
            except (OperationalError, InterfaceError, PoolTimeoutError) as error:
                of_database_error(request, error)
                detail = "The database does not answer. Nothing is lost: this page works again as soon as it does."
                return error_page(request, 503, "The database is away", detail)
            except Exception:  # noqa: BLE001 - the last net, as under every request, but for people
                internal_error(request)  # logs it
                return error_page(request, 500, "Something unexpected happened", "The server's log says what.")

        return answer_with_pages


def nothing_here(request: Request) -> Response:
    """Any page that there is not."""
    return error_page(request, NotFoundError.status, "There is no such page", f"Nothing is at {request.url.path}.")
