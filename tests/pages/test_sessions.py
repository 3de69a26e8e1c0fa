"""Signing in with a key: what a session may do, how it ends, and that no other site can use it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import httpx
import pytest
from sqlalchemy import update

from service.api import authentication
from service.api.authentication import SESSION_COOKIE
from service.reconciler import Reconciler
from service.shared.db.models import ApiKey, PageSession
from service.usecases.access import SESSION_S, hash_of
from tests.service.conftest import Api, add_job, assert_problem, make_key, served

if TYPE_CHECKING:
    from collections.abc import Iterator

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(autouse=True)
def _nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "KNOWN_FOR_S", 0.0)


def origin(api: Api) -> str:
    return str(api.client.base_url).rstrip("/")


@contextlib.contextmanager
def browser(api: Api) -> Iterator[httpx.Client]:
    """A client that keeps cookies and says where its requests come from, as browsers do."""
    with httpx.Client(base_url=api.client.base_url, headers={"Origin": origin(api)}, timeout=30) as found:
        yield found


def sign_in(client: httpx.Client, secret: str, next_page: str = "/ui") -> httpx.Response:
    return client.post("/ui/sign-in", data={"key": secret, "next": next_page})


def test_a_page_leads_to_the_sign_in_and_from_there_back(locked: Api) -> None:
    with browser(locked) as client:
        asked = client.get("/ui/jobs?group=failed")
        assert (asked.status_code, asked.headers["location"]) == (303, "/ui/sign-in?next=%2Fui%2Fjobs%3Fgroup%3Dfailed")
        form = client.get(asked.headers["location"])
        assert form.status_code == 200
        assert 'value="/ui/jobs?group=failed"' in form.text
        answer = sign_in(client, make_key(locked, "team"), "/ui/jobs?group=failed")
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/jobs?group=failed")
        assert client.get("/ui/jobs").status_code == 200
        assert client.get("/v1/jobs").status_code == 200


def test_the_cookie_is_for_the_server_alone_and_the_key_is_not_in_it(locked: Api) -> None:
    secret = make_key(locked, "team")
    with browser(locked) as client:
        cookie = sign_in(client, secret).headers["set-cookie"]
        for part in ("HttpOnly", "Path=/", "SameSite=lax", f"Max-Age={SESSION_S}"):
            assert part in cookie
        assert "Secure" not in cookie
        assert secret not in cookie
        secure = client.post(
            "/ui/sign-in",
            data={"key": secret},
            headers={"X-Forwarded-Proto": "https", "Sec-Fetch-Site": "same-origin"},
        )
        assert "Secure" in secure.headers["set-cookie"]
        with locked.database.read() as unit:
            kept = unit.session.get(PageSession, hash_of(client.cookies[SESSION_COOKIE]))
        assert kept is not None


OTHERS = {
    "none is told": {},
    "another": {"Origin": "https://evil.example"},
    "hidden": {"Origin": "null"},
    "another site": {"Sec-Fetch-Site": "cross-site"},
    "a sibling": {"Sec-Fetch-Site": "same-site"},
    "typed in": {"Sec-Fetch-Site": "none"},
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_session_changes_nothing_from_elsewhere(locked: Api, case: str) -> None:
    job = add_job(locked.database, project="team")
    with browser(locked) as client:
        sign_in(client, make_key(locked, "team"))
        del client.headers["Origin"]
        assert_problem(client.post(f"/v1/jobs/{job}/cancel", headers=OTHERS[case]), 403, "foreign_site")
        assert client.post("/ui/sign-out", headers=OTHERS[case]).status_code == 403
        assert client.get(f"/v1/jobs/{job}").json()["status"] == "queued"
        assert client.post("/ui/sign-in", data={"key": "x"}, headers=OTHERS[case]).status_code == 403
        own = {"Origin": origin(locked)}
        assert client.post(f"/v1/jobs/{job}/cancel", headers=own).status_code == 202


def test_browsers_are_believed_where_a_proxy_changes_the_hosts_name(locked: Api) -> None:
    job = add_job(locked.database, project="team")
    with browser(locked) as client:
        sign_in(client, make_key(locked, "team"))
        told = {"Origin": "https://sam3.example", "Sec-Fetch-Site": "same-origin"}
        assert client.post(f"/v1/jobs/{job}/cancel", headers=told).status_code == 202


def test_a_key_in_the_header_goes_before_the_cookie(locked: Api) -> None:
    with browser(locked) as client:
        sign_in(client, make_key(locked, "team"))
        bearer = {"Authorization": f"Bearer {make_key(locked, 'other')}"}
        assert client.get("/v1/me", headers=bearer).json()["project"] == "other"
        assert client.get("/v1/me").json()["project"] == "team"


def test_a_session_ends_when_one_signs_out_when_its_time_is_over_and_with_its_key(locked: Api) -> None:
    secret = make_key(locked, "team")
    with browser(locked) as client:
        sign_in(client, secret)
        stolen = client.cookies[SESSION_COOKIE]
        out = client.post("/ui/sign-out")
        assert (out.status_code, out.headers["location"]) == (303, "/ui/sign-in")
        assert SESSION_COOKIE not in client.cookies
        client.cookies.set(SESSION_COOKIE, stolen)
        assert client.get("/ui/jobs").status_code == 303
        assert_problem(client.get("/v1/jobs"), 401, "unauthorized")
    with browser(locked) as client:
        sign_in(client, secret)
        locked.clock.advance(SESSION_S + 1)
        assert client.get("/ui/jobs").status_code == 303
        Reconciler(locked.settings, locked.database, locked.storage, locked.queue, locked.clock).sweep()
        with locked.database.read() as unit:
            assert unit.session.query(PageSession).count() == 0
    with browser(locked) as client:
        sign_in(client, secret)
        assert client.get("/ui/jobs").status_code == 200
        with locked.database.write() as unit:
            unit.session.execute(update(ApiKey).values(revoked_at=locked.clock.now()))
        assert client.get("/ui/jobs").status_code == 303
        assert sign_in(client, secret).status_code == 401


def test_wrong_keys_are_counted_here_as_well(locked: Api) -> None:
    settings = locked.settings.model_copy(update={"max_failed_keys": 3})
    with served(settings) as fresh, browser(fresh) as client:
        for _ in range(3):
            answer = sign_in(client, "sam3_wrong")
            assert answer.status_code == 401
            assert "not known" in answer.text
            assert "set-cookie" not in answer.headers
        assert sign_in(client, "sam3_wrong").status_code == 429
        assert sign_in(client, make_key(locked, "team")).status_code == 429


@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example/",
        "//evil.example/ui/",
        "/\\evil.example",
        "/ui\\..",
        "/v1/jobs",
        "javascript:alert(1)",
        "",
    ],
)
def test_the_sign_in_leads_to_no_other_site(locked: Api, address: str) -> None:
    with browser(locked) as client:
        assert sign_in(client, make_key(locked, "team"), address).headers["location"] == "/ui"
        form = client.get("/ui/sign-in", params={"next": address})
        assert 'name="next" value="/ui"' in form.text


def test_parts_of_a_page_are_not_led_away(locked: Api) -> None:
    answer = locked.client.get("/ui/jobs", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["hx-refresh"]) == (401, "true")
