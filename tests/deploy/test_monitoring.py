"""The alerts ask for what /metrics has, the examples scrape what there is, and the guide explains each alert."""

from __future__ import annotations

import re
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families as parse

from service.shared.db.migrate import upgrade
from service.shared.settings import Settings
from service.shared.states import JobState
from service.usecases.monitoring import KEPT_S
from tests.deploy.files import KUBERNETES, ROOT, rendered
from tests.service.conftest import add_job, served

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
NAMES = [rule["alert"] for rule in RULES]
OF_PROMETHEUS = {"up": {"job", "instance"}}


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, set[str]]]:
    """Series of a working service: the values of each label, by name."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("metrics"))
    upgrade(settings)
    with served(settings) as api:
        add_job(api.database)
        with api.database.write() as unit:
            unit.workers.beat("w", kind="gpu", host="h", pid=1, device=None)
            job = unit.jobs.claim("w")
            assert job is not None
        with api.database.write() as unit:
            failure = {"code": "internal", "message": "m", "hint": "", "retryable": False}
            unit.attempts.finish(job.id, job.epoch, JobState.FAILED, error=failure)
        assert api.client.post("/jobs", json={}).status_code == 422
        api.client.get("/readyz")
        api.clock.advance(KEPT_S)
        found: dict[str, dict[str, set[str]]] = {}
        for family in parse(api.client.get("/metrics").text):
            for sample in family.samples:
                labels = found.setdefault(sample.name, {})
                for label, value in sample.labels.items():
                    labels.setdefault(label, set()).add(value)
        return found


def selectors(expression: str) -> list[Any]:
    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_an_alert_asks_for_series_that_there_are(rule: dict[str, Any], exposed: dict[str, dict[str, set[str]]]) -> None:
    asked = selectors(rule["expr"])
    assert asked
    labels: set[str] = set()
    for selector in asked:
        known = OF_PROMETHEUS.get(selector.name)
        if known is None:
            assert selector.name in exposed, selector.name
            labels |= exposed[selector.name].keys()
        for matcher in selector.matchers.matchers:
            assert matcher.name in (known or exposed[selector.name]), (selector.name, matcher.name)
            operator = str(matcher.op)
            if known is None and operator == "MatchOp.Equal":
                assert matcher.value in exposed[selector.name][matcher.name], matcher.value
            elif known is None and operator in ("MatchOp.Re", "MatchOp.NotRe") and matcher.name == "kind":
                kinds = set(matcher.value.split("|"))
                assert kinds <= exposed[selector.name]["kind"], matcher.value
    kept = {label for group in re.findall(r"by \(([^)]*)\)", rule["expr"]) for label in re.split(r",\s*", group)}
    assert kept <= labels
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= kept


def test_an_expression_that_is_none_is_noticed() -> None:
    with pytest.raises(ValueError, match="parenthesis"):
        selectors("max by (kind (sam3_workers) == 0")


def test_alerts_are_complete_and_explained() -> None:
    assert len(NAMES) == len(set(NAMES))
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(Sam3\w+)`", section, re.MULTILINE) == NAMES
    for rule in RULES:
        assert rule["labels"].keys() == {"severity"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+m", rule.get("for", "0m"))


def test_names_in_the_guide_are_those_of_the_metrics(exposed: dict[str, dict[str, set[str]]]) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    bases = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed} | exposed.keys()
    named = set(re.findall(r"`(sam3_[a-z_]+)(?:\{[^`]*\})?`", text))
    assert len(named) > 10
    assert named <= bases


def test_prometheus_reads_the_rules_and_scrapes_the_job_that_they_name() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
    assert [(PROMETHEUS / name).exists() for name in config["rule_files"]] == [True]
    [scrape] = config["scrape_configs"]
    jobs = {m.value for rule in RULES for s in selectors(rule["expr"]) for m in s.matchers.matchers if m.name == "job"}
    assert jobs == {scrape["job_name"]} == {"sam3"}
    assert "metrics_path" not in scrape  # it is /metrics by default


def test_the_operator_finds_the_pods_and_the_policy_lets_it_in() -> None:
    monitor, policy = yaml.safe_load_all((KUBERNETES / "examples" / "monitoring.yaml").read_text())
    kubernetes_validate.validate(policy, "1.37", strict=True)
    [api] = [each for each in rendered("gpu") if each["kind"] == "Deployment" and each["metadata"]["name"] == "api"]
    pod = api["spec"]["template"]
    assert monitor["metadata"]["namespace"] == api["metadata"]["namespace"]
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= pod["metadata"]["labels"].items()
    assert policy["spec"]["podSelector"]["matchLabels"] == wanted
    assert pod["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "sam3"
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    assert endpoint["port"] in ports
    assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} <= ports
