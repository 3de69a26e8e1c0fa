from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from sam3_lora.coco import pictures, preview
from sam3_lora.coco.isolation import ProcessLimits, draw_isolated
from sam3_lora.coco.preview import draw
from tests.coco.datasets import picture, records, write_json, write_roboflow, write_split

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, HEIGHT = 40, 30
ORANGE = np.array([230, 159, 0])


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


def one_image(root: Path, annotation: dict[str, Any], content: bytes | None = None, **size: int) -> Path:
    """A dataset of one grey image with one annotation."""
    (root / "train").mkdir(parents=True)
    grey = Image.new("RGB", (WIDTH, HEIGHT), (100, 100, 100))
    grey.save(root / "train" / "a.png") if content is None else (root / "train" / "a.png").write_bytes(content)
    image = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT} | size
    record = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0} | annotation
    write_json(
        root / "train", {"images": [image], "annotations": [record], "categories": [{"id": 1, "name": "\u202e" * 9}]}
    )
    return root


def tinted(target: Path) -> np.ndarray[Any, Any]:
    """Where the only picture shows the annotation: a bool for each pixel of the image itself."""
    ((file, _),) = pictures.read(target)
    pixels = np.asarray(Image.open(file).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BOX), dtype=int)
    return np.abs(pixels - 100).sum(axis=2) > 60


INSIDE = np.zeros((HEIGHT, WIDTH), dtype=bool)
INSIDE[12:24, 8:28] = True
COUNTS = [HEIGHT * 8 + 12, *([12, HEIGHT - 12] * 19), 12]
SHAPES: dict[str, dict[str, Any]] = {
    "polygon": {"segmentation": [[8, 12, 28, 12, 28, 24, 8, 24]]},
    "two polygons": {"segmentation": [[8, 12, 18, 12, 18, 24, 8, 24], [18, 12, 28, 12, 28, 24, 18, 24]]},
    "rle": {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [*COUNTS, HEIGHT * WIDTH - sum(COUNTS)]}},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_lie_where_they_are_annotated(tmp_path: Path, target: Path, shape: str) -> None:
    draw(one_image(tmp_path / "d", SHAPES[shape]), target)
    found = tinted(target)
    found[:12] &= INSIDE[:12]  # the label stands above
    assert (found == INSIDE).mean() > 0.98


def test_a_box_without_a_mask_is_a_frame(tmp_path: Path, target: Path) -> None:
    draw(one_image(tmp_path / "d", {"bbox": [8, 12, 20, 12]}), target)
    found = tinted(target)
    assert found[12, 8:28].all()
    assert found[12:24, 8].all()
    assert not found[15:22, 11:25].any()


def test_an_image_is_turned_as_its_annotations_assume(tmp_path: Path, target: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = picture(1, (WIDTH, HEIGHT), exif=exif)
    for name, size in (("upright", {"width": HEIGHT, "height": WIDTH}), ("stored", {})):
        folder = target / name
        folder.mkdir()
        draw(one_image(tmp_path / name, {"bbox": [2, 2, 5, 5]}, turned, **size), folder)
        ((file, found),) = pictures.read(folder)
        with Image.open(file) as shown:
            assert (shown.width > shown.height) == (found.width > found.height) == (name == "stored")


def test_images_are_spread_over_each_split_annotated_ones_first(tmp_path: Path, target: Path) -> None:
    content = records(50)
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] % 2]
    write_split(tmp_path / "d" / "train", content, 0)
    write_split(tmp_path / "d" / "valid", records(3, "val"), 1000)
    draw(tmp_path / "d", target)
    found = [each for _, each in pictures.read(target)]
    chosen = [int(each.file_name[4:-4]) for each in found if each.split == "train"]
    assert len(chosen) == preview.IMAGES_PER_SPLIT
    assert all(number % 2 for number in chosen)
    assert chosen == sorted(set(chosen))
    assert chosen[-1] > 40
    assert [each.file_name for each in found if each.split == "validation"] == ["val_0.jpg", "val_1.jpg", "val_2.jpg"]


def test_what_cannot_be_drawn_is_left_out(tmp_path: Path, target: Path) -> None:
    root = write_roboflow(tmp_path / "d")
    (root / "train" / "img_0.jpg").write_bytes(b"no image")
    (root / "train" / "img_1.jpg").write_bytes(picture(1, (7, 90)))
    (root / "train" / "img_2.jpg").unlink()
    (root / "train" / "img_3.jpg").unlink()
    (root / "train" / "img_3.jpg").symlink_to("/etc/passwd")
    bomb = Image.new("1", (20_000, 20_000))
    bomb.save(root / "train" / "img_4.jpg", "PNG")
    draw(root, target)
    names = [each.file_name for _, each in pictures.read(target) if each.split == "train"]
    assert names == [f"img_{number}.jpg" for number in range(5, 12)]


def test_a_dataset_that_cannot_be_read_has_no_pictures(tmp_path: Path, target: Path) -> None:
    (tmp_path / "d").mkdir()
    draw(tmp_path / "d", target)
    write_json(tmp_path / "d", "{")
    draw(tmp_path / "d", target)
    assert pictures.read(target) == []


def test_a_child_that_is_ended_leaves_what_it_had_finished(tmp_path: Path, target: Path) -> None:
    root = write_roboflow(tmp_path / "d")
    seen: list[int] = []

    def stop(done: int, _: int) -> None:
        seen.append(done)
        if done == 5:
            raise KeyError("lease lost")

    with pytest.raises(KeyError):
        draw_isolated(root, target, on_progress=stop)
    assert seen == [1, 2, 3, 4, 5]
    assert len(pictures.read(target)) >= 5
    with (target / pictures.INDEX).open("a") as index:
        index.write('{"split": "tr')
    assert all(file.is_file() for file, _ in pictures.read(target))


def test_a_child_has_its_limits(tmp_path: Path, target: Path) -> None:
    root = write_roboflow(tmp_path / "d")
    assert draw_isolated(root, target, process_limits=ProcessLimits(memory_bytes=64 * 2**20)) == []
    assert len(draw_isolated(root, target)) == 15
