"""A trainer of several processes: one for its worker, whatever happens to any of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from sam3_lora import child
from sam3_lora.events import Event, EventType
from sam3_lora.training.launch import Crew
from tests.training.trainers import LEASE_S, Trainer

TWO = ("--processes", "2")
QUICK_S = 10.0  # far below the 30 minutes that a collective waits


def trained(event: Event) -> bool:
    return event.type is EventType.METRICS and "train/loss" in event.data["values"]


def followers(trainer: Trainer) -> list[psutil.Process]:
    return psutil.Process(trainer.process.pid).children()


def wait_gone(processes: list[psutil.Process], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
        assert time.monotonic() < deadline, "a follower lives on"
        time.sleep(0.02)


def test_two_processes_train_as_one_run(start, make_config):
    config = make_config(training={"max_epochs": 1})
    trainer = start(*TWO, config=config)
    assert trainer.end() == 0, trainer.log
    results = [event for event in trainer.events if event.type is EventType.RESULT]
    assert [event.data["processes"] for event in results] == [2]
    assert [event.data["step"] for event in trainer.events if trained(event)] == [1, 2]  # 4 and 2 of 6 images
    assert (config.output.dir / "checkpoints" / "best" / "adapter_model.safetensors").is_file()
    assert "[rank 1] " in trainer.log


def test_sigterm_to_the_leader_saves_for_all(start, make_config):
    config = make_config(training={"max_epochs": 1000}, evaluation={"baseline": False})
    trainer = start(*TWO, "--lease-timeout", str(LEASE_S), config=config)
    trainer.until(trained)
    [follower] = followers(trainer)
    follower.send_signal(signal.SIGTERM)  # means nothing: the leader is asked, not the others
    follower.send_signal(signal.SIGUSR1)
    trainer.process.send_signal(signal.SIGTERM)
    assert trainer.end() == child.EXIT_INTERRUPTED, trainer.log
    [saved] = [e for e in trainer.events if e.type is EventType.CHECKPOINT and e.data["kind"] == "interrupt"]
    assert (config.output.dir / saved.data["folder"] / "training_state.pt").is_file()
    assert not follower.is_running()


def test_sigusr1_to_the_leader_finishes_for_all(start):
    trainer = start(*TWO)
    trainer.until(trained)
    trainer.process.send_signal(signal.SIGUSR1)
    assert trainer.end() == 0, trainer.log
    assert trainer.events[-1].data["stopped_early"] is True


def test_a_killed_follower_fails_the_run_at_once(start):
    trainer = start(*TWO)
    trainer.until(trained)
    [follower] = followers(trainer)
    follower.kill()
    assert trainer.end(QUICK_S) == child.EXIT_FAILED
    [error] = [event for event in trainer.events if event.type is EventType.ERROR]
    assert "rank 1 was killed (SIGKILL)" in error.message
    assert (error.data["code"], error.data["retryable"]) == ("internal", True)
    assert trainer.events[-1] == error


FAILING = """
import os, torch
if os.environ.get("RANK", "0") == "{rank}":
    from sam3_lora.training.step import Stepper
    def fail(*_):
        raise {error}
    Stepper._backward = fail
"""


@pytest.mark.parametrize(
    ("rank", "error", "code", "said"),
    [
        (1, "torch.OutOfMemoryError('CUDA out of memory')", "gpu_oom", "out of memory in a training step"),
        (0, "KeyError('odd')", "internal", "KeyError: 'odd'"),  # and not that the others lost their leader
    ],
)
def test_the_error_of_the_process_that_failed_is_that_of_the_run(start, rank: int, error: str, code: str, said: str):
    trainer = start(*TWO, first=FAILING.format(rank=rank, error=error))
    assert trainer.end() == child.EXIT_FAILED
    [told] = [event for event in trainer.events if event.type is EventType.ERROR]
    assert (told.data["code"], told.message) == (code, said)
    assert f"{'[rank 1] ' if rank else ''}Traceback" in trainer.log


def test_a_killed_leader_takes_its_followers_along(start):
    trainer = start(*TWO)
    trainer.until(trained)
    processes = followers(trainer)
    assert len(processes) == 1
    trainer.process.kill()
    wait_gone(processes, 1)


def test_a_lost_lease_ends_all(start):
    trainer = start(*TWO, "--lease-timeout", str(LEASE_S))
    trainer.until(trained)
    processes = followers(trainer)
    trainer.renewing = False
    began = time.monotonic()
    assert trainer.end() == child.EXIT_LEASE_LOST
    assert time.monotonic() - began < LEASE_S + 2
    wait_gone(processes, 1)


# --- the crew alone -------------------------------------------------------------------------------------------

CREW = """
import argparse, json, os, signal, sys, time
from sam3_lora.events import Event, EventType, Level
from sam3_lora.training.launch import Crew, follow
options = argparse.ArgumentParser(); options.add_argument("--leader", type=int)
leader = options.parse_args().leader
rank = int(os.environ.get("RANK", 0))

