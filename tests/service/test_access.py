"""Keys, scopes and projects: who gets in, what each may do, and that nobody sees what is another's."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import select, update

from service.shared.db.migrate import upgrade
from service.shared.db.models import ApiKey, Base, OfProject
from service.shared.settings import Settings
from service.shared.states import DatasetState
from service.usecases import access
from service.usecases.access import Scope
from tests.service.conftest import Api, add_dataset, add_job, assert_problem, body, empty, served
from tests.service.conftest import make_key as key
from tests.service.results import add_comparison, add_model, finish_comparison

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PUBLIC = {"/livez", "/readyz", "/version"}
LIMIT = 400


@pytest.fixture(scope="session")
def served_with_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data_dir = tmp_path_factory.mktemp("keys")
    settings = Settings(data_dir=data_dir, require_keys=True, max_failed_keys=5, requests_per_minute=LIMIT)
    upgrade(settings)
    with served(settings) as api:
        yield api


@pytest.fixture
def api(served_with_keys: Api) -> Api:
    """An application that asks for keys, on SQLite, empty; its client has none."""
    empty(served_with_keys.settings)
    return served_with_keys


@contextlib.contextmanager
def client(api: Api, secret: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=api.client.base_url, headers=headers, timeout=30) as found:
        yield found


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Basic c2FtMzo=",
        "Bearer a b",
        "Bearer sam3_" + "x" * 43,
        "Bearer " + "x" * 5000,
        "bearer sam3_",
        "Bearer \xff",
        "Token sam3_x",
    ],
)
def test_without_a_good_key_nobody_gets_in(api: Api, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    with served_anew(api) as fresh:
        answer = fresh.client.get("/v1/jobs", headers=headers)
        assert_problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
        for path in PUBLIC:
            assert fresh.client.get(path, headers=headers).status_code == 200


@contextlib.contextmanager
def served_anew(api: Api) -> Iterator[Api]:
    """Another process, which has counted no failures yet."""
    with served(api.settings) as fresh:
        yield fresh


def test_no_operation_but_the_public_ones_answers_without_a_key(api: Api) -> None:
    settings = api.settings.model_copy(update={"max_failed_keys": 10_000})
    with served(settings) as fresh:
        document = fresh.client.get("/openapi.json").json()
        for path, operations in document["paths"].items():
            for method in operations:
                for prefix in ("", "/v1"):
                    url = prefix + re.sub(r"{\w+}", "x", path)
                    answer = fresh.client.request(method, url)
                    assert (answer.status_code == 401) != (path in PUBLIC), (method, url, answer.status_code)


def test_wrong_keys_shut_an_address_out_for_a_while_and_good_ones_do_not(api: Api) -> None:
    good = key(api, "a")
    with served_anew(api) as fresh, client(fresh, good) as ours:
        for _ in range(5):
            assert fresh.client.get("/v1/jobs", headers={"Authorization": "Bearer sam3_wrong"}).status_code == 401
        refused = fresh.client.get("/v1/jobs", headers={"Authorization": "Bearer sam3_wrong"})
        assert_problem(refused, 429, "too_many_requests")
        assert int(refused.headers["retry-after"]) > 0
        assert ours.get("/v1/jobs").status_code == 429  # of the same address, so that guessing ends


def test_requests_are_counted_and_too_many_refused(api: Api) -> None:
    settings = api.settings.model_copy(update={"requests_per_minute": 3})
    with served(settings) as fresh, client(fresh, key(api, "a")) as ours, client(fresh, key(api, "b")) as theirs:
        answers = [ours.get("/v1/jobs") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert [re.search(r"r=(\d+)", answer.headers["ratelimit"])[1] for answer in answers[:3]] == ["2", "1", "0"]  # type: ignore[index]
        assert answers[0].headers["ratelimit-policy"] == '"key";q=3;w=60'
        assert theirs.get("/v1/jobs").status_code == 200


def test_scopes_allow_what_they_say_and_no_more(api: Api) -> None:
    tried: dict[str, tuple[str, str, dict[str, Any]]] = {
        "read": ("GET", "/v1/jobs", {}),
        "write": ("POST", "/v1/uploads", {"json": {"filename": "a.zip", "bytes": 1}}),
        "see models": ("GET", "/v1/models", {}),
        "predict": ("POST", "/v1/models/model_nope/predict", {"files": {"image": b""}}),
        "keys": ("GET", "/v1/api_keys", {}),
    }
    allowed = {
        Scope.READ: {"read", "see models"},
        Scope.WRITE: {"read", "write", "see models", "predict"},
        Scope.PREDICT: {"see models", "predict"},
        Scope.KEYS: {"keys"},
        Scope.ADMIN: set(tried),
    }
    for scope, names in allowed.items():
        with client(api, key(api, None if scope is Scope.ADMIN else "a", scope)) as ours:
            for name, (method, path, extra) in tried.items():
                answer = ours.request(method, path, **extra)
                if name in names:
                    assert answer.status_code in (200, 201, 404, 422), (scope, name, answer.text)
                else:
                    assert_problem(answer, 403, "insufficient_scope")
            assert ours.get("/v1/me").json()["scopes"] == sorted({scope, *access.INCLUDED.get(scope, ())})


def test_no_key_takes_a_projects_data_into_another(api: Api) -> None:
    """What a job has seen is shown with it, as samples."""
    ours, theirs = (add_dataset(api.database.of(project)) for project in ("a", "b"))
    with client(api, key(api, None, Scope.ADMIN)) as admin:
        wanted = body(dataset_id=ours, project="b")
        problem = assert_problem(admin.post("/v1/jobs", json=wanted), 422, "invalid_request")
        assert [(each["pointer"], each["code"]) for each in problem["errors"]] == [("/dataset_id", "other_project")]
        wanted = body(dataset_id=theirs, validation_dataset_id=ours, project="b")
        problem = assert_problem(admin.post("/v1/jobs", json=wanted), 422, "invalid_request")
        assert problem["errors"][0]["pointer"] == "/validation_dataset_id"
        assert admin.post("/v1/jobs", json=body(dataset_id=theirs, project="b")).status_code == 201


def test_a_key_makes_keys_that_allow_no_more_than_itself(api: Api) -> None:
    with client(api, key(api, "a", Scope.KEYS, Scope.READ)) as ours:
        made = ours.post("/v1/api_keys", json={"name": "ci", "scopes": ["read"], "expires_in_s": 3600}).json()
        assert (made["project"], made["scopes"], made["hint"]) == ("a", ["read"], made["secret"][-4:])
        for body in (
            {"name": "x", "scopes": ["write"]},
            {"name": "x", "scopes": ["admin"]},
            {"name": "x", "scopes": ["read"], "project": "b"},
        ):
            assert_problem(ours.post("/v1/api_keys", json=body), 403, "insufficient_scope")
        assert ours.post("/v1/api_keys", json={"name": "x", "scopes": []}).status_code == 422
        other = key(api, "a", Scope.WRITE)
        listed = ours.get("/v1/api_keys").json()["data"]
        stronger = next(each for each in listed if each["scopes"] == ["write"])
        assert_problem(ours.delete(f"/v1/api_keys/{stronger['id']}"), 403, "insufficient_scope")
        assert other not in ours.get("/v1/api_keys").text
        assert "secret" not in listed[0]
        with client(api, made["secret"]) as mine:
            assert mine.get("/v1/jobs").status_code == 200
            assert ours.get(f"/v1/api_keys/{made['id']}").json()["last_used_at"] is not None
            assert ours.delete(f"/v1/api_keys/{made['id']}").status_code == 204
            with served_anew(api) as fresh:  # this process knows it for some seconds more
                answer = fresh.client.get("/v1/jobs", headers=mine.headers)
            assert_problem(answer, 401, "unauthorized")
    with client(api, key(api, None, Scope.ADMIN)) as admin:
        assert_problem(admin.post("/v1/api_keys", json={"name": "x", "scopes": ["read"]}), 422, "invalid_request")
        made = admin.post("/v1/api_keys", json={"name": "x", "scopes": ["admin"]}).json()
        assert made["project"] is None


def test_a_rotated_key_has_two_secrets_for_a_while_and_an_expired_one_has_none(api: Api) -> None:
    old = key(api, "a", Scope.KEYS, Scope.READ)
    with client(api, old) as ours:
        key_id = ours.get("/v1/me").json()["key_id"]
        rotated = ours.post(f"/v1/api_keys/{key_id}/rotate", json={"grace_s": 100}).json()
    assert rotated["secret"] != old

    def status(secret: str) -> int:
        with served(api.settings) as fresh:
            # Another process has a clock of its own, which begins where that of the tests begins.
            fresh.clock.elapsed_s = api.clock.elapsed_s
            return fresh.client.get("/v1/me", headers={"Authorization": f"Bearer {secret}"}).status_code

    assert (status(old), status(rotated["secret"])) == (200, 200)
    api.clock.advance(101)
    assert (status(old), status(rotated["secret"])) == (401, 200)
    with api.database.write() as unit:
        unit.session.execute(update(ApiKey).values(expires_at=api.clock.now()))
    assert status(rotated["secret"]) == 401


def test_secrets_are_kept_as_hashes_alone(api: Api) -> None:
    secret = key(api, "a")
    with api.database.read() as unit:
        [row] = unit.session.scalars(select(ApiKey))
    kept = " ".join(str(getattr(row, column.key)) for column in ApiKey.__mapper__.columns)
    assert secret not in kept
    assert secret.removeprefix(access.PREFIX)[:-4] not in kept
    assert len(secret) >= 43 + len(access.PREFIX)
    assert len({key(api, "a") for _ in range(100)}) == 100


def test_every_resource_of_a_project_is_nothing_to_another(api: Api, tmp_path: Path) -> None:  # noqa: C901 - a table
    """Every operation with an id in its path is asked with the ids of another project's resources."""
    theirs = api.database.of("theirs")
    dataset = add_dataset(theirs, DatasetState.READY)
    with theirs.write() as unit:
        unit.session.execute(update(Base.metadata.tables["datasets"]).values(project="theirs"))
    model = add_model(theirs, api.storage, tmp_path)
    with api.database.write() as unit:
        for table in Base.metadata.sorted_tables:  # whatever the helpers made is theirs
            if "project" in table.columns and table.name not in ("api_keys", "idempotency_keys"):
                unit.session.execute(update(table).values(project="theirs"))
    job = add_job(theirs, dataset, project="theirs")
    add_comparison(theirs, api.settings, ("sam3-tiny", model))
    comparison = finish_comparison(theirs, api.storage, tmp_path, (0.25, 0.5))
    with client(api, key(api, "theirs", Scope.WRITE, Scope.KEYS)) as owner:
        done = owner.get(f"/v1/models/{model}").json()["job_id"]
        checkpoint = owner.get(f"/v1/jobs/{done}/checkpoints").json()["data"][0]
        upload = owner.post("/v1/uploads", json={"filename": "a.zip", "bytes": 4}).json()["id"]
        sweep = owner.post(
            "/v1/sweeps",
            json={
                "name": "s",
                "job": {"base_model": "sam3-tiny", "dataset_id": dataset},
                "parameters": {"lora.rank": {"values": [4, 8]}},
            },
        ).json()["id"]
        form = {"file": ("a.png", picture()), "prompt": (None, "x")}
        prediction = owner.post(f"/v1/models/{model}/predict", files=form, headers={"Prefer": "wait=0"}).json()["id"]
        key_id = owner.get("/v1/me").json()["key_id"]
        hook = {"url": "https://hooks.example.com/x", "events": ["job.succeeded"]}
        endpoint = owner.post("/v1/webhook_endpoints", json=hook).json()["id"]
        delivery = owner.post(f"/v1/webhook_endpoints/{endpoint}/test").json()["id"]
        known = {
            "endpoint_id": endpoint,
            "delivery_id": delivery,
            "job_id": done,
            "dataset_id": dataset,
            "file_id": dataset,
            "fine_tuning_job_id": done,
            "upload_id": upload,
            "checkpoint_id": checkpoint["id"],
            "model_id": model,
            "prediction_id": prediction,
            "comparison_id": comparison,
            "sweep_id": sweep,
            "key_id": key_id,
            "base_model": None,
            "number": "1",
            "name": checkpoint["files"][0]["name"],
            "model": "tuned",
            "position": "0",
            "panel": "image",
        }
        document = api.client.get("/openapi.json").json()
        tried = 0
        with client(api, key(api, "ours", Scope.WRITE, Scope.KEYS)) as stranger:
            for path, operations in document["paths"].items():
                names = re.findall(r"{(\w+)}", path)
                if not names or "base_model" in names:
                    continue
                if "project" in names:  # quotas: the operators', whatever the project
                    for method in operations:
                        url = "/v1" + path.replace("{project}", "ours")
                        assert_problem(stranger.request(method, url, json={}), 403, "insufficient_scope")
                    continue
                assert set(names) <= known.keys(), f"{path}: name a resource of this kind above"
                there = known | ({"name": "truth.json"} if "evaluation" in path else {})
                url = "/v1" + re.sub(r"{(\w+)}", lambda match: str(there[match[1]]), path)  # noqa: B023 - used at once
                for method in operations:
                    answer = stranger.request(method, url, **body_of(operations[method], dataset))
                    assert answer.status_code == 404, (method, url, answer.status_code, answer.text[:300])
                    tried += 1
            assert tried > 40
            listed_all = ("jobs", "datasets", "models", "comparisons", "sweeps", "webhook_endpoints")
            for listed in (*listed_all, "files", "fine_tuning/jobs"):
                assert stranger.get(f"/v1/{listed}").json()["data"] == []
                assert owner.get(f"/v1/{listed}").json()["data"] != []
            assert [each["id"] for each in stranger.get("/v1/api_keys").json()["data"]] != [key_id]
            bodies: list[tuple[str, dict[str, Any]]] = [
                ("jobs", {"name": "x", "base_model": "sam3-tiny", "dataset_id": dataset}),
                ("jobs/estimate", {"name": "x", "base_model": "sam3-tiny", "dataset_id": dataset}),
                ("comparisons", {"dataset_id": dataset, "models": ["sam3-tiny", model]}),
                ("datasets", {"source": {"type": "upload", "upload_id": upload}}),
                ("fine_tuning/jobs", {"model": "sam3-tiny", "training_file": dataset}),
                ("jobs", {"name": "x", "base_model": "sam3-tiny", "dataset_id": dataset, "project": "theirs"}),
            ]
            for path, body in bodies:
                assert stranger.post(f"/v1/{path}", json=body).status_code == 422, path
            mine = add_dataset(api.database.of("ours"), DatasetState.READY)
            for init in ({"job_id": done}, {"checkpoint_id": checkpoint["id"]}):
                body = {"name": "x", "base_model": "sam3-tiny", "dataset_id": mine, "init_from": init}
                assert stranger.post("/v1/jobs", json=body).status_code == 422
            body = {"name": "x", "base_model": "sam3-tiny", "dataset_id": mine, "validation_dataset_id": dataset}
            assert stranger.post("/v1/jobs", json=body).status_code == 422
            for result in (f"metrics_{done}", model):
                assert owner.get(f"/v1/files/{result}/content").status_code == 200
                for path in (result, f"{result}/content"):
                    assert stranger.get(f"/v1/files/{path}").status_code == 404
                assert stranger.delete(f"/v1/files/{result}").status_code == 404
            for listed, after in (("files", dataset), ("fine_tuning/jobs", done)):
                assert stranger.get(f"/v1/{listed}", params={"after": after}).status_code == 404
            for listed in ("jobs", "datasets", "models", "comparisons", "sweeps"):
                for cursor in ("after", "before"):
                    place = {"jobs": job, "datasets": dataset, "models": model, "comparisons": comparison}
                    query = {cursor: place.get(listed, sweep)}
                    assert stranger.get(f"/v1/{listed}", params=query).status_code == 404
    with api.database.read() as unit:  # and nothing was changed by the trying
        assert unit.datasets.get(dataset).deleted_at is None
        assert unit.models.get(model).project == "theirs"


