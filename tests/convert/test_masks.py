from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

from sam3_lora.coco.masks import check_counts
from sam3_lora.coco.validate import validate
from sam3_lora.convert.faults import ConversionError
from sam3_lora.convert.mask_values import run_lengths
from sam3_lora.convert.masks import convert_masks
from sam3_lora.errors import ConfigError
from tests.coco.datasets import HEIGHT, WIDTH, picture
from tests.convert.drawn import CONCEPTS, draw, loaded, mask_of, save_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sam3_lora.coco.schema import Annotation


def decoded(annotation: Annotation) -> NDArray[np.bool_]:
    assert isinstance(annotation.segmentation, dict)
    rle = {**annotation.segmentation, "counts": annotation.segmentation["counts"].encode()}
    return np.asarray(pycocotools.mask.decode(rle), dtype=np.bool_)


def blank(dtype: Any = np.uint8, size: tuple[int, int] = (WIDTH, HEIGHT)) -> NDArray[Any]:
    return np.zeros((size[1], size[0]), dtype=dtype)


def small(root: Path, mask_HW: NDArray[Any], name: str = "a.png", text: str = "bolt\nnut\n") -> tuple[Path, Path, Path]:
    """One image, its mask, and the names of values."""
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.jpg").write_bytes(picture(1))
    save_mask(mask_HW, root / "masks" / name)
    (root / "names.txt").write_text(text)
    return root / "images", root / "masks", root / "names.txt"


def refused(root: Path, names: Path | None, **options: Any) -> list[str]:
    before = sorted(root.rglob("*"))
    with pytest.raises(ConversionError) as caught:
        convert_masks(root / "images", root / "masks", root / "out", names=names, **options)
    assert sorted(root.rglob("*")) == before
    return [str(fault).removeprefix(f"{root}/") for fault in caught.value.faults]


def drawn_masks(drawn: Path, split: str) -> list[tuple[str, list[tuple[int, NDArray[np.bool_]]]]]:
    """Per image, what of each object the later ones leave to see."""
    dataset = loaded(drawn, split)
    found = []
    for image in dataset.images.values():
        masks: list[tuple[int, NDArray[np.bool_]]] = []
        for annotation in dataset.annotations_of(image.id):
            assert isinstance(annotation.segmentation, list)
            mask = mask_of(annotation.segmentation[0], (image.width, image.height))
            masks = [(number, other & ~mask) for number, other in masks] + [(int(annotation.category_id), mask)]
        found.append((image.file_name, masks))
    return found


def test_classes_there_and_back(tmp_path: Path) -> None:
    drawn = draw(tmp_path / "drawn")
    expected = {}
    for split in ("train", "valid"):
        for name, masks in drawn_masks(drawn, split):
            values = blank(size=(140, 140))
            for category_id, mask in masks:
                values[mask] = category_id
            save_mask(values, tmp_path / "masks" / split / f"{Path(name).stem}.png")
            expected[split, name] = values
    (tmp_path / "names.txt").write_text("\n".join(CONCEPTS))
    summary = convert_masks(drawn, tmp_path / "masks", tmp_path / "out", names=tmp_path / "names.txt")
    assert (summary.images, summary.categories) == ({"train": 6, "valid": 3}, list(CONCEPTS))
    for split in ("train", "valid"):
        dataset = loaded(tmp_path / "out", split)
        assert dataset.categories == loaded(drawn, split).categories
        for image in dataset.images.values():
            again = blank(size=(140, 140))
            for annotation in dataset.annotations_of(image.id):
                mask = decoded(annotation)
                assert not again[mask].any()
                again[mask] = annotation.category_id
                rows, columns = np.nonzero(mask)
                x, y, width, height = annotation.bbox
                assert (x, y, width, height) == (
                    columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1,
                )  # fmt: skip
            assert (again == expected[split, image.file_name]).all()
    assert validate(tmp_path / "out").errors == 0


