"""What a real job leaves behind: evaluation, report, samples, and a model that answers, swaps and can be taken away."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import signal
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from PIL import Image
from pycocotools import mask as rle_codec

from tests.e2e.test_job import FAST, QUICK, Client, connected
from tests.e2e.test_job import archive as archive
from tests.stack import Service, started, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

SHORT = {
    "lora": {"rank": 2, "target_modules": ["q_proj", "v_proj"]},
    "dataset": {"generic_negatives": 0},
    "training": {**QUICK["training"], "max_steps": 1, "learning_rate": 1e-2},
    "evaluation": {"baseline": False, "absent_prompts": []},
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("results")
    with started(folder, folder / "data", **FAST, predict_wait_s=120) as service:
        yield service


@pytest.fixture(scope="module")
def client(service: Service, archive: Path) -> Iterator[Client]:
    with connected(service.url, archive) as client:
        client.http.timeout = 150
        yield client


@pytest.fixture(scope="module")
def jobs(client: Client) -> list[dict[str, Any]]:
    """Two jobs that succeeded: one as users run them, a short one of other modules."""
    ids = [client.post_job(QUICK)["id"], client.post_job(SHORT)["id"]]
    return [client.until(job_id, lambda job: job["status"] == "succeeded") for job_id in ids]


@pytest.fixture(scope="module")
def adapters(client: Client, jobs: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The native exports of their models, unpacked, by model id."""
    folder = tmp_path_factory.mktemp("adapters")
    for job in jobs:
        model = client.http.get(f"/v1/models/{job['result']['model_id']}").json()
        content = client.http.get(model["archive"]["url"]).content
        assert hashlib.sha256(content).hexdigest() == model["archive"]["sha256"]
        zipfile.ZipFile(io.BytesIO(content)).extractall(folder / model["id"])
    return {job["result"]["model_id"]: folder / job["result"]["model_id"] for job in jobs}


@pytest.fixture(scope="module")
def image(archive: Path) -> bytes:
    with zipfile.ZipFile(archive) as opened:
        return opened.read("valid/scene_0001.jpg")


def predict(client: Client, model_id: str, image: bytes, *fields: tuple[str, str], **headers: str) -> httpx.Response:
    parts: list[tuple[str, Any]] = [("file", ("a.jpg", image)), *((name, (None, value)) for name, value in fields)]
    return client.http.post(f"/v1/models/{model_id}/predict", files=parts, headers=headers)


def expected(adapter: Path | None, image: bytes, folder: Path, *options: str) -> list[dict[str, Any]]:
    """What `sam3-lora predict` finds; without an adapter, with the base alone."""
    from typer.testing import CliRunner

    from sam3_lora.cli import app

    (folder / "a.jpg").write_bytes(image)
    model = ["--base", "sam3-tiny"] if adapter is None else ["--adapter", str(adapter)]
    command = ["predict", *model, "--image", str(folder / "a.jpg"), "--threshold", "0", *options]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return list(json.loads(done.stdout)["answers"])


def test_evaluation_report_and_samples_are_there(client: Client, jobs: list[dict[str, Any]]) -> None:
    job, short = jobs
    found = client.http.get(job["urls"]["evaluation"]).json()
    assert (found["status"], len(found["history"])) == ("complete", 2)
    assert found["base"]["metrics"] == job["result"]["base"]["metrics"]
    assert found["tuned"]["metrics"] == job["result"]["best"]["evaluation"]["metrics"]
    assert [row["name"] for row in found["per_category"]] == ["heart", "cross"]
    truth = next(file for file in found["files"] if (file["model"], file["name"]) == ("tuned", "truth.json"))
    assert len(client.http.get(truth["url"]).json()["images"]) == 3
    page = client.http.get(job["urls"]["report"]).text
    assert "<h1>Tuned sam3-tiny</h1>" in page
    assert "script" not in page
    samples = client.http.get(job["urls"]["samples"]).json()["data"]
    assert len(samples) == 3
    for panel in samples[0]["panels"].values():
        picture = Image.open(io.BytesIO(client.http.get(panel["url"]).content))
        assert (picture.format, *picture.size) == ("JPEG", panel["width"], panel["height"])
    assert list(samples[0]["panels"]) == ["image", "truth", "base", "tuned"]
    first = client.http.get(f"{job['urls']['samples']}?epoch=1").json()
    assert first["epochs"] == [1, 2]
    assert client.http.get(first["data"][0]["panels"]["tuned"]["url"]).content[:2] == b"\xff\xd8"
    assert client.http.get(short["urls"]["evaluation"]).json()["base"] is None
    assert any("absent_FPR" in note for note in client.http.get(short["urls"]["evaluation"]).json()["notes"])


