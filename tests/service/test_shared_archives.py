"""Datasets and uploads that share stored bytes, on both databases: what one still needs, no other takes away."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from service.shared.db.models import Upload
from service.shared.errors import NotFoundError
from service.shared.ids import new_id
from service.shared.states import DatasetState
from service.shared.storage import Storage, StoredFile
from service.usecases.datasets import DatasetSpec, create_dataset, register_dataset
from service.usecases.uploads import UploadSpec, create_upload, discard_upload

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.shared.db.models import Dataset
    from service.shared.settings import Settings
    from service.shared.unit_of_work import Database

SHA256 = "5" * 64
ROUNDS = 12


def register(database: Database, key: str) -> Dataset:
    with database.write() as unit:
        return register_dataset(unit, new_id("ds"), DatasetSpec("d", "d.zip"), StoredFile(key, 3, SHA256))


def together(*works: Callable[[], Any]) -> list[Any]:
    """The results of functions that begin at the same time."""
    barrier = threading.Barrier(len(works))
    results: list[Any] = [None] * len(works)

    def run(index: int) -> None:
        barrier.wait()
        results[index] = works[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def delete_and_judge(database: Database, dataset: Dataset) -> bool:
    """Delete a dataset; whether its archive may be deleted, too."""
    with database.write() as unit:
        unit.datasets.mark_deleted(dataset.id)
    with database.write() as unit:
        (deleted,) = [each for each in unit.datasets.deleted(limit=100) if each.id == dataset.id]
        return not (unit.datasets.shares_archive(deleted) or unit.uploads.holds(str(deleted.storage_key)))


def test_bytes_are_shared_or_gone_never_both(database: Database) -> None:
    outcomes = set()
    for number in range(ROUNDS):
        first = register(database, f"datasets/old{number}/archive")
        second, is_gone = together(
            lambda number=number: register(database, f"datasets/new{number}/archive"),
            lambda first=first: delete_and_judge(database, first),
        )
        shares = second.storage_key == first.storage_key
        assert not (shares and is_gone)
        assert shares or second.storage_key == f"datasets/new{number}/archive"
        outcomes.add(shares)
        assert delete_and_judge(database, second)
    assert outcomes


def test_a_ready_twin_gives_its_report(database: Database) -> None:
    first = register(database, "datasets/a/archive")
    with database.write() as unit:
        claimed = unit.datasets.claim("w")
        assert claimed is not None
        unit.datasets.finish(first.id, claimed.epoch, DatasetState.READY, report={"status": "valid"}, preview=[])
    second = register(database, "datasets/b/archive")
    assert (second.state, second.report, second.preview) == (DatasetState.READY, {"status": "valid"}, [])
    assert second.storage_key == "datasets/a/archive"
    with database.write() as unit:
        assert unit.datasets.claim("w") is None


def test_a_dataset_that_was_fetched_finds_its_twin(database: Database) -> None:
    first = register(database, "datasets/a/archive")
    with database.write() as unit:
        unit.datasets.claim("w")
        waiting = register_dataset(unit, new_id("ds"), DatasetSpec("d", "d", {"type": "path", "path": "/d"}), None)
    with database.write() as unit:
        claimed = unit.datasets.claim("w")
        assert claimed is not None
        assert claimed.id == waiting.id
        archive = StoredFile("datasets/b/archive", 3, SHA256)
        fetched = unit.datasets.fetched(claimed, archive, {"type": "path", "path": "/d"})
        again = unit.datasets.fetched(claimed, archive, {"type": "path", "path": "/d"})
    assert fetched.storage_key == again.storage_key == first.storage_key


def test_projects_share_no_archive_whoever_looks(database: Database) -> None:
    of_a = register(database.of("a"), "datasets/a/archive")
    with database.of("b").write() as unit:
        register_dataset(unit, new_id("ds"), DatasetSpec("d", "d", {"type": "path", "path": "/d"}), None)
    with database.write() as unit:
        unit.datasets.claim("w")
        claimed = unit.datasets.claim("w")
        assert claimed is not None
        assert (claimed.project, of_a.project) == ("b", "a")
        archive = StoredFile("datasets/b/archive", 3, SHA256)
        fetched = unit.datasets.fetched(claimed, archive, {"type": "path", "path": "/d"})
    assert fetched.storage_key == "datasets/b/archive"
    by_admin = register(database, "datasets/c/archive")
    assert (by_admin.project, by_admin.storage_key) == ("default", "datasets/c/archive")


def test_a_file_that_another_project_needs_stays(database: Database, settings: Settings) -> None:
    """As rows of before archives were kept apart may share it."""
    storage, key = Storage(settings), "datasets/a/archive"
    file = storage.put(key, [b"abc"], size_bytes=3)
    upload = new_upload(database.of("a"), settings)
    with database.write() as unit:
        unit.uploads.complete(unit.uploads.get(upload.id, lock=True), file)
    of_a, of_b = register(database.of("a"), key), register(database.of("b"), key)
    assert of_a.storage_key == of_b.storage_key == key
    assert not delete_and_judge(database.of("b"), of_b)  # for the other dataset, and the upload
    assert not delete_and_judge(database.of("a"), of_a)  # for the upload
    with database.of("b").write() as unit:
        assert unit.uploads.holds(key)
        assert unit.uploads.known_keys([key]) == {key}
    register(database.of("b"), key)
    discard_upload(database.of("a"), storage, upload.id)
    assert storage.exists(key)


def new_upload(database: Database, settings: Settings) -> Upload:
    with database.write() as unit:
        return create_upload(unit, settings, UploadSpec("a.zip", 10, None, None))


def test_parts_of_concurrent_writers_are_one_row(database: Database, settings: Settings) -> None:
    upload = new_upload(database, settings)

    def put(key: str) -> str | None:
        with database.write() as unit:
            return unit.uploads.put_part(unit.uploads.get(upload.id, lock=True), 1, StoredFile(key, 10, key * 64))

    replaced = together(*[lambda key=key: put(key) for key in "abcdef"])
    with database.read() as unit:
        (part,) = unit.uploads.parts(upload.id)
    assert {*replaced, part.storage_key} == {None, *"abcdef"}
    assert part.sha256 == part.storage_key * 64


def test_a_file_that_a_dataset_took_from_an_upload_outlives_it(database: Database, settings: Settings) -> None:
    for number in range(ROUNDS):
        key = f"datasets/u{number}/archive"
        upload = new_upload(database, settings)
        with database.write() as unit:
            unit.uploads.complete(unit.uploads.get(upload.id, lock=True), StoredFile(key, 10, f"{number:064}"))

        def take(upload_id: str = upload.id) -> Dataset | None:
            source = {"type": "upload", "upload_id": upload_id}
            try:
                with database.write() as unit:
                    return create_dataset(unit, settings, source, name=None, sha256=None)
            except Exception:  # noqa: BLE001 - judged by the result
                return None

        def discard(upload_id: str = upload.id, key: str = key) -> bool:
            with database.write() as unit:
                unit.uploads.remove(unit.uploads.get(upload_id, lock=True))
                return not unit.datasets.known_keys([key])

        dataset, is_gone = together(take, discard)
        assert (dataset is None) == is_gone
        with database.read() as unit, pytest.raises(NotFoundError):
            unit.uploads.get(upload.id)