def test_objects_and_folders_there_and_back(tmp_path: Path) -> None:
    drawn = draw(tmp_path / "drawn")
    expected: dict[str, list[tuple[int, bytes]]] = {}
    for name, masks in drawn_masks(drawn, "train"):
        shown = [(category_id, mask) for category_id, mask in masks if mask.any()]
        expected[name] = sorted((category_id, mask.tobytes()) for category_id, mask in shown)
        values = blank(np.uint16, (140, 140))
        for number, (_, mask) in enumerate(shown, start=1):
            values[mask] = 300 * number
        save_mask(values, tmp_path / "objects" / f"{Path(name).stem}.png")
        for number, concept in enumerate(CONCEPTS, start=1):
            of_class = [mask for category_id, mask in shown if category_id == number]
            if of_class:
                save_mask(np.any(of_class, axis=0), tmp_path / "folders" / concept / f"{Path(name).stem}.png")
    images = drawn / "train"
    convert_masks(images, tmp_path / "objects", tmp_path / "a", category="shape", instances=True)
    convert_masks(images, tmp_path / "folders", tmp_path / "b", whole=True)
    objects, folders = loaded(tmp_path / "a", "train"), loaded(tmp_path / "b", "train")
    assert [category.name for category in objects.categories.values()] == ["shape"]
    assert [category.name for category in folders.categories.values()] == sorted(CONCEPTS)
    for image in objects.images.values():
        masks = sorted(decoded(annotation).tobytes() for annotation in objects.annotations_of(image.id))
        assert masks == sorted(mask for _, mask in expected[image.file_name])
    for image in folders.images.values():
        for annotation in folders.annotations_of(image.id):
            number = CONCEPTS.index(folders.categories[annotation.category_id].name) + 1
            all_of_it = [np.frombuffer(m, np.bool_) for n, m in expected[image.file_name] if n == number]
            assert (decoded(annotation).ravel() == np.any(all_of_it, axis=0)).all()


def test_run_lengths_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(2)
    for _ in range(300):
        height, width = (int(side) for side in rng.integers(1, 12, 2))
        y, x = int(rng.integers(0, height)), int(rng.integers(0, width))
        whole = np.zeros((height, width), dtype=np.uint8)
        part = rng.random((height - y, width - x)) < rng.random()
        part.flat[0] = True
        whole[y:, x:] = part
        rle = run_lengths(part, x, y, (height, width))
        wanted = pycocotools.mask.encode(np.asfortranarray(whole))
        assert (rle["counts"], rle["size"]) == (wanted["counts"].decode(), wanted["size"])
        check_counts(rle["counts"], height * width)


def test_parts_that_do_not_touch_are_objects(tmp_path: Path) -> None:
    mask = blank()
    mask[2:5, 2:5] = mask[5, 5] = 1  # meet at a corner
    mask[20:24, 30:] = 1
    mask[10, 10] = 2
    images, masks, names = small(tmp_path, mask)
    summary = convert_masks(images, masks, tmp_path / "a", names=names)
    annotations = loaded(tmp_path / "a", "train").annotations
    assert [(each.category_id, each.bbox) for each in annotations] == [
        (1, (2, 2, 4, 4)), (1, (30, 20, 10, 4)), (2, (10, 10, 1, 1)),
    ]  # fmt: skip
    assert summary.annotations == 3
    convert_masks(images, masks, tmp_path / "b", names=names, whole=True)
    assert [each.bbox for each in loaded(tmp_path / "b", "train").annotations] == [(2, 2, 38, 22), (10, 10, 1, 1)]
    summary = convert_masks(images, masks, tmp_path / "c", names=names, min_pixels=2)
    assert (summary.annotations, summary.left_out) == (2, {"smaller than 2 pixels": 1})
    assert convert_masks(images, masks, tmp_path / "d", category="x").annotations == 3
    assert convert_masks(images, masks, tmp_path / "e", category="x", ignore=[2]).annotations == 2
    objects = convert_masks(images, masks, tmp_path / "f", category="x", instances=True)
    assert objects.annotations == 2
    assert [each.bbox for each in loaded(tmp_path / "f", "train").annotations] == [(2, 2, 38, 22), (10, 10, 1, 1)]


def palette(mask: NDArray[Any]) -> Image.Image:
    image = Image.fromarray(mask)
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    return image


