"""API keys: make, list, rotate, revoke; and what the key of a request allows."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from service.api.bodies import StrictJsonRoute
from service.api.deps import ReadUnit, RequestAccess, WriteUnit
from service.api.errors import problem_responses
from service.api.response_headers import headers
from service.api.schemas.api_keys import (
    ApiKeyCreate,
    ApiKeyCreated,
    ApiKeyRead,
    ApiKeyRotate,
    Me,
    api_key_created,
    api_key_read,
    me,
)
from service.api.schemas.lists import Page, PageOf, cut, page_of
from service.usecases import access as usecase

router = APIRouter(tags=["access"], route_class=StrictJsonRoute)

KeyId = Annotated[str, Path(max_length=64, description="The key.", examples=["key_019aa0b1c2d37e4f8a9b0c1d2e3f4a5b"])]


@router.get("/me", responses=problem_responses(503))
def get_me(access: RequestAccess) -> Me:
    """The project and the scopes of the key that this request came with."""
    return me(access)


@router.post(
    "/api_keys",
    status_code=201,
    responses={201: {"headers": headers("Location")}, **problem_responses(400, 403, 413, 415, 422, 503)},
)
def create_api_key(response: Response, unit: WriteUnit, access: RequestAccess, body: ApiKeyCreate) -> ApiKeyCreated:
    """Make a key that allows no more than the own one. Its secret is in this answer and nowhere else.

    Not repeated under an Idempotency-Key: the secret is kept nowhere. Revoke a key whose answer was lost.
    """
    new = usecase.create_key(
        unit,
        access,
        name=body.name,
        project=body.project if usecase.Scope.ADMIN in body.scopes else body.project or access.project,
        scopes=body.scopes,
        lasts_s=body.expires_in_s,
    )
    response.headers["Location"] = f"/v1/api_keys/{new.key.id}"
    return api_key_created(new)


@router.get("/api_keys", responses=problem_responses(403, 404, 422, 503))
def list_api_keys(unit: ReadUnit, query: PageOf) -> Page[ApiKeyRead]:
    """Keys of the project, newest first, also those that were revoked."""
    rows, has_more = cut(unit.api_keys.list()[::-1], query.window(), lambda row: row.id)
    return page_of(rows, has_more, api_key_read, lambda read: read.id)


@router.get("/api_keys/{key_id}", responses=problem_responses(403, 404, 422, 503))
def get_api_key(unit: ReadUnit, key_id: KeyId) -> ApiKeyRead:
    """One key."""
    return api_key_read(unit.api_keys.get(key_id))


@router.post(
    "/api_keys/{key_id}/rotate", status_code=201, responses=problem_responses(400, 403, 404, 409, 413, 415, 422, 503)
)
def rotate_api_key(
    unit: WriteUnit,
    access: RequestAccess,
    key_id: KeyId,
    body: ApiKeyRotate = ApiKeyRotate(),  # noqa: B008 - immutable
) -> ApiKeyCreated:
    """Give the key a new secret; the present one is taken for a while longer, so that programs can be changed."""
    return api_key_created(usecase.rotate_key(unit, access, key_id, grace_s=body.grace_s))


@router.delete("/api_keys/{key_id}", status_code=204, responses=problem_responses(403, 404, 422, 503))
def revoke_api_key(unit: WriteUnit, access: RequestAccess, key_id: KeyId) -> None:
    """Revoke the key: within five seconds nobody gets in with it."""
    usecase.revoke_key(unit, access, key_id)
