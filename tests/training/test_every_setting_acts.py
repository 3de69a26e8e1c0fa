"""Every key of the configuration changes a whole run: none may be accepted and ignored.

The list of keys comes from the schema, so that a new key fails here until it has a case and acts.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file

from sam3_lora.config import COMPONENTS, RunConfig, Section
from sam3_lora.errors import Sam3LoraError
from sam3_lora.events import Event, EventType
from sam3_lora.model.lean import vision_transformer_class
from sam3_lora.synthetic.coco_export import ANNOTATIONS
from sam3_lora.training import absent
from sam3_lora.training.run import train

SHORT = {"training": {"max_steps": 2}, "evaluation": {"baseline": False, "every_epochs": 9}}
Sections = dict[str, dict[str, Any]]


@dataclass
class Outcome:
    """What can be seen of a run from outside; a setting acts if it changes the part that its case names."""

    weights: dict[str, list[float]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    evaluations: list[Any] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    recomputed: int = 0  # calls that activation checkpointing made
    encoded: int = 0  # images that went through the frozen blocks of the vision encoder
    kept: int = 0  # files of features
    loaders: int = 0
    threads: int = 0
    deterministic: bool = False
    tracked: list[tuple[str, str | None]] = field(default_factory=list)  # experiment and name of runs in MLflow
    error: str = ""


@dataclass(frozen=True)
class Case:
    """A changed setting, what it is changed from where the short run will not do, and what must differ."""

    changed: Sections
    seen_in: Callable[[Outcome], object] = lambda outcome: outcome.weights or outcome.error
    plain: Sections = field(default_factory=dict)
    broken_gradients: bool = False


def weights(**changed: dict[str, Any]) -> Case:
    return Case(changed)


def both(one: Sections, other: Sections) -> Sections:
    return {name: {**one.get(name, {}), **other.get(name, {})} for name in {**one, **other}}


ALL_EPOCHS: Sections = {"training": {"max_steps": None}}
FROZEN_VISION: Sections = {"lora": {"apply_to_vision_encoder": False}, "evaluation": {"baseline": True}}
TRACKED: Sections = {"output": {"trackers": ["mlflow"]}}
NO_CROSSES: Sections = {"dataset": {"train_ann_file": f"relabelled/train/{ANNOTATIONS}"}}
NO_VALIDATION_SET: Sections = {"dataset": {"val_img_folder": None, "val_ann_file": None}}
NO_GAIN: Sections = {
    "training": {"max_steps": None, "max_epochs": 3, "learning_rate": 1e-12},
    "evaluation": {"every_epochs": 1},
}
CASES: dict[str, Case] = {
    "lora.rank": weights(lora={"rank": 2}),
    "lora.alpha": weights(lora={"alpha": 32}),
    "lora.dropout": weights(lora={"dropout": 0.3}),
    "lora.target_modules": weights(lora={"target_modules": ["qkv", "proj"]}),
    "lora.use_rslora": weights(lora={"use_rslora": True}),
    "lora.component_rank": weights(lora={"component_rank": {"scoring": 2}}),
    "lora.component_alpha": weights(lora={"component_alpha": {"vision_encoder": 64}}),
    "lora.loraplus_lr_ratio": weights(lora={"loraplus_lr_ratio": 4}),
    **{
        f"lora.apply_to_{name}": weights(lora={f"apply_to_{name}": name in ("text_encoder", "geometry_encoder")})
        for name in COMPONENTS
    },
    "lora.vision_layers": weights(lora={"vision_layers": 1}),
    "dataset.resolution": weights(dataset={"resolution": 70}),
    "dataset.max_ann_per_img": weights(dataset={"max_ann_per_img": 1}),
    "dataset.prompts": weights(dataset={"prompts": {"heart": ["a valentine"]}}),
    "dataset.limit_images": weights(dataset={"limit_images": 3}),
    "dataset.exhaustive": Case({"dataset": {"exhaustive": False}}, plain=NO_CROSSES),
    "dataset.negatives_per_image": Case({"dataset": {"negatives_per_image": 0}}, plain=NO_CROSSES),
    "dataset.generic_negatives": weights(dataset={"generic_negatives": 0}),
    "dataset.max_queries_per_image": weights(dataset={"max_queries_per_image": 1}),
    "dataset.box_prompts": weights(dataset={"box_prompts": 1.0}),
    "dataset.val_fraction": Case(
        {"dataset": {"val_fraction": 0.5}}, lambda o: o.report["best"]["evaluation"]["images"], NO_VALIDATION_SET
    ),
    "dataset.min_scale": weights(dataset={"min_scale": 0.9}),
    "dataset.horizontal_flip": weights(dataset={"horizontal_flip": 1.0}),
    "dataset.color_jitter": weights(dataset={"color_jitter": 0.3}),
    "dataset.augmented_views": Case({"dataset": {"augmented_views": 1}}, plain=ALL_EPOCHS),
    "dataset.transparent_color": Case(
        {"dataset": {"transparent_color": [0, 255, 0]}},
        plain={
            "dataset": {"train_img_folder": "transparent/train", "train_ann_file": f"transparent/train/{ANNOTATIONS}"}
        },
    ),
    "dataset.train_img_folder": weights(dataset={"train_img_folder": "mirrored/train"}),
    "dataset.train_ann_file": weights(dataset={"train_ann_file": f"relabelled/train/{ANNOTATIONS}"}),
    "dataset.val_img_folder": Case({"dataset": {"val_img_folder": "missing"}}, lambda o: o.error),
    "dataset.val_ann_file": Case(
        {"dataset": {"val_ann_file": f"relabelled/valid/{ANNOTATIONS}"}}, lambda o: o.evaluations
    ),
    "training.max_epochs": Case({"training": {"max_epochs": 1}}, lambda o: o.report["steps"], ALL_EPOCHS),
    "training.max_steps": Case({"training": {"max_steps": 1}}, lambda o: o.report["steps"]),
    "training.max_seconds": Case({"training": {"max_seconds": 1e-6}}, lambda o: o.report["steps"]),
    "training.batch_size": weights(training={"batch_size": 3}),
    "training.gradient_accumulation_steps": weights(training={"gradient_accumulation_steps": 2}),
    "training.learning_rate": weights(training={"learning_rate": 5e-4}),
    "training.weight_decay": weights(training={"weight_decay": 0.5}),
    "training.lr_scheduler": Case({"training": {"lr_scheduler": "constant"}}, lambda o: o.rates),
    "training.warmup_steps": Case(
        {"training": {"warmup_steps": 0}}, lambda o: o.rates, {"training": {"max_steps": 10, "max_epochs": 4}}
    ),
    "training.max_grad_norm": weights(training={"max_grad_norm": 0.0}),
    "training.use_amp": weights(training={"use_amp": True}),
    "training.amp_dtype": Case({"training": {"amp_dtype": "float16"}}, plain={"training": {"use_amp": True}}),
    "training.enable_segmentation": Case(
        {"training": {"enable_segmentation": False}}, plain={"evaluation": {"metric": "bbox_mAP"}}
    ),
    "training.mask_points": weights(training={"mask_points": None}),
    "training.frozen_dropout": weights(training={"frozen_dropout": True}),
    "training.activation_checkpointing": Case(
        {"training": {"activation_checkpointing": "on"}}, lambda o: o.recomputed > 0
    ),
    "training.cache_features": Case({"training": {"cache_features": "off"}}, lambda o: o.encoded, FROZEN_VISION),
    "training.feature_cache_gb": Case({"training": {"feature_cache_gb": 1e-6}}, lambda o: o.encoded, FROZEN_VISION),
    "training.num_workers": Case({"training": {"num_workers": 1}}, lambda o: o.loaders),
    "training.deterministic": Case({"training": {"deterministic": True}}, lambda o: o.deterministic),
    "training.seed": weights(training={"seed": 7}),
    "training.max_nonfinite_steps": Case(
        {"training": {"max_nonfinite_steps": 1}}, lambda o: o.error, broken_gradients=True
    ),
    "training.keep_checkpoints": Case({"training": {"keep_checkpoints": 1}}, lambda o: o.files, ALL_EPOCHS),
    "training.device": Case({"training": {"device": "cuda" if not torch.cuda.is_available() else "cpu"}}),
    "training.num_threads": Case(
        {"training": {"num_threads": 2}}, lambda o: o.threads, {"training": {"num_threads": 1}}
    ),
    "evaluation.every_epochs": Case({"evaluation": {"every_epochs": 1}}, lambda o: len(o.evaluations), ALL_EPOCHS),
    "evaluation.metric": Case({"evaluation": {"metric": "bbox_mAP50"}}, lambda o: o.report["metric"]),
    "evaluation.early_stopping_patience": Case(
        {"evaluation": {"early_stopping_patience": 1}}, lambda o: o.report["steps"], NO_GAIN
    ),
    "evaluation.baseline": Case({"evaluation": {"baseline": True}}, lambda o: o.report["base"]),
    "evaluation.max_images": Case(
        {"evaluation": {"max_images": 1}}, lambda o: o.report["best"]["evaluation"]["images"]
    ),
    "evaluation.sample_images": Case(
        {"evaluation": {"sample_images": 1}}, lambda o: [file for file in o.files if "/samples/" in file]
    ),
    "evaluation.absent_prompts": Case(
        {"evaluation": {"absent_prompts": []}}, lambda o: o.report["best"]["evaluation"]["absent_prompts"]
    ),
    "evaluation.absent_images": Case(
        {"evaluation": {"absent_images": 1}}, lambda o: o.report["best"]["evaluation"]["absent_prompts"]
    ),
    "model.base": weights(model={"base": "sam3", "checkpoint": "missing.pt"}),
    "model.checkpoint": Case(
        {"model": {"checkpoint": "other.pt"}}, plain={"model": {"base": "sam3", "checkpoint": "missing.pt"}}
    ),
    "model.adapter": Case({"model": {"adapter": "missing"}}, lambda o: o.error),
    "output.dir": Case({"output": {"dir": "elsewhere"}}, lambda o: o.files),
    "output.feature_cache": Case({"output": {"feature_cache": "features"}}, lambda o: o.kept, FROZEN_VISION),
    "output.tensorboard": Case({"output": {"tensorboard": True}}, lambda o: len(o.files)),
    "output.trackers": Case(TRACKED, lambda o: o.tracked),
    "output.project": Case({"output": {"project": "pallets"}}, lambda o: o.tracked, TRACKED),
    "output.run_name": Case({"output": {"run_name": "first"}}, lambda o: o.tracked, TRACKED),
}


def keys_of(schema: type[Section], prefix: str = "") -> Iterator[str]:
    for name, info in schema.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from keys_of(info.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.fixture(scope="module")
def variants(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of variants of one drawn dataset: other pixels, other labels, transparent images."""
    folder = tmp_path_factory.mktemp("variants")
    for name in ("mirrored", "relabelled", "transparent"):
        shutil.copytree(drawn, folder / name)
    for split in ("train", "valid"):
        for image in (folder / "mirrored" / split).glob("*.jpg"):
            Image.open(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(image)
        _edit(folder / "relabelled" / split / ANNOTATIONS, "annotations", category_id=1)
    noise = np.random.default_rng(0)
    for image in (folder / "transparent" / "train").glob("*.jpg"):
        pixels = Image.open(image).convert("RGBA")
        pixels.putalpha(Image.fromarray(noise.integers(0, 256, pixels.size[::-1], dtype=np.uint8)))
        pixels.save(image, format="PNG")
    return folder


def _edit(file: Path, table: str, **values: object) -> None:
    body = json.loads(file.read_text())
    body[table] = [{**row, **values} for row in body[table]]
    file.write_text(json.dumps(body))


def _runs_of(store: str) -> list[tuple[str, str | None]]:
    client = MlflowClient(store)
    projects = {found.experiment_id: found.name for found in client.search_experiments()}
    return [(projects[run.info.experiment_id], run.info.run_name) for run in client.search_runs(list(projects))]


@pytest.fixture
def run(
    make_config: Callable[..., RunConfig],
    variants: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    poison: Callable[[int], None],
) -> Callable[..., Outcome]:
    monkeypatch.chdir(variants)
    monkeypatch.setattr(absent, "TRACE", 2.0)  # with random weights, everything leaves a trace

    def observe(sections: Sections, broken_gradients: bool) -> Outcome:
        outcome = Outcome()

        def counted(*args: Any, **kwargs: Any) -> Any:
            outcome.recomputed += 1
            return original_checkpoint(*args, **kwargs)

        def reporter(event: Event) -> None:
            if event.type is EventType.METRICS and "train/lr" in event.data["values"]:
                outcome.rates.append(event.data["values"]["train/lr"])
                outcome.loaders = max(outcome.loaders, len(multiprocessing.active_children()))
                outcome.threads = torch.get_num_threads()
                outcome.deterministic = torch.are_deterministic_algorithms_enabled()
            elif event.type is EventType.EVALUATION:
                outcome.evaluations.append(event.data)

        def first_blocks(trunk: Any, images: torch.Tensor, count: int) -> Any:
            outcome.encoded += len(images)
            return original_blocks(trunk, images, count)

        config = make_config("observed", **sections)
        threads = torch.get_num_threads()
        store = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", store)
            original_checkpoint = torch.utils.checkpoint.checkpoint
            patch.setattr(torch.utils.checkpoint, "checkpoint", counted)
            original_blocks = vision_transformer_class().first_blocks
            patch.setattr(vision_transformer_class(), "first_blocks", first_blocks)
            if broken_gradients:
                poison(1)
            try:
                outcome.report = train(config, reporter=reporter).to_dict()
            except Sam3LoraError as error:
                outcome.error = f"{type(error).__name__}: {error}"
            finally:
                torch.set_num_threads(threads)
        outcome.files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
        outcome.kept = len(list(Path("features").rglob("*.safetensors")))
        outcome.tracked = _runs_of(store) if config.output.trackers else []
        last = config.output.dir / "checkpoints" / "best" / "adapter_model.safetensors"
        if last.is_file():
            outcome.weights = {name: value.flatten().tolist() for name, value in load_file(last).items()}
        shutil.rmtree(config.output.dir, ignore_errors=True)
        return outcome

    return observe


def test_every_key_of_the_schema_has_a_case():
    assert sorted(CASES) == sorted(keys_of(RunConfig))


@pytest.mark.parametrize("key", CASES)
def test_setting_acts(key: str, run: Callable[..., Outcome]):
    case = CASES[key]
    section, name = key.split(".")
    assert name in case.changed[section]
    plain = both(SHORT, case.plain)
    one = run(plain, case.broken_gradients)
    other = run(both(plain, case.changed), case.broken_gradients)
    assert case.seen_in(one) != case.seen_in(other)
    if case.seen_in(one) == one.weights:
        assert other.weights or other.error, "the changed run ended without weights and without a named error"
