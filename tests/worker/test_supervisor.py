"""The supervisor against real child processes that misbehave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sam3_lora.events import Event, EventType
from service.shared.db.migrate import upgrade
from service.shared.settings import Settings
from tests.worker import trainers
from worker.supervisor import Ask, Cut, Ending, Limits, Trainer, leave_hub_out, scrubbed
from worker.tether import MAX_FILE_BYTES, MAX_OPEN_FILES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMITS = Limits(runtime_s=20, silence_s=20, grace_s=1, log_bytes=10_000)


def run(
    folder: Path,
    body: str,
    *,
    limits: Limits = LIMITS,
    ask: Callable[[], Ask | None] = lambda: None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> tuple[Ending, list[Event]]:
    events: list[Event] = []

    def collect(event: Event) -> None:
        events.append(event)
        on_event(event)

    command = trainers.write(folder, body)
    with Trainer(command, log=folder / "log", temporary=folder, limits=limits) as trainer:
        ending = trainer.supervise(collect, ask)
    assert not _alive_in_group(trainer.pid)
    return ending, events


def _alive_in_group(group: int) -> bool:
    listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return any(line.split()[0] == str(group) and "Z" not in line.split()[1] for line in listed.splitlines())


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_hands_over_all_events_in_order_and_the_result(tmp_path: Path) -> None:
    ending, events = run(
        tmp_path, "for n in range(500): say('metrics', step=n)\nsay('result', steps=500)\nprint('bye', file=sys.stderr)"
    )
    assert [event.data["step"] for event in events[:-1]] == list(range(500))
    assert ending.returncode == 0
    assert ending.result == Event(EventType.RESULT, "", {"steps": 500})
    assert (tmp_path / "log").read_text() == "bye\n"


def test_slow_consumer_loses_nothing(tmp_path: Path) -> None:
    _, events = run(
        tmp_path,
        "for n in range(300): say('metrics', 'x' * 5000, step=n)",
        on_event=lambda event: time.sleep(0.3 if event.data["step"] in (0, 150) else 0),
    )
    assert [event.data["step"] for event in events] == list(range(300))


@pytest.mark.parametrize(
    "noise",
    [
        "sys.stdout.write('not json\\n')",
        "sys.stdout.write('[1, 2]\\n')",
        'sys.stdout.write(\'{"type": "unheard_of", "level": "info", "message": "", "data": {}}\\n\')',
        "sys.stdout.write('[' * 100000 + '\\n')",
        "sys.stdout.buffer.write(b'\\xff\\xfe\\x00\\n')",
        "sys.stdout.write('x' * 10_000_000 + '\\n')",
        "sys.stdout.write('\\n' * 5000)",
    ],
    ids=["text", "array", "unknown type", "deep", "not utf-8", "10 MB line", "empty lines"],
)
def test_noise_on_stdout_is_skipped(tmp_path: Path, noise: str) -> None:
    ending, events = run(tmp_path, f"say('message', 'a')\n{noise}\nsys.stdout.flush()\nsay('message', 'b')")
    assert [event.message for event in events] == ["a", "b"]
    assert ending.returncode == 0


def test_log_is_bounded_and_never_blocks_the_trainer(tmp_path: Path) -> None:
    ending, _ = run(tmp_path, "sys.stderr.write('y' * 5_000_000); say('result')")
    assert ending.returncode == 0
    assert 10_000 <= (tmp_path / "log").stat().st_size < 10_100
    assert b"log is full" in (tmp_path / "log").read_bytes()


def test_saves_and_exits_when_asked(tmp_path: Path) -> None:
    started = threading.Event()
    ending, events = run(
        tmp_path,
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        say('phase', phase='training')
        signal.sigwait({signal.SIGTERM})
        say('message', 'saved'); sys.exit(11)
        """,
        on_event=lambda _: started.set(),
        ask=lambda: Ask.SAVE_AND_EXIT if started.is_set() else None,
    )
    assert (ending.returncode, ending.asked) == (11, Ask.SAVE_AND_EXIT)
    assert events[-1].message == "saved"


def test_finish_is_held_back_until_the_trainer_can_understand_it(tmp_path: Path) -> None:
    ending, _ = run(
        tmp_path,
        """
        time.sleep(0.5)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        say('phase', phase='starting')
        signal.sigwait({signal.SIGUSR1})
        say('result', early=True)
        """,
        ask=lambda: Ask.FINISH,
    )
    assert (ending.returncode, ending.asked) == (0, Ask.FINISH)
    assert ending.result is not None


def test_one_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    started = threading.Event()
    begun = time.monotonic()
    ending, _ = run(
        tmp_path,
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); say('message'); time.sleep(60)",
        on_event=lambda _: started.set(),
        ask=lambda: Ask.SAVE_AND_EXIT if started.is_set() else None,
    )
    assert ending.returncode == -signal.SIGKILL
    assert 1 <= time.monotonic() - begun < 8


