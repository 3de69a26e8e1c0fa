"""The Kubernetes manifests as kubectl renders them: valid, restricted, and in agreement with each other."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import psycopg
import pytest
import yaml
from sqlalchemy import make_url

from service.shared.clock import SystemClock
from service.shared.db.migrate import upgrade
from service.shared.settings import Settings, load
from service.shared.states import LEASED
from service.shared.unit_of_work import Database
from service.usecases.actions import cancel_job
from tests.deploy.files import KUBERNETES, example, images, rendered
from tests.service.conftest import FakeQueue, add_dataset, add_job

OVERLAYS = ("cpu", "gpu")
VERSION = "1.37"
EXTENSIONS = {"ScaledObject", "TriggerAuthentication"}  # KEDA's, of which there are no schemas here

objects = cache(rendered)


def of_kind(overlay: str, *kinds: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in objects(overlay) if each["kind"] in kinds}


def pods(overlay: str) -> dict[str, dict[str, Any]]:
    return {name: each["spec"]["template"] for name, each in of_kind(overlay, "Deployment", "Job").items()}


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["spec"]["containers"]
    return only


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid(overlay: str) -> None:
    for each in objects(overlay):
        if each["kind"] not in EXTENSIONS:
            kubernetes_validate.validate(each, VERSION, strict=True)
        assert each["metadata"].get("namespace") == (None if each["kind"] == "Namespace" else "sam3")
    ingress = yaml.safe_load((KUBERNETES / "examples" / "ingress.yaml").read_text())
    kubernetes_validate.validate(ingress, VERSION, strict=True)


def test_a_wrong_object_is_noticed() -> None:
    wrong = {**of_kind("cpu", "Service")["api"], "specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_restricted_and_bounded(overlay: str) -> None:
    assert set(pods(overlay)) == {"api", "reconciler", "cpu-worker", "gpu-worker", "predict-worker", "migrate"}
    for pod in pods(overlay).values():
        spec, only = pod["spec"], container(pod)
        assert spec["automountServiceAccountToken"] is False
        assert spec["serviceAccountName"] in of_kind(overlay, "ServiceAccount")
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert (
            f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}"
            == images()["service"].user
        )
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {mount["mountPath"] for mount in only["volumeMounts"]} >= {"/data", "/tmp"}
        assert {"cpu", "memory"} <= set(only["resources"]["requests"])
        assert "memory" in only["resources"]["limits"]
        assert only["image"].startswith("registry.example.org/")  # an overlay names each
        assert not only["image"].endswith(":latest")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_process_takes_its_settings(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (config,) = of_kind(overlay, "ConfigMap").values()
    secrets = example(KUBERNETES / "secret.env.example")
    for name, pod in pods(overlay).items():
        sources = container(pod)["envFrom"]
        assert sources == [{"configMapRef": {"name": config["metadata"]["name"]}}, {"secretRef": {"name": "secrets"}}]
        own = {each["name"]: each["value"] for each in container(pod).get("env", [])}
        with monkeypatch.context() as patch:
            for key, value in (images()["service"].environment | config["data"] | secrets | own).items():
                patch.setenv(key, value)
            settings = load()
        assert settings.host == ("0.0.0.0" if name == "api" else "127.0.0.1")
        assert settings.storage_url == "s3://sam3"
        assert settings.base_models == (("sam3", "sam3-tiny") if overlay == "gpu" else ("sam3-tiny",))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_names_and_ports_agree(overlay: str) -> None:
    deployments = of_kind(overlay, "Deployment")
    for name, each in deployments.items():
        selector = each["spec"]["selector"]["matchLabels"]
        assert selector == {"app.kubernetes.io/component": name}
        assert selector.items() <= each["spec"]["template"]["metadata"]["labels"].items()
    for budget in of_kind(overlay, "PodDisruptionBudget").values():
        assert budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] in deployments
    (service,) = of_kind(overlay, "Service").values()
    api = container(pods(overlay)["api"])
    assert service["spec"]["selector"] == {"app.kubernetes.io/component": "api"}
    assert (
        [port["name"] for port in api["ports"]] == [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]
    )
    assert api["ports"][0]["containerPort"] == Settings().port
    ingress = yaml.safe_load((KUBERNETES / "examples" / "ingress.yaml").read_text())
    backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert (backend["name"], backend["port"]["name"]) == (
        service["metadata"]["name"],
        service["spec"]["ports"][0]["name"],
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_not_allowed_is_denied_and_what_is_needed_is_allowed(overlay: str) -> None:
    policies = of_kind(overlay, "NetworkPolicy")
    assert policies["default-deny"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    out = policies["all-to-dependencies"]["spec"]
    allowed = {port["port"] for rule in out["egress"] for port in rule["ports"]}
    secrets = example(KUBERNETES / "secret.env.example")
    needed = {urlsplit(secrets[name]).port for name in ("SAM3_DATABASE_URL", "SAM3_BROKER_URL")}
    assert allowed == needed | {443, 53}
    into = policies["ingress-to-api"]["spec"]
    for name, pod in pods(overlay).items():
        labels = pod["metadata"]["labels"].items()
        assert out["podSelector"]["matchLabels"].items() <= labels
        assert (into["podSelector"]["matchLabels"].items() <= labels) == (name == "api")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_what_the_image_asks_and_no_database_restarts_anybody(overlay: str) -> None:
    for name, deployment in of_kind(overlay, "Deployment").items():
        only = container(deployment["spec"]["template"])
        probes = [only[kind] for kind in ("startupProbe", "livenessProbe", "readinessProbe")]
        if name == "api":
            assert [probe["httpGet"]["path"] for probe in probes] == ["/livez", "/livez", "/readyz"]
        else:
            longer = ("--max-age", "900") if name == "reconciler" else ()
            assert {tuple(probe["exec"]["command"]) for probe in probes} == {(*images()["worker-cpu"].health, *longer)}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_have_time_to_save_and_use_what_they_ask_for(overlay: str) -> None:
    settings = Settings()
    for name, pod in pods(overlay).items():
        only = container(pod)
        gpus = only["resources"]["limits"].get("nvidia.com/gpu")
        if "worker.app" not in only.get("args", []):
            assert gpus is None
            continue
        shortest = 2 * (settings.terminate_grace_s + settings.kill_grace_s)
        assert pod["spec"]["terminationGracePeriodSeconds"] >= shortest
        assert (gpus is not None) == (":gpu-" in only["image"])
        if name == "gpu-worker":
            assert only["args"][-2:] == ["--gpus", gpus or "1"]


def test_workers_are_as_many_as_there_is_work(postgres_url: str) -> None:
    scaled, authentication = (of_kind("gpu", kind) for kind in ("ScaledObject", "TriggerAuthentication"))
    spec = scaled["gpu-worker"]["spec"]
    (trigger,) = spec["triggers"]
    assert spec["scaleTargetRef"]["name"] in of_kind("gpu", "Deployment")
    assert "replicas" not in of_kind("gpu", "Deployment")["gpu-worker"]["spec"]
    assert trigger["authenticationRef"]["name"] in authentication
    assert trigger["metadata"]["targetQueryValue"] == "1"
    assert set(re.findall(r"'(\w+)'", trigger["metadata"]["query"])) == {"queued", *map(str, LEASED)}
    settings = Settings(database_url=postgres_url)
    upgrade(settings)
    database = Database(settings, SystemClock(), FakeQueue())

    def asked() -> int:
        with psycopg.connect(make_url(postgres_url).set(drivername="postgresql").render_as_string(False)) as connection:
            row = connection.execute(trigger["metadata"]["query"]).fetchone()
        assert row is not None
        return int(row[0])

    try:
        assert asked() == 0
        dataset = add_dataset(database)
        waiting = [add_job(database, dataset) for _ in range(3)]
        add_job(database, dataset, gpus=2)  # for another worker
        add_job(database, dataset, not_before=SystemClock().now() + timedelta(hours=1))  # not yet
        assert asked() == 3
        with database.write() as unit:
            claimed = unit.jobs.claim("w-1")
        assert claimed is not None
        assert asked() == 3  # one runs, two wait
        with database.write() as unit:
            cancel_job(unit, next(job_id for job_id in waiting if job_id != claimed.id))
        assert asked() == 2
    finally:
        database.close()