FILES = {
    "8 bit": ("a.png", Image.fromarray),
    "palette": ("a.png", palette),
    "16 bit": ("a.png", lambda mask: Image.fromarray(mask.astype(np.uint16))),
    "32 bit TIFF": ("a.tif", lambda mask: Image.fromarray(mask.astype(np.int32))),
    "one bit": ("a.png", lambda mask: Image.fromarray(mask > 0)),
    "grey as colours": ("a.png", lambda mask: Image.fromarray(mask).convert("RGB")),
    "grey with transparency": ("a.png", lambda mask: Image.fromarray(mask).convert("RGBA")),
    "BMP": ("a.bmp", Image.fromarray),
}


@pytest.mark.parametrize("case", FILES)
def test_kinds_of_files(case: str, tmp_path: Path) -> None:
    mask = blank()
    mask[4:9, 6:20] = 1
    images, masks, names = small(tmp_path, mask)
    (masks / "a.png").unlink()
    name, make = FILES[case]
    make(mask).save(masks / name)
    convert_masks(images, masks, tmp_path / "out", names=names)
    (annotation,) = loaded(tmp_path / "out", "train").annotations
    assert (decoded(annotation) == (mask > 0)).all()


NAMES = {
    "lines": ("names.txt", "bolt\nnut\n", ["bolt", "nut"]),
    "lines with the background": ("names.txt", "_background_\nbolt\nnut\n", ["bolt", "nut"]),
    "JSON": ("names.json", json.dumps({"0": "background", "1": "bolt", "2": "nut"}), ["bolt", "nut"]),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_of_values(case: str, tmp_path: Path) -> None:
    mask = blank()
    mask[0, :3] = 2
    images, masks, _ = small(tmp_path, mask)
    name, text, expected = NAMES[case]
    (tmp_path / name).write_text(text)
    assert convert_masks(images, masks, tmp_path / "out", names=tmp_path / name).categories == expected
    (annotation,) = loaded(tmp_path / "out", "train").annotations
    assert annotation.category_id == 2


WRONG_NAMES = {
    "an empty file": ("names.txt", "", "it names no value"),
    "no JSON": ("names.json", "{", "it does not name values"),
    "a list": ("names.json", '["a"]', "an object of values and names is expected"),
    "a value that is no number": ("names.json", '{"a": "b"}', "it does not name values"),
    "a value out of range": ("names.json", '{"70000": "b"}', "70000 cannot be a value"),
    "an empty name": ("names.txt", "a\n\nb\n", "the name of 2 is not a short text"),
    "the same twice": ("names.txt", "a\nb\na\n", "'a' occurs twice"),
}


@pytest.mark.parametrize("case", WRONG_NAMES)
def test_wrong_names_are_told(case: str, tmp_path: Path) -> None:
    small(tmp_path, blank())
    name, text, told = WRONG_NAMES[case]
    (tmp_path / name).write_text(text)
    (fault,) = refused(tmp_path, tmp_path / name)
    assert fault.startswith(f"{name}: ")
    assert told in fault
    (tmp_path / name).unlink()
    assert "it cannot be read" in refused(tmp_path, tmp_path / name)[0]


def test_a_mask_of_nothing_says_that_there_is_nothing(tmp_path: Path) -> None:
    images, masks, names = small(tmp_path, blank())
    summary = convert_masks(images, masks, tmp_path / "out", names=names)
    assert (summary.annotations, summary.images_without_annotations) == (0, 1)


def test_the_stored_size_of_a_turned_image_is_as_good(tmp_path: Path) -> None:
    mask = blank()
    mask[3:9, 3:9] = 1
    images, masks, names = small(tmp_path, mask)
    exif = Image.Exif()
    exif[0x0112] = 6
    (images / "a.jpg").write_bytes(picture(1, exif=exif))
    convert_masks(images, masks, tmp_path / "stored", names=names)
    (image,) = loaded(tmp_path / "stored", "train").images.values()
    assert (image.width, image.height) == (WIDTH, HEIGHT)
    save_mask(mask.T, masks / "a.png")
    convert_masks(images, masks, tmp_path / "upright", names=names)
    (image,) = loaded(tmp_path / "upright", "train").images.values()
    assert (image.width, image.height) == (HEIGHT, WIDTH)


def colours() -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT))
    image.paste((200, 0, 0), (0, 0, 5, 5))
    return image