def body_of(operation: dict[str, Any], dataset_id: str) -> dict[str, Any]:
    """Something to send that is well-formed."""
    content = operation.get("requestBody", {}).get("content", {})
    if "multipart/form-data" in content:
        return {"files": {"file": ("a.png", picture()), "prompt": (None, "x")}}
    if "application/octet-stream" in content:
        return {"content": b"abcd", "headers": {"Content-Type": "application/octet-stream"}}
    return {"json": {}} if "application/json" in content else {}


def picture() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_what_is_made_belongs_to_the_project_of_the_key(api: Api) -> None:
    with client(api, key(api, "ours", Scope.WRITE)) as ours, client(api, key(api, None, Scope.ADMIN)) as admin:
        dataset = add_dataset(api.database.of("ours"), DatasetState.READY)
        job = ours.post("/v1/jobs", json={"name": "x", "base_model": "sam3-tiny", "dataset_id": dataset}).json()
        assert job["project"] == "ours"
        assert ours.get(f"/v1/jobs/{job['id']}").status_code == 200
        assert ours.get(f"/v1/jobs/{job['id']}").json()["queue"]["jobs_ahead"] == 0
        assert admin.get(f"/v1/jobs/{job['id']}").status_code == 200
        another = add_dataset(api.database.of("any"), DatasetState.READY)
        wanted = {"name": "y", "base_model": "sam3-tiny", "dataset_id": another, "project": "any"}
        assert admin.post("/v1/jobs", json=wanted).json()["project"] == "any"