def test_die_kills_at_once_and_drops_what_was_said_after(tmp_path: Path) -> None:
    lost = threading.Event()
    ending, events = run(
        tmp_path,
        "say('message', 'first')\nwhile True: say('message', 'more'); time.sleep(0.001)",
        on_event=lambda _: lost.set(),
        ask=lambda: Ask.DIE if lost.is_set() else None,
    )
    assert ending.returncode == -signal.SIGKILL
    assert ending.asked is Ask.DIE
    assert events[0].message == "first"


def test_runtime_limit(tmp_path: Path) -> None:
    limits = Limits(runtime_s=0.5, silence_s=20, grace_s=0.3, log_bytes=100)
    ending, _ = run(tmp_path, "while True: say('progress'); time.sleep(0.05)", limits=limits)
    assert (ending.cut, ending.asked) == (Cut.RUNTIME, Ask.SAVE_AND_EXIT)


def test_silence_limit_counts_from_the_last_event(tmp_path: Path) -> None:
    limits = Limits(runtime_s=20, silence_s=0.6, grace_s=0.3, log_bytes=100)
    begun = time.monotonic()
    ending, events = run(tmp_path, "for _ in range(6): say('progress'); time.sleep(0.2)\ntime.sleep(60)", limits=limits)
    assert ending.cut is Cut.NO_PROGRESS
    assert len(events) == 6
    assert time.monotonic() - begun > 1.5


GROWS = """
child = "import time; held = bytearray(96 * 2**20); time.sleep(60)"
subprocess.Popen([sys.executable, '-ISc', child]); subprocess.Popen([sys.executable, '-ISc', child])
while True: say('progress'); time.sleep(0.1)
"""


def test_memory_limit_counts_the_whole_group_and_ends_it_at_once(tmp_path: Path) -> None:
    limits = replace(LIMITS, memory_bytes=128 * 2**20)
    ending, _ = run(tmp_path, GROWS, limits=limits)
    assert (ending.cut, ending.asked, ending.returncode) == (Cut.MEMORY, None, -signal.SIGKILL)


def test_memory_that_processes_share_counts_once(tmp_path: Path) -> None:
    forks = """
    held = bytearray(96 * 2**20)
    for _ in range(3):
        if os.fork() == 0: time.sleep(60)
    for _ in range(25): say('progress'); time.sleep(0.1)
    say('result')
    """
    ending, _ = run(tmp_path, forks, limits=replace(LIMITS, memory_bytes=192 * 2**20))
    assert (ending.cut, ending.returncode) == (None, 0)


def test_grandchild_that_ignores_signals_and_holds_the_pipes_is_gone(tmp_path: Path) -> None:
    ending, events = run(
        tmp_path,
        """
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
        child = subprocess.Popen([sys.executable, '-ISc', code])
        say('message', str(child.pid)); say('result')
        """,
    )
    assert ending.returncode == 0
    assert not _is_alive(int(events[0].message))


def test_grandchild_in_a_session_of_its_own_does_not_hold_the_supervisor(tmp_path: Path) -> None:
    begun = time.monotonic()
    ending, events = run(
        tmp_path,
        """
        child = subprocess.Popen([sys.executable, '-ISc', 'import time; time.sleep(30)'], start_new_session=True)
        say('message', str(child.pid)); say('result')
        """,
    )
    os.kill(int(events[0].message), signal.SIGKILL)
    assert ending.returncode == 0
    assert time.monotonic() - begun < 8


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_death_by_signal(tmp_path: Path, number: signal.Signals) -> None:
    ending, events = run(tmp_path, f"say('message'); os.kill(os.getpid(), {int(number)})")
    assert ending.returncode == -number
    assert len(events) == 1


def test_out_of_memory_in_the_trainer_is_its_own_end(tmp_path: Path) -> None:
    ending, _ = run(
        tmp_path,
        """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (200 << 20, 200 << 20))
        say('message'); x = bytearray(1 << 30)
        """,
    )
    assert ending.returncode == 1
    assert "MemoryError" in (tmp_path / "log").read_text()


def test_command_that_cannot_run(tmp_path: Path) -> None:
    with Trainer(["/no/such/program"], log=tmp_path / "log", temporary=tmp_path, limits=LIMITS) as trainer:
        assert trainer.supervise(lambda _: None, lambda: None).returncode == 127
    assert "cannot run /no/such/program" in (tmp_path / "log").read_text()


def test_error_in_the_observer_kills_the_trainer(tmp_path: Path) -> None:
    def refuse(event: Event) -> None:
        raise RuntimeError("lease lost")

    command = trainers.write(tmp_path, "while True: say('message', 'x' * 10000)")
    trainer = Trainer(command, log=tmp_path / "log", temporary=tmp_path, limits=LIMITS)
    with pytest.raises(RuntimeError, match="lease lost"), trainer:
        trainer.supervise(refuse, lambda: None)
    assert not _alive_in_group(trainer.pid)


def test_leases_reach_stdin_and_a_trainer_without_them_can_fence_itself(tmp_path: Path) -> None:
    command = trainers.write(
        tmp_path,
        """
        import select
        n = 0
        while select.select([0], [], [], 0.6)[0] and os.read(0, 1): n += 1
        say('message', str(n)); sys.exit(12)
        """,
    )
    with Trainer(command, log=tmp_path / "log", temporary=tmp_path, limits=LIMITS) as trainer:
        for _ in range(5):
            trainer.renew()
            time.sleep(0.05)
        events: list[Event] = []
        assert trainer.supervise(events.append, lambda: None).returncode == 12
        assert events[0].message == "5"
    trainer.renew()  # after the end: no error


