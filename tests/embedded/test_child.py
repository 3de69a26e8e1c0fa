"""One supervised child of the embedded service."""

from __future__ import annotations

import itertools
import os
import sys
import time
from typing import TYPE_CHECKING

from service import child as module
from service.child import Child

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def run_for(child: Child, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        child.keep_running()
        time.sleep(0.01)


def test_output_is_logged_and_prefixed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    child = Child("echo", [sys.executable, "-IS", "-c", "print('one'); print('two')"], os.environ, tmp_path)
    child.wait(time.monotonic() + 10)
    assert (tmp_path / "echo.log").read_text() == "one\ntwo\n"
    assert capfd.readouterr().out.splitlines()[:2] == ["echo       | one", "echo       | two"]


def test_log_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_BYTES", 1000)
    code = "for n in range(1000): print(n, 'x' * 50)"
    child = Child("chatty", [sys.executable, "-IS", "-c", code], os.environ, tmp_path)
    child.wait(time.monotonic() + 10)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000 * (module.LOG_FILES + 1)


def test_one_that_ends_early_is_started_again_later_and_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_BACKOFF_S", 0.1)
    starts = tmp_path / "starts"
    code = f"import time; open({str(starts)!r}, 'a').write(f'{{time.monotonic()}}\\n')"
    child = Child("crash", [sys.executable, "-IS", "-c", code], os.environ, tmp_path)
    run_for(child, 3)
    child.wait(time.monotonic() + 5)
    times = [float(line) for line in starts.read_text().split()]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 3 <= len(times) <= 5
    assert all(gap >= 0.2 * 2**number for number, gap in enumerate(gaps))


def test_one_that_ignores_sigterm_is_killed_at_the_deadline(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    child = Child("stubborn", [sys.executable, "-IS", "-c", code], os.environ, tmp_path)
    while "up" not in child.log.read_text():
        time.sleep(0.01)
    child.terminate()
    begun = time.monotonic()
    child.wait(begun + 0.5)
    assert time.monotonic() - begun < 3
    assert child.returncode == -9