def say(code):
    print(Event(EventType.ERROR, f"of rank {rank}", {"code": code}, Level.ERROR).to_line(), flush=True)

def ended(error):
    print(error.to_line(), flush=True)
    os._exit(10)

if leader is not None:
    follow(leader)
    FOLLOWER
    sys.exit()
with Crew(PROCESSES, ended) as crew:
    LEADER
"""


def crew(leader: str, follower: str, *, processes: int = 3, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a leader and its followers with these bodies."""
    program = CREW.replace("PROCESSES", str(processes))
    for name, body in (("LEADER", leader), ("FOLLOWER", follower)):
        program = program.replace(name, textwrap.indent(textwrap.dedent(body).strip(), "    ").lstrip())
    return subprocess.run(
        [sys.executable, "-c", program],
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=QUICK_S * 3,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("follower", "said", "code"),
    [
        ("time.sleep(0.3 * rank); say(['', 'internal', 'gpu_oom'][rank]); time.sleep(60)", "of rank 2", "gpu_oom"),
        (
            "os.kill(os.getpid(), signal.SIGSEGV) if rank == 2 else say('internal')",
            "rank 2 crashed (SIGSEGV)",
            "internal",
        ),
        ("sys.exit(3) if rank == 2 else time.sleep(60)", "rank 2 exited with status 3", "internal"),
        ("sys.exit(3) if rank == 2 else print('not an event')", "rank 2 exited with status 3", "internal"),
    ],
)
def test_the_first_cause_is_told_and_no_consequence_of_it(follower: str, said: str, code: str):
    done = crew("time.sleep(60)", follower)
    assert done.returncode == 10, done.stderr
    [line] = done.stdout.splitlines()
    error = Event.from_line(line)
    assert said in error.message
    assert error.data["code"] == code


def test_a_signal_to_the_whole_group_reaches_the_leader_alone_from_the_first_moment_on():
    leader = """
    heard = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: heard.append(number))
        os.killpg(0, number)  # the others have only just been born
    assert len(heard) == 3
    """
    follower = (
        "time.sleep(0.5); assert not signal.pthread_sigmask(signal.SIG_BLOCK, []); print('alive', file=sys.stderr)"
    )
    done = crew(leader, follower)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("alive") == 2


def test_followers_are_told_what_torchrun_would_tell_and_share_the_cores():
    names = "MASTER_ADDR MASTER_PORT RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE OMP_NUM_THREADS GLOO_SOCKET_IFNAME"
    tell = f"print(json.dumps({{n: os.environ[n] for n in {names.split()!r}}}), file=sys.stderr)"
    done = crew(tell, tell, GLOO_SOCKET_IFNAME="eth7")
    assert done.returncode == 0, done.stderr
    told = {}
    for line in done.stderr.splitlines():
        values = json.loads(line[line.index("{") :])
        told[line[: line.index("{")]] = values
    assert {prefix: values["RANK"] for prefix, values in told.items()} == {"": "0", "[rank 1] ": "1", "[rank 2] ": "2"}
    assert all(values["LOCAL_RANK"] == values["RANK"] for values in told.values())
    shared = [{k: v for k, v in values.items() if not k.endswith("RANK")} for values in told.values()]
    assert shared[0] == shared[1] == shared[2]
    assert shared[0] | {"MASTER_PORT": "", "OMP_NUM_THREADS": ""} == {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "",
        "WORLD_SIZE": "3",
        "LOCAL_WORLD_SIZE": "3",
        "OMP_NUM_THREADS": "",
        "GLOO_SOCKET_IFNAME": "eth7",
    }
    assert int(shared[0]["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 3)


def test_followers_that_stay_are_ended_with_the_leader():
    done = crew("import sam3_lora.training.launch as launch; launch.LEAVE_S = 0.2", "time.sleep(60)")
    assert done.returncode == 0, done.stderr


def test_processes_are_not_started_within_torchruns(tmp_path: Path):
    command = [sys.executable, "-m", "sam3_lora.training.process", "--config", str(tmp_path / "none.json")]
    for arguments, environment in ((TWO, {"WORLD_SIZE": "2"}), (("--processes", "0"), {})):
        done = subprocess.run(
            [*command, *arguments],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == child.EXIT_CONFIG
        assert "--processes" in done.stderr


def test_how_followers_leave_no_longer_matters_once_there_is_a_result():
    class Failed:
        has_failed = True
        _error = Event(EventType.ERROR, "crashed while leaving", {"code": "internal"})
        _process = SimpleNamespace(returncode=1)

        def failure(self):
            return self._error

    told = []
    for has_result in (True, False):
        crew = Crew(1, on_failure=told.append)
        crew._followers = [Failed()]
        if has_result:
            crew.has_result()
        crew._watch()
        assert len(told) == (0 if has_result else 1)
