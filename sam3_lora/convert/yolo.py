"""YOLO datasets as Ultralytics lays them out: `data.yaml`, `images/`, and `labels/` beside it.

A line of a label file is `class x1 y1 x2 y2 ...` (an outline) or `class x y width height` (a box, by its centre), all
in 0..1 of the upright image (docs.ultralytics.com/datasets/segment, docs.ultralytics.com/datasets/detect).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sam3_lora.coco.geometry import MIN_AREA_PX
from sam3_lora.coco.masks import polygons_extent
from sam3_lora.coco.report import quote
from sam3_lora.convert.faults import Faults
from sam3_lora.convert.output import Labelled, Object, Source, images_below, split_off, write_dataset
from sam3_lora.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sam3_lora.coco.images import Decoded
    from sam3_lora.convert.output import Summary

YAML_BYTES = 2**20
LABEL_BYTES = 64 * 2**20
MAX_NAME = 255
KEYS = {"train": ("train",), "valid": ("val", "valid", "validation"), "test": ("test",)}
BOX_NUMBERS = 4
TOLERANCE = 0.01  # past the edges; Ultralytics allows as much and cuts it off, as is done here
DECIMALS = 4  # of a pixel
LINE_HINT = "a line is: class x1 y1 x2 y2 x3 y3 ... (an outline), or: class x y width height (a box)"
UNIT_HINT = "coordinates are fractions of the image's width and height, not pixels"
OUTSIDE_HINT = "where it may lie elsewhere, say so: --root FOLDER"


def convert_yolo(
    data_yaml: Path,
    out: Path,
    *,
    root: Path | None = None,
    valid: float | None = None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> Summary:
    """Write the dataset that `data_yaml` describes into the new folder `out`.

    Boxes stay boxes: nobody drew a mask of them. Images are linked or copied, never changed.

    Args:
        root: where the dataset lies, instead of what `path` says; nothing outside is read. Else the file's folder.
        valid: part of the training images that becomes the validation split, where there is none.

    Raises:
        ConfigError: if `out` exists, or `valid` is given and there is a validation split.
        ConversionError: with every fault, its file and line.
    """
    faults = Faults()
    values = _read_yaml(data_yaml, faults)
    faults.check()
    names = _read_names(values, data_yaml, faults)
    top = (root or _root(values, data_yaml, faults)).resolve()
    splits = {}
    notes: list[str] = []
    for split, keys in KEYS.items():
        key = next((key for key in keys if values.get(key)), None)
        if key is not None:
            splits[split] = _Folder(top, data_yaml, faults, notes).sources(values[key], key)
    if "train" not in splits:
        faults.add(data_yaml, "it names no training images", "train: images/train")
    elif not splits["train"]:
        faults.add(data_yaml, "there are no training images", f"looked for below {top}")
    faults.check()
    if valid is not None:
        if splits.get("valid"):
            raise ConfigError("--valid: the dataset has a validation split of its own")
        splits |= split_off(splits["train"], valid)
    splits = {split: splits[split] for split in KEYS if splits.get(split)}
    reader = _LabelReader(names, faults)
    categories = {number + 1: name for number, name in names.items()}
    summary = write_dataset(out, categories, splits, reader.read, faults, on_progress)
    summary.notes += notes
    return summary


def _read_yaml(path: Path, faults: Faults) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            values = yaml.safe_load(file.read(YAML_BYTES))
    except (OSError, UnicodeDecodeError) as error:
        faults.add(path, f"it cannot be read: {getattr(error, 'strerror', None) or error}")
        return {}
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        faults.add(path, f"it is not YAML: {error.problem}", line=line)
        return {}
    except yaml.YAMLError as error:
        faults.add(path, f"it is not YAML: {error}")
        return {}
    if not isinstance(values, dict):
        faults.add(path, "it has no keys", "it names train, val and names")
        return {}
    if "kpt_shape" in values:
        faults.add(path, "it describes key points (kpt_shape), which are no masks")
    return values


def _read_names(values: dict[str, Any], path: Path, faults: Faults) -> dict[int, str]:
    """Names by class, which is counted from 0."""
    given = values.get("names")
    if isinstance(given, list):
        given = dict(enumerate(given))
    if not isinstance(given, dict) or not given:
        faults.add(path, "names is neither a list nor a map of classes", "names: [pallet, forklift]")
        return {}
    names: dict[int, str] = {}
    for key, name in given.items():
        if type(key) is not int or key < 0:
            faults.add(path, f"names: the class {quote(key)} is not a whole number")
        elif isinstance(name, bool) or not isinstance(name, str | int) or not 0 < len(str(name).strip()) <= MAX_NAME:
            faults.add(path, f"names: {key} is {quote(name)}, which is not a short text", "write it in quotes")
        elif str(name) in names.values():
            faults.add(path, f"names: {quote(name)} occurs twice", "merge or rename the classes")
        else:
            names[key] = str(name)
    count = values.get("nc")
    if count is not None and count != len(given):
        faults.add(path, f"nc is {quote(count)}, but there are {len(given)} names")
    return names


def _root(values: dict[str, Any], data_yaml: Path, faults: Faults) -> Path:
    """`path`, or the file's folder where there is none such: it often tells of another machine."""
    folder = data_yaml.resolve().parent
    path = values.get("path")
    named = (folder / path).resolve() if isinstance(path, str) else folder
    if not named.is_dir():
        return folder
    if not named.is_relative_to(folder):
        faults.add(data_yaml, f"path: {quote(path)} is outside of {folder}", OUTSIDE_HINT)
    return named


