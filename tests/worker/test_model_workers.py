"""Predictions and exports from claim to end, with real processes in the place of the one that holds the model."""

from __future__ import annotations

import io
import threading
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from service.shared.db.models import Export, Prediction
from service.shared.ids import new_id
from service.shared.states import WorkState
from tests.service.results import add_model, image_bytes
from tests.worker import trainers
from worker.exporter import ExportRunner
from worker.predictor import PredictRunner
from worker.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.shared.settings import Settings
    from service.shared.storage import Storage
    from service.shared.unit_of_work import Database

# Answers with what it was asked, and with which adapter; a prompt may make it misbehave.
MODEL = """
print("noise that a library prints", file=sys.stderr)
for line in sys.stdin:
    asked = json.loads(line)
    prompt = asked["prompts"][0]
    if prompt == "die": os.kill(os.getpid(), signal.SIGKILL)
    if prompt == "hang": time.sleep(60)
    if prompt == "refuse":
        print(json.dumps({"error": {"code": "adapter_invalid", "message": "m", "hint": "h", "retryable": False}}))
    else:
        adapter = open(asked["adapter"] + "/adapter_model.safetensors").read()
        detections = [{"prompt": adapter, "presence": os.getpid(), "detections": []}]
        json.dump(detections, open(asked["result"], "w"))
        if asked["overlay"]: open(asked["overlay"], "wb").write(b"png")
        print("{}")
    sys.stdout.flush()
"""


class Rig:
    def __init__(self, settings: Settings, database: Database, storage: Storage, folder: Path) -> None:
        self.settings, self.database, self.storage, self.folder = settings, database, storage, folder
        self.workspace = Workspace(settings.data_dir / "workspace")
        self.draining = threading.Event()
        self.model_id = self.add_model()

    def add_model(self) -> str:
        return add_model(self.database, self.storage, self.folder)

    def predictor(self, model: str = MODEL, **settings: Any) -> PredictRunner:
        command = trainers.write(self.folder, model, "model.py")
        return PredictRunner(
            self.settings.model_copy(update=settings),
            self.database,
            self.storage,
            self.workspace,
            worker_id="w-1",
            is_draining=self.draining.is_set,
            command=tuple(command),
        )

    def ask(self, prompt: str = "bolt", model_id: str | None = None, *, overlay: bool = False) -> str:
        prediction_id = new_id("pred")
        (self.folder / "image").write_bytes(image_bytes())
        image = self.storage.put_file(f"predictions/{prediction_id}/image", self.folder / "image")
        with self.database.write() as unit:
            unit.predictions.add(
                Prediction(
                    id=prediction_id,
                    model_id=model_id or self.model_id,
                    image_key=image.key,
                    image_sha256=image.sha256,
                    width=60,
                    height=40,
                    request={"prompts": [prompt], "boxes": [], "min_score": 0.5, "overlay": overlay},
                )
            )
        return prediction_id

    def prediction(self, prediction_id: str) -> Prediction:
        with self.database.read() as unit:
            return unit.predictions.get(prediction_id)

    def export(self, form: str, body: str, **settings: Any) -> Export:
        """The export after one attempt with that command line."""
        command = trainers.write(self.folder, "import pathlib\n" + body, "cli.py")
        runner = ExportRunner(
            self.settings.model_copy(update=settings),
            self.database,
            self.storage,
            self.workspace,
            worker_id="w-1",
            is_draining=self.draining.is_set,
            command=tuple(command),
        )
        with self.database.write() as unit:
            export = unit.exports.add(Export(id=new_id("exp"), model_id=self.model_id, format=form))
        assert runner.run_next()
        with self.database.read() as unit:
            found = unit.exports.find(self.model_id, form)
        assert found is not None
        assert found.id == export.id
        return found


