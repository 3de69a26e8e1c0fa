"""Webhook endpoints over HTTP: what is accepted, what is refused, and that secrets are shown once."""

from __future__ import annotations

import json
import logging
import stat
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text

from service.shared.addresses import check_receiver
from service.shared.db.models import Base
from service.shared.db.repositories.webhooks import Sent
from service.shared.errors import SettingsError, UrlRefusedError, WebhooksUnavailableError
from service.shared.queue import Task
from service.shared.settings import Settings, load
from service.shared.vault import KEY_FILE, Vault
from service.shared.webhooks import new_secret
from tests.service.conftest import Api, add_job, assert_problem, served
from tests.service.webhooks import KEY, URL, add_endpoint, deliveries

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

ENDPOINTS = "/v1/webhook_endpoints"


def create(api: Api, *, headers: dict[str, str] | None = None, **values: Any) -> httpx.Response:
    body = {"url": URL, "events": ["job.succeeded", "job.queued"]} | values
    return api.client.post(ENDPOINTS, json=body, headers=headers)


def endpoint(api: Api, **values: Any) -> dict[str, Any]:
    made = create(api, **values)
    assert made.status_code == 201, made.text
    found: dict[str, Any] = made.json()
    return found


def test_an_endpoint_is_created_read_changed_and_deleted(api: Api) -> None:
    made = create(api, description="ours", events=["job.failed", "job.failed", "dataset.ready"])
    assert made.status_code == 201
    body = made.json()
    assert made.headers["location"] == f"{ENDPOINTS}/{body['id']}"
    assert made.headers["cache-control"] == "no-store"
    assert body["id"].startswith("whe_")
    assert body["secret"].startswith("whsec_")
    assert (body["events"], body["format"], body["project"]) == (["job.failed", "dataset.ready"], "standard", "default")
    read = api.client.get(body["urls"]["self"]).json()
    assert read == {name: value for name, value in body.items() if name != "secret"}
    listed = api.client.get(ENDPOINTS).json()
    assert listed["data"] == [read]
    changes = {"url": "https://other.example.org/x", "events": ["job.queued"], "description": None, "enabled": False}
    changed = api.client.patch(body["urls"]["self"], json=changes)
    assert changed.status_code == 200, changed.text
    assert {name: changed.json()[name] for name in changes} == changes
    assert api.client.delete(body["urls"]["self"]).status_code == 204
    assert_problem(api.client.get(body["urls"]["self"]), 404, "not_found")
    assert_problem(api.client.delete(body["urls"]["self"]), 404, "not_found")
    assert_problem(api.client.patch(body["urls"]["self"], json={"enabled": True}), 404, "not_found")


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.org/x",
        "https://127.0.0.1/x",
        "https://127.0.0.1:8000",
        "https://169.254.169.254/latest/meta-data/",
        "https://0xA9FEA9FE/",
        "https://2852039166/",
        "https://0251.0376.0251.0376/",
        "https://127.1/",
        "https://10.0.0.8/",
        "https://192.168.1.1/",
        "https://0.0.0.0/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:169.254.169.254]/",
        "https://[64:ff9b::a9fe:a9fe]/",
        "https://[fe80::1%25eth0]/",
        "https://[fc00::1]/",
        "https://localhost/",
        "https://localhost.",
        "https://api.localhost/",
        "https://user:password@hooks.example.org/",
        "https://hooks.example.org\\@127.0.0.1/",
        "https://hooks.example.org:0/",
        "https://hooks.example.org:99999/",
        "https://[::1",
        "https:///x",
        "https://ex ample.org/",
        "https://hooks.example.org/\r\nX-Injected: 1",
        "https://bücher.example/",
        "https://ⓛocalhost/",
        "ftp://hooks.example.org/",
        "file:///etc/passwd",
        "gopher://hooks.example.org/",
        "https://hooks.example.org/" + "x" * 1980,
        "",
    ],
)
def test_urls_that_lead_elsewhere_are_refused(api: Api, url: str) -> None:
    refused = create(api, url=url)
    assert refused.status_code == 422, refused.text
    assert refused.json()["errors"][0]["pointer"] == "/url"
    kept = endpoint(api)
    assert api.client.patch(kept["urls"]["self"], json={"url": url}).status_code == 422
    assert api.client.get(kept["urls"]["self"]).json()["url"] == URL


