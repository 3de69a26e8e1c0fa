"""COCO records as plain values, and the one reader of annotation files.

Lenient where exporters differ: `image_id` stands in for an image's missing `id`, `iscrowd` defaults to 0, a
missing `bbox` comes from the mask, a missing segmentation means a box only, Roboflow's unused super-category
is dropped, masks that CVAT calls crowds are objects, and of Label Studio's paths on its server the last part
counts. Strict everywhere else, so that what is read is safe for mask and image code.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeGuard

from sam3_lora.coco import strict_json
from sam3_lora.coco.dialects import (
    file_in_dataset,
    is_mask_of_cvat,
    is_of_label_studio,
    list_of,
    unused_super_category,
)
from sam3_lora.coco.geometry import Size, read_geometry
from sam3_lora.coco.report import DatasetIssueError, Id, Issue, IssueCode, Place, Severity, quote

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1024 * 1024
MAX_SIDE_PX = 65_535
MAX_TEXT = 255
LISTS_HINT = "a COCO file is an object; its images, annotations and categories are lists of objects"
ID_HINT = "an id is an integer or a text"


@dataclass(frozen=True, kw_only=True)
class ValidationLimits:
    """Caps on what is read of a dataset."""

    json_bytes: int = 512 * MIB
    image_bytes: int = 256 * MIB
    image_pixels: int = 80_000_000


@dataclass(frozen=True, slots=True)
class Category:
    id: Id
    name: str


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image; `file_name` is relative to the split's image folder, the size is in pixels."""

    id: Id
    file_name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object: a pixel box (x, y, width, height), and polygons or an RLE unless it has only a box.

    Box and polygons may reach past the image's edges; the part outside is to be ignored.
    """

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    segmentation: list[list[float]] | dict[str, Any] | None = None
    is_crowd: bool = False


@dataclass(frozen=True)
class CocoDataset:
    """The records of one annotation file, in its order; references between them hold."""

    categories: dict[Id, Category] = field(default_factory=dict)
    images: dict[Id, ImageRecord] = field(default_factory=dict)
    annotations: list[Annotation] = field(default_factory=list)
    unused_super_category: str | None = None  # name of the record that was left out as such
    crowds_as_objects: int = 0  # annotations marked as crowds of which each is one object

    def annotations_of(self, image_id: Id) -> list[Annotation]:
        """The image's annotations, possibly none."""
        return self._by_image.get(image_id, [])

    @cached_property
    def _by_image(self) -> dict[Id, list[Annotation]]:
        by_image: defaultdict[Id, list[Annotation]] = defaultdict(list)
        for annotation in self.annotations:
            by_image[annotation.image_id].append(annotation)
        return dict(by_image)


def load(annotations: Path, limits: ValidationLimits | None = None) -> CocoDataset:
    """Read a validated annotation file.

    Raises:
        DatasetIssueError: at the first error; `issue` names its place.
    """

    def report(issue: Issue) -> None:
        if issue.severity is Severity.ERROR:
            raise DatasetIssueError(issue)

    return read(annotations, Place(report, annotations.name), limits or ValidationLimits())


def read(annotations: Path, place: Place, limits: ValidationLimits) -> CocoDataset:
    """Read an annotation file, reporting every fault to `place`; records with an error are left out."""
    try:
        document = strict_json.read(annotations, limits.json_bytes)
    except strict_json.JsonError as error:
        place.error(IssueCode.JSON_INVALID, str(error), "export the annotations again as COCO JSON")
        return CocoDataset()
    except OSError as error:
        place.error(IssueCode.ANNOTATION_FILE_MISSING, f"the file cannot be read: {error.strerror}", "check the file")
        return CocoDataset()
    if not isinstance(document, dict):
        hint = f"{LISTS_HINT}; in Label Studio, export COCO with Images instead of JSON"
        place.error(IssueCode.JSON_INVALID, f"the file holds {quote(document)}", hint)
        return CocoDataset()
    unused_super = unused_super_category(document)
    categories = _read_categories(document, unused_super, place)
    images = _read_images(document, place, limits.image_pixels)
    annotations_read, crowds_as_objects = _read_annotations(document, categories, images, place)
    name = unused_super["name"] if unused_super else None
    return CocoDataset(categories, images, annotations_read, name, crowds_as_objects)


