"""Folders of images and of masks with the same names: a mask's values are classes, objects, or there and not there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from sam3_lora.coco.images import TooLargeError
from sam3_lora.coco.layout import split_of
from sam3_lora.coco.report import quote
from sam3_lora.coco.schema import ValidationLimits
from sam3_lora.convert.faults import Faults
from sam3_lora.convert.mask_values import MAX_VALUE, read_values, run_lengths
from sam3_lora.convert.output import Labelled, Object, Source, images_below, split_off, write_dataset
from sam3_lora.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from sam3_lora.coco.images import Decoded
    from sam3_lora.convert.output import Summary

MAX_NAME = 255
NAMES_BYTES = 2**20
BACKGROUND_NAMES = {"background", "_background_", "__background__"}
TOUCHING = np.ones((3, 3), dtype=np.int8)  # parts that meet at a corner are one
SPLIT_FOLDERS = {"train": "train", "validation": "valid", "test": "test"}
MASK_HINT = "a mask is a PNG of one channel, with 0 where there is nothing"
NAMES_HINT = 'names.txt: a name each line, the first for value 1; names.json: {"1": "pallet", "2": "forklift"}'


@dataclass(frozen=True)
class _Mask:
    """A mask file; `category_id` is None where its values are classes."""

    path: Path
    category_id: int | None


Masks = tuple[_Mask, ...]


def convert_masks(
    images: Path,
    masks: Path,
    out: Path,
    *,
    names: Path | None = None,
    category: str | None = None,
    instances: bool = False,
    whole: bool = False,
    ignore: Sequence[int] = (),
    min_pixels: int = 1,
    valid: float | None = None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> Summary:
    """Write the objects of masks as COCO run lengths into the new folder `out`.

    Each connected part of a class is an object, unless `whole`. Images are linked or copied, never changed.

    Args:
        images, masks: folders; a mask has its image's name but for the ending. Both may have `train`, `valid`, `test`.
        names: file with the names of values; without it and `category`, `masks` has a folder for each category.
        category: the one category that every value above 0 shows.
        instances: of `category`, each value is one object.
        ignore: values that are neither background nor an object, as 255 often is.
        min_pixels: smaller objects are left out, and counted.
        valid: part of the training images that becomes the validation split, where there is none.

    Raises:
        ConfigError: if `out` exists, or options contradict each other or the folders.
        ConversionError: with every fault, and its file.
    """
    if names is not None and category is not None:
        raise ConfigError("--names and --category: only one says what values mean")
    if instances and category is None:
        raise ConfigError("--instances: it needs the --category of the objects")
    if instances and whole:
        raise ConfigError("--instances and --whole contradict each other")
    faults = Faults()
    for folder in (images, masks):
        if not folder.is_dir():
            faults.add(folder, "there is no such folder")
    faults.check()
    pairs = _splits(images, masks)
    categories = _categories(names, category, pairs, faults)
    by_folder = names is None and category is None
    splits = {split: _sources(pair, categories if by_folder else None, names, faults) for split, pair in pairs.items()}
    if not splits.get("train"):
        faults.add(images, "there are no training images")
    faults.check()
    if valid is not None:
        if "valid" in splits:
            raise ConfigError("--valid: the dataset has a validation split of its own")
        splits |= split_off(splits["train"], valid)
    splits = {split: splits[split] for split in SPLIT_FOLDERS.values() if splits.get(split)}
    reader = _MaskReader(categories, frozenset(ignore), faults, instances=instances, whole=whole, min_pixels=min_pixels)
    return write_dataset(out, categories, splits, reader.read, faults, on_progress)


def _splits(images: Path, masks: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of images and masks by split: those that both have, or the two themselves as training images."""
    found = {}
    for folder in sorted(each for each in images.iterdir() if each.is_dir()):
        split = split_of(folder.name)
        if split is not None and (masks / folder.name).is_dir():
            found[SPLIT_FOLDERS[split]] = (folder, masks / folder.name)
    return found or {"train": (images, masks)}


