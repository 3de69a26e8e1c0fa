"""Measure `sam3-tiny` on a fixed held-out set: `python -m pretraining.evaluate`. Prints the model card's figures."""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

from sam3_lora.evaluation.predict import open_predictor
from sam3_lora.synthetic.scenes import COLOURS, KNOWN, NOVEL, draw_scene

SCENES, SEED = 100, 987_654_321
MASK_IOU = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=SCENES)
    options = parser.parse_args()
    predictor, _ = open_predictor(None, base="sam3-tiny")
    rng = np.random.default_rng(SEED)
    right: dict[str, list[bool]] = {"shape": [], "colour": [], "novel": []}
    found: dict[str, list[float]] = {"shape": [], "colour": []}
    for _ in range(options.scenes):
        scene = draw_scene(rng, count=(1, 4))
        words = [*KNOWN, *COLOURS, *NOVEL]
        for word, detections in zip(words, predictor.predict(scene.pixels, words), strict=True):
            kind = "shape" if word in KNOWN else "colour" if word in COLOURS else "novel"
            truth = [item.mask for item in scene.objects if word in (item.shape, item.colour)]
            right[kind].append((detections.presence > 0.5) == bool(truth))
            if truth and detections.masks_KHW is not None:
                best = detections.masks_KHW[: len(truth)].numpy()
                found[kind] += [max(_iou(mask, other) for other in best) for mask in truth]
    report = {f"presence_accuracy_{kind}": float(np.mean(values)) for kind, values in right.items()}
    report |= {f"mask_recall50_{kind}": float(np.mean(np.array(v) >= MASK_IOU)) for kind, v in found.items()}
    report |= {f"mask_iou_{kind}": float(np.mean(values)) for kind, values in found.items()}
    print(json.dumps({"scenes": options.scenes, "seed": SEED, "torch": torch.__version__, **report}, indent=2))


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


if __name__ == "__main__":
    main()