def test_two_models_are_compared_as_the_command_line_does(
    client: Client, adapters: dict[str, Path], archive: Path, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from sam3_lora.cli import app

    first, second = adapters
    body = {"dataset_id": client.dataset(), "models": [first, second], "max_images": 2}
    created = client.http.post("/v1/comparisons", json=body)
    assert created.status_code == 201, created.text
    url = created.headers["location"]
    wait_until(lambda: client.http.get(url).json()["is_terminal"], timeout_s=180)
    found = client.http.get(url).json()
    assert (found["status"], found["error"]) == ("succeeded", None)
    assert found["progress"] == {"images_done": 4, "images_total": 4}
    zipfile.ZipFile(archive).extractall(tmp_path)
    place = ["--images", tmp_path / "valid", "--annotations", tmp_path / "valid" / "_annotations.coco.json"]
    models = ["--adapter", adapters[second], "--against", adapters[first], "--max-images", 2, "--json"]
    done = CliRunner().invoke(app, ["evaluate", *map(str, place), *map(str, models)])
    assert done.exit_code == 0, done.output
    expected = json.loads(done.stdout)
    for row in found["result"]["metrics"]:
        values = [expected[key]["metrics"][row["metric"]] for key in ("against", "tuned")]
        assert row["values"] == [None if value is None else pytest.approx(value, abs=1e-5) for value in values], row
    assert [row["name"] for row in found["result"]["per_category"]] == ["heart", "cross"]
    files = {(file["model"], file["name"]): client.http.get(file["url"]) for file in found["result"]["files"]}
    assert len(files) == 6
    assert files[first, "truth.json"].content == files[second, "truth.json"].content
    assert len(files[first, "truth.json"].json()["images"]) == 2
    page = client.http.get(found["urls"]["report"]).text
    assert f"<h1>{found['name']}</h1>" in page
    assert second in page
    assert client.http.delete(url).status_code == 204
    assert client.http.get(url).status_code == 404


def test_each_model_answers_what_the_command_line_does(
    client: Client, adapters: dict[str, Path], image: bytes, tmp_path: Path
) -> None:
    answers = {}
    for model_id in [*adapters, *adapters]:  # there and back again
        fields = [("prompt", "heart"), ("prompt", "cross"), ("box", "20,20,80,90"), ("min_score", "0")]
        response = predict(client, model_id, image, *fields)
        assert response.status_code == 200, response.text
        answers[model_id] = response.json()["results"]
        options = ("--prompt", "heart", "--prompt", "cross", "--box", "20,20,60,70")
        for ours, theirs in zip(
            answers[model_id], expected(adapters[model_id], image, tmp_path, *options), strict=True
        ):
            assert ours["presence"] == pytest.approx(theirs["presence"], abs=1e-5)
            assert len(ours["detections"]) == len(theirs["detections"]) > 0
            _compare(ours["detections"][0], theirs["detections"][0])
    first, second = answers.values()
    assert abs(first[0]["presence"] - second[0]["presence"]) > 1e-5


def test_the_base_of_a_model_answers_the_same_question(
    client: Client, adapters: dict[str, Path], image: bytes, tmp_path: Path
) -> None:
    base = expected(None, image, tmp_path, "--prompt", "heart")[0]
    for model_id in adapters:  # between questions to the tuned one
        tuned = predict(client, model_id, image, ("prompt", "heart"), ("min_score", "0")).json()
        asked = predict(client, model_id, image, ("prompt", "heart"), ("min_score", "0"), ("untuned", "true")).json()
        assert (tuned["untuned"], asked["untuned"]) == (False, True)
        assert asked["results"][0]["presence"] == pytest.approx(base["presence"], abs=1e-5)
        _compare(asked["results"][0]["detections"][0], base["detections"][0])
        assert abs(tuned["results"][0]["presence"] - base["presence"]) > 1e-5


def _compare(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
    left, top, right, bottom = ours["box"]
    assert [left, top, right - left, bottom - top] == pytest.approx(theirs["bbox"], abs=0.01)
    masks = [found["segmentation"] for found in (ours, theirs)]
    assert float(rle_codec.area(masks[0])) == pytest.approx(float(rle_codec.area(masks[1])), rel=0.02, abs=2)


def test_many_ask_different_models_at_once(client: Client, adapters: dict[str, Path], image: bytes) -> None:
    alone = {each: predict(client, each, image, ("prompt", "heart"), ("min_score", "0")).json() for each in adapters}
    asked = [*adapters] * 4
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda m: predict(client, m, image, ("prompt", "heart"), ("min_score", "0")), asked))
    for model_id, response in zip(asked, found, strict=True):
        ours, theirs = response.json()["results"][0], alone[model_id]["results"][0]
        assert ours["presence"] == pytest.approx(theirs["presence"], abs=1e-6)


