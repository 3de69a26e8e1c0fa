"""How much memory is free, on the machine and in a container of it."""

from pathlib import Path

import psutil
import pytest
import torch

from sam3_lora.model import memory
from sam3_lora.model.memory import CGROUP_FILES, free_memory

CPU = torch.device("cpu")


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return tmp_path


@pytest.mark.parametrize("version", CGROUP_FILES, ids=["version 2", "version 1"])
def test_a_containers_limit_counts(cgroups: Path, version: tuple[str, ...]):
    limit, usage, statistics, reclaimable = version
    for name, text in ((limit, "5000\n"), (usage, "4500\n"), (statistics, f"anon 1\n{reclaimable} 1500\n")):
        (cgroups / name).parent.mkdir(exist_ok=True)
        (cgroups / name).write_text(text)
    assert free_memory(CPU) == 2000  # page cache gives way


@pytest.mark.parametrize("text", ["max\n", None, "nonsense\n"])
def test_without_a_limit_the_machine_counts(cgroups: Path, text: str | None):
    if text is not None:
        (cgroups / "memory.max").write_text(text)
        (cgroups / "memory.current").write_text(text)
        (cgroups / "memory.stat").write_text("")
    assert free_memory(CPU) == pytest.approx(psutil.virtual_memory().available, rel=0.1)


def test_processes_of_one_run_share(cgroups: Path, monkeypatch: pytest.MonkeyPatch):
    alone = free_memory(CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(CPU) == pytest.approx(alone / 4, rel=0.1)
