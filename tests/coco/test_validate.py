from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sam3_lora.coco.report import DatasetReport
from sam3_lora.coco.schema import ValidationLimits
from sam3_lora.coco.validate import validate
from tests.coco.datasets import HEIGHT, WIDTH, picture, records, write_json, write_roboflow, write_split


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_roboflow(tmp_path / "dataset")


def edit(root: Path, path: str, value: Any = ..., split: str = "train") -> None:
    """Set (or with `...` remove) one value of a split's JSON, named by its pointer."""
    file = root / split / "_annotations.coco.json"
    content = json.loads(file.read_text())
    *parents, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    target = content
    for key in parents:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    file.write_text(json.dumps(content))


def found(report: DatasetReport) -> list[tuple[str, str]]:
    return [(issue.severity.value, issue.code.value) for issue in report.issues]


def test_valid_dataset_has_no_issue(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = validate(root, on_progress=lambda done, total: seen.append((done, total)))
    assert report.to_dict() == {
        "status": "valid",
        "summary": {
            "errors": 0, "warnings": 0, "images": 15, "instances": 15, "categories": 2,
            "images_without_annotations": 0, "truncated": False,
        },
        "issues": [],
        "stats": {
            "per_category": [
                {"id": 1, "name": "bolt", "instances": 8, "images": 8},
                {"id": 2, "name": "nut", "instances": 7, "images": 7},
            ],
            "image_sizes": {
                "width": {"min": WIDTH, "max": WIDTH, "median": WIDTH},
                "height": {"min": HEIGHT, "max": HEIGHT, "median": HEIGHT},
            },
            "duplicates": 0,
        },
    }  # fmt: skip
    assert seen == [(done, 15) for done in range(1, 16)]


def test_report_survives_json(root: Path) -> None:
    edit(root, "annotations/0/bbox", [0, 0, -1, 5])
    report = validate(root)
    assert report.issues
    assert DatasetReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_image_formats(root: Path, format_: str) -> None:
    (root / "train" / "img_0.jpg").write_bytes(picture(7777, format_=format_))
    assert found(validate(root)) == []


def test_every_fault_is_found_in_one_pass(root: Path) -> None:
    edit(root, "annotations/0/bbox", [0, 0, 0, 0])
    edit(root, "annotations/0/segmentation", [[1, 2]])
    edit(root, "annotations/1/category_id", 77)
    edit(root, "annotations/3/iscrowd", 2)
    edit(root, "images/2/width", 41)
    edit(root, "annotations/0/image_id", 99, split="valid")
    (root / "train" / "img_4.jpg").unlink()
    (root / "valid" / "val_1.jpg").write_bytes(b"no image")
    codes = {code for _, code in found(validate(root))}
    assert codes >= {
        "bbox_invalid", "polygon_too_few_points", "category_unknown", "json_invalid", "image_size_mismatch",
        "image_missing", "image_unreadable",
    }  # fmt: skip


def test_issue_names_its_place(root: Path) -> None:
    edit(root, "annotations/5/bbox", [0, 0, -3, 5])
    (issue,) = validate(root).issues
    assert issue.to_dict() == {
        "severity": "error", "code": "bbox_invalid", "file": "train/_annotations.coco.json",
        "pointer": "/annotations/5/bbox", "image": "img_5.jpg", "annotation_id": 5,
        "message": "the bbox is -3 wide and 5 high",
        "hint": "bbox is [x, y, width, height] in pixels, with width and height above 0", "count": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("listed", "hint"),
    [
        ("IMG_0.JPG", "'train/img_0.jpg'"),
        ("images\\img_0.jpg", "'train/img_0.jpg'"),
        ("./img_0.jpg", "'train/img_0.jpg'"),
        ("../train/img_0.jpg", "'train/img_0.jpg'"),
        ("other.jpg", "remove its record"),
    ],
)
def test_missing_image_explains_the_near_miss(root: Path, listed: str, hint: str) -> None:
    edit(root, "images/0/file_name", listed)
    (issue,) = validate(root).issues
    assert issue.code == "image_missing"
    assert hint in issue.hint


@pytest.mark.parametrize("name", ["/etc/hostname", "../../outside.jpg", "linked.jpg", "folder/inside.jpg"])
def test_nothing_outside_the_dataset_is_opened(root: Path, name: str) -> None:
    outside = root.parent / "outside.jpg"
    outside.write_bytes(picture(1))
    (root / "train" / "linked.jpg").symlink_to(outside)
    (root.parent / "elsewhere").mkdir()
    (root.parent / "elsewhere" / "inside.jpg").write_bytes(picture(2))
    (root / "train" / "folder").symlink_to(root.parent / "elsewhere")
    edit(root, "images/0/file_name", name)
    (issue,) = validate(root).issues
    assert issue.code == "image_missing"
    assert ("link" in issue.hint) == name.startswith(("linked", "folder"))


def test_exif_rotation(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "train" / "img_0.jpg").write_bytes(picture(500, exif=exif))
    assert found(validate(root)) == [("warning", "image_size_mismatch")]
    edit(root, "images/0/width", HEIGHT)
    edit(root, "images/0/height", WIDTH)
    assert [code for _, code in found(validate(root))] == []


def test_wrong_size_is_an_error(root: Path) -> None:
    (root / "train" / "img_0.jpg").write_bytes(picture(500, (WIDTH * 2, HEIGHT)))
    assert found(validate(root)) == [("error", "image_size_mismatch")]


def bomb() -> bytes:
    """A small PNG of 10,000 x 10,000 pixels."""
    return picture_of(Image.new("1", (10_000, 10_000)))


def picture_of(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def two_page_tiff() -> bytes:
    return picture_of(Image.new("L", (WIDTH, HEIGHT)), "TIFF", save_all=True, append_images=[Image.new("L", (8, 8))])


UNUSABLE = {
    "empty": (b"", "image_unreadable"),
    "text": (b"hello", "image_unreadable"),
    "gif": (picture_of(Image.new("L", (WIDTH, HEIGHT)), "GIF"), "image_unreadable"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image_unreadable"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "image_unreadable"),
    "jpeg truncated": (picture(1)[:-150], "image_unreadable"),
    "jpeg header only": (picture(1)[:200], "image_unreadable"),
    "png truncated": (picture(1, format_="PNG")[:-60], "image_unreadable"),
    "png broken chunk": (picture(1, format_="PNG").replace(b"IDAT", b"IDAX", 1), "image_unreadable"),
    "webp truncated": (picture(1, format_="WEBP")[:-60], "image_unreadable"),
    "bmp truncated": (picture(1, format_="BMP")[:-900], "image_unreadable"),
    "tiff pages": (two_page_tiff(), "image_unreadable"),
    "bomb": (bomb(), "image_too_large"),
    "huge bomb": (
        picture(1, format_="PNG")[:16] + b"\x00\x00\xff\xff\x00\x00\xff\xff" + b"\0" * 99,
        "image_unreadable",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_image(root: Path, case: str) -> None:
    data, code = UNUSABLE[case]
    (root / "train" / "img_0.jpg").write_bytes(data)
    (issue,) = validate(root).issues
    assert (issue.severity, issue.code, issue.image) == ("error", code, "img_0.jpg")


def test_image_file_size_is_capped(root: Path) -> None:
    (root / "train" / "img_0.jpg").write_bytes(picture(1) + b"\0" * 100_000)
    assert found(validate(root, ValidationLimits(image_bytes=50_000))) == [("error", "image_too_large")]


def test_json_file_size_is_capped(root: Path) -> None:
    assert ("error", "json_invalid") in found(validate(root, ValidationLimits(json_bytes=100)))


def test_duplicate_pictures(root: Path) -> None:
    (root / "train" / "img_1.jpg").write_bytes((root / "train" / "img_0.jpg").read_bytes())
    report = validate(root)
    assert found(report) == [("warning", "duplicate_image")]
    assert report.stats.duplicates == 1


def test_one_file_in_two_records_is_a_duplicate(root: Path) -> None:
    edit(root, "images/1/file_name", "img_0.jpg")
    assert found(validate(root)) == [("warning", "duplicate_image")]


def test_train_val_overlap(root: Path) -> None:
    (root / "valid" / "val_0.jpg").write_bytes((root / "train" / "img_3.jpg").read_bytes())
    (issue,) = validate(root).issues
    assert (issue.severity, issue.code, issue.image) == ("warning", "train_val_overlap", "val_0.jpg")


@pytest.mark.parametrize(("count", "expected"), [(1, "warning"), (9, "warning"), (10, None)])
def test_few_images(tmp_path: Path, count: int, expected: str | None) -> None:
    content = records(count)
    content["categories"] = content["categories"][: min(count, 2) + 1]
    write_split(tmp_path / "train", content, 0)
    assert found(validate(tmp_path)) == ([(expected, "too_few_images")] if expected else [])


def test_no_usable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    write_json(tmp_path / "train", records(2))
    assert found(validate(tmp_path)) == [("error", "image_missing")] * 2 + [("error", "too_few_images")]


def test_no_annotation_is_an_error(tmp_path: Path) -> None:
    write_split(tmp_path / "train", records() | {"annotations": []}, 0)
    report = validate(tmp_path)
    assert ("error", "too_few_images") in found(report)
    assert report.images_without_annotations == 12


def test_empty_validation_split_is_a_warning(tmp_path: Path) -> None:
    write_split(tmp_path / "train", records(), 0)
    write_split(tmp_path / "valid", records(2, "v") | {"annotations": []}, 100)
    assert found(validate(tmp_path)) == [("warning", "too_few_images")]


def test_unused_category_is_a_warning(root: Path) -> None:
    content = json.loads((root / "train" / "_annotations.coco.json").read_text())
    edit(root, "categories", [*content["categories"], {"id": 9, "name": "washer"}])
    assert found(validate(root)) == [("warning", "class_imbalance")]


@pytest.mark.parametrize(("many", "expected"), [(100, []), (101, [("warning", "class_imbalance")])])
def test_class_imbalance(tmp_path: Path, many: int, expected: list[tuple[str, str]]) -> None:
    content = records()
    box = {"image_id": 0, "bbox": [1, 1, 5, 5]}
    bolts = [{**box, "id": index, "category_id": 1} for index in range(many)]
    content["annotations"] = [*bolts, {**box, "id": "nut", "category_id": 2}]
    write_split(tmp_path / "train", content, 0)
    assert found(validate(tmp_path)) == expected


def test_validation_category_unknown_to_training(root: Path) -> None:
    edit(root, "categories/2/name", "rivet", split="valid")
    assert found(validate(root)) == [("warning", "category_unknown")]


@pytest.mark.parametrize("folder", ["nothing", "dataset/train/img_0.jpg"])
def test_no_dataset(root: Path, folder: str) -> None:
    report = validate(root.parent / folder)
    assert report.status == "invalid"
    assert found(report) == [("error", "annotation_file_missing")]


def test_many_faults_stay_bounded(root: Path) -> None:
    content = records()
    box = {"category_id": 1, "image_id": 0, "bbox": [1, 1, -5, 5]}
    write_json(root / "train", content | {"annotations": [{**box, "id": index} for index in range(300)]})
    report = validate(root)
    faults = [issue for issue in report.issues if issue.code == "bbox_invalid"]
    assert len(faults) == 51
    assert [issue.count for issue in faults] == [1] * 50 + [250]
    assert report.truncated
    assert report.errors == 301  # with "no usable annotation"
