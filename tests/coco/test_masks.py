from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as reference

from sam3_lora.coco.masks import RleError, check_counts, decode_counts, outline_px, polygons_extent, rle_extent

MASKS = npst.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1))


@settings(max_examples=150, deadline=None)
@given(mask=MASKS)
def test_compressed_rle_agrees_with_pycocotools(mask: np.ndarray) -> None:
    encoded = reference.encode(np.asfortranarray(mask))
    height, width = mask.shape
    rle = {"size": [height, width], "counts": encoded["counts"].decode()}

    check_counts(rle["counts"], height * width)
    extent = rle_extent(rle)

    counts = decode_counts(rle["counts"])
    assert rle_extent({"size": [height, width], "counts": counts}) == extent
    if mask.any():
        assert extent is not None
        rows, columns = np.nonzero(mask)
        assert (extent.x0, extent.y0) == (columns.min(), rows.min())
        assert (extent.x1, extent.y1) == (columns.max() + 1, rows.max() + 1)
        assert extent.area == mask.sum() == reference.area(encoded)
    else:
        assert extent is None


@pytest.mark.parametrize("mask", [np.zeros((700, 900)), np.ones((700, 900)), np.eye(2000)])
def test_large_compressed_rle_agrees_with_pycocotools(mask: np.ndarray) -> None:
    encoded = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = decode_counts(encoded["counts"].decode())
    flat = np.repeat(np.arange(len(counts)) % 2, counts)
    assert np.array_equal(flat.reshape(mask.shape, order="F"), mask)


@pytest.mark.parametrize(
    "counts",
    [None, 5, {}, [], [99], [101], [-1, 101], [50, True, 49], [50.0, 50], ["50", 50], [10**30], "", "~~~", "\ud800",
     "o" * 50, "P", "o", "é"],
    ids=repr,
)  # fmt: skip
def test_wrong_counts_are_refused(counts: object) -> None:
    with pytest.raises(RleError):
        check_counts(counts, 100)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_is_decoded_or_refused(text: str) -> None:
    try:
        check_counts(text, 100)
    except RleError:
        return
    assert sum(decode_counts(text)) == 100


def test_polygon_extent_and_area() -> None:
    extent = polygons_extent([[0, 0, 4, 0, 4, 3], [10, 10, 12, 10, 12, 12, 10, 12]])
    assert extent.bbox == (0, 0, 12, 12)
    assert extent.area == 6 + 4
    assert polygons_extent([[1, 1, 2, 2, 3, 3]]).area == 0


def test_outline_counts_the_longer_side_of_each_edge() -> None:
    assert outline_px([[0, 0, 10, 1, 10, 21]]) == 10 + 20 + 21