class _Folder:
    """Finds the images of a split below `top`."""

    def __init__(self, top: Path, data_yaml: Path, faults: Faults, notes: list[str]) -> None:
        self._top, self._data_yaml, self._faults, self._notes = top, data_yaml, faults, notes
        self._stems: dict[Path, Path] = {}  # label file -> image

    def sources(self, value: object, key: str) -> list[Source[Path | None]]:
        """Each image once, with its label file or None."""
        entries = value if isinstance(value, list) else [value]
        images: dict[Path, None] = {}
        for entry in entries:
            if isinstance(entry, str):
                images |= dict.fromkeys(self._images(entry, key))
            else:
                self._faults.add(self._data_yaml, f"{key}: {quote(entry)} names no folder and no list of images")
        return [source for image in images if (source := self._source(image)) is not None]

    def _images(self, entry: str, key: str) -> Iterator[Path]:
        found = self._find(entry)
        if found is None and key == "test":  # which exports name whether there is one or not
            self._notes.append(f"no test split: there is no {quote(entry)}")
        elif found is None:
            message = f"{key}: there is no {quote(entry)} below {self._top}"
            self._faults.add(self._data_yaml, message, "a folder of images, or a .txt file that lists them")
        elif not found.is_relative_to(self._top):
            self._faults.add(self._data_yaml, f"{key}: {quote(entry)} is outside of {self._top}", OUTSIDE_HINT)
        elif found.is_dir():
            yield from images_below(found, self._faults)
        else:
            yield from self._listed(found)

    def _find(self, entry: str) -> Path | None:
        """Roboflow's `../train/images` means a folder beside the file, not above it."""
        for name in (entry, entry.removeprefix("../")):
            path = (self._top / name).resolve()
            if path.exists() and (path.is_relative_to(self._top) or not entry.startswith("../")):
                return path
        path = (self._top / entry).resolve()
        return path if path.exists() else None

    def _listed(self, file: Path) -> Iterator[Path]:
        with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, start=1):
                name = line.strip()
                if not name:
                    continue
                path = file.parent / name if name.startswith("./") else self._top / name
                if path.is_file():
                    yield path
                else:
                    self._faults.add(file, f"there is no image {quote(name)}", line=number)

    def _source(self, image: Path) -> Source[Path | None] | None:
        if not image.resolve().is_relative_to(self._top):
            self._faults.add(image, f"it is outside of {self._top}", OUTSIDE_HINT)
            return None
        labels = _label_file(image)
        other = self._stems.setdefault(labels, image)
        if other != image:
            self._faults.add(image, f"{other.name} would have the same label file", "give one of them another name")
            return None
        if not labels.exists():
            return Source(image, None)
        if not labels.resolve().is_relative_to(self._top):
            self._faults.add(labels, f"it is outside of {self._top}", OUTSIDE_HINT)
            return None
        return Source(image, labels)


