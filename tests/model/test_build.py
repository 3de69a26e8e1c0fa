import functools

import pytest
import torch

from sam3_lora.model import upstream
from sam3_lora.model.architecture import SAM3, SAM3_TINY, Architecture
from sam3_lora.model.build import build_model
from tests.models import MICRO, micro_model, mixed_batch, outputs_of

OFFICIAL_PARAMETERS = 840_509_750  # of build_sam3_image_model(), sam3 0.1.4


@pytest.fixture
def meta_device(monkeypatch: pytest.MonkeyPatch):
    """Build without memory or time; the ViT reads a few values of a linspace, which the meta device lacks."""
    monkeypatch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))
    with torch.device("meta"):
        yield


@pytest.mark.usefixtures("meta_device")
def test_full_size_has_the_official_names_and_shapes():
    ours = build_model(SAM3)
    with upstream.cpu_stock_builder() as builder:
        stock = builder.build_sam3_image_model(
            bpe_path=str(upstream.vocabulary_path()), device="cpu", eval_mode=False, load_from_HF=False
        )
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in stock.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) == OFFICIAL_PARAMETERS


def test_architecture_survives_json():
    assert Architecture.from_dict(SAM3_TINY.to_dict()) == SAM3_TINY


@pytest.mark.parametrize("resolution", [0, 13, 1000, 1009])
def test_unsuitable_resolution_is_refused_with_the_nearest(resolution: int):
    with pytest.raises(ValueError, match="multiple of 336"):
        build_model(SAM3, resolution=resolution or 1)


def test_other_resolution_runs_with_the_same_weights():
    model = micro_model()
    larger = build_model(MICRO, resolution=210, recomputed="off")
    weights = {k: v for k, v in model.state_dict().items() if not v.is_complex()}
    assert all("freqs_cis" in name for name in larger.load_state_dict(weights, strict=False).missing_keys)
    batch = mixed_batch()
    batch.img_batch = torch.nn.functional.interpolate(batch.img_batch, size=(210, 210))
    larger.eval()
    assert torch.isfinite(outputs_of(larger, batch)["pred_masks"]).all()


def test_activation_checkpointing_changes_nothing_but_memory():
    model, batch = micro_model(), mixed_batch()
    gradients = []
    for recomputed in ("off", "encoders", "on"):
        upstream.set_activation_checkpointing(model, recomputed)
        model.zero_grad()
        final = model(batch)[-1]
        masks = final["pred_masks"]
        (final["pred_logits"].sum() + masks.queries_BQC.mean() + masks.pixels_BCHW.mean()).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    for other in gradients[1:]:
        assert gradients[0].keys() == other.keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, msg=name)