def test_a_project_sees_its_own_line_of_the_queue_and_no_workers(api: Api) -> None:
    dataset = add_dataset(api.database, DatasetState.READY)
    for project in ("ours", "theirs", "theirs"):
        add_job(api.database, dataset, project=project)
    with client(api, key(api, "ours", Scope.READ)) as ours:
        queue = ours.get("/v1/queue").json()
        assert queue["queued"] == 3
        assert queue["lines"] == [{"project": "ours", "priority": 50, "queued": 1}]
        assert_problem(ours.get("/v1/workers"), 403, "insufficient_scope")
    with client(api, key(api, None, Scope.ADMIN)) as admin:
        assert len(admin.get("/v1/queue").json()["lines"]) == 2
        assert admin.get("/v1/workers").status_code == 200


def test_an_idempotency_key_is_its_projects_own(api: Api) -> None:
    ids = []
    for project in ("a", "b"):
        dataset = add_dataset(api.database.of(project), DatasetState.READY)
        body = {"name": "x", "base_model": "sam3-tiny", "dataset_id": dataset}
        with client(api, key(api, project)) as ours:
            made = ours.post("/v1/jobs", json=body, headers={"Idempotency-Key": "same"})
            assert made.status_code == 201
            assert ours.post("/v1/jobs", json=body, headers={"Idempotency-Key": "same"}).json() == made.json()
            ids.append(made.json()["id"])
    assert len(set(ids)) == 2


