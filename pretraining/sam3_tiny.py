"""Pretrain `sam3-tiny` from scratch on synthetic scenes with one-word prompts.

    python -m pretraining.sam3_tiny --steps 6000             # about two hours on 2 CPU cores
    python -m pretraining.sam3_tiny --steps 6000 --resume    # go on after an interruption
    python -m pretraining.sam3_tiny --init sam3_lora/model/bases/sam3-tiny/model.safetensors    # improve the base

Every scene is drawn fresh from (seed, worker, index); prompts are shape or colour words of
`sam3_lora.synthetic.scenes` (the NOVEL shapes are never drawn). Loss and matcher are the official ones.
The exported weights are an exponential moving average, in half precision.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import deque
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sam3_lora.data.datapoint import Batch, Query, Sample, normalise
from sam3_lora.losses.sam3 import Sam3Loss
from sam3_lora.model.architecture import SAM3_TINY
from sam3_lora.model.build import build_model
from sam3_lora.synthetic.scenes import COLOURS, KNOWN, Scene, draw_scene

EMA_DECAY = 0.999
NOTHING = -1
EASY_IMAGES = 48_000


class SceneSamples(IterableDataset[Sample]):
    """Endless samples with `positives` present words and `negatives` absent ones each.

    Scenes start plain and with few objects, and reach full clutter after `easy_images`: from cluttered
    scenes alone, presence was still at chance after 17,000 images.
    """

    def __init__(self, seed: int, *, easy_images: int, drawn: int = 0, positives: int = 2, negatives: int = 1) -> None:
        self.seed, self.easy_images, self.drawn = seed, easy_images, drawn
        self.positives, self.negatives = positives, negatives

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        for drawn in count(self.drawn, worker.num_workers if worker else 1):
            clutter = min(1.0, drawn / self.easy_images)
            scene = draw_scene(rng, count=(1, 3 + round(2 * clutter)), clutter=clutter)
            yield sample_queries(rng, scene, self.positives, self.negatives)


def sample_queries(rng: np.random.Generator, scene: Scene, positives: int, negatives: int) -> Sample:
    """Choose present and absent words for a scene; colours are asked half as often as shapes."""
    members: dict[str, list[int]] = {}
    for index, item in enumerate(scene.objects):
        members.setdefault(item.shape, []).append(index)
        members.setdefault(item.colour, []).append(index)
    present = sorted(members)
    weights = np.array([1.0 if word in KNOWN else 0.5 for word in present])
    chosen = rng.choice(present, min(positives, len(present)), replace=False, p=weights / weights.sum())
    absent = [w for w in (*KNOWN, *COLOURS) if w not in members]
    weights = np.array([1.0 if word in KNOWN else 0.5 for word in absent])
    refusals = min(len(absent), negatives + positives - len(chosen))
    refused = rng.choice(absent, refusals, replace=False, p=weights / weights.sum())
    queries = [Query(str(word), tuple(members[str(word)])) for word in chosen]
    queries += [Query(str(word), ()) for word in refused]
    size = scene.pixels.shape[0]
    boxes = torch.tensor([item.box_xyxy for item in scene.objects]) / size
    return Sample(
        image_CHW=normalise(torch.from_numpy(scene.pixels)),
        boxes_N4=torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1),
        masks_NHW=torch.from_numpy(np.stack([item.mask for item in scene.objects])),
        queries=tuple(queries),
    )


def pretrain_backbone(model: Any, seed: int, out: Path, *, steps: int, batch: int) -> None:
    """Teach the ViT to name what lies in each patch, by two linear classifiers that are thrown away.

    SAM3's own backbone comes pretrained too. Without this, colours were matched to words after 10,000 images
    while shapes were still at chance: the features to tell them apart did not exist yet.
    """
    neck = model.backbone.vision_backbone
    device = next(model.parameters()).device
    head = nn.Conv2d(SAM3_TINY.d_model, len(KNOWN) + len(COLOURS) + 1, 1).to(device)
    parameters = [*neck.trunk.parameters(), *neck.convs[2].parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, weight_decay=1e-4)
    hits: deque[float] = deque(maxlen=50)
    rng = np.random.default_rng([seed, 1])
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, 1e-3, 100)
        scenes = [draw_scene(rng, count=(1, 5), clutter=step / steps) for _ in range(batch)]
        images = torch.stack([normalise(torch.from_numpy(scene.pixels)) for scene in scenes]).to(device)
        labels = [patch_labels(scene) for scene in scenes]
        shape_BHW, colour_BHW = (torch.stack(part).to(device) for part in zip(*labels, strict=True))
        logits_BKHW = head(neck.convs[2](neck.trunk(images)[-1]))
        shape_BKHW, colour_BKHW, covered_B1HW = logits_BKHW.split([len(KNOWN), len(COLOURS), 1], 1)
        loss: Any = (
            nn.functional.cross_entropy(shape_BKHW, shape_BHW, ignore_index=NOTHING)
            + nn.functional.cross_entropy(colour_BKHW, colour_BHW, ignore_index=NOTHING)
            + nn.functional.binary_cross_entropy_with_logits(covered_B1HW[:, 0], (shape_BHW != NOTHING).float())
        )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        right = shape_BKHW.argmax(1) == shape_BHW
        hits.append(float(right[shape_BHW != NOTHING].float().mean()))
        if (step + 1) % 50 == 0:
            row = {"backbone_step": step + 1, "loss": round(float(loss.detach()), 4), "shape_accuracy": np.mean(hits)}
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")


def patch_labels(scene: Scene) -> tuple[Tensor, Tensor]:
    """Shape and colour index of the object that covers most of each patch, (H, W) each; `NOTHING` where none does."""
    masks_NHW = torch.from_numpy(np.stack([item.mask for item in scene.objects])).float()
    share_HW, owner_HW = nn.functional.avg_pool2d(masks_NHW, SAM3_TINY.patch_size).max(0)
    shapes = torch.tensor([list(KNOWN).index(item.shape) for item in scene.objects])[owner_HW]
    colours = torch.tensor([list(COLOURS).index(item.colour) for item in scene.objects])[owner_HW]
    covered = share_HW > 0.25
    return shapes.where(covered, NOTHING), colours.where(covered, NOTHING)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(args: argparse.Namespace) -> None:
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    model: Any = build_model(SAM3_TINY, recomputed="off").to(device).train()
    if args.init is not None:
        model.load_state_dict(load_file(args.init), strict=False)  # the file lacks only the rotary tables
    loss_fn = Sam3Loss(masks=True, mask_points=None)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, fused=True)
    ema = {name: value.detach().clone() for name, value in model.state_dict().items()}
    start, seed = 0, args.seed
    if args.resume and (out / "state.pt").exists():
        state = torch.load(out / "state.pt", map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        ema, start = state["ema"], state["step"]
        seed += start  # other scenes than before the interruption
    samples = iter(
        DataLoader(
            SceneSamples(seed, easy_images=EASY_IMAGES, drawn=EASY_IMAGES if args.init else start * args.batch),
            None,
            num_workers=args.workers,
        )
    )
    if start == 0 and args.init is None:
        pretrain_backbone(model, seed, out, steps=args.backbone_steps, batch=4 * args.batch)
        ema = {name: value.detach().clone() for name, value in model.state_dict().items()}
    recent: deque[dict[str, float]] = deque(maxlen=50)
    began = time.monotonic()
    for step in range(start, args.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr, args.warmup)
        batch = Batch.of([next(samples) for _ in range(args.batch)], masks=True)
        recent.append(train_step(model, loss_fn, optimiser, batch, device))
        update_ema(ema, model, min(EMA_DECAY, (step + 1) / (step + 10)))
        if (step + 1) % 50 == 0:
            row = {key: round(float(np.mean([r[key] for r in recent])), 4) for key in recent[-1]}
            row |= {"step": step + 1, "seconds_per_step": round((time.monotonic() - began) / (step + 1 - start), 3)}
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "ema": ema, "step": step + 1}
            torch.save(state, out / "state.tmp")
            (out / "state.tmp").rename(out / "state.pt")
            export(ema, out / "model.safetensors")


def train_step(
    model: Any, loss_fn: Sam3Loss, optimiser: torch.optim.Optimizer, batch: Batch, device: torch.device
) -> dict[str, float]:
    data = batch.to(device).datapoint
    total, parts = loss_fn(model(data), data, model)
    optimiser.zero_grad()
    total.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    kept = ("loss_bbox", "loss_giou", "loss_ce", "ce_f1", "presence_loss", "presence_dec_acc", "loss_mask", "loss_dice")
    return {"loss": float(total.detach()), "grad_norm": float(norm), **{k: float(parts[k]) for k in kept if k in parts}}


@torch.no_grad()
def update_ema(ema: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for name, value in model.state_dict().items():
        if value.dtype.is_floating_point:
            ema[name].lerp_(value, 1 - decay)
        else:
            ema[name].copy_(value)


def export(weights: dict[str, Tensor], path: Path) -> None:
    """Write half-precision weights; complex rotary tables are rebuilt by the architecture, not stored."""
    kept = {name: value.half().cpu().contiguous() for name, value in weights.items() if not value.is_complex()}
    save_file(kept, path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/sam3-tiny", help="folder of log, state and weights")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--init", help="start from these weights, past the patch classification and the plain scenes")
    parser.add_argument("--batch", type=int, default=8, help="images per step; each has three prompts")
    parser.add_argument("--backbone-steps", type=int, default=1200, help="steps of patch classification first")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--warmup", type=int, default=200, help="steps")
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw scenes")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    train(parse_arguments())
