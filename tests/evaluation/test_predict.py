import numpy as np
import pytest
import torch

from sam3_lora.coco.overlay import draw_instances, side_by_side
from sam3_lora.data.datapoint import Query, Sample, collate
from sam3_lora.data.transforms import place_image, whole
from sam3_lora.errors import OutOfMemoryError
from sam3_lora.evaluation.predict import Predictor, cut
from tests.models import micro_model

PIXELS = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
TEXTS = ["circle", "a long red bar", "circle"]


def test_equals_the_model_called_as_upstream_does():
    model = micro_model().eval()
    found = Predictor(model, resolution=140).predict(PIXELS, TEXTS)
    sample = Sample(place_image(PIXELS, whole(140)), torch.zeros(0, 4), None, tuple(Query(t, ()) for t in TEXTS))
    with torch.no_grad():
        outputs = model(collate([sample], masks=False))[-1]
    presence = outputs["presence_logit_dec"].sigmoid().flatten()
    for index, detections in enumerate(found):
        assert detections.presence == pytest.approx(float(presence[index]), abs=1e-5)
        expected = (outputs["pred_logits"][index, :, 0].sigmoid() * presence[index]).sort(descending=True)
        torch.testing.assert_close(detections.scores_K, expected.values, atol=1e-5, rtol=1e-4)
        boxes = outputs["pred_boxes_xyxy"][index, expected.indices].clamp(0, 1) * torch.tensor([120, 90, 120, 90])
        torch.testing.assert_close(detections.boxes_xyxy_K4, boxes, atol=1e-3, rtol=1e-4)
        assert detections.masks_KHW.shape == (8, 90, 120)


def test_a_box_prompt_reaches_the_model_as_upstream_gives_it():
    model = micro_model().eval()
    found = Predictor(model, resolution=140).predict(PIXELS, ["circle"], boxes_xywh=[(12, 9, 60, 45)])[0]
    query = Query("circle", (), exemplar_box=(0.35, 0.35, 0.5, 0.5))
    sample = Sample(place_image(PIXELS, whole(140)), torch.zeros(0, 4), None, (query,))
    with torch.no_grad():
        outputs = model(collate([sample], masks=False))[-1]
    assert found.presence == pytest.approx(outputs["presence_logit_dec"].sigmoid().item(), abs=1e-5)
    without = Predictor(model, resolution=140).predict(PIXELS, ["circle"])[0]
    assert abs(found.presence - without.presence) > 1e-5


def test_many_prompts_are_asked_in_passes_with_the_same_answers():
    predictor = Predictor(micro_model(), resolution=140)
    texts = [f"thing {n}" for n in range(20)]
    together = predictor.predict(PIXELS, texts)
    alone = Predictor(predictor.model, resolution=140).predict(PIXELS, texts[17:18])[0]
    torch.testing.assert_close(together[17].scores_K, alone.scores_K, atol=1e-6, rtol=1e-4)


def test_out_of_memory_asks_fewer_prompts_at_a_time_with_the_same_answers():
    predictor = Predictor(micro_model(), resolution=140)
    expected = predictor.predict(PIXELS, TEXTS)
    ground = predictor._ground

    def limited(features: object, texts: list[str], boxes: torch.Tensor) -> object:
        if len(texts) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return ground(features, texts, boxes)

    predictor._ground = limited
    fits = 1
    found = predictor.predict(PIXELS, TEXTS)
    assert predictor.prompts_per_pass == 1
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one.scores_K, other.scores_K, atol=1e-6, rtol=1e-4)
    fits = 0
    with pytest.raises(OutOfMemoryError):
        predictor.predict(PIXELS, TEXTS)


def test_absent_presence_silences_every_detection():
    model = micro_model()
    head = model.transformer.decoder.presence_token_head.layers[-1]
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.constant_(head.bias, -20.0)
    found = Predictor(model, resolution=140).predict(PIXELS, ["circle"])[0]
    assert float(found.scores_K.max()) < 1e-6


def test_min_score_filters():
    model = micro_model()
    everything = Predictor(model, resolution=140).predict(PIXELS, ["circle"])[0]
    threshold = float(everything.scores_K[3])
    assert len(Predictor(model, resolution=140).predict(PIXELS, ["circle"], min_score=threshold)[0].scores_K) == 4


def test_masks_are_upsampled_before_they_are_cut():
    logits = torch.full((1, 2, 2), -1.0)
    logits[0, 0, 0] = 3.0
    blocky = (logits > 0).repeat_interleave(20, 1).repeat_interleave(20, 2)
    smooth = cut(logits, (40, 40))
    assert smooth.shape == (1, 40, 40)
    assert int(smooth.sum()) not in (0, int(blocky.sum()))


def test_predicting_leaves_the_model_trainable():
    model = micro_model()
    Predictor(model, resolution=140).predict(PIXELS, ["circle"])
    model.train()
    sample = Sample(place_image(PIXELS, whole(140)), torch.zeros(0, 4), None, (Query("circle", ()),))
    model(collate([sample], masks=False))[-1]["pred_logits"].sum().backward()


def test_overlay_tints_the_mask_and_nothing_else():
    mask = np.zeros((90, 120), bool)
    mask[20:60, 30:80] = True
    plain = np.asarray(draw_instances(PIXELS, [], [], [], width=120))
    drawn = np.asarray(draw_instances(PIXELS, [mask], [""], [0], width=120))
    changed = (plain != drawn).any(-1)
    assert changed[20:60, 30:80].mean() > 0.95
    assert not changed[62:].any()
    sheet = side_by_side([[draw_instances(PIXELS, [mask], ["heart 0.93"], [0], width=240)] * 3], ["a", "b", "c"])
    assert sheet.width > 3 * 240
