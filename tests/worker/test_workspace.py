"""Scratch folders: gone when they should be, there while they are needed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from service.shared.scratch import UNBORN_S
from worker.workspace import KEPT_DATASETS, Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path / "workspace")
    yield workspace
    workspace.close()


def sha(number: int) -> str:
    return f"{number:064x}"


def extract(folder: Path) -> None:
    folder.mkdir()
    (folder / "image").write_text("x")


def test_attempt_is_removed_whatever_happens(workspace: Workspace, tmp_path: Path) -> None:
    def fail() -> None:
        with workspace.attempt("job-e1") as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "file").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list((tmp_path / "workspace").glob("worker-*/job-*"))


def test_dataset_is_extracted_once(workspace: Workspace) -> None:
    for _ in range(2):
        with workspace.dataset(sha(1), extract) as root:
            assert (root / "image").read_text() == "x"
        extract_again = pytest.fail  # a second call would fail the test
        with workspace.dataset(sha(1), extract_again):
            pass


def test_failed_extraction_leaves_nothing_and_is_tried_again(workspace: Workspace, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        extract(folder)
        raise ValueError("bad archive")

    with pytest.raises(ValueError, match="bad archive"), workspace.dataset(sha(1), fail):
        pass
    assert not list((tmp_path / "workspace").rglob("image"))
    with workspace.dataset(sha(1), extract) as root:
        assert (root / "image").exists()


def test_two_workers_extract_one_dataset_once(workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace(tmp_path / "workspace")
    extractions: list[int] = []
    together = threading.Barrier(2)

    def slow_extract(folder: Path) -> None:
        extractions.append(1)
        time.sleep(0.3)
        extract(folder)

    def use(mine: Workspace) -> None:
        with mine.dataset(sha(1), slow_extract) as root:
            assert (root / "image").exists()
            together.wait(5)  # both use it at the same time

    threads = [threading.Thread(target=use, args=(each,)) for each in (workspace, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not together.broken
    assert len(extractions) == 1
    other.close()


def test_whoever_waits_for_another_worker_can_be_called_away(workspace: Workspace, tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def extract_slowly(folder: Path) -> None:
        begun.set()
        assert go_on.wait(20)
        extract(folder)

    def extract_first() -> None:
        with workspace.dataset(sha(1), extract_slowly):
            pass

    def leave() -> None:
        raise InterruptedError("wanted back")

    first = threading.Thread(target=extract_first)
    first.start()
    assert begun.wait(20)
    with pytest.raises(InterruptedError), workspace.dataset(sha(1), pytest.fail, leave):
        pass
    go_on.set()
    first.join()


def test_least_recently_used_datasets_make_room_but_never_those_in_use(workspace: Workspace, tmp_path: Path) -> None:
    with workspace.dataset(sha(0), extract) as used:
        for number in range(1, KEPT_DATASETS + 3):
            with workspace.dataset(sha(number), extract) as root:
                os.utime(root, (number, number))
            os.utime(used, (0, 0))  # the oldest of all
        assert (used / "image").exists()
        kept = {path.parent.name for path in (tmp_path / "workspace").rglob("image")}
    assert kept == {sha(0), *(sha(number) for number in range(KEPT_DATASETS, KEPT_DATASETS + 3))}


def test_names_that_are_no_hashes_are_refused(workspace: Workspace) -> None:
    with pytest.raises(ValueError, match="not a SHA-256"), workspace.dataset("../" + sha(0)[3:], extract):
        pass


def test_folder_of_a_killed_worker_goes_and_that_of_a_living_one_stays(workspace: Workspace, tmp_path: Path) -> None:
    code = f"""
import pathlib, time
from worker.workspace import Workspace
w = Workspace(pathlib.Path({str(tmp_path / "workspace")!r}))
with w.attempt("job-e1") as folder:
    (folder / "big").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""
    from pathlib import Path as RealPath

    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = RealPath(process.stdout.readline().strip())
        Workspace(tmp_path / "workspace").close()
        assert (folder / "big").exists()
        process.kill()
    with workspace.attempt("mine") as mine:
        Workspace(tmp_path / "workspace").close()
        assert not folder.parent.exists()
        assert mine.exists()


def test_leftovers_of_an_earlier_boot_and_of_a_crash_at_birth_go(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    extract_to = root / "datasets-earlier-boot" / sha(1)
    extract_to.parent.mkdir(parents=True)
    extract(extract_to)
    old, young = root / "unborn-1", root / "unborn-2"
    old.mkdir()
    young.mkdir()
    os.utime(old, (time.time() - UNBORN_S - 1,) * 2)
    Workspace(root).close()
    assert not extract_to.parent.exists()
    assert (old.exists(), young.exists()) == (False, True)
