"""Does loading keep up with training? Images a second of the data loader, and of the fastest training step.

Drawn scenes are JPEG files of 1400 x 1400 pixels with polygons, as large as photographs; decoding, augmentation to the
network's size, masks and collation are those of a run. Where features are kept, in memory or in files, images are not
read again, but their masks are drawn. The step is that of the detector alone, whose image features are kept: no other
way to train takes images as fast. Loader processes and step are measured one after the other.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import record
from benchmarks.full_size import our_step, random_batch, random_model
from benchmarks.train_cpu import lora_of
from sam3_lora.coco import schema
from sam3_lora.config import DatasetOptions, TrainingConfig
from sam3_lora.data.concepts import find_concepts
from sam3_lora.data.dataset import TrainingSet
from sam3_lora.distributed import World
from sam3_lora.model.architecture import SAM3, SAM3_TINY, Architecture
from sam3_lora.model.features import FeatureStore, FolderStore, MemoryStore
from sam3_lora.synthetic.coco_export import ANNOTATIONS, write_split
from sam3_lora.synthetic.scenes import draw_scene
from sam3_lora.training.batches import Batches

CONCEPTS = ("heart", "cross", "gear")
SIDE = 1400  # pixels


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    warnings.filterwarnings("ignore")
    architecture = SAM3_TINY if options.tiny else SAM3
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        training = draw(Path(folder), options.images, architecture.image_size)
        stores = {"nothing": None, "memory": MemoryStore(10**12), "files": FolderStore(Path(folder), "", 10**12)}
        for kept, store in stores.items():
            keep(training, store, architecture)
            for workers in options.workers:
                rows.append({"workers": workers, "kept": kept, "images_per_second": load(training, workers)})
                print(f"  {rows[-1]}", flush=True)
    model = random_model(architecture)
    stepper = our_step(model, lora_of("detector", architecture), device=options.device)
    batch, times = random_batch(1, 1, architecture.image_size), []
    for _ in range(1 + options.steps):
        began = time.monotonic()
        stepper([batch])
        times.append(time.monotonic() - began)
    rows.append({"workers": "model", "kept": "memory", "images_per_second": round(1 / median(times[1:]), 3)})
    print(f"  {rows[-1]}", flush=True)
    if not options.tiny or options.output is not None:
        print(f"written to {record.write('loader', rows, path=options.output, side=SIDE, tiny=options.tiny)}")
    best = max(row["images_per_second"] for row in rows[:-1] if row["kept"] == "nothing")
    print(f"loader ratio={best / rows[-1]['images_per_second']:.2f} target=1.00")
    return 0


def draw(folder: Path, images: int, resolution: int) -> TrainingSet:
    """A training set of large scenes."""
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, size=SIDE, shapes=list(CONCEPTS), count=(2, 6)) for _ in range(images)]
    write_split(folder / "train", scenes, CONCEPTS)
    dataset = schema.load(folder / "train" / ANNOTATIONS)
    concepts = find_concepts(dataset, {})
    options = DatasetOptions(augmented_views=1)
    return TrainingSet(dataset, folder / "train", concepts, options, resolution=resolution, masks=True, seed=0)


def keep(training: TrainingSet, store: FeatureStore | None, architecture: Architecture) -> None:
    """Let the set know features of all its images: of their true size in files, of none in memory, where they stay."""
    training.features = store
    if store is None:
        return
    side = architecture.image_size // architecture.patch_size
    size = (1,) if isinstance(store, MemoryStore) else (1, side, side, architecture.vit_width)
    for position in range(len(training)):
        store.put(str(training[0, position].view), torch.zeros(size, dtype=torch.bfloat16))


def load(training: TrainingSet, workers: int) -> float:
    """Images a second over an epoch, without the first batch, which waits for the processes to start."""
    config = TrainingConfig(max_epochs=1, num_workers=workers, batch_size=2)
    batches = iter(Batches(training, config, World(), masks=True).load(0, 0, pin_memory=False))
    next(batches)
    began, count = time.monotonic(), 0
    for _ in range(-(-len(training) // config.batch_size) - 1):
        next(batches)
        count += config.batch_size
    return round(count / (time.monotonic() - began), 2)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks loader", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="loader processes")
    parser.add_argument("--images", type=int, default=60, help="images of the epoch")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cpu", help="where the step runs")
    parser.add_argument("--steps", type=int, default=3, help="steps that count, after one to warm up")
    parser.add_argument("--tiny", action="store_true", help="the small architecture, to see that it runs")
    parser.add_argument("--output", type=Path, help="JSON file, instead of results/loader.json")
    return parser.parse_args(arguments)
