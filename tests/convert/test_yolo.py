from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from sam3_lora.coco.validate import validate
from sam3_lora.convert.faults import ConversionError
from sam3_lora.convert.yolo import convert_yolo
from sam3_lora.errors import ConfigError, StorageFullError
from sam3_lora.synthetic.coco_export import ANNOTATIONS
from tests.coco.datasets import picture
from tests.convert.drawn import CONCEPTS, draw, loaded, write_yolo

SQUARE = "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75"


def small(root: Path, labels: str | bytes | None = SQUARE, data: str = "train: images\nnames: [bolt, nut]\n") -> Path:
    """One image of 40 x 30 and its label file."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    (root / "images" / "a.jpg").write_bytes(picture(1))
    if labels is not None:
        (root / "labels" / "a.txt").write_bytes(labels if isinstance(labels, bytes) else labels.encode())
    (root / "data.yaml").write_text(data)
    return root / "data.yaml"


def refused(data_yaml: Path, **options: object) -> list[str]:
    """What is told of a dataset that cannot be converted; nothing may be left behind."""
    before = sorted(data_yaml.parent.parent.rglob("*"))
    with pytest.raises(ConversionError) as caught:
        convert_yolo(data_yaml, data_yaml.parent.parent / "out", **options)
    assert sorted(data_yaml.parent.parent.rglob("*")) == before
    return [str(fault).removeprefix(f"{data_yaml.parent}/") for fault in caught.value.faults]


def test_there_and_back(tmp_path: Path) -> None:
    drawn = draw(tmp_path / "drawn")
    done: list[tuple[int, int]] = []
    data_yaml = write_yolo(drawn, tmp_path / "yolo")
    summary = convert_yolo(data_yaml, tmp_path / "out", on_progress=lambda *each: done.append(each))
    assert done == [(number, 9) for number in range(1, 10)]
    assert summary.images == {"train": 6, "valid": 3}
    assert summary.categories == list(CONCEPTS)
    assert summary.boxes_without_mask == 0
    for split in ("train", "valid"):
        before, after = loaded(drawn, split), loaded(tmp_path / "out", split)
        assert after.categories == before.categories
        assert after.images == before.images
        assert len(after.annotations) == len(before.annotations) > 0
        for one, other in zip(before.annotations, after.annotations, strict=True):
            assert (one.image_id, one.category_id) == (other.image_id, other.category_id)
            assert isinstance(one.segmentation, list)
            assert isinstance(other.segmentation, list)
            assert other.segmentation[0] == pytest.approx(one.segmentation[0], rel=1e-6, abs=1e-4)
    report = validate(tmp_path / "out")
    assert (report.errors, report.images) == (0, 9)


def test_the_output_is_of_one_file_system_entry_for_each_image(tmp_path: Path) -> None:
    data_yaml = small(tmp_path / "yolo")
    convert_yolo(data_yaml, tmp_path / "out")
    assert (tmp_path / "out/train/a.jpg").samefile(tmp_path / "yolo/images/a.jpg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "yolo"]


def test_where_no_link_can_be_made_there_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    convert_yolo(small(tmp_path / "yolo"), tmp_path / "out")
    assert not (tmp_path / "out/train/a.jpg").samefile(tmp_path / "yolo/images/a.jpg")
    assert (tmp_path / "out/train/a.jpg").read_bytes() == picture(1)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(28, "No space left on device")

    data_yaml = small(tmp_path / "yolo")
    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StorageFullError):
        convert_yolo(data_yaml, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["yolo"]


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_yolo(small(tmp_path / "yolo"), tmp_path / "out", on_progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["yolo"]


def test_boxes_stay_boxes(tmp_path: Path) -> None:
    summary = convert_yolo(small(tmp_path / "yolo", f"1 0.5 0.5 0.5 0.4\n{SQUARE}\n"), tmp_path / "out")
    assert (summary.annotations, summary.boxes_without_mask) == (2, 1)
    box, outline = loaded(tmp_path / "out", "train").annotations
    assert (box.category_id, box.bbox, box.segmentation) == (2, (10, 9, 20, 12), None)
    assert outline.segmentation == [[10, 7.5, 30, 7.5, 30, 22.5, 10, 22.5]]


@pytest.mark.parametrize("labels", ["", "\n \n", None])
def test_an_image_without_labels_shows_nothing(tmp_path: Path, labels: str | None) -> None:
    summary = convert_yolo(small(tmp_path / "yolo", labels), tmp_path / "out")
    assert (summary.images, summary.annotations, summary.images_without_annotations) == ({"train": 1}, 0, 1)


def test_what_teaches_nothing_is_left_out_and_counted(tmp_path: Path) -> None:
    labels = f"{SQUARE}\n{SQUARE}\n0 0.1 0.1 0.5 0.5 0.9 0.9\n0 0.5 0.5 0 0.2\n"
    summary = convert_yolo(small(tmp_path / "yolo", labels), tmp_path / "out")
    assert summary.annotations == 1
    assert summary.left_out == {"the same line again": 1, "without area": 2}


def test_a_little_past_the_edge_is_cut_off(tmp_path: Path) -> None:
    convert_yolo(small(tmp_path / "yolo", "0 -0.005 0 1.005 0 1 1"), tmp_path / "out")
    assert loaded(tmp_path / "out", "train").annotations[0].segmentation == [[0, 0, 40, 0, 40, 30]]


LINES = {
    "a class without a name": ("2 .1 .1 .5 .1 .5 .5", "class 2 has no name"),
    "a class that is no number": ("bolt .1 .1 .5 .1 .5 .5", "not a number"),
    "half a class": ("0.5 .1 .1 .5 .1 .5 .5", "class 0.5 has no name"),
    "a class below 0": ("-1 .1 .1 .5 .1 .5 .5", "class -1 has no name"),
    "pixels": ("0 10 10 30 10 30 20", "the coordinate 10 is outside of 0..1"),
    "below 0": ("0 .1 .1 .5 -.1 .5 .5", "the coordinate -0.1 is outside of 0..1"),
    "nan": ("0 .1 .1 nan .1 .5 .5", "not a finite number"),
    "infinite": ("0 .1 .1 1e999 .1 .5 .5", "not a finite number"),
    "an odd number": ("0 .1 .1 .5 .1 .5", "5 coordinates, an odd number"),
    "one point": ("0 .1 .1", "2 coordinates, which is neither"),
    "nothing": ("0", "0 coordinates, which is neither"),
    "commas": ("0 .1,.1,.5,.1,.5,.5", "not a number"),
}


@pytest.mark.parametrize("case", LINES)
def test_a_fault_of_a_line_is_named_with_its_place(case: str, tmp_path: Path) -> None:
    line, told = LINES[case]
    (fault,) = refused(small(tmp_path / "yolo", f"{SQUARE}\n\n{line}\n"))
    assert fault.startswith("labels/a.txt:3: ")
    assert told in fault


def test_every_fault_is_told_in_one_pass(tmp_path: Path) -> None:
    data_yaml = small(tmp_path / "yolo", "7 .1 .1 .5 .1 .5 .5\n0 nan 1 1 1\n")
    images = tmp_path / "yolo/images"
    (images / "b.jpg").write_bytes(b"no image")
    (images / "c.heic").write_bytes(b"")
    Image.new("1", (9001, 9000)).save(images / "d.png")
    (images / "a.png").write_bytes(picture(2, format_="PNG"))
    assert sorted(fault.split(": ")[0] for fault in refused(data_yaml)) == ["images/a.png", "images/c.heic"]
    (images / "a.png").unlink()
    (images / "c.heic").unlink()
    assert [fault.split(": ")[0] for fault in refused(data_yaml)] == [
        "labels/a.txt:1", "labels/a.txt:2", "images/b.jpg", "images/d.png",
    ]  # fmt: skip


def test_many_faults_take_little_memory_and_are_counted(tmp_path: Path) -> None:
    data_yaml = small(
        tmp_path / "yolo", "9 .1 .1 .5 .1 .5\n" * 2 + "".join(f"9 .1 .1 .5 .1 0.{n}\n" for n in range(500))
    )
    with pytest.raises(ConversionError, match="and 500 more") as caught:
        convert_yolo(data_yaml, tmp_path / "out")
    assert (len(caught.value.faults), caught.value.count) == (100, 501)


DATA = {
    "not YAML": ("names: [a\n", "it is not YAML"),
    "no keys": ("- a\n", "it has no keys"),
    "no names": ("train: images\n", "names is neither a list nor a map"),
    "a name that YAML reads as no text": ("train: images\nnames: [on, off]\n", "names: 0 is True"),
    "two equal names": ("train: images\nnames: {0: a, 1: a}\n", "'a' occurs twice"),
    "a class that is a text": ("train: images\nnames: {a: 0}\n", "the class 'a' is not a whole number"),
    "another count": ("train: images\nnames: [a]\nnc: 2\n", "nc is 2, but there are 1 names"),
    "no training images": ("val: images\nnames: [a]\n", "it names no training images"),
    "a folder that is not there": ("train: imagez\nnames: [a]\n", "train: there is no 'imagez'"),
    "an empty folder": ("train: labels\nnames: [a]\n", "there are no training images"),
    "neither folder nor list": ("train: {a: b}\nnames: [a]\n", "names no folder"),
    "key points": ("train: images\nnames: [a]\nkpt_shape: [17, 3]\n", "key points"),
    "another folder": ("train: ../elsewhere\nnames: [a]\n", "'../elsewhere' is outside of"),
    "an absolute path": ("train: /usr\nnames: [a]\n", "'/usr' is outside of"),
    "a dataset elsewhere": ("path: /usr\ntrain: images\nnames: [a]\n", "path: '/usr' is outside of"),
}


@pytest.mark.parametrize("case", DATA)
def test_a_fault_of_the_description_is_named(case: str, tmp_path: Path) -> None:
    data, told = DATA[case]
    (tmp_path / "elsewhere").mkdir()
    faults = refused(small(tmp_path / "yolo", data=data))
    assert any(fault.startswith("data.yaml") and told in fault for fault in faults), faults


def test_a_link_to_a_file_elsewhere_is_refused(tmp_path: Path) -> None:
    data_yaml = small(tmp_path / "yolo")
    (tmp_path / "secret.jpg").write_bytes(picture(5))
    (tmp_path / "secret.txt").write_text(SQUARE)
    (tmp_path / "yolo/images/b.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "yolo/images/c.jpg").write_bytes(picture(6))
    (tmp_path / "yolo/labels/c.txt").symlink_to(tmp_path / "secret.txt")
    assert [fault.split(": ")[0] for fault in refused(data_yaml)] == ["images/b.jpg", "labels/c.txt"]


def test_a_dataset_that_lies_elsewhere(tmp_path: Path) -> None:
    small(tmp_path / "data")
    data_yaml = tmp_path / "config" / "data.yaml"
    data_yaml.parent.mkdir()
    data_yaml.write_text("path: /content/drive/data\ntrain: images\nnames: [bolt]\n")
    summary = convert_yolo(data_yaml, tmp_path / "out", root=tmp_path / "data")
    assert (summary.images, summary.annotations) == ({"train": 1}, 1)


LAYOUTS = {
    "images/train": ("path: .\ntrain: images/train\nval: images/val\ntest: images/test\n", "images/{}", "labels/{}"),
    "path of another machine": ("path: /content/x\ntrain: images/train\nval: images/val\n", "images/{}", "labels/{}"),
    "path of a folder": ("path: data\ntrain: images/train\nval: images/val\n", "data/images/{}", "data/labels/{}"),
    "Roboflow": ("train: ../train/images\nval: ../val/images\ntest: ../test/images\n", "{}/images", "{}/labels"),
    "lists of folders": ("train: [train/images]\nval: [val/images]\n", "{}/images", "{}/labels"),
    "lists of images": ("train: train.txt\nval: val.txt\n", "images", "labels"),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts(case: str, tmp_path: Path) -> None:
    data, images, labels = LAYOUTS[case]
    root = tmp_path / "yolo"
    for number, split in enumerate(("train", "val", "test")):
        for folder in (images, labels):
            (root / folder.format(split)).mkdir(parents=True, exist_ok=True)
        (root / images.format(split) / f"{split}.jpg").write_bytes(picture(number))
        (root / labels.format(split) / f"{split}.txt").write_text(SQUARE)
        (root / f"{split}.txt").write_text(f"./images/{split}.jpg\n" if number else f"images/{split}.jpg\n")
    (root / "data.yaml").write_text(data + "names: {0: bolt, 1: nut}\n")
    summary = convert_yolo(root / "data.yaml", tmp_path / "out")
    expected = {"train": 1, "valid": 1} | ({"test": 1} if "test" in data else {})
    assert (summary.images, summary.annotations) == (expected, len(expected))
    assert (tmp_path / "out/valid/val.jpg").read_bytes() == picture(1)


def test_a_test_split_that_is_only_named_is_no_fault(tmp_path: Path) -> None:
    data = "train: images\ntest: ../test/images\nnames: [bolt]\n"
    summary = convert_yolo(small(tmp_path / "yolo", data=data), tmp_path / "out")
    assert (summary.images, summary.notes) == ({"train": 1}, ["no test split: there is no '../test/images'"])
    data_yaml = small(tmp_path / "other", data=data.replace("test: ../test", "val: ../valid"))
    assert "val: there is no '../valid/images'" in refused(data_yaml)[0]


def test_a_list_names_an_image_that_is_not_there(tmp_path: Path) -> None:
    data_yaml = small(tmp_path / "yolo", data="train: train.txt\nnames: [bolt]\n")
    (tmp_path / "yolo/train.txt").write_text("images/a.jpg\n\nimages/b.jpg\n")
    assert refused(data_yaml) == ["train.txt:3: there is no image 'images/b.jpg'"]


def test_images_of_several_folders_keep_apart(tmp_path: Path) -> None:
    data_yaml = small(tmp_path / "yolo", data="train: [images, more/images]\nnames: [bolt]\n")
    shutil.copytree(tmp_path / "yolo/images", tmp_path / "yolo/more/images")
    (tmp_path / "yolo/more/images/a.jpg").write_bytes(picture(9))
    (tmp_path / "yolo/more/images/A\u202eb\\.JPG").write_bytes(picture(10))
    assert convert_yolo(data_yaml, tmp_path / "out").images == {"train": 3}
    names = [image.file_name for image in loaded(tmp_path / "out", "train").images.values()]
    assert names == ["a.jpg", "A_b_.JPG", "a-2.jpg"]
    assert (tmp_path / "out/train/a-2.jpg").read_bytes() == picture(9)
    assert validate(tmp_path / "out").errors == 0


def test_labels_lie_on_the_upright_image(tmp_path: Path) -> None:
    data_yaml = small(tmp_path / "yolo")
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "yolo/images/a.jpg").write_bytes(picture(1, exif=exif))
    convert_yolo(data_yaml, tmp_path / "out")
    (image,) = loaded(tmp_path / "out", "train").images.values()
    assert (image.width, image.height) == (30, 40)
    assert validate(tmp_path / "out").errors == 0


def many(root: Path, count: int, data: str = "train: images\nnames: [bolt]\n") -> Path:
    data_yaml = small(root, data=data)
    for number in range(count - 1):
        (root / "images" / f"{number}.jpg").write_bytes(picture(number + 2))
    return data_yaml


def valid_names(out: Path) -> set[str]:
    return {path.name for path in (out / "valid").iterdir()} - {ANNOTATIONS}


def test_a_validation_split_stays_when_images_come(tmp_path: Path) -> None:
    summary = convert_yolo(many(tmp_path / "one", 60), tmp_path / "a", valid=0.2)
    assert summary.images["train"] + summary.images["valid"] == 60
    assert 4 <= summary.images["valid"] <= 24
    convert_yolo(many(tmp_path / "two", 90), tmp_path / "b", valid=0.2)
    assert valid_names(tmp_path / "a") < valid_names(tmp_path / "b")


def test_a_small_part_is_one_image_at_least(tmp_path: Path) -> None:
    assert convert_yolo(many(tmp_path / "x", 3), tmp_path / "a", valid=0.0001).images == {"train": 2, "valid": 1}
    with pytest.raises(ConfigError, match="one image cannot be split"):
        convert_yolo(small(tmp_path / "y"), tmp_path / "b", valid=0.1)


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    data_yaml = many(tmp_path / "yolo", 3, data="train: images\nval: images\nnames: [bolt]\n")
    with pytest.raises(ConfigError, match="has a validation split of its own"):
        convert_yolo(data_yaml, tmp_path / "out", valid=0.1)
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        convert_yolo(data_yaml, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_names_beyond_ascii(tmp_path: Path) -> None:
    data = 'train: images\nnames: [Möbelstück, "\\U0001F4E6"]\n'
    convert_yolo(small(tmp_path / "yolo", data=data), tmp_path / "out")
    written = json.loads((tmp_path / "out/train" / ANNOTATIONS).read_text())
    assert [each["name"] for each in written["categories"]] == ["Möbelstück", "\U0001f4e6"]