def test_renewing_one_that_does_not_read_never_blocks(tmp_path: Path) -> None:
    command = trainers.write(tmp_path, "time.sleep(60)")
    with Trainer(command, log=tmp_path / "log", temporary=tmp_path, limits=LIMITS) as trainer:
        for _ in range(70_000):
            trainer.renew()


def test_no_secret_reaches_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM3_DATABASE_URL", "postgresql://canary-secret@db")
    monkeypatch.setenv("SAM3_BROKER_URL", "redis://canary-secret@broker")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    _, events = run(tmp_path, "say('message', json.dumps(dict(os.environ)))")
    assert "canary-secret" not in events[0].message
    assert '"CUDA_VISIBLE_DEVICES": "3"' in events[0].message
    assert f'"TMPDIR": "{tmp_path}"' in events[0].message


def test_environment_names_match_as_a_whole() -> None:
    assert scrubbed({"PATH": "a", "MY_PATH": "b", "PATHS": "c", "HF_TOKEN": "d"}) == {
        "PATH": "a",
        "HF_TOKEN": "d",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def test_the_way_to_the_hub_is_passed_on_only_where_it_is_used() -> None:
    way = {"https_proxy": "http://user:password@proxy", "NO_PROXY": "a", "SSL_CERT_FILE": "b"}
    assert scrubbed(way) == way | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    leave_hub_out(way)
    assert scrubbed(way) == {"HF_HUB_OFFLINE": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_the_way_to_trackers_is_passed_on_only_where_it_is_used() -> None:
    way = {"MLFLOW_TRACKING_URI": "a", "WANDB_API_KEY": "b", "https_proxy": "c", "HF_HUB_OFFLINE": "1"}
    plain = {"HF_HUB_OFFLINE": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert scrubbed(way) == plain
    assert scrubbed(way, trackers=True) == plain | way


def test_without_the_hub_a_worker_passes_no_token_on() -> None:
    environment = {"HF_TOKEN": "a", "HUGGING_FACE_HUB_TOKEN": "b", "HUGGINGFACE_TOKEN": "c", "HF_HOME": "/hub"}
    leave_hub_out(environment)
    assert scrubbed(environment) == {"HF_HOME": "/hub", "HF_HUB_OFFLINE": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.mark.parametrize("from_hub", [True, False])
def test_a_worker_leaves_the_hub_out_unless_weights_come_from_there(from_hub: bool, tmp_path: Path) -> None:
    upgrade(Settings(data_dir=tmp_path))
    script = """
import os, sys, worker.app
worker.app.work = lambda *_: sys.stderr.write("token: " + os.environ.get("HF_TOKEN", "none"))
worker.app.main(["--queue", "cpu"])
"""
    environment = os.environ | {"HF_TOKEN": "canary", "SAM3_CHECKPOINT_FROM_HUB": str(from_hub)}
    said = subprocess.run(
        [sys.executable, "-c", script], env=environment | {"SAM3_DATA_DIR": str(tmp_path)},
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert f"token: {'canary' if from_hub else 'none'}" in said.stderr


def test_a_trainer_writes_no_huge_file_leaves_no_core_and_keeps_its_own_session(tmp_path: Path) -> None:
    code = """
import resource
limits = {name: resource.getrlimit(getattr(resource, 'RLIMIT_' + name)) for name in ('FSIZE', 'CORE', 'NOFILE')}
say('message', json.dumps({**limits, 'session': os.getsid(0) == os.getpid()}))
"""
    _, events = run(tmp_path, code)
    found = json.loads(events[0].message)
    assert found["FSIZE"] == [MAX_FILE_BYTES, MAX_FILE_BYTES]
    assert found["CORE"] == [0, 0]
    assert 0 < found["NOFILE"][0] <= MAX_OPEN_FILES
    assert found["session"] is True


def test_trainer_is_the_first_victim_when_memory_runs_out(tmp_path: Path) -> None:
    _, events = run(tmp_path, "say('message', open('/proc/self/oom_score_adj').read())")
    assert int(events[0].message) == 1000


def test_kill_9_of_the_supervising_process_takes_the_trainer_along(tmp_path: Path) -> None:
    command = trainers.write(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)")
    parent = f"""
import sys, pathlib
from worker.supervisor import Limits, Trainer
t = Trainer({command!r}, log=pathlib.Path({str(tmp_path / "log")!r}), temporary=pathlib.Path({str(tmp_path)!r}),
            limits=Limits(60, 60, 1, 100))
print(t.pid, flush=True)
t.supervise(print, lambda: None)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        time.sleep(0.3)
        assert _is_alive(pid)
        process.kill()
    deadline = time.monotonic() + 5
    while _is_alive(pid):
        assert time.monotonic() < deadline, "the trainer outlived its supervisor"
        time.sleep(0.02)