def _read_categories(document: dict[str, Any], unused_super: dict[str, Any] | None, place: Place) -> dict[Id, Category]:
    categories: dict[Id, Category] = {}
    names: set[str] = set()
    for record, at in _records(document, "categories", place):
        if record is unused_super:
            continue
        category_id = _read_id(record.get("id"), at.at("id"), "the category")
        if category_id is None:
            continue
        name = record.get("name")
        if not isinstance(name, str) or not _is_text(name):
            at.at("name").error(
                IssueCode.JSON_INVALID, f"the category's name is {quote(name)}", "a name is a short text"
            )
            name = f"category {category_id}"
        if category_id in categories or name in names:
            what = f"id {quote(category_id)}" if category_id in categories else f"name {quote(name)}"
            at.error(IssueCode.CATEGORY_DUPLICATE, f"another category has the {what}", "merge or rename the categories")
        names.add(name)
        categories.setdefault(category_id, Category(category_id, name))
    return categories


def _read_images(document: dict[str, Any], place: Place, max_pixels: int) -> dict[Id, ImageRecord]:
    """Images by id. A record with a wrong name or size stays, with "" or 0 instead, so that its id is known."""
    images: dict[Id, ImageRecord] = {}
    stated: dict[str, str] = {}  # file -> the name that the record has for it
    of_label_studio = is_of_label_studio(document)
    for record, at in _records(document, "images", place):
        file_name = record.get("file_name")
        if not isinstance(file_name, str) or not file_name:
            at.at("file_name").error(
                IssueCode.IMAGE_MISSING, f"the image's file_name is {quote(file_name)}", "it names a file"
            )
            file_name = ""
        at = at.about(file_name or None)
        file = file_in_dataset(file_name) if of_label_studio else file_name
        if stated.setdefault(file, file_name) != file_name:
            message = f"{quote(file_name)} and {quote(stated[file])} would be one file"
            at.at("file_name").error(IssueCode.IMAGE_MISSING, message, "give every image a name of its own")
        key = "id" if "id" in record else "image_id"
        image_id = _read_id(record.get(key), at.at("id"), "the image")
        if image_id is None:
            continue
        width, height = _read_size(record, at, max_pixels)
        if image_id in images:
            hint = "give every image its own id"
            at.at(key).error(IssueCode.ID_DUPLICATE, f"another image has the id {quote(image_id)}", hint)
            continue
        images[image_id] = ImageRecord(image_id, file, width, height)
    return images


def _read_size(record: dict[str, Any], place: Place, max_pixels: int) -> Size:
    sides = (record.get("width"), record.get("height"))
    if not all(type(side) is int and side > 0 for side in sides):
        message = f"width and height are {quote(sides[0])} and {quote(sides[1])}"
        place.error(IssueCode.IMAGE_SIZE_MISMATCH, message, "both are the image's pixels, whole numbers above 0")
        return Size(0, 0)
    width, height = (int(side or 0) for side in sides)
    if max(width, height) > MAX_SIDE_PX or width * height > max_pixels:
        message = f"the image is stated to have more than {max_pixels:,} pixels or a side over {MAX_SIDE_PX:,}"
        place.error(IssueCode.IMAGE_TOO_LARGE, message, "scale the image and its annotations down")
        return Size(0, 0)
    return Size(width, height)


