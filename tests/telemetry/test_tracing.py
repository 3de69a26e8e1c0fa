"""Traces are on when the environment asks for them, cost nothing when it does not, and never stand in the way."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import structlog

from service.shared import tracing
from service.shared.errors import SettingsError
from service.shared.origin import present_origin
from tests.telemetry.collector import collecting

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"


@pytest.fixture(autouse=True)
def _stopped() -> Iterator[None]:
    yield
    tracing.stop()


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, True),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "True"}, False),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
    ],
)
def test_the_standard_variables_turn_traces_on(environment: dict[str, str], wanted: bool) -> None:
    assert tracing.is_asked_for(environment) is wanted


@pytest.mark.parametrize(
    "more",
    [{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, {"OTEL_TRACES_EXPORTER": "zipkin"}],
    ids=lambda more: next(iter(more)),
)
def test_what_is_not_possible_is_refused(more: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="http/protobuf"):
        tracing.is_asked_for(ENDPOINT | more)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    with pytest.raises(SettingsError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT.*pip install 'sam3-lora-service\[tracing\]'"):
        tracing.is_asked_for(ENDPOINT)


def test_without_it_nothing_is_imported_and_nothing_happens() -> None:
    # FastAPI imports the interfaces of OpenTelemetry itself; what would do something is another package.
    program = (
        "import sys; import service.main, worker.app\n"
        "from service.shared import tracing\n"
        "tracing.start('x')\n"
        "with tracing.span('a', parent={'traceparent': 'x'}, job_id='j'):\n"
        "    tracing.note(failed='x'); tracing.record('b', 0, 1)\n"
        "assert tracing.carrier() == tracing.ids() == {}\n"
        "tracing.stop()\n"
        "loaded = [name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))]\n"
        "assert not loaded, loaded\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=60)


def test_a_process_that_cannot_trace_as_asked_does_not_start() -> None:
    environment = os.environ | ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    for program in (["service.cli", "api"], ["worker.app", "--queue", "cpu"], ["service.embedded"]):
        ended = subprocess.run(
            [sys.executable, "-m", *program], env=environment, capture_output=True, text=True, timeout=60
        )
        assert ended.returncode in (1, 2), program
        assert "traces are sent by otlp as http/protobuf" in ended.stderr


def test_a_parent_goes_on_and_one_that_is_not_sampled_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        tracing.start("t")
        for flags, name in (("01", "seen"), ("00", "unseen")):
            carrier = {"traceparent": f"{PARENT}-{flags}", "tracestate": "vendor=1"}
            with (
                structlog.contextvars.bound_contextvars(request_id="r"),
                tracing.span(name, parent=carrier, http__route="/x", step=None),
            ):
                origin = present_origin()
                assert origin is not None
                assert origin["traceparent"].startswith(PARENT[:35])
                assert origin["traceparent"].endswith(flags)
                assert (origin["tracestate"], origin["request_id"]) == ("vendor=1", "r")
                with tracing.span(f"{name} below"):
                    tracing.note(failed="why")
        with contextlib.suppress(ValueError), tracing.span("new", parent={"traceparent": "nonsense"}):
            raise ValueError("a secret")
        tracing.stop()
    spans = {span.name: span for span in collector.spans}
    assert spans.keys() == {"seen", "seen below", "new"}
    assert spans["seen"].attributes == {"http.route": "/x"}
    assert spans["seen below"].parent_id == spans["seen"].span_id
    assert spans["seen below"].error == "why"
    assert spans["new"].parent_id == ""
    assert (spans["new"].service, spans["new"].error) == ("t", "ValueError")
    assert "a secret" not in str(spans)


def test_a_collector_that_is_away_or_silent_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "FLUSH_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (1, silent.getsockname()[1]):
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
            tracing.start("t")
            started = time.monotonic()
            for _ in range(3000):  # more than may wait
                with tracing.span("s"):
                    pass
            assert time.monotonic() - started < 3
            started = time.monotonic()
            tracing.stop()
            assert time.monotonic() - started < 2