@pytest.fixture
def rig(settings: Settings, database: Database, storage: Storage, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(settings, database, storage, tmp_path)
    yield rig
    leftovers = [path for path in (settings.data_dir / "workspace").glob("worker-*/*") if path.name != "lock"]
    assert leftovers == []
    rig.workspace.close()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_one_process_answers_for_all_models_and_ends_with_the_worker(rig: Rig) -> None:
    other = rig.add_model()
    with rig.predictor() as runner:
        assert runner.run_next() is False
        assert runner._process.pid is None  # nothing is started before it is needed
        ids = [rig.ask(), rig.ask(model_id=other), rig.ask(overlay=True)]
        assert [runner.run_next() for _ in range(4)] == [True, True, True, False]
        answers = [rig.prediction(each) for each in ids]
        assert {answer.state for answer in answers} == {WorkState.SUCCEEDED}
        results = [answer.result or [] for answer in answers]
        assert len({result[0]["presence"] for result in results}) == 1
        assert results[0][0]["prompt"] == results[2][0]["prompt"] != results[1][0]["prompt"]
        assert [answer.overlay_bytes for answer in answers] == [None, None, 3]
        pid = results[0][0]["presence"]
        assert is_alive(pid)
    assert not is_alive(pid)


@pytest.mark.parametrize(("prompt", "code"), [("die", "worker_lost"), ("hang", "worker_lost")])
def test_a_process_that_dies_or_hangs_costs_only_its_own_question(rig: Rig, prompt: str, code: str) -> None:
    with rig.predictor(predict_timeout_s=1.0, work_max_attempts=1) as runner:
        bad, good = rig.ask(prompt), rig.ask()
        assert runner.run_next()
        failed = rig.prediction(bad)
        assert failed.state is WorkState.QUEUED  # its other attempt is left
        assert runner.run_next()
        assert rig.prediction(good).state is WorkState.SUCCEEDED
        deadline = time.monotonic() + 10
        while rig.prediction(bad).state is WorkState.QUEUED:
            assert time.monotonic() < deadline
            runner.run_next()
            time.sleep(0.05)
    error = rig.prediction(bad).error
    assert error is not None
    assert error["code"] == code


def test_a_refusal_of_the_model_is_final(rig: Rig) -> None:
    with rig.predictor() as runner:
        prediction_id = rig.ask("refuse")
        runner.run_next()
    prediction = rig.prediction(prediction_id)
    assert prediction.state is WorkState.FAILED
    assert prediction.error == {"code": "adapter_invalid", "message": "m", "hint": "h", "retryable": False}


def test_an_idle_process_is_ended_and_started_again(rig: Rig) -> None:
    with rig.predictor(predict_idle_s=1e-6) as runner:
        ids = []
        for _ in range(2):
            ids.append(rig.ask())
            runner.run_next()
            assert runner.run_next() is False
            assert runner._process.pid is None
    pids = [(rig.prediction(each).result or [{}])[0]["presence"] for each in ids]
    assert pids[0] != pids[1]


def test_shutdown_gives_the_question_back_at_once(rig: Rig) -> None:
    with rig.predictor() as runner:
        prediction_id = rig.ask("hang")
        threading.Timer(0.5, rig.draining.set).start()
        runner.run_next()
        prediction = rig.prediction(prediction_id)
        assert (prediction.state, prediction.lost_attempts) == (WorkState.QUEUED, 0)


def test_a_lost_lease_ends_the_process_and_writes_nothing(rig: Rig) -> None:
    def take_away() -> None:
        while True:
            with rig.database.write() as unit:
                for lease in unit.predictions.leases():
                    unit.predictions.reap(lease)
                    return
            time.sleep(0.02)

    with rig.predictor() as runner:
        prediction_id = rig.ask("hang")
        thread = threading.Thread(target=take_away)
        thread.start()
        runner.run_next()
        thread.join()
        assert runner._process.pid is None
    prediction = rig.prediction(prediction_id)
    assert (prediction.state, prediction.lost_attempts) == (WorkState.QUEUED, 1)


@pytest.mark.parametrize("damaged", ["model", "image"])
def test_damaged_files_are_named(rig: Rig, damaged: str) -> None:
    prediction_id = rig.ask()
    keys = rig.storage.list("predictions" if damaged == "image" else "jobs")
    key = next(key for key in keys if key.endswith(("image", "adapter_model.safetensors")))
    (rig.settings.storage_dir / key).write_bytes(b"damaged")
    with rig.predictor() as runner:
        runner.run_next()
        with rig.database.write() as unit:
            unit.predictions.get(prediction_id).not_before = None
        runner.run_next()
    prediction = rig.prediction(prediction_id)
    assert prediction.state is WorkState.FAILED
    assert prediction.error is not None
    assert "damaged" in prediction.error["message"]


PEFT = """
out = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
assert sys.argv[1:4] == ["export", "--format", "peft"]
out.mkdir(); (out / "adapter_config.json").write_text("{}"); (out / "README.md").write_text("card")
"""
MERGED = """
assert sys.argv[1] == "merge"
assert "SAM3_DATABASE_URL" not in os.environ
pathlib.Path(sys.argv[sys.argv.index("--output") + 1]).write_text("weights")
"""


def test_exports_are_made_and_stored(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM3_DATABASE_URL", "a secret")
    peft, merged = rig.export("peft", PEFT), rig.export("merged", MERGED)
    assert (peft.state, merged.state) == (WorkState.SUCCEEDED, WorkState.SUCCEEDED)
    assert (peft.filename, merged.filename) == (f"{rig.model_id}-peft.zip", f"{rig.model_id}-merged.safetensors")
    content = b"".join(rig.storage.get_range(str(peft.storage_key)))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["README.md", "adapter_config.json"]
    assert b"".join(rig.storage.get_range(str(merged.storage_key))) == b"weights"


@pytest.mark.parametrize(
    ("body", "changed", "said"),
    [
        ("sys.stderr.write('error: no such module in ' + sys.argv[-1]); sys.exit(1)", {}, "no such module"),
        ("sys.exit(3)", {}, "status 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", {}, "status -9"),
        ("time.sleep(60)", {"export_timeout_s": 0.5}, "not made within 0.5 s"),
    ],
)
def test_an_export_that_fails_says_what_the_command_said(
    rig: Rig, body: str, changed: dict[str, Any], said: str
) -> None:
    export = rig.export("merged", body, **changed)
    assert export.state is WorkState.FAILED
    assert export.error is not None
    assert said in export.error["message"]
    assert str(rig.settings.data_dir) not in export.error["message"]


def test_shutdown_gives_an_export_back(rig: Rig) -> None:
    pid_file = rig.folder / "pid"
    threading.Timer(0.5, rig.draining.set).start()
    export = rig.export("merged", f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    assert (export.state, export.lost_attempts) == (WorkState.QUEUED, 0)
    assert not pid_file.exists() or not is_alive(int(pid_file.read_text()))