def _label_file(image: Path) -> Path:
    """The last folder `images` of its path becomes `labels`, as Ultralytics has it."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


class _LabelReader:
    def __init__(self, names: dict[int, str], faults: Faults) -> None:
        self._names, self._faults = names, faults

    def read(self, source: Source[Path | None], decoded: Decoded, summary: Summary) -> Labelled | None:
        """Objects of an image; without a label file, or with an empty one, there are none."""
        if source.labels is None:
            return Labelled(decoded.upright, [])
        before = self._faults.count
        objects: list[Object] = []
        seen: set[str] = set()
        for number, line in enumerate(self._lines(source.labels), start=1):
            text = " ".join(line.split())
            if not text:
                continue
            if text in seen:
                summary.left_out["the same line again"] += 1
                continue
            seen.add(text)
            found = self._object(text, decoded.upright, source.labels, number)
            if found is not None and not found.area > MIN_AREA_PX:
                summary.left_out["without area"] += 1
            elif found is not None:
                objects.append(found)
        return Labelled(decoded.upright, objects) if self._faults.count == before else None

    def _lines(self, file: Path) -> list[str]:
        try:
            if file.stat().st_size > LABEL_BYTES:
                self._faults.add(file, f"the file is larger than {LABEL_BYTES:,} bytes")
                return []
            return file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            self._faults.add(file, f"it cannot be read: {getattr(error, 'strerror', None) or error}")
            return []

    def _object(self, text: str, size: tuple[int, int], file: Path, line: int) -> Object | None:
        try:
            first, *values = (float(word) for word in text.split(" "))
        except ValueError:
            self._faults.add(file, f"{quote(text)} has something that is not a number", LINE_HINT, line=line)
            return None
        message = _fault_of(values)
        if first not in self._names:
            message = f"class {first:g} has no name in data.yaml"
        if message is not None:
            self._faults.add(file, message, UNIT_HINT if "outside" in message else LINE_HINT, line=line)
            return None
        category_id = int(first) + 1
        return _box(category_id, values, size) if len(values) == BOX_NUMBERS else _outline(category_id, values, size)


def _fault_of(values: list[float]) -> str | None:
    if not all(map(math.isfinite, values)):
        return "a coordinate is not a finite number"
    if len(values) % 2:
        return f"there are {len(values)} coordinates, an odd number"
    if len(values) < BOX_NUMBERS:
        return f"there are {len(values)} coordinates, which is neither a box nor an outline of 3 points or more"
    outside = next((value for value in values if not -TOLERANCE <= value <= 1 + TOLERANCE), None)
    return None if outside is None else f"the coordinate {outside:g} is outside of 0..1"


def _box(category_id: int, values: list[float], size: tuple[int, int]) -> Object:
    x, y, width, height = values
    left, right = (_pixels(each, size[0]) for each in (x - width / 2, x + width / 2))
    top, bottom = (_pixels(each, size[1]) for each in (y - height / 2, y + height / 2))
    width, height = right - left, bottom - top
    return Object(category_id, _rounded(left, top, width, height), None, round(width * height, DECIMALS))


def _outline(category_id: int, values: list[float], size: tuple[int, int]) -> Object:
    polygon = [_pixels(value, size[index % 2]) for index, value in enumerate(values)]
    extent = polygons_extent([polygon])
    return Object(category_id, _rounded(*extent.bbox), [polygon], round(extent.area, DECIMALS))


def _rounded(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return round(x, DECIMALS), round(y, DECIMALS), round(width, DECIMALS), round(height, DECIMALS)


def _pixels(fraction: float, side: int) -> float:
    return round(min(max(fraction, 0.0), 1.0) * side, DECIMALS)
