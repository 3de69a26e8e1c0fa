"""Traces through OpenTelemetry, of processes whose environment (OTEL_*) says where to send them.

Elsewhere nothing that could send is imported, and all of this does nothing. A collector that is away costs spans,
never work: they are sent by a thread of their own, and dropped when too many wait.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any

from service.shared.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FLUSH_S = 5.0
MAX_STATE_LENGTH = 512
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"


class _Tracing:
    """What a process that traces works with."""

    def __init__(self, service: str) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": service}
        self.api = trace
        self.context = TraceContextTextMapPropagator()
        self.provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer = self.provider.get_tracer("sam3-lora-service")


_active: _Tracing | None = None


def is_asked_for(environment: Mapping[str, str]) -> bool:
    """Whether the environment wants traces.

    Raises:
        SettingsError: if it wants them in a way that is not possible.
    """
    if not any(environment.get(name) for name in ENDPOINTS):
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none":
        return False
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), PROTOCOL)
    if protocol != PROTOCOL or exporter != "otlp":
        raise SettingsError(f"traces are sent by otlp as {PROTOCOL}, not by {exporter} as {protocol}")
    try:
        import opentelemetry.exporter.otlp.proto.http
        import opentelemetry.sdk  # noqa: F401
    except ImportError:
        asking = next(name for name in ENDPOINTS if environment.get(name))
        raise SettingsError(
            f"{asking} asks for traces, for which OpenTelemetry is missing: pip install 'sam3-lora-service[tracing]'"
        ) from None
    return True


def start(service: str) -> None:
    """Trace from now on, if the environment asks for it, under a name that OTEL_SERVICE_NAME overrides.

    Raises:
        SettingsError: as `is_asked_for`.
    """
    global _active
    if is_asked_for(os.environ):
        _active = _Tracing(service)


def stop() -> None:
    """Send what is left, for a few seconds at most, and trace no more."""
    global _active
    if _active is None:
        return
    ending, _active = _active, None
    # The time that its own shutdown takes, where the collector is away, cannot be bounded.
    thread = threading.Thread(target=ending.provider.shutdown, name="last-spans", daemon=True)
    thread.start()
    thread.join(FLUSH_S)


@contextlib.contextmanager
def span(
    name: str, *, parent: Mapping[str, Any] | None = None, kind: str = "internal", **attributes: Any
) -> Iterator[None]:
    """What happens within is a span: below the present one, or below a remote one that `origin` or headers describe.

    An exception makes it an error of that type; its text, which may hold a secret, is told by the log alone.
    """
    active = _active
    if active is None:
        yield
        return
    context = None if parent is None else active.context.extract(dict(parent))
    with active.tracer.start_as_current_span(
        name,
        context,
        kind=active.api.SpanKind[kind.upper()],
        attributes=_named(attributes),
        record_exception=False,
        set_status_on_exception=False,
    ):
        try:
            yield
        except Exception as error:
            note(failed=type(error).__name__)
            raise


def note(*, name: str | None = None, failed: str | None = None, **attributes: Any) -> None:
    """Say more about the present span. `failed`: why it counts as an error."""
    active = _active
    if active is None:
        return
    current = active.api.get_current_span()
    current.set_attributes(_named(attributes))
    if name is not None:
        current.update_name(name)
    if failed is not None:
        current.set_status(active.api.StatusCode.ERROR, failed)


def record(name: str, started_at_s: float, ended_at_s: float, **attributes: Any) -> None:
    """A span that is over, below the present one; times as of `time.time`."""
    active = _active
    if active is not None:
        span = active.tracer.start_span(name, start_time=int(started_at_s * 1e9), attributes=_named(attributes))
        span.end(int(ended_at_s * 1e9))


def carrier() -> dict[str, str]:
    """The present span in the words of W3C Trace Context, for `parent` in another process; empty if there is none."""
    found: dict[str, str] = {}
    if _active is not None:
        _active.context.inject(found)
    if len(found.get("tracestate", "")) > MAX_STATE_LENGTH:
        del found["tracestate"]
    return found


def ids() -> dict[str, str]:
    """Ids of the present span, for the log."""
    if _active is None:
        return {}
    context = _active.api.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def _named(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """OpenTelemetry's own names are given with `__` for a dot; ours get a prefix."""
    return {
        name.replace("__", ".") if "__" in name else f"sam3.{name}": value
        for name, value in attributes.items()
        if value is not None
    }
