"""These fail when the sam3 package changes one of the places that `sam3_lora.model.upstream` adapts."""

import importlib.metadata
import inspect

import pytest
import torch

from sam3_lora.model import upstream


def test_the_adaptations_were_made_for_this_version():
    assert importlib.metadata.version("sam3") == "0.1.4"


def test_geometry_encoder_equals_upstream_but_for_pinning(monkeypatch: pytest.MonkeyPatch):
    from sam3.model.geometry_encoders import SequenceGeometryEncoder

    from tests.models import micro_model

    assert "pin_memory" in inspect.getsource(SequenceGeometryEncoder._encode_boxes)
    encoder = micro_model().geometry_encoder
    boxes, labels = torch.rand(3, 2, 4) * 0.3 + 0.3, torch.ones(3, 2)
    features, mask = torch.randn(2, 32, 10, 10), torch.zeros(2, 3, dtype=torch.bool)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    expected, _ = SequenceGeometryEncoder._encode_boxes(encoder, boxes, mask, labels, features)
    actual, _ = encoder._encode_boxes(boxes, mask, labels, features)
    torch.testing.assert_close(actual, expected)


def test_focal_loss_still_defaults_to_triton_and_ours_does_not():
    upstream.install()
    from sam3.train.loss import loss_fns

    assert "triton=True" in inspect.getsource(inspect.getmodule(loss_fns.Boxes)).split("def iou_loss")[0]
    loss = loss_fns.sigmoid_focal_loss(torch.zeros(2, 3), torch.ones(2, 3), num_boxes=2)
    # -alpha (1 - p)^gamma log p at p = 0.5, summed over 2 rows and divided by 2 boxes
    assert float(loss) == pytest.approx(0.25 * 0.25 * 0.6931472)


def test_encoder_and_decoder_still_insist_on_checkpointing():
    from sam3.model import decoder, encoder

    for module in (encoder, decoder):
        assert "assert" in inspect.getsource(module)
        assert "self.use_act_checkpoint" in inspect.getsource(module)
        assert "activation_ckpt_wrapper(layer)" in inspect.getsource(module)


def test_vocabulary_is_found():
    assert upstream.vocabulary_path().is_file()


def test_text_parameters_of_a_model_from_scratch_are_finite():
    from tests.models import micro_model

    encoder = micro_model().backbone.language_backbone.encoder
    assert torch.isfinite(encoder.positional_embedding).all()
    assert torch.isfinite(encoder.text_projection).all()