def test_only_hosts_that_the_operator_names_may_be_private(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, webhook_private_hosts="127.0.0.1:9000, Hooks.Internal")
    assert settings.webhook_private_hosts == ("127.0.0.1:9000", "hooks.internal")
    receiver = check_receiver(settings, "http://127.0.0.1:9000/x?a=1")
    assert (receiver.host, receiver.port, receiver.path) == ("127.0.0.1", 9000, "/x?a=1")
    assert (receiver.is_tls, receiver.is_trusted) == (False, True)
    assert check_receiver(settings, "https://hooks.INTERNAL/").port == 443
    for url in ("http://127.0.0.1:9001/", "http://127.0.0.1/", "https://127.0.0.2:9000/", "http://x.hooks.internal/"):
        with pytest.raises(UrlRefusedError):
            check_receiver(settings, url)


@pytest.mark.parametrize(
    ("values", "pointer"),
    [
        ({"events": []}, "/events"),
        ({"events": ["job.deleted"]}, "/events/0"),
        ({"events": ["*"]}, "/events/0"),
        ({"events": "job.failed"}, "/events"),
        ({"events": [7]}, "/events/0"),
        ({"events": [["job.failed"]]}, "/events/0"),
        ({"events": ["webhook.test"]}, "/events/0"),
        ({"description": "x" * 501}, "/description"),
        ({"project": "../x"}, "/project"),
        ({"format": "slack"}, "/format"),
        ({"format": "openai"}, "/events/1"),
        ({"secret": "whsec_x"}, "/secret"),
        ({"enabled": 1}, "/enabled"),
    ],
)
def test_other_faults_are_named(api: Api, values: dict[str, Any], pointer: str) -> None:
    refused = create(api, **values)
    assert refused.status_code == 422, refused.text
    assert refused.json()["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize("changes", [{"url": None}, {"events": None}, {"enabled": None}, {"format": "openai"}])
def test_changes_that_make_no_sense_are_refused(api: Api, changes: dict[str, Any]) -> None:
    kept = endpoint(api)
    assert api.client.patch(kept["urls"]["self"], json=changes).status_code == 422
    assert api.client.patch(kept["urls"]["self"], json={}).status_code == 200


def test_an_endpoint_of_openais_format_gets_what_openai_names(api: Api) -> None:
    made = endpoint(api, format="openai", events=["job.succeeded", "job.failed", "job.cancelled"])
    refused = api.client.patch(made["urls"]["self"], json={"events": ["job.failed", "job.started"]})
    assert refused.json()["errors"][0]["pointer"] == "/events/1"


def test_the_project_of_an_endpoint_decides_and_filters(api: Api) -> None:
    ours, theirs = endpoint(api)["id"], endpoint(api, project="attic")["id"]
    assert [each["id"] for each in api.client.get(f"{ENDPOINTS}?project=attic").json()["data"]] == [theirs]
    assert [each["id"] for each in api.client.get(f"{ENDPOINTS}?order=asc").json()["data"]] == [ours, theirs]


def test_the_twenty_first_endpoint_of_a_project_is_refused(api: Api) -> None:
    ids = [endpoint(api)["id"] for _ in range(20)]
    refused = create(api)
    assert_problem(refused, 409, "endpoint_limit")
    assert refused.headers["x-should-retry"] == "false"
    api.client.delete(f"{ENDPOINTS}/{ids[0]}")
    endpoint(api)


def test_a_key_makes_one_endpoint_and_shows_its_secret_again(api: Api) -> None:
    key = {"Idempotency-Key": "hook-1"}
    first, again = create(api, headers=key), create(api, headers=key)
    assert again.status_code == 201
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == first.json()
    assert len(api.client.get(ENDPOINTS).json()["data"]) == 1
    assert_problem(create(api, headers=key, description="other"), 422, "idempotency_key_reused")


def test_a_test_message_is_a_delivery_that_is_due(api: Api) -> None:
    made = endpoint(api)
    sent = api.client.post(f"{made['urls']['self']}/test")
    assert sent.status_code == 202, sent.text
    delivery = sent.json()
    assert sent.headers["location"] == delivery["urls"]["self"]
    assert (delivery["type"], delivery["status"], delivery["attempt"]) == ("webhook.test", "queued", 0)
    assert delivery["payload"]["data"]["id"] == made["id"]
    assert (Task.DELIVER, delivery["id"]) in api.queue.rings
    read = api.client.get(delivery["urls"]["self"])
    assert read.json() == delivery
    assert read.headers["retry-after"] == "5"
    api.client.patch(made["urls"]["self"], json={"enabled": False})
    assert_problem(api.client.post(f"{made['urls']['self']}/test"), 409, "endpoint_disabled")
    assert_problem(api.client.post(f"{delivery['urls']['self']}/redeliver"), 409, "endpoint_disabled")
    failed = api.client.get(delivery["urls"]["self"]).json()
    assert (failed["status"], failed["error"]["code"]) == ("failed", "endpoint_disabled")
    assert_problem(api.client.post(f"{ENDPOINTS}/whe_none/test"), 404, "not_found")


def settle(api: Api, status: int) -> None:
    with api.database.write() as unit:
        claimed = unit.deliveries.claim("w-1")
    assert claimed is not None
    with api.database.write() as unit:
        unit.deliveries.settle(claimed, Sent(api.clock.now(), 0.25, status, response="ok"), disable_after_s=1e9)


def test_a_delivery_is_sent_again_with_the_same_message_id(api: Api) -> None:
    made = endpoint(api)
    add_job(api.database)
    settle(api, 200)
    [delivery] = api.client.get(made["urls"]["deliveries"]).json()["data"]
    assert (delivery["status"], delivery["is_terminal"], delivery["attempt"]) == ("succeeded", True, 1)
    assert delivery["attempts"][0] | {"at": None} == {
        "number": 1,
        "at": None,
        "duration_s": 0.25,
        "status": 200,
        "error": None,
        "response": "ok",
    }
    again = api.client.post(f"{delivery['urls']['self']}/redeliver")
    assert again.status_code == 202
    assert (again.json()["status"], again.json()["message_id"]) == ("queued", delivery["message_id"])
    assert again.json()["payload"] == delivery["payload"]
    with api.database.write() as unit:
        assert unit.deliveries.claim("w-1") is not None
    sending = api.client.post(f"{delivery['urls']['self']}/redeliver")
    assert (sending.status_code, sending.json()["status"]) == (202, "running")
    assert_problem(api.client.post("/v1/webhook_deliveries/whd_none/redeliver"), 404, "not_found")
    assert_problem(api.client.get("/v1/webhook_deliveries/whd_none"), 404, "not_found")


def test_a_misspelt_event_is_told_which_there_are(api: Api) -> None:
    body = {"url": URL, "events": ["job.suceeded"]}
    problem = assert_problem(api.client.post("/v1/webhook_endpoints", json=body), 422, "invalid_request")
    assert "job.succeeded" in problem["errors"][0]["message"]


def test_deliveries_are_listed_in_pages_and_by_status(api: Api) -> None:
    made = endpoint(api)
    for _ in range(3):
        add_job(api.database)
    settle(api, 200)
    settle(api, 500)
    url = made["urls"]["deliveries"]
    first = api.client.get(f"{url}?limit=2&order=asc").json()
    assert (len(first["data"]), first["has_more"]) == (2, True)
    rest = api.client.get(f"{url}?limit=2&order=asc&after={first['last_id']}").json()
    assert (len(rest["data"]), rest["has_more"]) == (1, False)
    assert [each["status"] for each in api.client.get(f"{url}?status=succeeded").json()["data"]] == ["succeeded"]
    waiting = api.client.get(f"{url}?status=queued,running").json()["data"]
    assert sorted(each["attempt"] for each in waiting) == [0, 1]
    assert_problem(api.client.get(f"{url}?status=gone"), 422, "invalid_request")
    assert_problem(api.client.get(f"{ENDPOINTS}/whe_none/deliveries"), 404, "not_found")
    assert_problem(api.client.get(f"{url}?after=whd_none"), 404, "not_found")


def test_a_rotated_secret_is_new_and_the_old_one_counts_for_a_day(api: Api) -> None:
    made = endpoint(api)
    rotated = api.client.post(f"{made['urls']['self']}/rotate_secret")
    assert rotated.status_code == 200
    assert rotated.headers["cache-control"] == "no-store"
    assert rotated.json()["secret"] not in (made["secret"], "")
    until = datetime.fromisoformat(rotated.json()["previous_secret_until"])
    assert until - datetime.fromisoformat(rotated.json()["updated_at"]) == timedelta(hours=24)
    with api.database.read() as unit:
        row = unit.webhooks.get(made["id"])
    vault = Vault(api.settings)
    assert [vault.open(row.secret), vault.open(row.previous_secret or "")] == [rotated.json()["secret"], made["secret"]]


def test_secrets_are_nowhere_but_in_their_one_answer(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = {"Idempotency-Key": "hook-1"}
    made = create(api, headers=key).json()
    rotated = api.client.post(f"{made['urls']['self']}/rotate_secret").json()
    api.client.post(f"{made['urls']['self']}/test")
    add_job(api.database)
    secrets = [each.removeprefix("whsec_") for each in (made["secret"], rotated["secret"])]
    with api.database.read() as unit:
        rows = [list(unit.session.execute(select(table)).mappings()) for table in Base.metadata.sorted_tables]
        found = unit.webhooks.get(made["id"])
        everything = json.dumps([[dict(row) for row in table] for table in rows], default=str) + repr(found)
    assert "hook-1" in everything
    answers = [api.client.get(url).text for url in (ENDPOINTS, made["urls"]["self"], made["urls"]["deliveries"])]
    for secret in secrets:
        assert secret not in everything
        assert not any(secret in answer for answer in answers)
        assert secret not in caplog.text


def test_a_key_is_made_once_for_this_user_alone(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    sealed = Vault(settings).seal("a secret")
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert Vault(settings).open(sealed) == "a secret"
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]


def test_a_new_key_reads_what_an_old_one_has_sealed(tmp_path: Path) -> None:
    other = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="
    old = Vault(Settings(data_dir=tmp_path, secret_key=KEY))
    both = Vault(Settings(data_dir=tmp_path, secret_key=f"{other}, {KEY}"))
    new = Vault(Settings(data_dir=tmp_path, secret_key=other))
    assert both.open(old.seal("a")) == "a"
    assert new.open(both.seal("b")) == "b"
    with pytest.raises(WebhooksUnavailableError, match="another key"):
        new.open(old.seal("c"))
    assert not (tmp_path / KEY_FILE).exists()


def test_a_key_must_be_one_and_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM3_SECRET_KEY", "hunter2")
    with pytest.raises(SettingsError, match="SAM3_SECRET_KEY: every key is URL-safe base64 of 32 bytes") as refused:
        load(data_dir=tmp_path)
    assert "hunter2" not in str(refused.value)
    monkeypatch.setenv("SAM3_SECRET_KEY", KEY)
    assert KEY not in repr(load(data_dir=tmp_path))


def test_postgresql_needs_a_key_that_all_hosts_share(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url="postgresql://u@h/d")
    with pytest.raises(WebhooksUnavailableError, match="SAM3_SECRET_KEY"):
        Vault(settings).seal(new_secret())


def test_a_list_takes_the_index(api: Api) -> None:
    made = endpoint(api)
    with api.database.read() as unit:
        plan = unit.session.execute(
            text(
                "EXPLAIN QUERY PLAN SELECT id FROM webhook_deliveries WHERE endpoint_id = :endpoint_id "
                "AND state IN ('queued') ORDER BY created_at DESC, id DESC LIMIT 20"
            ),
            {"endpoint_id": made["id"]},
        )
        steps = " ".join(str(row) for row in plan)
    assert "USING" in steps
    assert "TEMP B-TREE" not in steps


def test_nobody_is_shot_at_with_test_messages(api: Api) -> None:
    with served(api.settings.model_copy(update={"webhook_tests_per_minute": 2})) as fresh:
        endpoints = [add_endpoint(fresh.database, fresh.settings)[0] for _ in range(2)]
        for endpoint_id in endpoints:
            assert fresh.client.post(f"{ENDPOINTS}/{endpoint_id}/test").status_code == 202
        refused = fresh.client.post(f"{ENDPOINTS}/{endpoints[0]}/test")
        assert_problem(refused, 429, "too_many_requests")
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert sum(len(deliveries(fresh.database, endpoint_id)) for endpoint_id in endpoints) == 2
        fresh.clock.advance(int(refused.headers["retry-after"]))
        assert fresh.client.post(f"{ENDPOINTS}/{endpoints[0]}/test").status_code == 202
