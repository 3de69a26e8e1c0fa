"""Frozen work is done once and changes nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sam3_lora.config import LoraConfig
from sam3_lora.lora.inject import inject
from sam3_lora.model.encoders import Encoders
from sam3_lora.model.features import MemoryStore
from sam3_lora.model.lean import vision_transformer_class
from sam3_lora.model.precision import hold_frozen_weights
from tests.models import MICRO, micro_model, mixed_batch

TEXTS = ["circle", "a very long prompt of many words", "star"]


def adapted(**switches: Any) -> Any:
    model = micro_model()
    inject(model, LoraConfig(rank=2, **switches))
    for name, parameter in model.named_parameters():
        if name.endswith(".b"):  # else the adapters would do nothing
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def count_images(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many images went through the frozen blocks so far."""
    trunk, seen = vision_transformer_class(), []
    original = trunk.first_blocks

    def first_blocks(self: Any, images: torch.Tensor, count: int) -> Any:
        seen.append(len(images))
        return original(self, images, count)

    monkeypatch.setattr(trunk, "first_blocks", first_blocks)
    return lambda: sum(seen)


@pytest.mark.parametrize(
    ("switches", "frozen"),
    [({"apply_to_vision_encoder": False}, MICRO.vit_depth), ({"vision_layers": 1}, MICRO.vit_depth - 1), ({}, 0)],
)
@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])
def test_features_are_those_of_the_whole_encoder(
    switches: dict[str, Any], frozen: int, amp_dtype: torch.dtype | None, count_images: Callable[[], int]
):
    model, batch = adapted(**switches), mixed_batch(images=3)
    encoders = Encoders(model, MemoryStore(10**9))
    assert encoders.frozen_blocks == frozen
    with torch.autocast("cpu", dtype=amp_dtype, enabled=amp_dtype is not None):
        expected = model.backbone.forward_image(batch.img_batch)["backbone_fpn"]
        for _ in range(2):
            found = encoders.images(batch.img_batch, ("one", "two", "three"))["backbone_fpn"]
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 if amp_dtype is None else 1e-2)
    assert count_images() == (3 if frozen else 0)  # the second time nothing is computed


def test_unnamed_views_are_not_kept(count_images: Callable[[], int]):
    model, batch = adapted(apply_to_vision_encoder=False), mixed_batch(images=2)
    encoders = Encoders(model, MemoryStore(10**9))
    for views in ((None, None), ("one", None), ("one", None)):
        encoders.images(batch.img_batch, views)
    assert count_images() == 2 + 2 + 1


def test_texts_are_encoded_once_where_nothing_adapts_them(monkeypatch: pytest.MonkeyPatch):
    model = adapted()
    expected = model.backbone.forward_text(TEXTS, device="cpu")
    calls = []
    forward = model.backbone.forward_text
    monkeypatch.setattr(model.backbone, "forward_text", lambda texts, **kw: calls.append(texts) or forward(texts, **kw))
    encoders = Encoders(model)
    for _ in range(2):
        found = encoders.texts(TEXTS)
        torch.testing.assert_close(found["language_features"], expected["language_features"])
        assert torch.equal(found["language_mask"], expected["language_mask"])
    assert calls == [[text] for text in TEXTS]


def test_adapted_texts_follow_their_adapters():
    model = adapted(apply_to_text_encoder=True)
    encoders = Encoders(model)
    before = encoders.texts(TEXTS)["language_features"]
    assert before.requires_grad
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_backbone" in name and name.endswith(".b"):
                parameter.add_(1.0)
    assert not torch.allclose(encoders.texts(TEXTS)["language_features"], before)


def test_frozen_weights_in_half_precision_keep_every_bit_under_autocast():
    batch, outputs = mixed_batch(), []
    for hold in (False, True):
        model = adapted().eval()
        if hold:
            hold_frozen_weights(model, torch.bfloat16)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            outputs.append(model(batch)[-1])
    assert model.backbone.vision_backbone.trunk.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    for name in ("pred_logits", "pred_boxes", "pred_masks", "presence_logit_dec"):
        assert torch.equal(outputs[0][name], outputs[1][name]), name
