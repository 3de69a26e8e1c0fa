"""Comparisons from claim to end, with real processes in the place of the one that measures."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from service.shared.db.repositories.attempts import Lease
from service.shared.states import WorkState
from service.usecases.comparisons import delete_comparison
from service.usecases.models import delete_model
from tests.coco.datasets import records, write_split
from tests.service.results import add_comparison, add_model
from tests.worker import trainers
from tests.worker.conftest import add_dataset, both_databases, zip_folder
from tests.worker.test_model_workers import is_alive
from worker.comparer import CompareRunner
from worker.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from service.shared.db.models import Comparison
    from service.shared.settings import Settings
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database

BASE = "sam3-tiny"
# Measures nothing, and writes what it was told into the files that are asked of it.
BEGIN = """
import pathlib
assert "SAM3_DATABASE_URL" not in os.environ
config = json.load(open(sys.argv[sys.argv.index("--config") + 1]))
out = pathlib.Path(config["output"])
for folder in ("0", "1"): (out / folder).mkdir(parents=True)
def progress(done): say("progress", images_done=done, images_total=8)
"""
WRITE = """
for n, model in enumerate(config["models"]):
    told = {**model, "images": len(json.load(open(config["annotations"]))["images"]), "split": config["annotations"]}
    if model["adapter"]: told["adapter"] = open(model["adapter"] + "/adapter_model.safetensors").read()
    for name in ("truth", "predictions", "evaluation"): (out / str(n) / (name + ".json")).write_text(json.dumps(told))
