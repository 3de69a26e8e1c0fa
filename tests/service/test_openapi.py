"""The OpenAPI document itself: what it says of every operation is complete, and true as far as the code can tell."""

from __future__ import annotations

import re
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from sam3_lora.coco.report import DatasetReport, Issue, IssueCode
from sam3_lora.config import Section
from sam3_lora.training.progress import Report
from service.api.authentication import PUBLIC
from service.api.bodies import validated
from service.api.examples import REQUESTS
from service.api.openai.schemas.fine_tuning import FineTuningJobCreate
from service.api.openai.schemas.uploads import OpenAIUploadCreate, UploadComplete
from service.api.response_headers import HEADERS
from service.api.schemas.api_keys import ApiKeyCreate, ApiKeyRotate
from service.api.schemas.checkpoints import CheckpointRead
from service.api.schemas.comparisons import ComparisonCreate
from service.api.schemas.datasets import (
    DatasetCreate,
    DatasetIssue,
    DatasetRead,
    DatasetStats,
    DatasetSummary,
    DatasetValidation,
)
from service.api.schemas.evaluation import EvaluationRead
from service.api.schemas.events import EventRead
from service.api.schemas.jobs import JobBest, JobClone, JobCreate, JobPatch, JobRead, JobResult, JobRetry, JobTrainable
from service.api.schemas.lists import Failure, Read
from service.api.schemas.messages import (
    CheckpointData,
    CheckpointMessage,
    ComparisonData,
    ComparisonMessage,
    DatasetData,
    DatasetMessage,
    EndpointMessage,
    JobData,
    JobMessage,
    OpenAIMessage,
)
from service.api.schemas.metrics import MetricsRead
from service.api.schemas.models import ModelRead
from service.api.schemas.quotas import QuotaLimits
from service.api.schemas.sweeps import SweepCreate
from service.api.schemas.uploads import UploadCreate
from service.api.schemas.webhooks import WebhookEndpointCreate, WebhookEndpointPatch
from service.main import create_app
from service.shared.db.models import Checkpoint, Comparison, Dataset, Job
from service.shared.settings import Settings
from service.shared.states import DatasetState, JobState
from service.shared.webhooks import (
    OF_COMPARISON,
    OF_DATASET,
    OF_JOB,
    OPENAI_NAMES,
    TEST,
    EventType,
    checkpoint_data,
    comparison_data,
    dataset_data,
    job_data,
    new_secret,
    signed,
)
from service.usecases.access import Scope
from service.usecases.retries import merged
from tests.service.conftest import Api, FakeQueue, add_job
from tests.service.results import add_model
from worker import failures

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx
    from fastapi import FastAPI
    from pydantic import BaseModel

PROBLEM = "application/problem+json"
Operation = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(Settings(data_dir=tmp_path_factory.mktemp("app")), queue=FakeQueue())


@pytest.fixture(scope="module")
def document(app: FastAPI) -> dict[str, Any]:
    found: dict[str, Any] = app.openapi()
    return found


