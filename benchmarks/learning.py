"""Does LoRA learn as well as full fine-tuning, and does it keep from firing on absent prompts?

`sam3-tiny` learns three shapes that it never saw, for a fixed number of steps: with LoRA on attention only, on the
detector only, on the default modules (vision and detector), on everything (the text encoder, too), and by full
fine-tuning; then with the default modules while the frozen modules' dropout stays on, and without the everyday words
that the base denies. One loop trains them all on the same batches, from three seeds each, a run on each CPU core. The
learning rates were best on validation images; the figures are from test images of their own.

`python -m benchmarks learning --help` lists what else can be measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import count, repeat
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import record
from sam3_lora.coco import schema
from sam3_lora.coco.schema import CocoDataset
from sam3_lora.config import ABSENT_PROMPTS, DatasetOptions, EvaluationConfig, LoraConfig, TrainingConfig
from sam3_lora.data.concepts import Concept, find_concepts
from sam3_lora.data.datapoint import Batch
from sam3_lora.data.dataset import TrainingSet, epoch_batches
from sam3_lora.distributed import World
from sam3_lora.evaluation.coco_metrics import evaluate
from sam3_lora.evaluation.predict import Predictor
from sam3_lora.lora.inject import adapter_parameters, inject
from sam3_lora.losses.sam3 import Sam3Loss
from sam3_lora.model import upstream
from sam3_lora.model.build import build_model
from sam3_lora.model.weights import architecture_of, load_base
from sam3_lora.synthetic.coco_export import ANNOTATIONS, write_split
from sam3_lora.synthetic.scenes import KNOWN, NOVEL, draw_scene
from sam3_lora.training.absent import find_absent_words
from sam3_lora.training.optim import build_optimizer, learning_rate, set_learning_rate
from sam3_lora.training.seed import seed_everything
from sam3_lora.training.step import Stepper

BASE = "sam3-tiny"
SEEDS = (0, 1, 2)
DRAWN_WITH = 20260731  # the images are the same for every seed of training
OPTIONS = DatasetOptions(min_scale=0.8, horizontal_flip=0.5)  # as the demo
MARGIN = 0.02  # of mAP, that LoRA may be behind full fine-tuning
# What is asked and neither drawn nor among the everyday words that training asks (sam3_lora/data/everyday_words.txt):
# four shapes that the base knows, and words that mean nothing to it.
ABSENT_KNOWN = ("arrow", "bolt", "hexagon", "diamond")
ABSENT_OTHER = (*ABSENT_PROMPTS, "pentagon", "spiral", "cathedral", "tuba")


@dataclass(frozen=True)
class Variant:
    """One way to train. `rate` was the best of `grid` on the validation images; without a grid, that of `DEFAULT`."""

    name: str
    lora: LoraConfig | None  # None: full fine-tuning
    rate: float
    grid: tuple[float, ...]
    frozen_dropout: bool = False  # with the official dropout and drop-path; sam3-tiny's own are zero
    generic_negatives: bool = True  # everyday words that the base denies; see sam3_lora/training/absent.py


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    steps: int = 350
    batch: int = 4
    train: int = 280
    valid: int = 200
    test: int = 300


@dataclass(frozen=True)
class Split:
    """Annotated images of one purpose."""

    dataset: CocoDataset
    folder: Path
    concepts: list[Concept]


def _lora(**settings: Any) -> LoraConfig:
    return LoraConfig(rank=16, alpha=32.0, **settings)  # as the demo


ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]
GRID = (1e-3, 2e-3)  # 3e-3 and 4e-3 learned less
DEFAULT = Variant("lora-default", _lora(), 2e-3, GRID)
ALL = Variant("lora-all", _lora(apply_to_text_encoder=True), 2e-3, GRID)
# Everything trains, the text encoder too, at one rate: with the official ratios between vision, text and the rest
# (1 : 0.2 : 3.2, roboflow_v100_full_ft_100_images.yaml of facebookresearch/sam3) it learned less than this here.
FULL = Variant("full", None, 3e-4, (1e-4, 3e-4, 6e-4))
DROPOUT = replace(DEFAULT, name="frozen-dropout", frozen_dropout=True, grid=())
VARIANTS = (
    Variant("lora-attention", _lora(target_modules=ATTENTION), 2e-3, GRID),
    Variant("lora-detector", _lora(apply_to_vision_encoder=False), 2e-3, GRID),
    DEFAULT,
    ALL,
    FULL,
    DROPOUT,
    replace(DEFAULT, name="no-generic-words", generic_negatives=False, grid=()),
)


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    size = Size(train=options.train)
    seeds: tuple[int, ...] = SEEDS
    if options.quick:
        size, seeds = Size(steps=2, batch=2, train=6, valid=2, test=2), SEEDS[:1]
    variants = [variant for variant in VARIANTS if variant.name in options.variants]
    grid: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, _processes(options.processes, options.threads) as pool:
        say(f"drawing {size.train} + {size.valid} + {size.test} images")
        splits = draw(Path(folder), size)

        def train_all(runs: Sequence[tuple[Variant, int]], on: str, what: str) -> list[dict[str, Any]]:
            trained, measured = repeat(splits["train"]), repeat(splits[on])
            rows = []
            for row in pool.map(train_and_measure, *zip(*runs, strict=True), trained, measured, repeat(size)):
                rows.append(row)
                say(f"{what} {len(rows)} of {len(runs)}: {_line(row)}")
            return rows

        if options.grid:  # with the first seed
            tried = [(replace(variant, rate=rate), SEEDS[0]) for variant in variants for rate in variant.grid]
            grid = train_all(tried, "valid", "grid") if tried else []
            variants = [replace(variant, rate=_best_rate(variant, grid)) for variant in variants]
        base = pool.submit(measure_base, splits["test"])
        runs = [(variant, seed) for variant in variants for seed in seeds]
        rows = [{"variant": "base", **base.result()}, *train_all(runs, "test", "run")]
    if not options.quick or options.output is not None:
        words = {"known": ABSENT_KNOWN, "other": ABSENT_OTHER}
        details = {
            "processes": options.processes,
            "threads": options.threads,
            "size": asdict(size),
            "absent_prompts": words,
            "grid": grid,
        }
        say(f"written to {record.write('learning', rows, path=options.output, **details)}")
    report(rows)
    return 0


# --- the task -----------------------------------------------------------------------------------------------


def draw(folder: Path, size: Size) -> dict[str, Split]:
    """Draw training, validation and test images of the novel shapes among shapes that the base knows."""
    others = [name for name in KNOWN if name not in ABSENT_KNOWN]
    # each novel shape is drawn half as often as all others together, as in the demo
    names = [*others, *(name for name in NOVEL for _ in range(len(others) // 2))]
    splits = {}
    for number, (split, images) in enumerate((("train", size.train), ("valid", size.valid), ("test", size.test))):
        rng = np.random.default_rng([DRAWN_WITH, number])
        scenes = [draw_scene(rng, shapes=names, count=(2, 4)) for _ in range(images)]
        write_split(folder / split, scenes, list(NOVEL))
        dataset = schema.load(folder / split / ANNOTATIONS)
        splits[split] = Split(dataset, folder / split, find_concepts(dataset, {}))
    return splits


# --- training -----------------------------------------------------------------------------------------------


def train_and_measure(variant: Variant, seed: int, training: Split, on: Split, size: Size) -> dict[str, Any]:
    model = load_base_with_dropout() if variant.frozen_dropout else load_base(BASE)
    seed_everything(seed)  # after building, which draws weights that the base's replace
    config = TrainingConfig(learning_rate=variant.rate, seed=seed)
    samples = training_set(training, seed)
    if variant.generic_negatives:
        base = Predictor(model, resolution=samples.resolution)
        samples.absent_words = find_absent_words(base, samples, seed=seed, world=World())
    if variant.lora is not None:
        inject(model, variant.lora)
    # build_optimizer takes any parameters by name; without adapters it gets them all
    trained = dict(model.named_parameters()) if variant.lora is None else adapter_parameters(model)
    began, cpu_began = time.monotonic(), time.process_time()
    train(model, trained, config, samples, size)
    return {
        "variant": variant.name,
        "seed": seed,
        "learning_rate": variant.rate,
        "trainable_parameters": sum(p.numel() for p in trained.values()),
        "train_seconds": round(time.monotonic() - began, 1),
        "train_cpu_seconds": round(time.process_time() - cpu_began, 1),
        **measure(model, on),
    }


def training_set(split: Split, seed: int) -> TrainingSet:
    """The training images; queries and transforms are drawn by the seed."""
    return TrainingSet(
        split.dataset,
        split.folder,
        split.concepts,
        OPTIONS,
        resolution=architecture_of(BASE).image_size,
        masks=True,
        seed=seed,
    )


def train(
    model: nn.Module, trained: dict[str, nn.Parameter], config: TrainingConfig, samples: TrainingSet, size: Size
) -> None:
    """The steps of every variant; the same seed gives the same batches."""
    optimizer = build_optimizer(trained, config)
    loss = Sam3Loss(masks=True, mask_points=3136)  # as the demo
    stepper = Stepper(
        model, loss, optimizer, list(trained.values()), amp_dtype=None, max_grad_norm=config.max_grad_norm
    )
    batches = (b for epoch in count() for b in epoch_batches(len(samples), size.batch, seed=config.seed, epoch=epoch))
    model.train()
    for step, batch in zip(range(size.steps), batches, strict=False):
        set_learning_rate(optimizer, learning_rate(step, size.steps, config))
        seed_everything(config.seed, step, 0)
        if not stepper([Batch.of([samples[index] for index in batch], masks=True)]).applied:
            raise RuntimeError(f"step {step} was not finite at rate {config.learning_rate}")


def load_base_with_dropout() -> nn.Module:
    """sam3-tiny's weights in an architecture with the official model's dropout and drop-path."""
    architecture = replace(architecture_of(BASE), dropout=0.1, vit_drop_path=0.1)
    model = build_model(architecture)
    upstream.set_activation_checkpointing(model, "off")
    model.load_state_dict(load_base(BASE).state_dict())
    return model.eval()


def _best_rate(variant: Variant, grid: list[dict[str, Any]]) -> float:
    own = [row for row in grid if row["variant"] == (variant.name if variant.grid else DEFAULT.name)]
    return float(max(own, key=lambda row: row["segm_mAP"])["learning_rate"]) if own else variant.rate


def _processes(workers: int, threads: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_process, initargs=(threads,))


def _begin_process(threads: int) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)


# --- measuring ----------------------------------------------------------------------------------------------


def measure_base(split: Split) -> dict[str, Any]:
    return measure(load_base(BASE), split)


def measure(model: Any, split: Split) -> dict[str, Any]:
    """How well the taught shapes are found, and how often the model fires on what is not there.

    A false positive is an (image, absent prompt) with any detection of at least 0.5 by the official score.
    """
    resolution = architecture_of(BASE).image_size
    predictor = Predictor(model, resolution=resolution)
    words = [*ABSENT_KNOWN, *ABSENT_OTHER]
    settings = EvaluationConfig(absent_prompts=words, absent_images=len(split.dataset.images))
    evaluation = evaluate(predictor, split.dataset, split.folder, split.concepts, OPTIONS, settings)
    metrics, fired = evaluation.metrics, {row.prompt: row.false_alarms / row.images for row in evaluation.absent}
    return {
        **{name: metrics[name] for name in ("segm_mAP", "segm_mAP50", "bbox_mAP", "cgF1")},
        "taught_fpr": metrics["IL_FPR"],  # the taught shapes, on the images without them
        "absent_fpr": mean(fired.values()),
        "absent_known_fpr": mean(fired[word] for word in ABSENT_KNOWN),
        "absent_other_fpr": mean(fired[word] for word in ABSENT_OTHER),
        "absent_pairs": len(fired) * len(split.dataset.images),
        "absent_fpr_by_prompt": fired,
    }


# --- the report ---------------------------------------------------------------------------------------------

COLUMNS = {
    "segm mAP": "segm_mAP",
    "bbox mAP": "bbox_mAP",
    "cgF1": "cgF1",
    "taught FPR": "taught_fpr",
    "absent FPR": "absent_fpr",
    "known words": "absent_known_fpr",
    "other words": "absent_other_fpr",
}


def report(rows: list[dict[str, Any]]) -> None:
    """A Markdown table of means and spreads over seeds, then a line for each target; the last one is for scripts."""
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_variant.setdefault(row["variant"], []).append(row)
    print("\n| " + " | ".join(["variant", "rate", "trainable", "CPU seconds", *COLUMNS]) + " |")
    print("|---" * (4 + len(COLUMNS)) + "|")
    for name, own in by_variant.items():
        cells = [name, "", "", ""]
        if "seed" in own[0]:
            seconds = mean(row["train_cpu_seconds"] for row in own)
            cells[1:] = [f"{own[0]['learning_rate']:g}", f"{own[0]['trainable_parameters']:,}", f"{seconds:.0f}"]
        print("| " + " | ".join([*cells, *(_spread([row[key] for row in own]) for key in COLUMNS.values())]) + " |")
    print()

    def average(variant: Variant, key: str) -> float:
        return mean(float(row[key]) for row in by_variant[variant.name])

    if ALL.name not in by_variant:
        return
    lora, tuned = average(ALL, "segm_mAP"), average(ALL, "absent_fpr")
    if DROPOUT.name in by_variant and DEFAULT.name in by_variant:
        kept, off = average(DROPOUT, "segm_mAP"), average(DEFAULT, "segm_mAP")
        print(f"frozen dropout: mAP {kept:.3f} where it is kept, {off:.3f} where it is off")
    base = by_variant["base"][0]
    print(f"absent prompts: the base fires on {base['absent_fpr']:.3f}, LoRA on everything on {tuned:.3f} of the pairs")
    floor = 1 / base["absent_pairs"]  # a base that never fires still divides
    print(f"learning_absent ratio={tuned / max(base['absent_fpr'], floor):.3f} target=1.00 (met at or below)")
    if FULL.name in by_variant:
        full = average(FULL, "segm_mAP")
        print(f"mAP: LoRA on everything {lora:.3f}, full fine-tuning {full:.3f}, of which {MARGIN} may be missing")
        print(f"learning ratio={lora / max(full - MARGIN, MARGIN):.3f} target=1.00")


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['variant']} at {row['learning_rate']:g}, seed {row['seed']}: segm mAP {row['segm_mAP']:.3f}, "
        f"absent FPR {row['absent_fpr']:.3f}, trained in {row['train_seconds']:.0f} s"
    )


_BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {text}", flush=True)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks learning", description=(__doc__ or "").partition("\n")[0])
    names = [variant.name for variant in VARIANTS]
    default = [variant.name for variant in VARIANTS]
    parser.add_argument("--variants", nargs="+", choices=names, default=default, metavar="NAME", help=", ".join(names))
    parser.add_argument("--grid", action="store_true", help="search the learning rates anew, instead of the known ones")
    parser.add_argument("--train", type=int, default=Size.train, help="training images (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two steps on a few images, to see that it runs")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--output", type=Path, help="JSON file, instead of results/learning.json")
    options = parser.parse_args(arguments)
    if options.output is None and (options.variants != default or options.train != Size.train):
        parser.error("results/learning.json is for the whole benchmark: give --output for a part or another size")
    return options
