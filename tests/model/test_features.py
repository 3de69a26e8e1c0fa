"""Stores of features: bounded, and never a wrong tensor."""

from pathlib import Path

import pytest
import torch

from sam3_lora.model.features import FolderStore, MemoryStore

TENSOR = torch.arange(256, dtype=torch.float32).view(1, 4, 8, 8)  # 1 kB


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> MemoryStore | FolderStore:
    return MemoryStore(2500) if request.param == "memory" else FolderStore(tmp_path, "base", 2500)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gives_back_what_was_put(store: MemoryStore | FolderStore, dtype: torch.dtype):
    tensor = TENSOR.to(dtype)
    assert store.get("one") is None
    store.put("one", tensor)
    found = store.get("one")
    assert found is not None
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_keeps_its_own_copy(store: MemoryStore | FolderStore):
    tensor = TENSOR.clone()
    store.put("one", tensor)
    tensor.zero_()
    assert torch.equal(store.get("one"), TENSOR)


def test_holds_no_more_than_its_capacity(store: MemoryStore | FolderStore):
    for name in ("one", "two", "three"):
        store.put(name, TENSOR)
    assert [store.get(name) is not None for name in ("one", "two", "three")] == [True, True, False]
    assert store.size <= store.capacity


def test_another_run_finds_the_files_of_the_same_base_alone(tmp_path: Path):
    FolderStore(tmp_path, "base", 10_000).put("one", TENSOR)
    assert torch.equal(FolderStore(tmp_path, "base", 10_000).get("one"), TENSOR)
    other = FolderStore(tmp_path, "another base", 1500)
    assert other.get("one") is None
    other.put("one", TENSOR)  # 1 kB of the first base and 1 kB more would be too much
    assert other.get("one") is None


@pytest.mark.parametrize("damage", ["cut off", "bit flipped", "empty", "no safetensors"])
def test_damaged_files_are_found_out_and_made_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture):
    store = FolderStore(tmp_path, "base", 10_000)
    store.put("one", TENSOR)
    (file,) = tmp_path.rglob("*.safetensors")
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    file.write_bytes(
        {"cut off": whole[:-100], "bit flipped": bytes(flipped), "empty": b"", "no safetensors": b"x" * 200}[damage]
    )
    assert store.get("one") is None
    assert "damaged" in caplog.text
    store.put("one", TENSOR)
    assert torch.equal(store.get("one"), TENSOR)


def test_a_folder_that_cannot_be_written_ends_the_keeping_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    store = FolderStore(tmp_path, "base", 10_000)
    store.folder.rmdir()
    store.folder.write_text("in the way")
    store.put("one", TENSOR)
    store.put("two", TENSOR)
    assert caplog.text.count("cannot keep features") == 1
