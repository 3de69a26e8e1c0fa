from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sam3_lora.coco import isolation
from sam3_lora.coco.isolation import ProcessLimits, validate_isolated
from sam3_lora.coco.report import DatasetReport
from sam3_lora.coco.schema import ValidationLimits
from sam3_lora.coco.validate import validate
from tests.coco.datasets import write_roboflow


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_roboflow(tmp_path / "dataset")


def crash_message(report: DatasetReport) -> str:
    (issue,) = report.issues
    assert (report.status, issue.severity, issue.code) == ("invalid", "error", "validator_crashed")
    assert issue.hint
    return issue.message


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> None:
    """Run other code in the child's place, as a decoder that went wrong would."""
    (folder / "stand_in.py").write_text(body)
    monkeypatch.setattr(isolation, "MODULE", "stand_in")
    monkeypatch.setattr(isolation, "PACKAGE_FOLDER", folder)


def test_same_report_as_in_process(root: Path) -> None:
    (root / "train" / "img_0.jpg").write_bytes(b"no image")
    seen: list[tuple[int, int]] = []
    report = validate_isolated(root, on_progress=lambda done, total: seen.append((done, total)))
    assert report == validate(root)
    assert seen[-1] == (15, 15)


def test_limits_reach_the_child(root: Path) -> None:
    report = validate_isolated(root, ValidationLimits(image_pixels=100))
    assert {issue.code for issue in report.issues if issue.image} == {"image_too_large"}


def test_memory_limit(root: Path) -> None:
    text = json.dumps({"images": [[0.5] * 10 for _ in range(600_000)]})
    (root / "train" / "_annotations.coco.json").write_text(text)
    report = validate_isolated(root, process_limits=ProcessLimits(memory_bytes=256 * 1024**2))
    assert crash_message(report) == "validation needed more than 268,435,456 bytes of memory"


def test_lower_limits_of_the_system_are_kept(root: Path) -> None:
    code = (
        "import resource, pathlib, sys; from sam3_lora.coco.isolation import validate_isolated\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 * 1024**3, 2 * 1024**3))\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
        "print(validate_isolated(pathlib.Path(sys.argv[1])).status)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    assert run.stdout == "valid\n"


def test_cpu_limit(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(
        monkeypatch, tmp_path, "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 9))\nwhile True: pass\n"
    )
    report = validate_isolated(root, process_limits=ProcessLimits(cpu_s=1))
    assert crash_message(report) == "validation used more than 1 s of processor time"


def test_timeout_ends_the_whole_group(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    grandchild = f"import time, pathlib\nwhile True: pathlib.Path({str(alive)!r}).touch(); time.sleep(0.05)"
    body = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {grandchild!r}])\ntime.sleep(60)\n"
    stand_in(monkeypatch, tmp_path, body)
    report = validate_isolated(root, process_limits=ProcessLimits(timeout_s=2))
    assert crash_message(report) == "validation did not end within 2 s"
    assert alive.exists()
    alive.unlink()
    time.sleep(0.3)
    assert not alive.exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "validation was ended by SIGSEGV"),
        ("raise SystemExit(7)", "validation ended without a report (exit code 7): no message"),
        ("raise RuntimeError('broken')", "validation ended without a report (exit code 1): RuntimeError: broken"),
        ("pass", "validation ended without a report (exit code 0): no message"),
        (
            "import sys; open(sys.argv[3], 'w').write('{}')",
            "validation ended without a report (exit code 0): no message",
        ),
    ],
)
def test_crash_becomes_a_report(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, message: str
) -> None:
    stand_in(monkeypatch, tmp_path, body)
    assert crash_message(validate_isolated(root)) == message


def test_child_sees_no_secrets(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://canary")
    stand_in(monkeypatch, tmp_path, "import os\nraise SystemExit('canary' if 'canary' in str(os.environ) else 'clean')")
    assert crash_message(validate_isolated(root)).endswith(": clean")


def test_listener_that_raises_ends_the_child(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class CancelledError(Exception):
        pass

    def cancel(done: int, total: int) -> None:
        raise CancelledError

    stand_in(monkeypatch, tmp_path, "import time\nprint('1 2', flush=True)\ntime.sleep(60)\n")
    started = time.monotonic()
    with pytest.raises(CancelledError):
        validate_isolated(root, on_progress=cancel)
    assert time.monotonic() - started < 20
