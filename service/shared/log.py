"""Structured logs: one JSON object per line on stderr, with the ids that the context carries."""

from __future__ import annotations

import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

import structlog

from service.shared import tracing
from service.shared.redaction import redactor

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

_facts: dict[str, str] = {}
"""On every line of this process."""


def configure(level: str, process: str, secrets: Iterable[str] = ()) -> None:
    """Send everything that this process logs to stderr as JSON lines; `catch_rest` adds what Python itself would say.

    Ids bound with `structlog.contextvars.bound_contextvars(job_id=...)` appear on every line within.

    Args:
        process: what kind of process it is.
        secrets: are replaced wherever they appear.
    """
    identify(process=process)
    redact = redactor(secrets)
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_facts,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # Without local variables: they may hold secrets.
        structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    render = structlog.processors.JSONRenderer()
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            lambda logger, name, event: redact(str(render(logger, name, event))),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)  # else it speaks at each probe
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)


def catch_rest() -> None:
    """Log what Python would print in its own form: warnings, and exceptions that end the process or a thread."""
    logging.captureWarnings(capture=True)
    log = structlog.get_logger(__name__)

    def on_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            log.critical("uncaught_exception", exc_info=(kind, error, trace))

    def on_thread_exception(found: threading.ExceptHookArgs) -> None:
        if found.exc_value is not None:
            log.critical("uncaught_exception", exc_info=(found.exc_type, found.exc_value, found.exc_traceback))

    sys.excepthook = on_exception
    threading.excepthook = on_thread_exception


def identify(**facts: str) -> None:
    """Have every line of this process say so."""
    _facts.update(facts)


def _add_facts(_logger: Any, _name: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    return {**_facts, **tracing.ids(), **event}