(out / "report.html").write_text(json.dumps(config))
"""
GOOD = BEGIN + "progress(3); time.sleep(0.6); progress(8)" + WRITE + 'say("result")'


class Rig:
    def __init__(self, settings: Settings, database: Database, storage: Storage, folder: Path, archive: Path) -> None:
        self.settings, self.database, self.storage, self.folder = settings, database, storage, folder
        self.workspace = Workspace(settings.data_dir / "workspace")
        self.draining = threading.Event()
        self.model_id = add_model(database, storage, folder)
        self.dataset_id = add_dataset(database, storage, archive)
        self.pid_file = folder / "pid"

    def runner(self, body: str, **settings: Any) -> CompareRunner:
        note = f"open({str(self.pid_file)!r}, 'w').write(str(os.getpid()))\n"
        return CompareRunner(
            self.settings.model_copy(update=settings),
            self.database,
            self.storage,
            self.workspace,
            worker_id="w-1",
            is_draining=self.draining.is_set,
            command=tuple(trainers.write(self.folder, note + body, "measure.py")),
        )

    def add(self, **values: Any) -> str:
        return add_comparison(
            self.database, self.settings, (BASE, self.model_id), **{"dataset_id": self.dataset_id, **values}
        )

    def get(self, comparison_id: str) -> Comparison:
        with self.database.read() as unit:
            return unit.comparisons.get(comparison_id)

    def run(self, body: str, *, values: dict[str, Any] | None = None, **settings: Any) -> Comparison:
        """A new comparison after one attempt."""
        comparison_id = self.add(**(values or {}))
        assert self.runner(body, **settings).run_next()
        return self.get(comparison_id)

    def has_started(self) -> bool:
        return self.pid_file.exists() and self.pid_file.read_text() != ""

    def process_is_gone(self) -> bool:
        return not is_alive(int(self.pid_file.read_text()))


@pytest.fixture
def rig(settings: Settings, database: Database, storage: Storage, tmp_path: Path, dataset_zip: Path) -> Iterator[Rig]:
    rig = Rig(settings, database, storage, tmp_path, dataset_zip)
    yield rig
    leftovers = [path for path in (settings.data_dir / "workspace").glob("worker-*/*") if path.name != "lock"]
    assert leftovers == []
    rig.workspace.close()


@both_databases
def test_both_models_are_measured_and_everything_is_stored(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM3_DATABASE_URL", "a secret")
    comparison_id = rig.add(max_images=2, metric="cgF1")
    seen: list[tuple[int | None, int | None]] = []

    def watch() -> None:
        while not (row := rig.get(comparison_id)).finished_at:
            seen.append((row.images_done, row.images_total))
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    assert rig.runner(GOOD).run_next()
    thread.join(20)
    comparison = rig.get(comparison_id)
    assert (comparison.state, comparison.error) == (WorkState.SUCCEEDED, None)
    assert (3, 8) in seen  # while it was still at it
    assert (comparison.images_done, comparison.images_total) == (8, 8)
    assert comparison.result is not None
    base, tuned = comparison.result["evaluations"]
    assert (base["base"], base["adapter"]) == (BASE, None)
    assert (tuned["base"], tuned["adapter"].split(" of ")[0]) == (BASE, "adapter_model.safetensors")
    assert (comparison.result["split"], tuned["images"]) == ("validation", 4)
    assert len(comparison.files) == 7
    for file in comparison.files:
        content = b"".join(rig.storage.get_range(file.storage_key))
        assert len(content) == file.size_bytes
    told = json.loads(b"".join(rig.storage.get_range(comparison.files[-1].storage_key)))
    assert (comparison.files[-1].name, told["max_images"], told["metric"]) == ("report.html", 2, "cgF1")
    assert told["title"] == f"bolts-v1 against {BASE} (untuned)".replace("bolts", "pallets")
    assert told["facts"]["Judged"] == f"pallets-v1 ({rig.model_id})"
    assert rig.runner(GOOD).run_next() is False


@pytest.mark.parametrize(("split", "images"), [("train", 12), ("validation", 4), (None, 4)])
def test_the_split_is_the_one_asked_for(rig: Rig, split: str | None, images: int) -> None:
    result = rig.run(GOOD, values={"split": split}).result
    assert result is not None
    assert (result["split"], result["evaluations"][0]["images"]) == (split or "validation", images)


def test_a_dataset_without_validation_is_measured_on_what_it_has(rig: Rig, tmp_path: Path) -> None:
    write_split(tmp_path / "one" / "train", records(3), 0)
    dataset_id = add_dataset(rig.database, rig.storage, zip_folder(tmp_path / "one", tmp_path / "one.zip"))
    result = rig.run(GOOD, values={"dataset_id": dataset_id}).result
    assert result is not None
    assert (result["split"], result["evaluations"][0]["images"]) == ("train", 3)
    failed = rig.run(GOOD, values={"dataset_id": dataset_id, "split": "validation"})
    assert failed.state is WorkState.FAILED
    assert (failed.error or {})["code"] == "split_missing"


ERROR = 'say("error", "the adapter is damaged", code="adapter_invalid", hint="h", retryable=False); sys.exit(10)'


@pytest.mark.parametrize(
    ("body", "changed", "code", "said"),
    [
        (ERROR, {}, "adapter_invalid", "the adapter is damaged"),
        ("sys.stderr.write('no such thing'); sys.exit(3)", {}, "internal", "status 3: no such thing"),
        ("os.kill(os.getpid(), signal.SIGKILL)", {}, "internal", "status -9"),
        ("time.sleep(60)", {"no_progress_timeout_s": 0.5}, "time_limit", "0.5 s"),
        ("time.sleep(60)", {"comparison_timeout_s": 0.7}, "time_limit", "longer than 0.7 s"),
        ('say("result")', {}, "internal", "left no file report.html"),
        (GOOD.replace('say("result")', ""), {}, "internal", "status 0"),
        (
            GOOD.replace('say("result")', '(out / "0" / "truth.json").unlink(); say("result")'),
            {},
            "internal",
            "left no file 0/truth.json",
        ),
        (
            GOOD.replace(
                'say("result")', 'p = out / "report.html"; p.unlink(); p.symlink_to("/etc/passwd"); say("result")'
            ),
            {},
            "internal",
            "left no file report.html",
        ),
        (
            GOOD.replace('say("result")', '(out / "1" / "evaluation.json").write_text("{"); say("result")'),
            {},
            "internal",
            "",
        ),
    ],
)
def test_a_failure_is_told_and_leaves_no_half_result(
    rig: Rig, body: str, changed: dict[str, Any], code: str, said: str
) -> None:
    comparison = rig.run(body, **changed)
    deadline = time.monotonic() + 15
    while comparison.state is WorkState.QUEUED:  # another attempt is left
        assert time.monotonic() < deadline
        rig.runner(body, **changed).run_next()
        comparison = rig.get(comparison.id)
        time.sleep(0.05)
    assert comparison.state is WorkState.FAILED
    assert comparison.error is not None
    assert comparison.error["code"] == code
    assert said in comparison.error["message"]
    assert str(rig.settings.data_dir) not in comparison.error["message"]
    assert (comparison.result, comparison.files) == (None, [])


@pytest.mark.parametrize("done", ["True", "-1", "9", "2**70", "None", "'3'", "float('nan')", "[1]"])
def test_nonsense_instead_of_progress_harms_nothing(rig: Rig, done: str) -> None:
    body = BEGIN + f"progress({done}); time.sleep(0.6)" + WRITE + 'say("result")'
    comparison = rig.run(body)
    assert (comparison.state, comparison.images_done) == (WorkState.SUCCEEDED, None)


def test_a_killed_process_costs_one_attempt_and_the_next_succeeds(rig: Rig) -> None:
    marker = rig.folder / "second"
    die = f"""
