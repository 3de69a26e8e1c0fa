"""`sam3-lora predict`: what an adapter, or its base, finds in an image."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from sam3_lora.commands.terminal import errors_named, quiet, wrong_option


def predict(
    image: Annotated[Path, typer.Option(help="Image file.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What to find; may be repeated.")] = None,
    box: Annotated[
        list[str] | None, typer.Option(help="An example of it as X,Y,WIDTH,HEIGHT in pixels; may be repeated.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="Adapter folder; without it the base model answers.")] = None,
    base: Annotated[str, typer.Option(help="Base model where no adapter is given: sam3 or sam3-tiny.")] = "sam3",
    checkpoint: Annotated[Path | None, typer.Option(help="Official weights (sam3.pt) instead of the hub.")] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Least score of a detection.")] = 0.5,
    output: Annotated[Path | None, typer.Option(help="PNG to draw the detections on.")] = None,
) -> None:
    """Find prompts in an image, or what looks like the boxes; prints COCO results as JSON."""
    quiet()
    from sam3_lora.coco.overlay import draw_instances
    from sam3_lora.data.exemplars import BOX_ALONE
    from sam3_lora.data.images import read_rgb
    from sam3_lora.evaluation.coco_metrics import to_results
    from sam3_lora.evaluation.predict import open_predictor

    with errors_named():
        boxes = [_box(text) for text in box or []]
        if not prompt and not boxes:
            raise wrong_option("--prompt", "give a prompt, a box, or both")
        texts = prompt or [BOX_ALONE]
        predictor, _ = open_predictor(adapter, base=base, checkpoint=checkpoint)
        pixels = read_rgb(image)
        found = predictor.predict(pixels, texts, boxes_xywh=boxes, min_score=threshold)
    answers = []
    for number, (text, detections) in enumerate(zip(texts, found, strict=True), start=1):
        results = to_results(detections, 1, number)
        for entry in results:
            entry["segmentation"]["counts"] = entry["segmentation"]["counts"].decode()
        answers.append({"prompt": text, "presence": detections.presence, "detections": results})
    sys.stdout.write(json.dumps({"image": str(image), "answers": answers}) + "\n")
    if output is not None:
        masks = [m.numpy() for d in found for m in (d.masks_KHW if d.masks_KHW is not None else [])]
        labels = [f"{t} {s:.2f}" for t, d in zip(texts, found, strict=True) for s in d.scores_K.tolist()]
        colours = [number for number, d in enumerate(found) for _ in d.scores_K]
        draw_instances(pixels, masks, labels, colours, width=max(480, pixels.shape[1])).save(output)


def _box(text: str) -> list[float]:
    """X,Y,WIDTH,HEIGHT as numbers."""
    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError:
        raise wrong_option("--box", f"{text!r} is not X,Y,WIDTH,HEIGHT") from None
    if not (width > 0 and height > 0 and math.isfinite(x + y + width + height)):
        raise wrong_option("--box", f"{text!r} has no extent")
    return [x, y, width, height]