def test_without_a_prompt_it_finds_what_it_was_tuned_on_and_draws_it(
    client: Client, adapters: dict[str, Path], image: bytes
) -> None:
    model_id = next(iter(adapters))
    found = predict(client, model_id, image).json()
    assert [answer["prompt"] for answer in found["results"]] == ["heart", "cross"]
    response = predict(client, model_id, image, ("prompt", "heart"), ("min_score", "0"), Accept="image/png")
    picture = Image.open(io.BytesIO(response.content))
    assert (picture.format, picture.size) == ("PNG", Image.open(io.BytesIO(image)).size)


def test_a_killed_worker_takes_its_model_process_along_and_is_replaced(
    service: Service, client: Client, adapters: dict[str, Path], image: bytes
) -> None:
    model_id = next(iter(adapters))
    before = predict(client, model_id, image, ("prompt", "heart"), ("min_score", "0")).json()["results"]
    predictor = _model_process(service).parent()
    assert predictor is not None
    predictor.send_signal(signal.SIGKILL)
    after = predict(client, model_id, image, ("prompt", "heart"), ("min_score", "0")).json()["results"]
    assert after[0]["presence"] == pytest.approx(before[0]["presence"], abs=1e-6)
    assert len([process for process in service.children() if _is_model(process)]) == 1


def _model_process(service: Service) -> psutil.Process:
    return next(process for process in service.children() if _is_model(process))


def _is_model(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return "sam3_lora.serving.process" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_exports_load_elsewhere(client: Client, adapters: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model_id = next(iter(adapters))

    for form in ("peft", "merged"):
        client.http.get(f"/v1/models/{model_id}/export?format={form}")

    def download(form: str) -> bytes:
        url = f"/v1/models/{model_id}/export?format={form}"
        wait_until(lambda: client.http.get(url).status_code == 200, timeout_s=120)
        response = client.http.get(url)
        assert response.headers["etag"] == f'"{hashlib.sha256(response.content).hexdigest()}"'
        return response.content

    with zipfile.ZipFile(io.BytesIO(download("peft"))) as opened:
        config = json.loads(opened.read("adapter_config.json"))
        assert (config["peft_type"], config["r"]) == ("LORA", 4)
    (tmp_path / "merged.safetensors").write_bytes(download("merged"))
    assert len(load_file(tmp_path / "merged.safetensors")) > 100