if not os.path.exists({str(marker)!r}):
    open({str(marker)!r}, "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    comparison = rig.run(die + GOOD)
    assert (comparison.state, comparison.lost_attempts) == (WorkState.QUEUED, 1)
    time.sleep(rig.settings.retry_backoff_max_s + 0.1)
    assert rig.runner(die + GOOD).run_next()
    assert rig.get(comparison.id).state is WorkState.SUCCEEDED


HANG = BEGIN + WRITE + "progress(3); time.sleep(60)"


def test_shutdown_gives_a_comparison_back_at_once(rig: Rig) -> None:
    threading.Timer(0.6, rig.draining.set).start()
    comparison = rig.run(HANG)
    assert (comparison.state, comparison.lost_attempts, comparison.files) == (WorkState.QUEUED, 0, [])
    assert rig.process_is_gone()
    rig.draining.clear()
    assert rig.runner(GOOD).run_next()
    assert rig.get(comparison.id).state is WorkState.SUCCEEDED


@pytest.mark.parametrize("how", ["reaped", "deleted", "model deleted"])
def test_a_lost_lease_ends_the_process_and_writes_nothing(rig: Rig, how: str) -> None:
    comparison_id = rig.add()

    def take_away() -> None:
        while not rig.has_started():
            time.sleep(0.02)
        if how == "deleted":
            delete_comparison(rig.database, rig.storage, comparison_id)
            return
        with rig.database.write() as unit:
            if how == "model deleted":
                delete_model(unit, rig.model_id)
            else:
                row = unit.comparisons.get(comparison_id, lock=True)
                unit.comparisons.reap(Lease(row.id, row.epoch, row.hb_seq))

    thread = threading.Thread(target=take_away)
    thread.start()
    began = time.monotonic()
    assert rig.runner(HANG).run_next()
    assert time.monotonic() - began < 10
    thread.join()
    assert rig.process_is_gone()
    assert rig.storage.list("comparisons") == []
    if how != "deleted":
        comparison = rig.get(comparison_id)
        assert comparison.state is (WorkState.QUEUED if how == "reaped" else WorkState.FAILED)
        assert (comparison.result, comparison.files) == (None, [])


def test_a_damaged_adapter_is_named(rig: Rig) -> None:
    key = next(key for key in rig.storage.list("jobs") if key.endswith("adapter_model.safetensors"))
    (rig.settings.storage_dir / key).write_bytes(b"damaged")  # type: ignore[operator]
    comparison = rig.run(GOOD, work_max_attempts=1)
    assert comparison.state is WorkState.QUEUED  # storage may be well again
    time.sleep(rig.settings.retry_backoff_max_s + 0.1)
    rig.runner(GOOD).run_next()
    error = rig.get(comparison.id).error
    assert error is not None
    assert "damaged adapter_model.safetensors" in error["message"]
