from dataclasses import replace

import pytest
import torch

from benchmarks.full_size import official_loss
from sam3_lora.data.datapoint import Batch, Query, Sample, collate
from sam3_lora.losses.sam3 import Counts, Sam3Loss
from sam3_lora.model.lean import as_upstream
from tests.models import micro_model, mixed_batch, scene_sample


def without_some_masks() -> Sample:
    """Two objects with a mask and one without, in two queries."""
    sample = scene_sample(3)
    sample.masks_NHW[0] = False
    return sample


@pytest.mark.parametrize(
    "samples",
    [
        pytest.param([scene_sample(0), scene_sample(1), scene_sample(2)], id="mixed"),
        pytest.param([scene_sample(0, negatives=False)], id="all have masks"),
        pytest.param([without_some_masks(), scene_sample(1)], id="some objects have only boxes"),
    ],
)
def test_model_and_loss_equal_the_official_ones(samples: list[Sample]):
    model, batch = micro_model(), collate(samples, masks=True)
    total, parts = Sam3Loss(masks=True, mask_points=None)(model(batch), batch, model)
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    official = as_upstream(micro_model())
    expected = official_loss()(official(batch), [official.back_convert(t) for t in batch.find_targets])
    expected["core_loss"].backward()
    torch.testing.assert_close(total, expected["core_loss"])
    for name, value in parts.items():
        torch.testing.assert_close(value, expected[name].detach(), msg=name)
    for name, parameter in official.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_matching_happens_once_per_layer(monkeypatch: pytest.MonkeyPatch):
    model, batch = micro_model(), mixed_batch()
    calls = []
    original = type(model.matcher).forward

    def count(self: object, *args: object, **kwargs: object) -> object:
        calls.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(model.matcher), "forward", count)
    outputs = model(batch)
    layers = len(model.transformer.decoder.layers)
    assert len(calls) == layers
    Sam3Loss(masks=True)(outputs, batch, model)
    # only the auxiliary one-to-many outputs are matched here; the model's own indices are reused
    assert len(calls) == layers + (layers - 1)
    assert model.matcher not in calls[layers:]


@pytest.mark.parametrize("mask_points", [None, 256])
def test_batch_without_any_object_has_a_finite_loss_that_teaches_absence_alone(mask_points: int | None):
    model = micro_model()
    batch = collate([scene_sample(0, positives=False)], masks=True)
    total, parts = Sam3Loss(masks=True, mask_points=mask_points)(model(batch), batch, model)
    total.backward()
    assert torch.isfinite(total)
    assert float(parts["loss_ce"]) == float(parts["loss_bbox"]) == float(parts["loss_mask"]) == 0
    assert float(parts["presence_loss"]) > 0


def test_boxes_only_needs_no_masks():
    model = micro_model()
    batch = collate([scene_sample(1)], masks=False)
    total, parts = Sam3Loss(masks=False)(model(batch), batch, model)
    assert torch.isfinite(total)
    assert "loss_mask" not in parts


def test_sampled_mask_loss_estimates_the_full_one():
    model, batch = micro_model(), mixed_batch(images=4)
    outputs = model(batch)
    torch.manual_seed(0)
    _, full = Sam3Loss(masks=True, mask_points=None)(outputs, batch, model)
    _, sampled = Sam3Loss(masks=True, mask_points=20000)(outputs, batch, model)
    # importance sampling looks at uncertain points, so that the estimate is near, not equal
    assert float(sampled["loss_dice"]) == pytest.approx(float(full["loss_dice"]), rel=0.2)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("most_queries", [1, 2, 3, 100])
def test_parts_of_a_batch_add_up_to_the_whole(most_queries: int):
    model, batch = micro_model(), mixed_batch(images=3)
    loss = Sam3Loss(masks=True, mask_points=None)
    expected, expected_parts = loss(model(batch), batch, model)
    expected.backward()
    expected_gradients = gradients(model)
    model.zero_grad()
    whole, total, sums = Counts.of(batch), 0.0, dict.fromkeys(expected_parts, 0.0)
    pieces = [part.datapoint for part in Batch(batch, (None,) * 3).split(most_queries)]
    assert sum(len(piece.find_inputs[0].img_ids) for piece in pieces) == whole.queries == 7
    assert len(pieces) == -(-whole.queries // most_queries)
    for piece in pieces:
        contribution, parts = loss(model(piece), piece, model, whole)
        contribution.backward()
        total += contribution.item()
        sums = {name: sums[name] + float(parts[name]) for name in sums}
    assert total == pytest.approx(expected.item(), rel=1e-5)
    for name, value in expected_parts.items():
        if name not in ("ce_f1", "miou_semantic_seg", "presence_acc"):  # ratios, for the log alone
            assert sums[name] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    found = gradients(model)
    assert found.keys() == expected_gradients.keys()
    length = torch.cat([value.flatten() for value in expected_gradients.values()]).norm().item()
    for name, value in expected_gradients.items():  # some are rounding alone: a bias before a softmax, say
        assert (found[name] - value).norm().item() < 1e-3 * value.norm().item() + 1e-6 * length, name


def test_object_without_a_mask_does_not_teach_the_others_union():
    """A query of two objects, one with a mask: its union is unknown, so that only box and class losses remain."""
    model, sample = micro_model(), scene_sample(0, negatives=False)
    sample = replace(sample, queries=(Query("circle", (0, 1)),))
    sample.masks_NHW[1] = False
    one = collate([sample], masks=True)
    assert Counts.of(one) == Counts(queries=1, objects=2, masked_queries=0)
    _, parts = Sam3Loss(masks=True, mask_points=None)(model(one), one, model)
    assert float(parts["loss_semantic_seg"]) == float(parts["loss_semantic_dice"]) == 0
    assert float(parts["loss_mask"]) > 0  # of the object that has one
    sample.masks_NHW[:] = False
    none = collate([sample], masks=True)
    total, parts = Sam3Loss(masks=True, mask_points=256)(model(none), none, model)
    assert torch.isfinite(total)
    assert float(parts["loss_mask"]) == float(parts["loss_dice"]) == float(parts["loss_semantic_dice"]) == 0
    assert float(parts["loss_bbox"]) > 0


def test_a_query_with_all_masks_keeps_its_union_beside_one_without():
    samples = [scene_sample(seed, negatives=False) for seed in (0, 1)]
    whole = collate([samples[0]], masks=True)
    samples[1].masks_NHW[:] = False
    mixed = collate(samples, masks=True)
    target, queries = mixed.find_targets[0], whole.find_targets[0].num_boxes
    expected = [masks.any(0) for masks in whole.find_targets[0].segments.split(queries.tolist())]
    assert torch.equal(target.semantic_segments[: len(queries)], torch.stack(expected))
    assert not target.semantic_segments[len(queries) :].any()