def operations(document: dict[str, Any]) -> Iterator[Operation]:
    """Each with `METHOD /path`."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def is_public(name: str) -> bool:
    return name.partition(" ")[2] in PUBLIC


def find(document: dict[str, Any], name: str) -> dict[str, Any]:
    method, _, path = name.partition(" ")
    found: dict[str, Any] = document["paths"][path][method.lower()]
    return found


def resolved(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """What a reference leads to."""
    while "$ref" in node:
        found: dict[str, Any] = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def response(document: dict[str, Any], name: str, status: int) -> dict[str, Any]:
    return resolved(document, find(document, name)["responses"][str(status)])


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_leads_somewhere_and_nothing_shared_is_unused(document: dict[str, Any]) -> None:
    found = set(references(document))
    for reference in found:
        resolved(document, {"$ref": reference})
    for kind in ("responses", "headers", "schemas"):
        there = {f"#/components/{kind}/{name}" for name in document["components"][kind]}
        assert there <= found, kind


def test_every_operation_says_which_key_it_takes(document: dict[str, Any], tmp_path_factory: Any) -> None:
    [scheme] = document["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    settings = Settings(data_dir=tmp_path_factory.mktemp("keys"), require_keys=True)
    with_keys = create_app(settings, queue=FakeQueue()).openapi()
    for name, operation in operations(document):
        if is_public(name):
            assert operation["security"] == find(with_keys, name)["security"] == [], name
            continue
        scope = operation.get("x-required-scope")
        needed = [{"apiKey": [] if scope is None else [scope]}]
        if scope == "predict" and name.startswith("GET "):
            needed.append({"apiKey": ["read"]})
        assert operation["security"] == [{}, *needed], name
        assert find(with_keys, name)["security"] == needed, name
        assert scope in list(Scope) or name == "GET /me", name
        if scope is not None:
            assert f"`{scope}`" in resolved(document, operation["responses"]["403"])["description"], name
    scopes = {name: operation.get("x-required-scope") for name, operation in operations(document)}
    assert (scopes["POST /jobs"], scopes["GET /jobs"], scopes["GET /workers"]) == ("write", "read", "admin")
    assert (scopes["POST /models/{model_id}/predict"], scopes["GET /api_keys"]) == ("predict", "keys")


def test_errors_that_any_operation_can_give_are_listed(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        statuses = set(operation["responses"])
        expected = {"421", "500"}
        if not is_public(name):
            expected |= {"401", "429", "503"} if name == "GET /me" else {"401", "403", "429", "503"}
        if "requestBody" in operation:
            expected |= {"408"}
        assert expected <= statuses, name
        for status, answer in operation["responses"].items():
            if status >= "400" and (name, status) != ("GET /readyz", "503"):
                assert answer.keys() == {"$ref"}, (name, status)
                assert list(resolved(document, answer)["content"]) == [PROBLEM]


def test_no_operation_has_two_parameters_of_one_name(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        places = [(each["name"], each["in"]) for each in operation.get("parameters", [])]
        assert len(places) == len(set(places)), name
    for name in ("GET /jobs", "GET /fine_tuning/jobs"):
        [metadata] = [each for each in find(document, name)["parameters"] if each["name"] == "metadata"]
        assert metadata["style"] == "deepObject"


DOWNLOAD = {"ETag", "Last-Modified", "Cache-Control", "Repr-Digest", "Accept-Ranges", "Content-Disposition"}
CREATED = {"Location", "Idempotent-Replayed", "Retry-After"}
REVALIDATED = {"ETag", "Last-Modified", "Cache-Control"}


@pytest.mark.parametrize(
    ("name", "status", "headers"),
    [
        ("POST /jobs", 201, CREATED),
        ("POST /jobs/{job_id}/clone", 201, CREATED),
        ("POST /sweeps", 201, CREATED),
        ("POST /datasets", 201, CREATED),
        ("POST /comparisons", 201, CREATED),
        ("POST /fine_tuning/jobs", 201, CREATED),
        ("POST /uploads", 201, CREATED - {"Retry-After"}),
        ("POST /webhook_endpoints", 201, CREATED - {"Retry-After"} | {"Cache-Control"}),
        ("POST /api_keys", 201, {"Location"}),
        ("POST /jobs/{job_id}/cancel", 202, set()),
        ("POST /webhook_deliveries/{delivery_id}/redeliver", 202, {"Location", "Retry-After"}),
        ("POST /jobs/estimate", 202, {"Retry-After"}),
        ("GET /models/{model_id}/export", 202, {"Retry-After"}),
        ("GET /jobs/{job_id}", 200, {"ETag", "Cache-Control", "Retry-After", "Preference-Applied"}),
        ("GET /jobs/{job_id}", 304, {"ETag", "Cache-Control", "Retry-After", "Preference-Applied"}),
        ("GET /checkpoints/{checkpoint_id}/archive", 200, DOWNLOAD),
        ("GET /checkpoints/{checkpoint_id}/archive", 206, DOWNLOAD | {"Content-Range"}),
        ("GET /checkpoints/{checkpoint_id}/archive", 304, REVALIDATED),
        ("GET /checkpoints/{checkpoint_id}/archive", 416, {"Content-Range"}),
        ("GET /jobs/{job_id}/logs", 206, {"ETag", "Accept-Ranges", "Cache-Control", "Vary", "Content-Range"}),
        ("DELETE /jobs/{job_id}", 409, {"x-should-retry"}),
        ("GET /jobs", 429, {"Retry-After"}),
        ("GET /jobs", 503, {"Retry-After"}),
    ],
)
def test_headers_of_answers_are_declared(document: dict[str, Any], name: str, status: int, headers: set[str]) -> None:
    declared = set(response(document, name, status)["headers"])
    assert declared == headers | {"X-Request-Id", "RateLimit", "RateLimit-Policy"}


def test_the_headers_that_all_answers_have_are_declared(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for status, answer in operation["responses"].items():
            declared = set(resolved(document, answer)["headers"])
            assert "X-Request-Id" in declared, (name, status)
            counted = not is_public(name) and status not in ("401", "421", "500")
            assert ({"RateLimit", "RateLimit-Policy"} <= declared) == counted, (name, status)
    assert "WWW-Authenticate" in document["components"]["responses"]["Problem401"]["headers"]
    assert all(header["description"] and header["schema"] for header in HEADERS.values())


@pytest.mark.parametrize(
    ("name", "status", "kinds"),
    [
        ("GET /jobs/{job_id}/report", 200, {"text/html", "application/json"}),
        ("GET /models/{model_id}/export", 200, {"application/zip", "application/octet-stream"}),
        ("GET /checkpoints/{checkpoint_id}/files/{name}", 206, {"application/octet-stream", "application/json"}),
        ("GET /files/{file_id}/content", 200, {"application/octet-stream", "text/csv", "application/zip"}),
        ("GET /jobs/{job_id}/logs", 206, {"text/plain"}),
    ],
)
def test_every_media_type_is_declared(document: dict[str, Any], name: str, status: int, kinds: set[str]) -> None:
    assert set(response(document, name, status)["content"]) == kinds


def test_changes_may_be_sent_as_merge_patches(document: dict[str, Any]) -> None:
    bodies = [operation["requestBody"] for name, operation in operations(document) if name.startswith("PATCH ")]
    assert bodies
    for body in bodies:
        assert set(body["content"]) == {"application/json", "application/merge-patch+json"}


def test_messages_that_were_sent_lead_to_what_is_known_of_them(document: dict[str, Any]) -> None:
    for name in ("POST /webhook_endpoints/{endpoint_id}/test", "POST /webhook_deliveries/{delivery_id}/redeliver"):
        assert "get_webhook_delivery" in response(document, name, 202)["links"], name
    made = response(document, "POST /webhook_endpoints", 201)["links"]
    assert {"get_webhook_endpoint", "test_webhook_endpoint", "list_webhook_deliveries"} <= made.keys()


def test_the_document_is_answered_under_both_prefixes(app: FastAPI, document: dict[str, Any]) -> None:
    client = TestClient(app)
    for path in ("/openapi.json", "/v1/openapi.json"):
        assert client.get(path).json() == document, path


def test_every_operation_is_summarised_and_described(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        summary = operation["summary"]
        assert 6 < len(summary) <= 70, name
        assert summary != operation["operationId"].replace("_", " ").title(), name
        assert not summary.endswith("."), name
        assert operation["description"].endswith((".", "...")), name


def test_every_parameter_and_every_property_is_described(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), (name, parameter["name"])
    for name, schema in document["components"]["schemas"].items():
        for key, described in schema.get("properties", {}).items():
            is_plain = described.get("description") or "$ref" in described or key == "object"
            assert is_plain, f"{name}.{key} says not what it means"


@pytest.mark.parametrize(
    ("schema", "key", "kind"),
    [
        ("DatasetRead", "summary", DatasetSummary),
        ("DatasetRead", "error", Failure),
        ("DatasetValidation", "summary", DatasetSummary),
        ("DatasetValidation", "issues", DatasetIssue),
        ("DatasetValidation", "stats", DatasetStats),
        ("JobRead", "best", JobBest),
        ("JobRead", "result", JobResult),
        ("JobRead", "trainable", JobTrainable),
    ],
)
def test_what_is_stored_as_json_has_a_type(document: dict[str, Any], schema: str, key: str, kind: type) -> None:
    described = document["components"]["schemas"][schema]["properties"][key]
    assert list(references(described)) == [f"#/components/schemas/{kind.__name__}"]


def test_these_types_say_all_that_is_stored() -> None:
    report = DatasetReport(issues=(Issue(code=IssueCode.MASK_EMPTY, message="empty"),)).to_dict()
    assert DatasetSummary.model_fields.keys() == report["summary"].keys()
    assert DatasetIssue.model_fields.keys() == report["issues"][0].keys()
    assert DatasetStats.model_fields.keys() == report["stats"].keys()
    assert set(Failure.model_fields) == {each.name for each in fields(failures.Failure)}
    assert set(JobResult.model_fields) == {"model_id", *(each.name for each in fields(Report))}


def test_what_another_version_stored_is_answered_as_it_is() -> None:
    stored: dict[str, Any] = {
        "summary": {"images": 1, "later": [1]},
        "issues": [{"code": "new"}],
        "stats": {"duplicates": 1.0},
    }
    read = DatasetValidation(dataset_id="ds_1", status=DatasetState.READY, **stored).model_dump(mode="json")
    assert {name: read[name] for name in stored} == stored
    assert isinstance(read["stats"]["duplicates"], float)


@pytest.mark.parametrize(
    ("name", "types", "schema"),
    [
        ("job", {OF_JOB[state] for state in OF_JOB}, JobMessage),
        ("checkpoint", {EventType.JOB_CHECKPOINT}, CheckpointMessage),
        ("dataset", set(OF_DATASET.values()), DatasetMessage),
        ("comparison", set(OF_COMPARISON.values()), ComparisonMessage),
        ("test", {TEST}, EndpointMessage),
        ("openai", {*OPENAI_NAMES.values(), TEST}, OpenAIMessage),
    ],
)
def test_every_message_of_webhooks_is_described(
    document: dict[str, Any], name: str, types: set[str], schema: type[BaseModel]
) -> None:
    operation = document["webhooks"][name]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"] == f"#/components/schemas/{schema.__name__}"
    kind = resolved(document, body)["properties"]["type"]
    assert set(kind.get("enum", [kind.get("const")])) == types
    sent = signed("msg_1", datetime.now(UTC), "{}", [new_secret()])
    assert {each["name"] for each in operation["parameters"]} == sent.keys()
    assert operation["responses"].keys() == {"200", "410"}
    assert operation["operationId"] == f"receive_{name}"


def test_messages_hold_what_is_described() -> None:
    assert JobData.model_fields.keys() == job_data(Job(id="job_1"), JobState.QUEUED, 1).keys()
    assert CheckpointData.model_fields.keys() == checkpoint_data(Checkpoint(id="ckpt_1")).keys()
    assert DatasetData.model_fields.keys() == dataset_data(Dataset(id="ds_1")).keys()
    assert ComparisonData.model_fields.keys() == comparison_data(Comparison(id="cmp_1", models=[])).keys()


ANSWERED = (
    CheckpointRead,
    DatasetRead,
    DatasetValidation,
    EvaluationRead,
    EventRead,
    JobRead,
    MetricsRead,
    ModelRead,
)
SENT = (
    ApiKeyCreate,
    ApiKeyRotate,
    ComparisonCreate,
    DatasetCreate,
    FineTuningJobCreate,
    JobClone,
    JobCreate,
    JobPatch,
    JobRetry,
    OpenAIUploadCreate,
    QuotaLimits,
    SweepCreate,
    UploadComplete,
    UploadCreate,
    WebhookEndpointCreate,
    WebhookEndpointPatch,
)


def test_every_body_that_can_be_sent_has_an_example(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        for reference in references(body):
            assert resolved(document, {"$ref": reference}).get("examples"), name
            assert reference.rpartition("/")[2] in {schema.__name__ for schema in SENT}, name
    assert {schema.__name__ for schema in SENT} == REQUESTS.keys()


@pytest.mark.parametrize("schema", SENT, ids=lambda schema: schema.__name__)
def test_what_is_sent_in_examples_is_valid(document: dict[str, Any], schema: type[Section]) -> None:
    for example in document["components"]["schemas"][schema.__name__]["examples"]:
        assert validated(schema, example).model_dump(mode="json", exclude_unset=True) == example


def test_the_job_that_examples_make_is_valid() -> None:
    for example in REQUESTS["SweepCreate"]:
        validated(JobCreate, {"name": "x"} | example["job"])
    for example in REQUESTS["JobClone"]:
        validated(JobCreate, merged(REQUESTS["JobCreate"][1], example["overrides"]))


@pytest.mark.parametrize("schema", ANSWERED, ids=lambda schema: schema.__name__)
def test_what_is_answered_in_examples_is_what_would_be(document: dict[str, Any], schema: type[Read]) -> None:
    [example] = document["components"]["schemas"][schema.__name__]["examples"]
    assert schema.model_validate(example).model_dump(mode="json") == example


def exchanges(api: Api, folder: Path) -> Iterator[httpx.Response]:
    """Answers of every kind that has headers of its own."""
    get, post = api.client.get, api.client.post
    model = add_model(api.database, api.storage, folder)
    job = get(f"/models/{model}").json()["job_id"]
    checkpoint = get(f"/jobs/{job}/checkpoints").json()["data"][0]
    file = f"/checkpoints/{checkpoint['id']}/files/{checkpoint['files'][0]['name']}"
    for path in (file, f"/checkpoints/{checkpoint['id']}/archive", f"/models/{model}/export", f"/jobs/{job}"):
        whole = get(path)
        yield whole
        yield get(path, headers={"If-None-Match": whole.headers["ETag"]})
    yield get(file, headers={"Range": "bytes=1-"})
    yield get(file, headers={"Range": "bytes=999999999-"})
    yield get(file, headers={"If-Match": '"another"'})
    for accept in ("text/plain", "application/json"):
        yield get(f"/jobs/{job}/logs", headers={"Accept": accept})
    yield get(f"/jobs/{job}/metrics?format=csv")
    waiting = add_job(api.database)
    yield get(f"/jobs/{waiting}", headers={"Prefer": "wait=0"})
    yield get(f"/jobs/{waiting}/logs", headers={"Range": "bytes=5-"})
    yield api.client.patch(f"/jobs/{waiting}", json={"priority": 1})
    yield api.client.delete(f"/jobs/{waiting}")
    yield post(f"/jobs/{waiting}/cancel")
    for _ in range(2):
        yield post(f"/jobs/{job}/clone", json={}, headers={"Idempotency-Key": "once"})
        yield post("/uploads", json={"filename": "a.zip", "bytes": 10}, headers={"Idempotency-Key": "once"})
    yield post("/api_keys", json={"name": "a"})
    yield get("/readyz")
    yield get("/metrics")
    yield get("/livez", headers={"Host": "evil.example"})


def test_headers_that_are_sent_are_declared(api: Api, document: dict[str, Any], tmp_path: Path) -> None:
    seen = set()
    for answer in exchanges(api, tmp_path):
        path = next(
            template
            for template in sorted(document["paths"], key=lambda each: each.count("{"))
            if re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), answer.url.path)
        )
        name = f"{answer.request.method} {path}"
        sent = {header for header in HEADERS if header in answer.headers} - {"Cache-Control"}
        declared = set(response(document, name, answer.status_code)["headers"])
        assert sent <= declared, (name, answer.status_code)
        seen.add(answer.status_code)
        if answer.status_code in (200, 206) and "Repr-Digest" in declared:
            assert sent == declared - {"Cache-Control", "RateLimit", "RateLimit-Policy"}, name
    assert {200, 201, 202, 206, 304, 409, 412, 416, 421} <= seen
