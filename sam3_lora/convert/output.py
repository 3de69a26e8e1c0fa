"""Write a dataset as the service takes it: `train|valid|test/_annotations.coco.json` beside the images.

Memory does not grow with annotations: what is read of an image is written before the next is looked at.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import unicodedata
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from PIL import Image, UnidentifiedImageError

from sam3_lora.coco.images import FORMATS_HINT, Decoded, TooLargeError, decode
from sam3_lora.coco.layout import IMAGE_SUFFIXES, ROBOFLOW_FILE
from sam3_lora.coco.schema import ValidationLimits
from sam3_lora.errors import ConfigError, StorageFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sam3_lora.convert.faults import Faults

Labels = TypeVar("Labels")
SPLITS = ("train", "valid", "test")
UNSUPPORTED_SUFFIXES = {".gif", ".heic", ".heif", ".avif", ".dng", ".jp2", ".mpo", ".pfm"}
"""Of images that other tools read and the service does not."""
LINK_REFUSED = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}
FORBIDDEN_CATEGORIES = {"Cc", "Cs", "Zl", "Zp", "Cf"}
"""Unicode categories that an archive of a dataset may not have in a name."""


class Source(NamedTuple, Generic[Labels]):
    """An image, and what a reader needs to know what is on it."""

    image: Path
    labels: Labels


class Object(NamedTuple):
    """One annotation, in pixels; a box alone has no segmentation."""

    category_id: int
    bbox: tuple[float, float, float, float]
    segmentation: list[list[float]] | dict[str, Any] | None
    area: float


class Labelled(NamedTuple):
    """What is on an image, whose annotations are of `size` (width, height)."""

    size: tuple[int, int]
    objects: list[Object]


@dataclass
class Summary:
    """What a conversion wrote."""

    images: dict[str, int] = field(default_factory=dict)
    annotations: int = 0
    boxes_without_mask: int = 0
    images_without_annotations: int = 0
    categories: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Annotations by the reason why there is nothing of them."""
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self) | {"left_out": dict(self.left_out)}


def write_dataset(
    out: Path,
    categories: Mapping[int, str],
    splits: Mapping[str, Sequence[Source[Labels]]],
    read: Callable[[Source[Labels], Decoded, Summary], Labelled | None],
    faults: Faults,
    on_progress: Callable[[int, int], object],
) -> Summary:
    """Write every image that `read` finds labels of; `out` must not exist, and appears only once it is complete.

    Args:
        read: is given an image's sizes, and answers None where it told `faults` of one.
        on_progress: called with images that are done, and all of them.

    Raises:
        ConfigError: if `out` exists.
        ConversionError: if there was any fault; nothing remains.
        StorageFullError: if the disk is full.
    """
    summary = Summary(categories=list(categories.values()))
    done, total = 0, sum(map(len, splits.values()))
    with _appearing(out) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of decoders: what matters is reported here
        for name, sources in splits.items():
            summary.images[name] = 0
            with _Split(folder / name, categories) as split:
                for source in sources:
                    decoded = read_image(source.image, faults)
                    labelled = None if decoded is None else read(source, decoded, summary)
                    if labelled is not None:
                        split.add(source.image, labelled)
                        _count(summary, name, labelled)
                    done += 1
                    on_progress(done, total)
        faults.check()
    return summary


def _count(summary: Summary, split: str, labelled: Labelled) -> None:
    summary.images[split] += 1
    summary.annotations += len(labelled.objects)
    summary.boxes_without_mask += sum(each.segmentation is None for each in labelled.objects)
    summary.images_without_annotations += not labelled.objects


def read_image(path: Path, faults: Faults) -> Decoded | None:
    """Sizes of an image that the service will take; None if a fault was told."""
    limits = ValidationLimits()
    try:
        if path.stat().st_size > limits.image_bytes:
            raise TooLargeError(f"the file is larger than {limits.image_bytes:,} bytes")
        return decode(path.read_bytes(), limits.image_pixels)
    except FileNotFoundError:
        faults.add(path, "there is no such image")
    except (TooLargeError, Image.DecompressionBombError) as error:
        faults.add(path, str(error), "scale the image and its labels down")
    except UnidentifiedImageError:
        faults.add(path, "the file is not an image of a supported format", FORMATS_HINT)
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files
        faults.add(path, f"the image cannot be decoded: {error or type(error).__name__}", "copy or export it again")
    return None


