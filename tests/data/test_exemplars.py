import numpy as np
import pytest
import torch

from sam3_lora.data.datapoint import Batch, Query, collate
from sam3_lora.data.exemplars import BOX_ALONE, NOISE_MAX, show_exemplars
from tests.models import scene_sample

BOXES = torch.tensor([[0.3, 0.3, 0.2, 0.1], [0.7, 0.6, 0.3, 0.4], [0.05, 0.95, 0.1, 0.1], [0.5, 0.5, 1e-4, 1e-4]])


def corners(box: tuple[float, ...]) -> np.ndarray:
    centre, size = np.array(box[:2]), np.array(box[2:])
    return np.stack([centre - size / 2, centre + size / 2])


@pytest.mark.parametrize("target", range(4))
def test_the_box_is_near_an_object_of_the_query_inside_the_image(target: int):
    rng = np.random.default_rng(0)
    texts = set()
    for _ in range(200):
        positive, negative = show_exemplars([Query("cat", (target,)), Query("dog", ())], BOXES, 1.0, rng)
        assert negative == Query("dog", ())
        assert positive.objects == (target,)
        texts.add(positive.text)
        drawn = corners(positive.exemplar_box)
        assert (drawn >= -1e-6).all()
        assert (drawn <= 1 + 1e-6).all()
        assert (drawn[1] > drawn[0]).all()
        assert np.abs(drawn - corners(BOXES[target].tolist())).max() <= NOISE_MAX + 1e-6
    assert texts == {"cat", BOX_ALONE}


def test_a_share_of_the_queries_shows_a_box():
    rng = np.random.default_rng(0)
    queries = show_exemplars([Query("cat", (0, 1))] * 1000, BOXES, 0.3, rng)
    assert 250 < sum(query.exemplar_box is not None for query in queries) < 350


def test_boxes_stay_with_their_queries_when_a_batch_is_split():
    sample = scene_sample(0)
    first, *others = sample.queries
    shown = Query(first.text, first.objects, exemplar_box=(0.5, 0.5, 0.2, 0.2))
    object.__setattr__(sample, "queries", (*others, shown))
    batch = collate([sample], masks=True)
    *without, last = (part.datapoint for part in Batch(batch, (None,)).split(1))
    assert all(part.find_inputs[0].input_boxes_mask.all() for part in without)
    assert last.find_inputs[0].input_boxes[:, 0].tolist() == [pytest.approx([0.5, 0.5, 0.2, 0.2])]
    assert not last.find_inputs[0].input_boxes_mask.any()
