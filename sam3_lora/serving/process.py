"""The process that a worker keeps to predict: `python -m sam3_lora.serving.process`.

stdin    one request per line: `{model, adapter, untuned, image, prompts, boxes, min_score, result, overlay}`; EOF
         ends it
stdout   one line after each request: `{}`, or `{error: {code, message, hint, retryable}}`; what else prints goes to
         stderr
files    `result` is written as JSON: for each prompt `{prompt, presence, detections: [{box, score, segmentation}]}`;
         `overlay`, if not null, as a PNG. Boxes are `[x1, y1, x2, y2]` in pixels, masks COCO RLE.

`untuned` asks the adapter's base alone. Without prompts the boxes are asked alone, without either all that the
adapter was trained on.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle_codec

from sam3_lora.coco.overlay import draw_instances
from sam3_lora.data.exemplars import BOX_ALONE
from sam3_lora.data.images import read_rgb
from sam3_lora.errors import Sam3LoraError
from sam3_lora.lora.adapter import read_info
from sam3_lora.serving.models import Models

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sam3_lora.evaluation.predict import Detections

OVERLAY_PIXELS = 1600  # most of a side
MAX_PROMPTS = 64  # of those that an adapter was trained on


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # libraries that print must not write between the answers
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    models = Models(checkpoint=options.checkpoint, device=options.device, keep=options.keep)
    for line in sys.stdin:
        answer: dict[str, Any] = {}
        try:
            predict(models, json.loads(line))
        except Sam3LoraError as error:
            answer = _error(error.code, error.message, error.hint, retryable=error.retryable)
        except Exception as error:  # the edge of a request: whatever happened is its answer, and the next one works
            logging.getLogger(__name__).exception("the prediction failed")
            answer = _error("internal", f"{type(error).__name__}: {error}", "", retryable=False)
        answers.write(json.dumps(answer) + "\n")


def predict(models: Models, request: dict[str, Any]) -> None:
    """Answer one request into its files.

    Raises:
        Sam3LoraError: if the adapter, its base or the image cannot be used.
    """
    adapter = Path(request["adapter"])
    boxes = request["boxes"]
    texts = request["prompts"] or ([BOX_ALONE] if boxes else _trained_on(adapter))
    predictor = models.predictor(request["model"], adapter, texts, untuned=request["untuned"])
    pixels = read_rgb(Path(request["image"]))
    encoded = predictor.encode(pixels)
    overlay = None if request["overlay"] is None else _Overlay(pixels)
    results = []
    for text in texts:  # one by one: the masks of a large image take much memory
        xywh = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes]
        (found,) = predictor.ask(encoded, [text], boxes_xywh=xywh, min_score=request["min_score"])
        results.append({"prompt": text, "presence": found.presence, "detections": _detections(found)})
        if overlay is not None:
            overlay.add(text, found)
    Path(request["result"]).write_text(json.dumps(results, allow_nan=False), encoding="utf-8")
    if overlay is not None:
        overlay.draw().save(request["overlay"], format="PNG")


def _trained_on(adapter: Path) -> list[str]:
    return list(dict.fromkeys(read_info(adapter).prompts.values()))[:MAX_PROMPTS]


def _detections(found: Detections) -> list[dict[str, Any]]:
    detections = []
    for index, score in enumerate(found.scores_K.tolist()):
        detection = {"box": found.boxes_xyxy_K4[index].tolist(), "score": score, "segmentation": None}
        if found.masks_KHW is not None:
            rle = rle_codec.encode(np.asfortranarray(found.masks_KHW[index].numpy(), dtype=np.uint8))
            detection["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
        detections.append(detection)
    return detections


class _Overlay:
    """What was found, gathered at the size of the picture."""

    def __init__(self, pixels_HW3: NDArray[np.uint8]) -> None:
        height, width = pixels_HW3.shape[:2]
        scale = min(1.0, OVERLAY_PIXELS / max(height, width))
        self._size = max(1, round(width * scale)), max(1, round(height * scale))
        self._pixels = self._fitted(pixels_HW3)
        self._masks: list[NDArray[np.bool_]] = []
        self._labels: list[str] = []
        self._colours: list[int] = []
        self._prompts = 0

    def add(self, text: str, found: Detections) -> None:
        for mask_HW in [] if found.masks_KHW is None else found.masks_KHW.numpy():
            self._masks.append(self._fitted(mask_HW.astype(np.uint8) * 255) > 127)
        self._labels += [f"{text} {score:.2f}" for score in found.scores_K.tolist()]
        self._colours += [self._prompts] * len(found.scores_K)
        self._prompts += 1

    def draw(self) -> Image.Image:
        return draw_instances(self._pixels, self._masks, self._labels, self._colours, width=self._size[0])

    def _fitted(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(Image.fromarray(pixels).resize(self._size, Image.Resampling.BILINEAR))


def _error(code: str, message: str, hint: str, *, retryable: bool) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "hint": hint, "retryable": retryable}}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sam3_lora.serving.process")
    parser.add_argument("--checkpoint", type=Path, help="official weights (sam3.pt) instead of the hub")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--keep", type=int, default=4, help="adapters in memory")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
