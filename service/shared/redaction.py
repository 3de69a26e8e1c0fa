"""The last net under log lines: what must never be in one is replaced, whoever wrote it there.

Nobody here logs a secret on purpose; the texts of errors come from libraries that were given some.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from service.shared.settings import Settings

REDACTED = "[redacted]"
SHORTEST = 4  # what is shorter is in every other word as well
ISSUED = re.compile(r"sam3_[A-Za-z0-9_-]{43}|whsec_[A-Za-z0-9+/_-]{16,}=*")
"""API keys and secrets of webhooks, of which there are many and not all known to a process."""
VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "DATABRICKS_TOKEN",
)
QUERY_PASSWORDS = ("password", "sslpassword")  # that a URL may give as options, too
HEADERS = re.compile(r"OTEL_EXPORTER_OTLP_(\w+_)?HEADERS")


def secrets_of(settings: Settings, environment: Mapping[str, str]) -> set[str]:
    """The secrets that a process was started with."""
    parts = [urlsplit(url) for url in (settings.database_url, settings.broker_url)]
    passwords = [part.password for part in parts]
    passwords += [value for part in parts for name, value in parse_qsl(part.query) if name in QUERY_PASSWORDS]
    found = {unquote(password) for password in passwords if password} | {password for password in passwords if password}
    found |= {key.strip() for key in settings.secret_key.split(",")}
    found |= {environment[name] for name in VARIABLES if name in environment}
    headers = [value for name, value in environment.items() if HEADERS.fullmatch(name)]
    found |= {unquote(pair.partition("=")[2]).strip() for value in headers for pair in value.split(",")}
    return found


def redactor(secrets: Iterable[str]) -> Callable[[str], str]:
    """A function that replaces the secrets in a rendered line of JSON, also where they are escaped."""
    forms = {form for secret in secrets for form in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1])}
    ordered = sorted((form for form in forms if len(form) >= SHORTEST), key=len, reverse=True)
    known = "|".join(map(re.escape, ordered))
    pattern = re.compile(f"{known}|{ISSUED.pattern}" if known else ISSUED.pattern)
    return lambda line: pattern.sub(REDACTED, line)
