"""The commands that convert: what they print, with which exit code they end, and that what they make is trained on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from sam3_lora.cli import app
from tests.convert.drawn import draw, loaded, mask_of, save_mask, write_yolo
from tests.deploy.test_packaging import run as run_lean


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_yolo_is_converted_and_the_next_command_is_told(tmp_path: Path) -> None:
    data_yaml = write_yolo(draw(tmp_path / "drawn"), tmp_path / "yolo")
    done = run("datasets", "convert", "yolo", data_yaml, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == "images       6 train, 3 valid"
    assert "heart, cross, gear" in done.stdout
    assert f"next: sam3-lora datasets upload {tmp_path / 'out'}" in done.stderr
    assert run("validate", tmp_path / "out").exit_code == 0
    again = run("datasets", "convert", "yolo", data_yaml, tmp_path / "out")
    assert again.exit_code == 2
    assert "exists" in again.stderr


def test_faults_end_it_with_all_their_places(tmp_path: Path) -> None:
    data_yaml = write_yolo(draw(tmp_path / "drawn"), tmp_path / "yolo")
    for path in (tmp_path / "yolo").rglob("*.txt"):
        path.write_text("9 0.1 0.1 0.2 0.1 0.2 0.2\n" * 3 + "9 0.1 0.1 0.2 0.1 0.2 0.3\n9 5\n")
    done = run("datasets", "convert", "yolo", data_yaml, tmp_path / "out", "--json")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "train/labels/scene_0001.txt:4: class 9 has no name in data.yaml" in done.stderr
    assert "and 7 more" in done.stderr
    assert "nothing was written" in done.stderr
    assert not (tmp_path / "out").exists()


def test_masks_are_converted(tmp_path: Path) -> None:
    masks, images = _masks(tmp_path)
    done = run("datasets", "convert", "masks", images, masks, tmp_path / "out", "--category", "shape",
               "--valid", "0.2", "--min-pixels", "20", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert sum(told["images"].values()) == 6
    assert told["categories"] == ["shape"]
    assert told["annotations"] == sum(len(loaded(tmp_path / "out", split).annotations) for split in told["images"])
    wrong = run("datasets", "convert", "masks", images, masks, tmp_path / "x", "--instances")
    assert wrong.exit_code == 2
    assert "--instances: it needs the --category" in wrong.stderr


def _masks(folder: Path) -> tuple[Path, Path]:
    drawn = draw(folder / "drawn")
    dataset = loaded(drawn, "train")
    for image in dataset.images.values():
        values = np.zeros((image.height, image.width), dtype=np.bool_)
        for annotation in dataset.annotations_of(image.id):
            assert isinstance(annotation.segmentation, list)
            values |= mask_of(annotation.segmentation[0], (image.width, image.height))
        save_mask(values, (folder / "masks" / image.file_name).with_suffix(".png"))
    return folder / "masks", drawn / "train"


def test_without_its_part_the_command_says_what_to_install(tmp_path: Path) -> None:
    masks, images = _masks(tmp_path)
    arguments = ("datasets", "convert", "masks", str(images), str(masks))
    ended = run_lean("sam3_lora.cli", *arguments, str(tmp_path / "a"), "--category", "shape")
    assert ended.returncode == 1
    assert "pip install 'sam3-lora-service[convert]'" in ended.stderr
    assert "Traceback" not in ended.stderr
    ended = run_lean("sam3_lora.cli", *arguments, str(tmp_path / "a"), "--category", "shape", extras="convert")
    assert ended.returncode == 0, ended.stderr
    data_yaml = write_yolo(tmp_path / "drawn", tmp_path / "yolo")
    ended = run_lean("sam3_lora.cli", "datasets", "convert", "yolo", str(data_yaml), str(tmp_path / "b"))
    assert ended.returncode == 0, ended.stderr


@pytest.mark.timeout(600)
def test_a_model_is_trained_on_both(tmp_path: Path) -> None:
    data_yaml = write_yolo(draw(tmp_path / "drawn"), tmp_path / "yolo")
    assert run("datasets", "convert", "yolo", data_yaml, tmp_path / "yolo-out").exit_code == 0
    masks, images = _masks(tmp_path / "m")
    made = run("datasets", "convert", "masks", images, masks, tmp_path / "masks-out", "--category", "shape",
               "--valid", "0.2")  # fmt: skip
    assert made.exit_code == 0
    for name in ("yolo-out", "masks-out"):
        data = tmp_path / name
        config = {
            "model": {"base": "sam3-tiny"},
            "lora": {"rank": 4},
            "dataset": {
                "train_img_folder": str(data / "train"),
                "train_ann_file": str(data / "train/_annotations.coco.json"),
                "val_img_folder": str(data / "valid"),
                "val_ann_file": str(data / "valid/_annotations.coco.json"),
            },
            "training": {"max_epochs": 1, "use_amp": False, "num_workers": 0},
            "output": {"dir": str(tmp_path / f"{name}-run")},
        }
        (tmp_path / "run.yaml").write_text(json.dumps(config))
        command = [sys.executable, "-m", "sam3_lora.cli", "train", "--config", str(tmp_path / "run.yaml"), "--json"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        report = json.loads(ended.stdout)
        assert report["steps"] > 0
        assert report["best"]["evaluation"]["images"] == len(loaded(data, "valid").images)
