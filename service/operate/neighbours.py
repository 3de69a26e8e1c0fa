"""What the service stands on: whether broker, storage and database are as it needs them."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import BaseError
from sqlalchemy import func, make_url, select, text
from sqlalchemy.exc import SQLAlchemyError

from service.shared import checks
from service.shared.checks import Level, fault, first_line, ok, warning
from service.shared.db.engine import MAX_CONNECTIONS, create_engine
from service.shared.db.models import ApiKey, WebhookEndpoint, Worker
from service.shared.errors import ServiceError, StorageError, WebhooksUnavailableError
from service.shared.object_stores import open_bucket
from service.shared.queue import Task, celery_app
from service.shared.sources import bucket_and_key
from service.shared.storage import Storage
from service.shared.vault import KEY_FILE, Vault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from service.shared.checks import Finding
    from service.shared.settings import Settings

OLDEST_BROKER = (6, 2)
MAX_SKEW_S = 2.0
SECRETS_TRIED = 1000
BINDINGS = "_kombu.binding."
BINDING_PARTS = "\x06\x16"  # between routing key, pattern and queue


def database(settings: Settings) -> Iterator[Finding]:
    """As before a start; and where that is well, everything that only the database can tell."""
    is_well = True
    for finding in checks.database(settings):
        is_well = is_well and finding.level is not Level.FAULT
        yield finding
    if not is_well:
        return
    engine = create_engine(settings.database_url, pooler=settings.database_pooler)
    try:
        with engine.execution_options(read_only=True).connect() as connection:
            if connection.dialect.name == "postgresql":
                if not settings.database_pooler:
                    yield _connections(connection)
                yield _clock(connection)
            yield _secrets(connection, settings)
            yield _keys(connection, settings)
    except SQLAlchemyError as error:
        yield checks.unreachable(error)
    finally:
        engine.dispose()


def broker(settings: Settings) -> Iterator[Finding]:
    """Whether the broker answers, is recent enough, and never drops a message or gives it out twice."""
    app = celery_app(settings)
    app.conf.broker_transport_options |= {"max_retries": 0, "socket_timeout": 4}
    try:
        with app.connection_for_write() as connection:
            channel: Any = connection.default_channel
            client = channel.client
            yield from _broker_server(client)
            yield _applications(client)
    except Exception as error:  # noqa: BLE001 - whatever the broker's client raises
        is_refused = any(sign in str(error) for sign in ("WRONGPASS", "NOAUTH", "username-password", "AUTH"))
        advice = "correct the password in SAM3_BROKER_URL" if is_refused else "start it, or correct SAM3_BROKER_URL"
        yield fault("broker", f"the broker does not answer ({first_line(error)})", advice, may_pass=not is_refused)
    finally:
        app.close()


def storage(settings: Settings) -> Iterator[Finding]:
    """Whether files can be written, read, listed and deleted."""
    folder = settings.storage_dir
    if folder is not None and not folder.exists():
        yield checks.written("storage", folder, "choose another SAM3_STORAGE_URL, or let this user write there")
        return
    content = secrets.token_bytes(64)
    key = f"doctor/{secrets.token_hex(8)}"
    try:
        found = Storage(settings)
        found.check()
        stored = found.put(key, [content], size_bytes=len(content))
        read = b"".join(found.get_range(key, 1, 63))
        listed = found.list("doctor")
        found.delete(key)
    except ServiceError as error:
        advice = "correct SAM3_STORAGE_URL, SAM3_STORAGE_ENDPOINT or the AWS_* variables"
        is_lasting = not isinstance(error, StorageError) or "at the moment" not in error.message
        cause = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
        yield fault("storage", f"{error.message.rstrip('.')}{cause}", advice, may_pass=not is_lasting)
        return
    if stored.size_bytes != len(content) or read != content[1:63] or key not in listed:
        yield fault("storage", "storage does not give back what it was given", "use a store that is S3-compatible")
    else:
        yield ok("storage", "files can be written, read, listed and deleted")


def dataset_buckets(settings: Settings) -> Iterator[Finding]:
    """Whether the places in buckets that datasets may be read from can be listed."""
    for place in settings.dataset_buckets:
        bucket, folder = bucket_and_key(place)
        try:
            next(iter(obstore.list(open_bucket(settings, bucket), folder or None, chunk_size=1)), None)
        except (OSError, BaseError) as error:
            advice = "correct SAM3_DATASET_BUCKETS, SAM3_STORAGE_ENDPOINT or the AWS_* variables where cpu workers run"
            yield warning("dataset_buckets", f"{place} cannot be listed ({first_line(error)})", advice)
        else:
            yield ok("dataset_buckets", f"{place} can be listed")


def _broker_server(client: Any) -> Iterator[Finding]:
    facts = client.info("server")
    version = str(facts.get("valkey_version") or facts.get("redis_version") or "0")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_BROKER:
        yield fault("broker", f"the broker ({version}) is too old", "upgrade Redis to 6.2 or later, or use Valkey")
    else:
        yield ok("broker", f"answers, version {version}")
    policy = client.info("memory").get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        advice = "set maxmemory-policy noeviction: else waiting work is announced late"
        yield warning("broker", f"the broker drops messages when its memory is full ({policy})", advice)


def _applications(client: Any) -> Finding:
    """A Redis database has one visibility timeout in effect, the shortest of all that use it."""
    ours = {task.queue for task in Task}
    # Keys are named by exchanges, which applications share: all that declare no other have `celery`.
    bindings = [entry for key in client.scan_iter(f"{BINDINGS}*", count=1000) for entry in client.smembers(key)]
    queues = {entry.decode(errors="replace").rpartition(BINDING_PARTS)[2] for entry in bindings}
    others = sorted(name for name in queues - ours if not name.endswith(".pidbox") and not name.startswith("celeryev"))
    if others:
        message = f"other Celery applications use this database of the broker ({', '.join(others[:3])})"
        advice = "give this service a database number of its own: theirs may have long work announced again and again"
        return warning("broker", message, advice)
    return ok("broker", "no other application uses its database")


def _connections(connection: Connection) -> Finding:
    most = int(str(connection.execute(text("SHOW max_connections")).scalar()))
    kept = int(str(connection.execute(text("SHOW superuser_reserved_connections")).scalar()))
    workers = connection.execute(select(func.count()).select_from(Worker)).scalar_one()
    needed = MAX_CONNECTIONS * (workers + 2)
    told = f"{most - kept} connections for {workers} workers, an API and a reconciler"
    if needed > most - kept:
        advice = f"set max_connections to {needed + kept} or more, and as much again for each further API process"
        return warning("connections", f"{told}, which open up to {needed}", advice)
    return ok("connections", told)


def _clock(connection: Connection) -> Finding:
    before = datetime.now(UTC)
    there: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    skew = (there - before - (datetime.now(UTC) - before) / 2).total_seconds()
    told = f"this machine's clock differs from the database's by {abs(skew):.1f} s"
    if abs(skew) > MAX_SKEW_S:
        return warning("clock", told, "have both follow an NTP server")
    return ok("clock", told)


def _secrets(connection: Connection, settings: Settings) -> Finding:
    stored = select(WebhookEndpoint.id, WebhookEndpoint.secret).order_by(WebhookEndpoint.created_at.desc())
    rows = connection.execute(stored.limit(SECRETS_TRIED)).all()
    is_local = make_url(settings.database_url).get_backend_name() == "sqlite"
    key_file = settings.data_dir / KEY_FILE
    if not rows:
        if settings.secret_key or is_local:
            return ok("secret_key", "there is a key for the secrets of webhooks")
        advice = "set SAM3_SECRET_KEY, the same for API and workers: openssl rand -base64 32 | tr +/ -_"
        return warning("secret_key", "there are no webhooks without a key", advice)
    if not settings.secret_key and is_local and not key_file.is_file():  # the vault would make one
        advice = "restore it from a backup, or have every secret rotated"
        return fault("secret_key", f"{key_file} is missing, which the secrets of webhooks are stored under", advice)
    vault, unread = Vault(settings), []
    for endpoint_id, sealed in rows:
        try:
            vault.open(sealed)
        except WebhooksUnavailableError:
            unread.append(endpoint_id)
    if unread:
        message = f"{len(unread)} of {len(rows)} webhook secrets cannot be read ({unread[0]})"
        return fault("secret_key", message, "add the key that they were stored under to SAM3_SECRET_KEY")
    return ok("secret_key", f"the secrets of {len(rows)} webhook endpoints can be read")


def _keys(connection: Connection, settings: Settings) -> Finding:
    now = datetime.now(UTC)
    alive = (ApiKey.revoked_at.is_(None), (ApiKey.expires_at.is_(None)) | (ApiKey.expires_at > now))
    count = connection.execute(select(func.count()).select_from(ApiKey).where(*alive)).scalar_one()
    if settings.require_keys and not count:
        advice = "sam3-service keys create --name NAME --project PROJECT"
        return warning("keys", "SAM3_REQUIRE_KEYS is set, but there is no key that is good", advice)
    return ok("keys", f"{count} API keys are good" + ("" if settings.require_keys else "; none is asked for"))


def broker_program(settings: Settings, program: Path) -> Iterator[Finding]:
    """As `broker`, for one that the embedded service starts itself."""
    socket = Path(settings.broker_url.removeprefix("redis+socket://"))
    if socket.exists():
        yield from broker(settings)
    else:
        yield ok("broker", f"the embedded service starts {program}")
