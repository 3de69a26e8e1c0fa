"""The command line on a micro base: what a user types, sees and gets back as exit code."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from sam3_lora.cli import app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def as_yaml(config, path: Path) -> Path:
    path.write_text(yaml.safe_dump(json.loads(config.model_dump_json())))
    return path


def test_train_resume_and_predict(make_config, drawn: Path, tmp_path: Path):
    config = make_config(training={"max_epochs": 1})
    done = run("train", "--config", as_yaml(config, tmp_path / "run.yaml"))
    assert done.exit_code == 0, done.output
    assert "modules adapted" in done.output
    assert "segm_mAP" in done.output
    longer = as_yaml(make_config(training={"max_epochs": 2}), tmp_path / "longer.yaml")
    resumed = run("train", "--config", longer, "--resume", config.output.dir)
    assert resumed.exit_code == 0, resumed.output
    assert "resumed after step 3 of 6" in resumed.output
    image = next((drawn / "valid").glob("*.jpg"))
    adapter = config.output.dir / "checkpoints" / "best"
    options = ["--image", image, "--prompt", "heart", "--prompt", "cross", "--adapter", adapter, "--threshold", 0]
    found = run("predict", *options, "--output", tmp_path / "found.png")
    assert found.exit_code == 0, found.output
    answers = json.loads(found.stdout)["answers"]
    assert [answer["prompt"] for answer in answers] == ["heart", "cross"]
    assert len(answers[0]["detections"]) == 8
    assert Image.open(tmp_path / "found.png").width >= 480


@pytest.mark.parametrize(
    ("content", "code", "shown"),
    [
        ("lora: {rnk: 8}", 2, "did you mean 'rank'"),
        ("lora: [", 2, "not valid YAML"),
        (
            "dataset: {train_img_folder: /nowhere, train_ann_file: /nowhere.json}\nmodel: {base: sam3-tiny}",
            1,
            "nowhere",
        ),
    ],
)
def test_faults_are_shown_with_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, code: int, shown: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(content)
    done = run("train", "--config", tmp_path / "run.yaml")
    assert done.exit_code == code, done.output
    assert shown in done.output.replace("\n", " ")


def test_missing_adapter_is_named(drawn: Path, tmp_path: Path):
    image = next((drawn / "valid").glob("*.jpg"))
    done = run("predict", "--image", image, "--prompt", "x", "--adapter", tmp_path)
    assert done.exit_code == 1
    assert "adapter_config.json" in done.output


def test_validate(drawn: Path, tmp_path: Path):
    good = run("validate", drawn)
    assert good.exit_code == 0, good.output
    assert "valid: 8 images" in good.output
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "_annotations.coco.json").write_text('{"images": [{"id": 1}]}')
    bad = run("validate", tmp_path, "--json")
    assert bad.exit_code == 1
    assert json.loads(bad.stdout)["summary"]["errors"] > 0