def _categories(
    names: Path | None, category: str | None, pairs: Mapping[str, tuple[Path, Path]], faults: Faults
) -> dict[int, str]:
    """Names by the value, or, where values are not classes, numbered from 1."""
    if names is not None:
        return _read_names(names, faults)
    if category is not None:
        if not 0 < len(category.strip()) <= MAX_NAME:
            raise ConfigError(f"--category: {quote(category)} is not a short text")
        return {1: category}
    found = sorted({folder.name for _, masks in pairs.values() for folder in masks.iterdir() if _is_shown(folder)})
    if not found:
        masks = next(iter(pairs.values()))[1]
        hint = "say what values mean: --category NAME or --names FILE; or put masks in a folder for each category"
        faults.add(masks, "there is no folder named after a category in it", hint)
    return dict(enumerate(found, start=1))


def _is_shown(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _read_names(path: Path, faults: Faults) -> dict[int, str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(NAMES_BYTES)
        found = _names_of_json(json.loads(text)) if path.suffix.lower() == ".json" else _names_of_lines(text)
    except OSError as error:
        faults.add(path, f"it cannot be read: {error.strerror}", NAMES_HINT)
        return {}
    except (ValueError, RecursionError) as error:
        faults.add(path, f"it does not name values: {error}", NAMES_HINT)
        return {}
    if not found:
        faults.add(path, "it names no value", NAMES_HINT)
    for value, name in found.items():
        if not 0 < value <= MAX_VALUE:
            faults.add(path, f"{value} cannot be a value of an object: it is not in 1..{MAX_VALUE}", NAMES_HINT)
        if not 0 < len(name.strip()) <= MAX_NAME:
            faults.add(path, f"the name of {value} is not a short text")
    for name in sorted({name for name in found.values() if list(found.values()).count(name) > 1}):
        faults.add(path, f"{quote(name)} occurs twice", "merge or rename the values")
    return found


def _names_of_lines(text: str) -> dict[int, str]:
    lines = [line.strip() for line in text.strip().splitlines()]
    first = 0 if lines and lines[0].lower() in BACKGROUND_NAMES else 1
    return {value: name for value, name in enumerate(lines, start=first) if value}


def _names_of_json(values: Any) -> dict[int, str]:
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values.values()):
        raise ValueError("an object of values and names is expected")
    return {int(value): name for value, name in values.items() if int(value)}


def _sources(
    pair: tuple[Path, Path], by_folder: Mapping[int, str] | None, names: Path | None, faults: Faults
) -> list[Source[Masks]]:
    """Images, each with its masks; what has no partner is a fault."""
    images, masks = pair
    if by_folder is None:
        named = {None if names else 1: _mask_files(masks, faults)}
    else:
        named = {number: _mask_files(masks / name, faults) for number, name in by_folder.items()}
    sources: list[Source[Masks]] = []
    taken: dict[Path, Path] = {}
    for image in images_below(images, faults):
        key = image.relative_to(images).with_suffix("")
        other = taken.setdefault(key, image)
        if other != image:
            faults.add(image, f"{other.name} would have the same mask", "give one of them another name")
            continue
        found = tuple(_Mask(files[key], number) for number, files in named.items() if key in files)
        if not found and by_folder is None:
            hint = f"it is called {key.as_posix()}.png; where there is nothing to see, it is all 0"
            faults.add(image, f"there is no mask of it in {masks}", hint)
        sources.append(Source(image, found))
    for files in named.values():
        for key, mask in files.items():
            if key not in taken:
                faults.add(
                    mask, f"there is no image of it in {images}", "a mask has its image's name but for the ending"
                )
    return sources


def _mask_files(folder: Path, faults: Faults) -> dict[Path, Path]:
    """Mask files by their path in the folder, without the ending."""
    files: dict[Path, Path] = {}
    for path in images_below(folder, faults) if folder.is_dir() else []:
        other = files.setdefault(path.relative_to(folder).with_suffix(""), path)
        if other != path:
            faults.add(path, f"{other.name} is a mask of the same image", "keep one of them")
    return files


class _MaskReader:
    def __init__(
        self,
        categories: Mapping[int, str],
        ignored: frozenset[int],
        faults: Faults,
        *,
        instances: bool,
        whole: bool,
        min_pixels: int,
    ) -> None:
        self._categories, self._ignored, self._faults = categories, ignored, faults
        self._instances, self._whole, self._min_pixels = instances, whole, min_pixels

    def read(self, source: Source[Masks], decoded: Decoded, summary: Summary) -> Labelled | None:
        """Objects of an image; its size is that of its masks, with or without the EXIF orientation."""
        before = self._faults.count
        objects: list[Object] = []
        size = None
        for mask in source.labels:
            values_HW = self._values(mask.path)
            if values_HW is None:
                continue
            mask_size = (values_HW.shape[1], values_HW.shape[0])
            if mask_size not in decoded or size not in (None, mask_size):
                wanted = size or decoded.upright
                message = f"the mask is {mask_size[0]} x {mask_size[1]}, but its image is {wanted[0]} x {wanted[1]}"
                self._faults.add(mask.path, message, "export the masks at the size of the images")
                continue
            size = mask_size
            objects += self._objects(values_HW, mask, summary)
        return Labelled(size or decoded.upright, objects) if self._faults.count == before else None

    def _values(self, path: Path) -> NDArray[Any] | None:
        limits = ValidationLimits()
        try:
            if path.stat().st_size > limits.image_bytes:
                raise TooLargeError(f"the file is larger than {limits.image_bytes:,} bytes")
            return read_values(path, limits.image_pixels)
        except (TooLargeError, Image.DecompressionBombError) as error:
            self._faults.add(path, str(error), "scale image and mask down")
        except UnidentifiedImageError:
            self._faults.add(path, "the mask is neither PNG, TIFF, BMP nor WebP", MASK_HINT)
        except ValueError as error:
            self._faults.add(path, str(error), MASK_HINT)
        except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files
            self._faults.add(path, f"the mask cannot be decoded: {error or type(error).__name__}", "export it again")
        return None

    def _objects(self, values_HW: NDArray[Any], mask: _Mask, summary: Summary) -> Iterator[Object]:
        shape = values_HW.shape
        if self._ignored:
            values_HW = np.where(np.isin(values_HW, list(self._ignored)), 0, values_HW)
        if mask.category_id is not None and not self._instances:
            values_HW = values_HW > 0
        for value, window in enumerate(ndimage.find_objects(values_HW.astype(np.int32, copy=False)), start=1):
            if window is None:
                continue
            category_id = value if mask.category_id is None else mask.category_id
            if category_id not in self._categories:
                known = ", ".join(map(str, list(self._categories)[:10]))
                hint = f"named are {known}; what is no object: --ignore {value}"
                self._faults.add(mask.path, f"the value {value} has no name", hint)
                continue
            yield from self._parts(values_HW[window] == value, window, category_id, shape, summary)

    def _parts(
        self,
        inside_HW: NDArray[np.bool_],
        window: tuple[slice, slice],
        category_id: int,
        shape: tuple[int, int],
        summary: Summary,
    ) -> Iterator[Object]:
        top, left = window[0].start, window[1].start
        if self._whole or self._instances:
            parts = [(inside_HW, top, left)]
        else:
            labels_HW, _ = ndimage.label(inside_HW, structure=TOUCHING)
            parts = [
                (labels_HW[part] == number, top + part[0].start, left + part[1].start)
                for number, part in enumerate(ndimage.find_objects(labels_HW), start=1)
            ]
        for part_HW, y, x in parts:
            area = int(part_HW.sum())
            if area < self._min_pixels:
                summary.left_out[f"smaller than {self._min_pixels} pixels"] += 1
                continue
            bbox = (float(x), float(y), float(part_HW.shape[1]), float(part_HW.shape[0]))
            yield Object(category_id, bbox, run_lengths(part_HW, x, y, shape), float(area))
