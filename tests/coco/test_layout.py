from __future__ import annotations

import json
from pathlib import Path

import pytest

from sam3_lora.coco.layout import Layout, find_layout
from sam3_lora.coco.report import DatasetIssueError

COCO = json.dumps({"images": [{"file_name": "a.jpg"}]})
ELSEWHERE = json.dumps({"images": [{"file_name": "../../media/upload/1/a.jpg"}]})
NESTED = json.dumps({"images": [{"file_name": "images/a.jpg"}]})

# Files of a dataset, and for each split (image folder, annotation file).
ACCEPTED = {
    "roboflow": (
        {"train/_annotations.coco.json": COCO, "train/a.jpg": "", "valid/_annotations.coco.json": COCO,
         "valid/a.jpg": "", "test/_annotations.coco.json": COCO, "test/a.jpg": "", "README.txt": ""},
        {"train": ("train", "train/_annotations.coco.json"), "validation": ("valid", "valid/_annotations.coco.json"),
         "test": ("test", "test/_annotations.coco.json")},
    ),
    "roboflow with val, capitals, other file names": (
        {"Train/labels.json": COCO, "Train/a.jpg": "", "val/labels.json": COCO, "val/a.jpg": ""},
        {"train": ("Train", "Train/labels.json"), "validation": ("val", "val/labels.json")},
    ),
    "roboflow, training only": (
        {"train/_annotations.coco.json": COCO, "train/other.json": "{}", "train/a.jpg": ""},
        {"train": ("train", "train/_annotations.coco.json")},
    ),
    "split folders with images inside": (
        {"train/images/a.jpg": "", "train/labels.json": COCO},
        {"train": ("train/images", "train/labels.json")},
    ),
    "images and annotations": (
        {"images/a.jpg": "", "annotations/train.json": COCO, "annotations/val.json": COCO},
        {"train": ("images", "annotations/train.json"), "validation": ("images", "annotations/val.json")},
    ),
    "images by split": (
        {"images/train/a.jpg": "", "images/val/a.jpg": "", "annotations/instances_train.json": COCO,
         "annotations/instances_val.json": COCO, "annotations/captions_train.json": "{}"},
        {"train": ("images/train", "annotations/instances_train.json"),
         "validation": ("images/val", "annotations/instances_val.json")},
    ),
    "coco 2017": (
        {"train2017/a.jpg": "", "val2017/a.jpg": "", "annotations/instances_train2017.json": COCO,
         "annotations/instances_val2017.json": COCO},
        {"train": ("train2017", "annotations/instances_train2017.json"),
         "validation": ("val2017", "annotations/instances_val2017.json")},
    ),
    "cvat": (
        {"images/default/a.jpg": "", "annotations/instances_default.json": COCO},
        {"train": ("images/default", "annotations/instances_default.json")},
    ),
    "one folder": ({"a.jpg": "", "coco.json": COCO}, {"train": (".", "coco.json")}),
    "one file and images": ({"images/a.jpg": "", "coco.json": COCO}, {"train": ("images", "coco.json")}),
    "label studio, with a picture beside the file": (
        {"images/a.jpg": "", "logo.png": "", "result.json": ELSEWHERE}, {"train": ("images", "result.json")}
    ),
    "one file that names images/": ({"images/a.jpg": "", "result.json": NESTED}, {"train": (".", "result.json")}),
}  # fmt: skip

REFUSED = {
    "empty": ({}, "annotation_file_missing"),
    "no json": ({"train/a.jpg": "", "valid/a.jpg": ""}, "annotation_file_missing"),
    "one split without json": ({"train/a.jpg": "", "valid/x.json": COCO}, "annotation_file_missing"),
    "several json in a folder": ({"a.json": COCO, "b.json": COCO}, "annotation_file_missing"),
    "no training split": ({"valid/_annotations.coco.json": COCO, "valid/a.jpg": ""}, "split_missing"),
    "two validation splits": ({"train/a.json": COCO, "val/a.json": COCO, "valid/a.json": COCO}, "split_missing"),
    "nameless annotations": ({"annotations/a.json": COCO, "annotations/b.json": ""}, "split_missing"),
    "nested too deep": ({"a/b/c/coco.json": COCO}, "annotation_file_missing"),
}  # fmt: skip


def build(root: Path, files: dict[str, str]) -> Path:
    root.mkdir()
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def named(layout: Layout, root: Path) -> dict[str, tuple[str, str]]:
    return {
        name: (split.images.relative_to(root).as_posix(), split.annotations.relative_to(root).as_posix())
        for name, split in layout.splits().items()
    }


@pytest.mark.parametrize("case", ACCEPTED)
@pytest.mark.parametrize("top", ["", "my dataset"])
def test_accepted(case: str, top: str, tmp_path: Path) -> None:
    files, expected = ACCEPTED[case]
    root = build(tmp_path / "x", {f"{top}/{name}".lstrip("/"): text for name, text in files.items()})
    assert named(find_layout(root), root / top) == expected


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_accepted_layouts_as_hint(case: str, tmp_path: Path) -> None:
    files, code = REFUSED[case]
    with pytest.raises(DatasetIssueError) as caught:
        find_layout(build(tmp_path / "x", files))
    assert caught.value.issue.code == code
    assert "annotations/*.json" in caught.value.hint


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        ({"data.yaml": "", "train/images/a.jpg": "", "train/labels/a.txt": ""}, "datasets convert yolo"),
        ({"classes.txt": "", "images/a.jpg": "", "labels/a.txt": ""}, "export it as COCO"),
        ({"annotations.xml": "", "images/a.jpg": ""}, "COCO 1.0"),
    ],
)
def test_formats_of_other_tools_are_named(files: dict[str, str], hint: str, tmp_path: Path) -> None:
    for top in ("", "export/"):
        root = build(tmp_path / f"x{len(top)}", {f"{top}{name}": text for name, text in files.items()})
        with pytest.raises(DatasetIssueError) as caught:
            find_layout(root)
        assert hint in caught.value.hint


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetIssueError):
        find_layout(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/passwd", "a\\u0000b", "\\ud800", "x" * 4000, "\\q"])
def test_hostile_first_file_name_is_only_looked_at(name: str, tmp_path: Path) -> None:
    root = build(tmp_path / "x", {"images/a.jpg": "", "coco.json": f'{{"images": [{{"file_name": "{name}"}}]}}'})
    assert find_layout(root).train.images == root / "images"


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = build(tmp_path / "outside", {"coco.json": COCO, "a.jpg": ""})
    root = build(tmp_path / "x", {})
    (root / "train").symlink_to(outside)
    with pytest.raises(DatasetIssueError):
        find_layout(root)