def _read_annotations(
    document: dict[str, Any], categories: dict[Id, Category], images: dict[Id, ImageRecord], place: Place
) -> tuple[list[Annotation], int]:
    """Annotations, and of how many of them the mark of a crowd was not meant."""
    annotations: list[Annotation] = []
    crowds_as_objects = 0
    seen: set[Id] = set()
    for record, at in _records(document, "annotations", place):
        annotation_id = _read_id(record.get("id"), at.at("id"), "the annotation")
        image = _find_image(record, images)
        at = at.about(image.file_name if image else None, annotation_id)
        if annotation_id is not None and annotation_id in seen:
            message = f"another annotation has the id {quote(annotation_id)}"
            at.at("id").error(IssueCode.ID_DUPLICATE, message, "give every annotation its own id")
            annotation_id = None
        annotation = _read_annotation(record, annotation_id, image, categories, at)
        if annotation_id is not None:
            seen.add(annotation_id)
        if annotation is not None:
            annotations.append(annotation)
            crowds_as_objects += bool(record.get("iscrowd")) and not annotation.is_crowd
    return annotations, crowds_as_objects


def _read_annotation(
    record: dict[str, Any],
    annotation_id: Id | None,
    image: ImageRecord | None,
    categories: dict[Id, Category],
    place: Place,
) -> Annotation | None:
    category_id = record.get("category_id")
    if not _is_id(category_id) or category_id not in categories:
        message = f"category_id {quote(category_id)} names no category"
        place.at("category_id").error(IssueCode.CATEGORY_UNKNOWN, message, f"use an id listed in categories; {ID_HINT}")
        category_id = None
    crowd = record.get("iscrowd", 0)
    if type(crowd) not in (int, bool) or crowd not in (0, 1):
        place.at("iscrowd").error(IssueCode.JSON_INVALID, f"iscrowd is {quote(crowd)}", "it is 0 or 1")
        crowd = None
    if image is None:
        message = f"image_id {quote(record.get('image_id'))} names no image"
        place.at("image_id").error(IssueCode.IMAGE_MISSING, message, f"use an id listed in images; {ID_HINT}")
        return None
    if image.width == 0:  # reported at the image
        return None
    geometry = read_geometry(record, Size(image.width, image.height), place)
    if geometry is None or annotation_id is None or category_id is None or crowd is None:
        return None
    is_crowd = bool(crowd) and not is_mask_of_cvat(record)
    return Annotation(annotation_id, image.id, category_id, geometry.bbox, geometry.segmentation, is_crowd)


def _find_image(record: dict[str, Any], images: dict[Id, ImageRecord]) -> ImageRecord | None:
    image_id = record.get("image_id")
    return images.get(image_id) if _is_id(image_id) else None


def _records(document: dict[str, Any], key: str, place: Place) -> Iterator[tuple[dict[str, Any], Place]]:
    """The objects of a list, each with its place; anything else is reported."""
    if not isinstance(document.get(key), list):
        message = f"the list {key!r} is missing" if key not in document else f"{key!r} is not a list"
        place.at(key).error(IssueCode.JSON_INVALID, message, LISTS_HINT)
    for index, record in enumerate(list_of(document, key)):
        at = place.at(key, index)
        if isinstance(record, dict):
            yield record, at
        else:
            at.error(IssueCode.JSON_INVALID, f"an object is expected here, not {quote(record)}", LISTS_HINT)


def _read_id(value: object, place: Place, what: str) -> Id | None:
    if _is_id(value):
        return value
    message = f"{what} has no id" if value is None else f"{what}'s id is {quote(value)}"
    place.error(IssueCode.ID_MISSING, message, ID_HINT)
    return None


def _is_id(value: object) -> TypeGuard[Id]:
    return (type(value) is int and -(2**63) <= value < 2**63) or (isinstance(value, str) and _is_text(value))


def _is_text(value: str) -> bool:
    """Whether a text is short, not blank, and valid Unicode."""
    return bool(value.strip()) and len(value) <= MAX_TEXT and not any("\ud800" <= char <= "\udfff" for char in value)