def test_a_crowd_of_projects_keeps_apart(api: Api) -> None:
    projects = [f"p{number}" for number in range(6)]
    datasets = {project: add_dataset(api.database.of(project), DatasetState.READY) for project in projects}
    secrets = {project: key(api, project) for project in projects}

    def work(project: str) -> set[str]:
        with client(api, secrets[project]) as ours:
            body = {"name": project, "base_model": "sam3-tiny", "dataset_id": datasets[project]}
            made = {ours.post("/v1/jobs", json=body).json()["id"] for _ in range(8)}
            stolen = body | {"dataset_id": datasets[projects[projects.index(project) - 1]]}
            assert ours.post("/v1/jobs", json=stolen).status_code == 422
            assert {job["id"] for job in ours.get("/v1/jobs?limit=100").json()["data"]} == made
            return made

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(work, projects))
    assert len(set().union(*found)) == 48


def test_every_table_with_a_project_is_kept_apart() -> None:
    restricted = {mapper.local_table.name for mapper in Base.registry.mappers if issubclass(mapper.class_, OfProject)}
    with_project = {table.name for table in Base.metadata.sorted_tables if "project" in table.columns}
    # Keys and idempotency keys are asked for by their project in their own repositories.
    assert with_project - restricted == {"api_keys", "idempotency_keys"}


def test_an_open_address_needs_keys(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="REQUIRE_KEYS"):
        Settings(data_dir=tmp_path, host="0.0.0.0")
    assert Settings(data_dir=tmp_path, host="0.0.0.0", require_keys=True).host == "0.0.0.0"


def test_the_first_key_comes_from_the_command_line(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, require_keys=True)
    upgrade(settings)

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"SAM3_DATA_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
        whole = [sys.executable, "-m", "service.cli", "keys", *arguments]
        return subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=60, check=False)

    made = command("create", "--name", "ci", "--project", "pallets", "--scope", "write")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    with served(settings) as api, client(api, secret) as ours:
        me = ours.get("/v1/me").json()
        assert (me["project"], me["scopes"]) == ("pallets", ["predict", "read", "write"])
    assert me["key_id"] in command("list").stdout
    assert secret not in command("list").stdout
    assert command("revoke", me["key_id"]).returncode == 0
    assert "revoked" in command("list").stdout
    wrong = command("create", "--name", "x", "--scope", "read")
    assert (wrong.returncode, "project" in wrong.stderr) == (1, True)
