import pytest
import torch

from sam3_lora.data.datapoint import collate
from sam3_lora.losses.sam3 import Sam3Loss
from sam3_lora.model import upstream
from tests.models import micro_model, mixed_batch, scene_sample


def official_loss() -> torch.nn.Module:
    """The wrapper as roboflow_v100_full_ft_100_images.yaml (facebookresearch/sam3@99d02f2) spells it out."""
    upstream.install()
    from sam3.train.loss.loss_fns import Boxes, IABCEMdetr, Masks, SemanticSegCriterion
    from sam3.train.loss.sam3_loss import Sam3LossWrapper
    from sam3.train.matcher import BinaryHungarianMatcherV2, BinaryOneToManyMatcher

    return Sam3LossWrapper(
        matcher=BinaryHungarianMatcherV2(
            focal=True, cost_class=2.0, cost_bbox=5.0, cost_giou=2.0, alpha=0.25, gamma=2, stable=False
        ),
        o2m_matcher=BinaryOneToManyMatcher(alpha=0.3, threshold=0.4, topk=4),
        o2m_weight=2.0,
        use_o2m_matcher_on_o2m_aux=False,
        normalization="local",
        scale_by_find_batch_size=True,
        loss_fns_find=[
            Boxes(weight_dict={"loss_bbox": 5.0, "loss_giou": 2.0}),
            IABCEMdetr(
                weak_loss=False,
                weight_dict={"loss_ce": 20.0, "presence_loss": 20.0},
                pos_weight=10.0,
                alpha=0.25,
                gamma=2,
                use_presence=True,
                pos_focal=False,
                pad_n_queries=200,
                pad_scale_pos=1.0,
            ),
            Masks(
                focal_alpha=0.25,
                focal_gamma=2.0,
                weight_dict={"loss_mask": 200.0, "loss_dice": 10.0},
                compute_aux=False,
            ),
        ],
        loss_fn_semantic_seg=SemanticSegCriterion(
            presence_head=True,
            presence_loss=False,
            focal=True,
            focal_alpha=0.6,
            focal_gamma=2.0,
            downsample=False,
            weight_dict={"loss_semantic_seg": 20.0, "loss_semantic_presence": 1.0, "loss_semantic_dice": 30.0},
        ),
    )


def test_equals_the_official_wrapper_on_the_same_batch():
    model, batch = micro_model(), mixed_batch(images=3)
    outputs = model(batch)
    expected = official_loss()(outputs, [model.back_convert(t) for t in batch.find_targets])
    total, parts = Sam3Loss(masks=True, mask_points=None)(outputs, batch, model)
    torch.testing.assert_close(total, expected["core_loss"])
    for name, value in parts.items():
        torch.testing.assert_close(value, expected[name].detach(), msg=name)


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