def images_below(folder: Path, faults: Faults) -> list[Path]:
    """Images in a folder and those in it, by name; hidden ones are not looked at."""
    found = []
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.suffix.lower() in UNSUPPORTED_SUFFIXES:
            faults.add(path, "the file is not an image of a supported format", FORMATS_HINT)
        elif path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir():
            found.append(path)
    return found


def split_off(sources: Sequence[Source[Labels]], fraction: float) -> dict[str, list[Source[Labels]]]:
    """Training and validation images: about `fraction` for validation, at least one for each.

    The hash of an image's name alone decides, so that more images change nothing for those that were there.
    """
    if len(sources) < 2:
        raise ConfigError("--valid: one image cannot be split into training and validation")
    share = {source: _share(source.image.name) for source in sources}
    ordered = sorted(sources, key=lambda source: (share[source], source.image))
    count = sum(value < fraction for value in share.values())
    held_out = set(ordered[: min(max(count, 1), len(sources) - 1)])
    return {
        "train": [source for source in sources if source not in held_out],
        "valid": [source for source in sources if source in held_out],
    }


def _share(name: str) -> float:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder that is called `out` once it is complete; after an error nothing remains."""
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists", hint="name a folder that does not, or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        outer = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise ConfigError(f"{out} cannot be made: {error.strerror}") from error
    try:
        inner = outer / out.name
        inner.mkdir()  # unlike `outer`, as readable as what its user makes
        yield inner
        inner.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError("the disk is full", hint="free some space, then try again") from error
        raise
    finally:
        shutil.rmtree(outer, ignore_errors=True)


class _Split:
    """One split as it is written: images in place, both lists of records in files of their own until the end."""

    def __init__(self, folder: Path, categories: Mapping[int, str]) -> None:
        self._folder = folder
        self._categories = [{"id": number, "name": name} for number, name in categories.items()]
        self._names: set[str] = set()
        self._images = self._annotations = 0

    def __enter__(self) -> _Split:
        self._folder.mkdir()
        self._image_file = tempfile.TemporaryFile("w+", encoding="utf-8", dir=self._folder)
        self._annotation_file = tempfile.TemporaryFile("w+", encoding="utf-8", dir=self._folder)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._image_file, self._annotation_file:
            if kind is not None:
                return
            with (self._folder / ROBOFLOW_FILE).open("w", encoding="utf-8") as file:
                file.write(f'{{"categories": {json.dumps(self._categories)},\n"images": [')
                _append(self._image_file, file)
                file.write('],\n"annotations": [')
                _append(self._annotation_file, file)
                file.write("]}\n")

    def add(self, image: Path, labelled: Labelled) -> None:
        name = self._free_name(image.name)
        _link(image.resolve(), self._folder / name)
        self._images += 1
        width, height = labelled.size
        record = {"id": self._images, "file_name": name, "width": width, "height": height}
        _write(self._image_file, record, first=self._images == 1)
        for found in labelled.objects:
            self._annotations += 1
            annotation = {
                "id": self._annotations,
                "image_id": self._images,
                "category_id": found.category_id,
                "bbox": found.bbox,
                "area": found.area,
                "iscrowd": 0,
            }
            if found.segmentation is not None:
                annotation["segmentation"] = found.segmentation
            _write(self._annotation_file, annotation, first=self._annotations == 1)

    def _free_name(self, name: str) -> str:
        """The image's own name where an archive can hold it and no other image of the split has it."""
        name = "".join(
            "_" if char == "\\" or unicodedata.category(char) in FORBIDDEN_CATEGORIES else char for char in name
        )
        path, number = Path(name), 1
        while (key := unicodedata.normalize("NFC", name).casefold()) in self._names:
            number += 1
            name = f"{path.stem}-{number}{path.suffix}"
        self._names.add(key)
        return name


def _write(file: IO[str], record: dict[str, Any], *, first: bool) -> None:
    file.write(("\n" if first else ",\n") + json.dumps(record))


def _append(part: IO[str], file: IO[str]) -> None:
    part.seek(0)
    shutil.copyfileobj(part, file)


def _link(image: Path, target: Path) -> None:
    """A second name of the image's file, or a copy where there cannot be one."""
    try:
        os.link(image, target)
    except OSError as error:
        if error.errno not in LINK_REFUSED:
            raise
        shutil.copyfile(image, target)
