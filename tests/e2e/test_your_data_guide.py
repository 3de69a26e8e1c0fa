"""The guide to data of other tools runs as it is written, on their exports, against a real service."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import obstore
import pytest
from PIL import Image

from service.shared.object_stores import open_bucket
from service.shared.settings import Settings
from tests.coco.exports import EXPORTS, zipped
from tests.convert.drawn import mask_of, save_mask
from tests.e2e import guides
from tests.e2e.guides import example
from tests.servers import S3Server
from tests.stack import Service, started

pytestmark = pytest.mark.timeout(900)
GUIDE = "docs/your-data.md"
INSTALL = "pip install"
# What the service counts in what the commands upload: images, annotations, warnings
EXPECTED = {
    "exports": [(6, 13, 1), (6, 13, 3), (4, 9, 1)],
    "brush": [(4, 9, 1)],
    "yolo": [(5, 9, 1)],
    "masks": [(4, 8, 1)],  # two of the nine touch
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the guide calls the reader's."""
    folder = tmp_path_factory.mktemp("work")
    for tool in ("roboflow", "cvat", "label-studio"):
        zipped(tool, folder / f"{tool}.zip")
    zipped("label-studio-brush", folder / "label-studio-brush.zip", images=False)
    shutil.copytree(EXPORTS / "label-studio" / "images", folder / "photos")
    shutil.copytree(EXPORTS / "ultralytics", folder / "shapes")
    (folder / "names.txt").write_text("background\nheart\ncross\n")
    body = json.loads((EXPORTS / "label-studio-brush" / "result_coco.json").read_text())
    names = {category["id"]: category["name"] for category in body["categories"]}
    for image in body["images"]:
        values = np.zeros((image["height"], image["width"]), dtype=np.uint8)
        for each in body["annotations"]:
            if each["image_id"] == image["id"]:
                mask = mask_of(each["segmentation"][0], (image["width"], image["height"]))
                values[mask] = 1 + ["heart", "cross"].index(names[each["category_id"]])
        values[:2] = 255
        save_mask(values, (folder / "masks" / image["file_name"]).with_suffix(".png"))
        save_mask((values > 0) & (values < 255), (folder / "binary" / image["file_name"]).with_suffix(".png"))
    return folder


def run(kind: str, service: Service, folder: Path, **values: str) -> list[str]:
    """What each of the guide's commands of a kind prints."""
    told = []
    for line in example(GUIDE, kind).splitlines():
        command = line.removeprefix("$ ")
        if command.startswith(INSTALL):
            continue  # is here, and nothing is to be fetched
        done = guides.run(command, folder, service.url, **values)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        told.append(done.stdout)
    return told


@pytest.mark.parametrize("kind", EXPECTED)
def test_what_is_uploaded_is_ready_with_everything_in_it(kind: str, service: Service, folder: Path) -> None:
    uploaded = [output.split()[1] for output in run(kind, service, folder) if output.startswith("id ")]
    counts = []
    for dataset in uploaded:
        assert service.get(f"/v1/datasets/{dataset}")["status"] == "ready"
        summary = service.get(f"/v1/datasets/{dataset}/validation")["summary"]
        assert summary["errors"] == 0
        counts.append((summary["images"], summary["instances"], summary["warnings"]))
    assert counts == EXPECTED[kind]


def test_places_of_the_operator_are_fetched_from(folder: Path, service: Service, s3: S3Server, tmp_path: Path) -> None:
    if not (folder / "shapes-coco").exists():
        run("yolo", service, folder)
    operator = {"dataset_buckets": f"s3://{s3.bucket}/teams", "storage_endpoint": s3.url, "dataset_roots": folder}
    store = open_bucket(Settings(data_dir=tmp_path, dataset_buckets=("s3://sam3",), storage_endpoint=s3.url), s3.bucket)
    obstore.put(store, "teams/roboflow.zip", (folder / "roboflow.zip").read_bytes())
    for path in (folder / "shapes-coco").rglob("*.*"):
        obstore.put(store, f"teams/shapes/{path.relative_to(folder / 'shapes-coco').as_posix()}", path.read_bytes())
    with started(tmp_path, tmp_path / "data", **operator) as own:
        told = run("places", own, folder)
        found = [own.get(f"/v1/datasets/{output.split()[1]}") for output in told]
        command = f"sam3-lora datasets fetch s3://{s3.bucket}/teams/roboflow.zip --sha256 {'0' * 64}"
        refused = guides.run(command, folder, own.url)
    assert (refused.returncode, "sha256_mismatch" in refused.stderr) == (1, True)
    assert [(each["name"], each["summary"]["images"]) for each in found] == [
        *(("shapes", 5), ("roboflow.zip", 6)),
        ("shapes-coco", 5),
    ]
    assert found[0]["sha256"] == found[2]["sha256"]


def test_the_report_is_told(service: Service, folder: Path) -> None:
    if not (folder / "shapes-coco").exists():
        run("yolo", service, folder)
    dataset = service.get("/v1/datasets?limit=1")["data"][0]["id"]
    assert "too_few_images" in run("report", service, folder, dataset=dataset)[-1]


def test_masks_are_split_as_the_guide_says(service: Service, folder: Path) -> None:
    if not (folder / "by-part").exists():
        run("masks", service, folder)
    parts = {split: json.loads((folder / "by-part" / split / "_annotations.coco.json").read_text())
             for split in ("train", "valid")}  # fmt: skip
    assert sum(len(part["images"]) for part in parts.values()) == 4
    assert {name["name"] for part in parts.values() for name in part["categories"]} == {"shape"}
    assert all(each["area"] >= 20 for part in parts.values() for each in part["annotations"])
    for image in parts["train"]["images"]:
        with Image.open(folder / "by-part" / "train" / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"])