def huge() -> Image.Image:
    return Image.new("1", (9001, 9000))


def negative() -> Image.Image:
    return Image.fromarray(np.full((HEIGHT, WIDTH), -1, dtype=np.int32))


FAULTS = {
    "another size": ("a.png", lambda: Image.new("L", (WIDTH, WIDTH)), "the mask is 40 x 40, but its image is 40 x 30"),
    "a value without a name": ("a.png", lambda: Image.new("L", (WIDTH, HEIGHT), 255), "the value 255 has no name"),
    "colours": ("a.png", colours, "the mask is in colours"),
    "a decompression bomb": ("a.png", huge, "at most 80,000,000 are supported"),
    "below 0": ("a.tif", negative, "values outside of 0..65,535"),
    "fractions": ("a.tif", lambda: Image.new("F", (WIDTH, HEIGHT), 0.5), "values of mode F"),
    "JPEG": ("a.jpg", lambda: Image.new("L", (WIDTH, HEIGHT)), "neither PNG, TIFF, BMP nor WebP"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_a_mask_is_named(case: str, tmp_path: Path) -> None:
    _, masks, names = small(tmp_path, blank())
    (masks / "a.png").unlink()
    name, make, told = FAULTS[case]
    make().save(masks / name)
    (fault,) = refused(tmp_path, names)
    assert fault.startswith(f"masks/{name}: ")
    assert told in fault


def test_a_damaged_mask_and_a_damaged_image_are_named(tmp_path: Path) -> None:
    images, masks, names = small(tmp_path, blank())
    (masks / "a.png").write_bytes((masks / "a.png").read_bytes()[:45])
    (images / "b.jpg").write_bytes(b"no image")
    save_mask(blank(), masks / "b.png")
    assert [fault.split(": ")[0] for fault in refused(tmp_path, names)] == ["masks/a.png", "images/b.jpg"]


def test_what_has_no_partner_is_named(tmp_path: Path) -> None:
    images, masks, names = small(tmp_path, blank())
    (images / "b.jpg").write_bytes(picture(2))
    (images / "c").mkdir()
    (images / "c" / "a.jpg").write_bytes(picture(3))
    (images / "a.png").write_bytes(picture(4, format_="PNG"))
    save_mask(blank(), masks / "d.png")
    save_mask(blank(), masks / "a.tif")
    faults = sorted(fault.split(", ")[0] for fault in refused(tmp_path, names))
    assert [fault.replace(f"{tmp_path}/", "") for fault in faults] == [
        "images/a.png: a.jpg would have the same mask",
        "images/b.jpg: there is no mask of it in masks",
        "images/c/a.jpg: there is no mask of it in masks",
        "masks/a.tif: a.png is a mask of the same image",
        "masks/d.png: there is no image of it in images",
    ]


def test_masks_without_a_meaning_are_refused(tmp_path: Path) -> None:
    images, masks, names = small(tmp_path, blank())
    assert "no folder named after a category" in refused(tmp_path, None)[0]
    for options, told in (
        ({"names": names, "category": "x"}, "only one says"),
        ({"instances": True}, "it needs the --category"),
        ({"category": "x", "instances": True, "whole": True}, "contradict"),
        ({"category": " "}, "not a short text"),
    ):
        with pytest.raises(ConfigError, match=told):
            convert_masks(images, masks, tmp_path / "out", **options)  # type: ignore[arg-type]
    with pytest.raises(ConversionError, match="there is no such folder"):
        convert_masks(tmp_path / "nothing", masks, tmp_path / "out", names=names)


def test_a_part_for_validation(tmp_path: Path) -> None:
    images, masks, names = small(tmp_path, blank())
    for number in range(9):
        (images / f"{number}.jpg").write_bytes(picture(number + 2))
        save_mask(blank(), masks / f"{number}.png")
    summary = convert_masks(images, masks, tmp_path / "out", names=names, valid=0.3)
    assert sum(summary.images.values()) == 10
    assert 1 <= summary.images["valid"] <= 7
