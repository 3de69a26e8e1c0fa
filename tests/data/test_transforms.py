import numpy as np
import pytest
import torch
from pycocotools import mask as rle_codec

from sam3_lora.coco.schema import Annotation
from sam3_lora.config import DatasetOptions
from sam3_lora.data.transforms import (
    Placement,
    draw_colour,
    draw_placement,
    place_boxes,
    place_image,
    place_masks,
    recolour,
    whole,
)

SIZE_HW = (60, 100)
SQUARE = [20.0, 10.0, 70.0, 10.0, 70.0, 40.0, 20.0, 40.0]  # x 20..70, y 10..40


def annotation(bbox=(20.0, 10.0, 50.0, 30.0), segmentation: object = None) -> Annotation:
    return Annotation(1, 1, 1, bbox, [SQUARE] if segmentation is None else segmentation)


def rle(compressed: bool) -> dict[str, object]:
    mask = np.zeros(SIZE_HW, np.uint8, order="F")
    mask[10:40, 20:70] = 1
    if compressed:
        return rle_codec.encode(mask)
    runs, value, counts = 0, 0, []
    for pixel in mask.ravel(order="F"):
        if pixel != value:
            counts.append(runs)
            runs, value = 0, pixel
        runs += 1
    return {"size": list(SIZE_HW), "counts": [*counts, runs]}


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("side", [140, 98])
@pytest.mark.parametrize("kind", ["polygon", "rle", "uncompressed"])
def test_boxes_and_masks_move_with_the_pixels(kind: str, side: int, mirrored: bool):
    placement = Placement(side, left=140 - side, top=(140 - side) // 2, mirrored=mirrored, resolution=140)
    segmentation = {"polygon": None, "rle": rle(True), "uncompressed": rle(False)}[kind]
    pixels = np.zeros((*SIZE_HW, 3), np.uint8)
    pixels[10:40, 20:70] = 255
    image = place_image(pixels, placement)
    box = place_boxes([annotation()], SIZE_HW, placement)[0] * 140
    mask = place_masks([annotation(segmentation=segmentation)], SIZE_HW, placement)[0]
    for found in (image.mean(0) > 0, mask):
        rows, columns = torch.nonzero(found.any(1)).flatten(), torch.nonzero(found.any(0)).flatten()
        corners = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=torch.float)
        expected = torch.tensor([box[0] - box[2] / 2, box[1] - box[3] / 2, box[0] + box[2] / 2, box[1] + box[3] / 2])
        assert (corners - expected).abs().max() <= 1.5, kind


def test_boxes_are_clipped_as_corners():
    # x -20..40 in an image 100 wide is 0..40, not 0..60
    box = place_boxes([annotation(bbox=(-20.0, -10.0, 60.0, 50.0))], SIZE_HW, whole(100))[0]
    torch.testing.assert_close(box, torch.tensor([0.2, 40 / 60 / 2, 0.4, 40 / 60]))


def test_object_without_segmentation_has_an_empty_mask():
    masks = place_masks([Annotation(1, 1, 1, (0, 0, 5, 5))], SIZE_HW, whole(28))
    assert masks.shape == (1, 28, 28)
    assert not masks.any()


def test_no_objects():
    assert place_boxes([], SIZE_HW, whole(28)).shape == (0, 4)
    assert place_masks([], SIZE_HW, whole(28)).shape == (0, 28, 28)


def test_placements_stay_inside_and_follow_the_options():
    rng = np.random.default_rng(0)
    drawn = [draw_placement(rng, DatasetOptions(min_scale=0.5, horizontal_flip=0.5), 140) for _ in range(200)]
    assert min(p.side for p in drawn) == 70
    assert max(p.side for p in drawn) == 140
    assert all(0 <= p.left <= 140 - p.side and 0 <= p.top <= 140 - p.side for p in drawn)
    assert 60 < sum(p.mirrored for p in drawn) < 140
    fixed = draw_placement(rng, DatasetOptions(min_scale=1.0, horizontal_flip=0.0), 140)
    assert fixed == whole(140)


def test_normalised_to_minus_one_and_one():
    image = place_image(np.full((4, 4, 3), 255, np.uint8), Placement(14, 0, 0, False, 28))
    assert float(image.max()) == 1.0
    assert float(image.min()) == -1.0  # padding is black


def test_colours_change_only_when_asked():
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    assert recolour(pixels, draw_colour(np.random.default_rng(1), 0.0)) is pixels
    assert not np.array_equal(recolour(pixels, draw_colour(np.random.default_rng(1), 0.5)), pixels)
