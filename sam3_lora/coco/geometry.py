"""Read the box and the mask of one annotation, naming every fault."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sam3_lora.coco.masks import (
    MAX_OUTLINE_PX,
    Extent,
    Polygons,
    Rle,
    RleError,
    check_counts,
    is_number,
    outline_px,
    polygons_extent,
    rle_extent,
)
from sam3_lora.coco.report import IssueCode, Place, quote

if TYPE_CHECKING:
    from collections.abc import Mapping

OVERHANG_PX = 2.0  # rounding of annotation tools; more is worth a warning
MIN_AREA_PX = 1e-3  # below it, a polygon is a line up to rounding
POLYGON_HINT = "polygons are written [[x0, y0, x1, y1, ...], ...]"
BBOX_HINT = "bbox is [x, y, width, height] in pixels, with width and height above 0"


class Size(NamedTuple):
    """Of an image, in pixels."""

    width: int
    height: int


class Geometry(NamedTuple):
    """A pixel box (x, y, width, height) with a positive size, and the mask if there is one."""

    bbox: tuple[float, float, float, float]
    segmentation: Polygons | Rle | None


def read_geometry(record: Mapping[str, Any], size: Size, place: Place) -> Geometry | None:
    """Box and mask of an annotation on an image of `size`; None if an error was reported.

    A missing box is taken from the mask's extent; a mask without area falls back to the box.
    """
    fault_free = True
    bbox = None
    if record.get("bbox") is not None:
        bbox = _read_bbox(record["bbox"], size, place.at("bbox"))
        fault_free = bbox is not None
    segmentation = record.get("segmentation")
    if not segmentation and segmentation in (None, [], {}):  # box only, as exported for object detection
        if bbox is None and fault_free:
            place.error(IssueCode.BBOX_INVALID, "the annotation has neither a bbox nor a segmentation", BBOX_HINT)
        return Geometry(bbox, None) if bbox is not None else None
    at_mask = place.at("segmentation")
    mask = _read_mask(segmentation, size, at_mask)
    if mask is None or not fault_free:
        return None
    extent = _extent(mask)
    if extent is None:
        return _without_mask(bbox, at_mask)
    if not _is_inside(extent, size, at_mask, IssueCode.MASK_OUT_OF_BOUNDS, "the mask"):
        return None
    return Geometry(bbox or extent.bbox, mask)


def _read_bbox(value: object, size: Size, place: Place) -> tuple[float, float, float, float] | None:
    if not isinstance(value, list) or len(value) != 4 or not all(is_number(number) for number in value):
        place.error(IssueCode.BBOX_INVALID, "the bbox is not a list of four numbers of sensible size", BBOX_HINT)
        return None
    x, y, width, height = (float(number) for number in value)
    if width <= 0 or height <= 0:
        place.error(IssueCode.BBOX_INVALID, f"the bbox is {width:g} wide and {height:g} high", BBOX_HINT)
        return None
    extent = Extent(x, y, x + width, y + height, width * height)
    return (x, y, width, height) if _is_inside(extent, size, place, IssueCode.BBOX_INVALID, "the bbox") else None


def _read_mask(value: object, size: Size, place: Place) -> Polygons | Rle | None:
    if isinstance(value, dict):
        return _read_rle(value, size, place)
    if isinstance(value, list):
        return _read_polygons(value, place)
    message = f"the segmentation is neither a list of polygons nor an RLE, but {quote(value)}"
    place.error(IssueCode.JSON_INVALID, message, "leave it out for a box without a mask")
    return None


def _read_polygons(value: list[Any], place: Place) -> Polygons | None:
    if all(isinstance(item, int | float) for item in value):
        place.error(IssueCode.JSON_INVALID, "the segmentation is one flat list of numbers", POLYGON_HINT)
        return None
    polygons: Polygons = []
    for index, polygon in enumerate(value):
        if not isinstance(polygon, list):
            place.at(index).error(
                IssueCode.JSON_INVALID, f"the polygon is not a list, but {quote(polygon)}", POLYGON_HINT
            )
        elif not all(is_number(number) for number in polygon):
            message = "the polygon has a coordinate that is not a number or far outside every image"
            place.at(index).error(IssueCode.MASK_OUT_OF_BOUNDS, message, "coordinates are pixels of the image")
        elif len(polygon) < 6 or len(polygon) % 2:
            message = f"the polygon has {len(polygon)} numbers; it needs pairs of x and y for at least 3 points"
            place.at(index).error(IssueCode.POLYGON_TOO_FEW_POINTS, message, "remove or redraw this polygon")
        else:
            polygons.append([float(number) for number in polygon])
    if len(polygons) != len(value):
        return None
    if outline_px(polygons) > MAX_OUTLINE_PX:
        message = f"the outline is longer than {MAX_OUTLINE_PX:,} pixels"
        place.error(IssueCode.MASK_OUT_OF_BOUNDS, message, "redraw the object, or store the mask as RLE")
        return None
    return polygons


def _read_rle(value: dict[str, Any], size: Size, place: Place) -> Rle | None:
    hint = "size is [height, width] of the image, and counts are COCO run lengths that add up to its pixels"
    rle_size = value.get("size")
    if rle_size != [size.height, size.width] or any(type(side) is not int for side in rle_size):
        stated = (
            f"[{quote(rle_size[0])}, {quote(rle_size[1])}]"
            if isinstance(rle_size, list) and len(rle_size) == 2
            else quote(rle_size)
        )
        message = f"the RLE's size is {stated}, but the image's is [{size.height}, {size.width}]"
        place.at("size").error(IssueCode.RLE_SIZE_MISMATCH, message, hint)
        return None
    try:
        check_counts(value.get("counts"), size.width * size.height)
    except RleError as error:
        place.at("counts").error(IssueCode.RLE_SIZE_MISMATCH, str(error), hint)
        return None
    return {"size": rle_size, "counts": value["counts"]}


def _extent(mask: Polygons | Rle) -> Extent | None:
    """None for a mask without area."""
    extent = rle_extent(mask) if isinstance(mask, dict) else polygons_extent(mask)
    return extent if extent is not None and extent.area > MIN_AREA_PX else None


def _without_mask(bbox: tuple[float, float, float, float] | None, place: Place) -> Geometry | None:
    if bbox is None:
        place.error(IssueCode.MASK_EMPTY, "the mask is empty, and there is no bbox", "remove or redraw this annotation")
        return None
    place.warn(IssueCode.MASK_EMPTY, "the mask is empty; only the bbox is used", "redraw the mask")
    return Geometry(bbox, None)


def _is_inside(extent: Extent, size: Size, place: Place, code: IssueCode, what: str) -> bool:
    if extent.is_outside(*size):
        place.error(
            code, f"{what} lies wholly outside the {size.width} x {size.height} image", "coordinates are pixels"
        )
        return False
    overhang = extent.overhang(*size)
    if overhang > OVERHANG_PX:
        message = (
            f"{what} reaches {overhang:.0f} pixels past the {size.width} x {size.height} image; that part is ignored"
        )
        place.warn(code, message, "check that the annotations belong to this size of the image")
    return True
