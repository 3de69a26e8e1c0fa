"""The run configuration: one schema for `train.py --config`, for the `config` of a job, and for the trainer.

`RunConfig` is a run on this machine (with paths); `JobConfig` is the same without what the service decides
(paths, base model, device). Every key acts; an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from sam3_lora.errors import ConfigError

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "linear1", "linear2")
# Native names of SAM3's modules, accepted for the ones above.
TARGET_ALIASES: dict[str, tuple[str, ...]] = {
    "all": TARGETS,
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "proj": ("out_proj",),
    "fc1": ("linear1",),
    "c_fc": ("linear1",),
    "fc2": ("linear2",),
    "c_proj": ("linear2",),
}
COMPONENTS = (
    "vision_encoder",
    "text_encoder",
    "geometry_encoder",
    "detr_encoder",
    "detr_decoder",
    "mask_decoder",
    "scoring",
)
# Things that few datasets show, from different walks of life.
ABSENT_PROMPTS = ("giraffe", "submarine", "trombone", "cactus", "chandelier", "penguin", "tractor", "pineapple")


def uninstalled(trackers: Iterable[TrackerName]) -> list[TrackerName]:
    """Those whose library is not installed; it has the tracker's name, as has the extra that brings it."""
    return [name for name in trackers if importlib.util.find_spec(name) is None]


def _number(value: object) -> object:
    """`1e-4` is a string to YAML 1.1; users mean a number."""
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        return float(value)
    return value


BaseName = Literal["sam3", "sam3-tiny"]
TrackerName = Literal["mlflow", "wandb"]
Metric = Literal["segm_mAP", "segm_mAP50", "bbox_mAP", "bbox_mAP50", "cgF1"]
Float = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Rank = Annotated[int, Field(ge=1, le=256)]
Alpha = Annotated[float, BeforeValidator(_number), Field(gt=0, le=4096, allow_inf_nan=False)]
Rgb = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]


class Section(BaseModel):
    """Base of every section: immutable, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    def __hash__(self) -> int:
        """Also of lists and dicts inside: pydantic deep-copies a default at every use unless it can be hashed."""
        return hash((type(self), self.model_dump_json()))


class LoraConfig(Section):
    """Where adapters go and how large they are."""

    rank: Rank = 8
    """Rank of every adapter."""
    alpha: Alpha = 16.0
    """Scale: an adapter's output is multiplied by alpha / rank (alpha / sqrt(rank) with use_rslora)."""
    dropout: Float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' inputs while training."""
    target_modules: list[str] = Field(default=list(TARGETS), min_length=1, max_length=32)
    """Which projections: q_proj k_proj v_proj out_proj linear1 linear2, or all; native names are aliases."""
    use_rslora: bool = False
    """Rank-stabilised scaling (arXiv 2312.03732)."""
    component_rank: dict[str, Rank] = {}
    """Rank of single components, by the name in their switch (`vision_encoder: 16`), instead of `rank`."""
    component_alpha: dict[str, Alpha] = {}
    """Alpha of single components, instead of `alpha`."""
    loraplus_lr_ratio: Float = Field(1.0, ge=1, le=1024)
    """Learning rate of the B matrices over that of the A matrices (LoRA+, arXiv 2402.12354); 1: the same."""
    apply_to_vision_encoder: bool = True
    """Adapt the ViT blocks."""
    apply_to_text_encoder: bool = False
    """Adapt the text encoder. Erodes the discrimination between prompts; off by default."""
    apply_to_geometry_encoder: bool = False
    """Adapt the encoder of box prompts."""
    apply_to_detr_encoder: bool = True
    """Adapt the image-text fusion encoder."""
    apply_to_detr_decoder: bool = True
    """Adapt the query decoder."""
    apply_to_mask_decoder: bool = True
    """Adapt the segmentation head."""
    apply_to_scoring: bool = True
    """Adapt the dot-product scoring of queries against the prompt."""
    vision_layers: int | None = Field(None, ge=1, le=64)
    """Adapt only the last n vision blocks: backward stops there, which saves memory. None: all blocks."""

    @field_validator("target_modules")
    @classmethod
    def _known_targets(cls, names: list[str]) -> list[str]:
        known = [*TARGETS, *TARGET_ALIASES]
        for name in names:
            if name not in known:
                raise ValueError(f"unknown target module {name!r}{_nearest(name, known)}; known: {', '.join(known)}")
        return names

    @model_validator(mode="after")
    def _something_adapted(self) -> LoraConfig:
        if not self.components:
            raise ValueError("every apply_to_... switch is off: there is nothing to train")
        for key, values in (("component_rank", self.component_rank), ("component_alpha", self.component_alpha)):
            for name in values:
                if name not in COMPONENTS:
                    known = ", ".join(COMPONENTS)
                    raise ValueError(
                        f"{key}: unknown component {name!r}{_nearest(name, list(COMPONENTS))}; known: {known}"
                    )
                if name not in self.components:
                    raise ValueError(f"{key} names {name}, but apply_to_{name} is false")
        return self

    @property
    def components(self) -> tuple[str, ...]:
        """The components that are switched on, in the order of `COMPONENTS`."""
        return tuple(name for name in COMPONENTS if getattr(self, f"apply_to_{name}"))

    @property
    def targets(self) -> tuple[str, ...]:
        """Target modules with aliases resolved, each once, in the order of `TARGETS`."""
        wanted = {target for name in self.target_modules for target in TARGET_ALIASES.get(name, (name,))}
        return tuple(target for target in TARGETS if target in wanted)

    def incompatible_with(self, earlier: LoraConfig) -> list[str]:
        """Fields in which adapters of this configuration mean something else than those of an earlier one."""
        free = ("dropout", "loraplus_lr_ratio", "target_modules")
        differing = [f for f in LoraConfig.model_fields if f not in free and getattr(self, f) != getattr(earlier, f)]
        return differing + (["target_modules"] if self.targets != earlier.targets else [])

    def rank_of(self, component: str) -> int:
        """Rank of the adapters of a component."""
        return self.component_rank.get(component, self.rank)

    def scale_of(self, component: str) -> float:
        """Factor on the output of a component's adapters."""
        rank = self.rank_of(component)
        return self.component_alpha.get(component, self.alpha) / (rank**0.5 if self.use_rslora else rank)


class DatasetOptions(Section):
    """How images and annotations become training queries."""

    resolution: int | None = Field(None, ge=28, le=4032)
    """Side of the square network input in pixels; None: the base model's own (1008 for sam3)."""
    max_ann_per_img: int = Field(200, ge=1, le=2000)
    """Objects of one category kept per image; more are dropped by size, smallest first, with a warning."""
    prompts: dict[str, list[str]] = Field(default={}, max_length=1000)
    """Texts for a category, one drawn per training query, the first used in evaluation. Default: its name."""
    limit_images: int | None = Field(None, ge=1, lt=2**31)
    """Train on so many images only, drawn by the seed (few-shot); None: all. Validation is not limited."""
    exhaustive: bool = True
    """Whether every object of every category is annotated. If not, absent categories are not taught as absent."""
    negatives_per_image: int = Field(8, ge=0, le=200)
    """Absent categories asked per training image, drawn by (seed, epoch, image)."""
    generic_negatives: int = Field(1, ge=0, le=8)
    """Everyday words asked per training image as absent, of which the base model has found no trace in it: they keep
    a model tuned on few categories from finding them everywhere. 0: none, and the base model is not asked."""
    max_queries_per_image: int = Field(32, ge=1, le=400)
    """Cap on queries of a training image; positives are kept before negatives."""
    box_prompts: Float = Field(0.0, ge=0, le=1)
    """Share of training queries with objects that also show one of them as a box, half of these without the text."""
    val_fraction: Float = Field(0.2, ge=0, lt=1)
    """Share of the training images split off for validation (seeded) when there is no validation set; 0: none."""
    min_scale: Float = Field(480 / 1008, gt=0.1, le=1)
    """Training images are resized to a random square of this fraction of `resolution` up to all of it, then padded."""
    horizontal_flip: Float = Field(0.0, ge=0, le=1)
    """Probability of mirroring a training image."""
    color_jitter: Float = Field(0.0, ge=0, le=0.9)
    """Largest relative change of brightness, contrast and saturation of a training image."""
    augmented_views: int | None = Field(None, ge=1, le=1000)
    """Different augmented versions of each training image, which come round again; None: a new one in every epoch.
    With a few, the work of frozen layers is done once for each (`training.cache_features`)."""
    transparent_color: Rgb = [255, 255, 255]
    """What shows through transparent pixels."""

    @field_validator("prompts")
    @classmethod
    def _texts(cls, prompts: dict[str, list[str]]) -> dict[str, list[str]]:
        for category, texts in prompts.items():
            if not texts or not all(text.strip() for text in texts):
                raise ValueError(f"category {category!r} needs at least one prompt, and none may be blank")
        return prompts


class DatasetConfig(DatasetOptions):
    """Where the data lies, and how it becomes training queries."""

    train_img_folder: Path = Field(strict=False)
    """Folder that the `file_name`s of the training annotations are relative to."""
    train_ann_file: Path = Field(strict=False)
    """COCO JSON of the training set."""
    val_img_folder: Path | None = Field(None, strict=False)
    """Folder of the validation images."""
    val_ann_file: Path | None = Field(None, strict=False)
    """COCO JSON of the validation set; None: `val_fraction` of the training images."""

    @model_validator(mode="after")
    def _val_is_complete(self) -> DatasetConfig:
        if (self.val_img_folder is None) != (self.val_ann_file is None):
            raise ValueError("val_img_folder and val_ann_file are given together or not at all")
        return self


class TrainingConfig(Section):
    """The optimisation."""

    max_epochs: int = Field(20, ge=1, le=10_000)
    """Passes over the training images."""
    max_steps: int | None = Field(None, ge=1, le=10_000_000)
    """Optimiser steps after which training ends, if that is earlier."""
    max_seconds: Float | None = Field(None, gt=0, le=1e9)
    """Seconds of training after which it ends early and well: evaluated, saved, succeeded. None: no limit."""
    batch_size: int = Field(2, ge=1, le=256)
    """Images per micro-batch and process (the model's batch is their number of queries)."""
    gradient_accumulation_steps: int = Field(1, ge=1, le=1024)
    """Micro-batches per optimiser step; the loss is their mean."""
    learning_rate: Float = Field(1e-4, gt=0, le=1)
    """Peak learning rate of AdamW."""
    weight_decay: Float = Field(0.0, ge=0, le=1)
    """AdamW's decoupled weight decay on adapters."""
    lr_scheduler: Literal["cosine", "linear", "constant", "inverse_sqrt"] = "cosine"
    """Course of the learning rate after warm-up."""
    warmup_steps: int = Field(20, ge=0, le=1_000_000)
    """Optimiser steps of linear warm-up (at most a tenth of all steps)."""
    max_grad_norm: Float = Field(0.1, ge=0, le=1e6)
    """Gradients are clipped to this L2 norm; 0: not clipped."""
    use_amp: bool = True
    """Automatic mixed precision. A device without instructions for bfloat16 (a CPU with AVX2 alone, a GPU before
    Ampere) trains in float32 instead, and the run says so: emulated, bfloat16 is many times slower."""
    amp_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """Number format of mixed precision; float16 (CUDA only) uses a gradient scaler."""
    enable_segmentation: bool = True
    """Train masks; False: boxes and presence only."""
    mask_points: int | None = Field(12544, ge=64, le=1_000_000)
    """Points sampled per mask by the mask loss (arXiv 2112.01527); None: every pixel."""
    frozen_dropout: bool = False
    """Keep upstream's dropout and drop-path inside frozen modules. Off learns better (`benchmarks/README.md`), and
    trains faster and leaner."""
    activation_checkpointing: Literal["auto", "on", "encoders", "off"] = "auto"
    """Recompute activations in backward to save memory: all, those of the encoders, or none; auto: as few as the free
    memory allows, by an estimate."""
    cache_features: Literal["auto", "on", "off"] = "auto"
    """Keep what the vision encoder's blocks before the first adapted one make of images that come again: those of
    validation, and of training where they are not augmented or `dataset.augmented_views` is set. on: fail where
    nothing of training could be kept."""
    feature_cache_gb: Float | None = Field(None, gt=0, le=100_000)
    """Most that is kept by each GPU's process, in gigabytes (SAM3: 0.01 for each image and view, twice that with
    adapted vision blocks); None: a quarter of what is free."""
    num_workers: int = Field(2, ge=0, le=64)
    """Processes that load and transform images, for each GPU."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of everything random."""
    deterministic: bool = False
    """Only algorithms that give the same bits in every run on the same machine: slower on CUDA; CPU runs always are."""
    max_nonfinite_steps: int = Field(10, ge=1, le=10_000)
    """Steps with a non-finite loss or gradient are skipped; so many in a row end the run."""
    keep_checkpoints: int = Field(2, ge=1, le=1000)
    """Epoch checkpoints kept, besides the best."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: CUDA if there is a device."""
    num_threads: int | None = Field(None, ge=1, le=512)
    """CPU threads of torch; None: torch's own choice."""


class EvaluationConfig(Section):
    """Validation after epochs, and the choice of the best checkpoint."""

    every_epochs: int = Field(1, ge=1, le=10_000)
    """Epochs between validations; the last epoch is always validated."""
    metric: Metric = "segm_mAP"
    """What makes a checkpoint the best (bbox_mAP where no masks are trained)."""
    early_stopping_patience: int | None = Field(None, ge=1, le=10_000)
    """Validations without a better metric after which training ends; None: never."""
    baseline: bool = True
    """Evaluate the untuned base model on the same data first."""
    max_images: int | None = Field(None, ge=1, lt=2**31)
    """Validate on the first so many images (by id); None: all."""
    sample_images: int = Field(8, ge=0, le=64)
    """Validation images shown in the report and as samples, those with most mistakes first. Up to six more, always the
    same, are shown as they were seen after each epoch (of many epochs, after some twenty)."""
    absent_prompts: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        default=list(ABSENT_PROMPTS), max_length=100
    )
    """Things that are in none of the images: how often the model reports them is `absent_FPR`. Those that share a
    word with a category are left out."""
    absent_images: int = Field(20, ge=1, le=10_000)
    """Images that `absent_prompts` are asked about: the first so many."""


class ModelConfig(Section):
    """Which base model is adapted."""

    base: BaseName = "sam3"
    """sam3: the official model. sam3-tiny: the small base shipped here for trying the system."""
    checkpoint: Path | None = Field(None, strict=False)
    """Local file of official weights (`sam3.pt`); None: the hub (facebook/sam3, gated). Not for sam3-tiny."""
    adapter: Path | None = Field(None, strict=False)
    """Folder of an earlier adapter of the same base, targets and ranks to start from; None: from the base."""


class OutputConfig(Section):
    """Where a run writes."""

    dir: Path = Field(Path("runs/sam3-lora"), strict=False)
    """Run directory: configuration, logs, checkpoints, report."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    trackers: list[TrackerName] = []
    """Where configuration and metrics are sent as well: mlflow, wandb. Each takes its own environment variables."""
    project: str = Field("sam3-lora", min_length=1, max_length=128)
    """Experiment of MLflow, project of Weights & Biases."""
    run_name: str | None = Field(None, min_length=1, max_length=128)
    """What trackers call the run; None: the name of `dir`."""

    @field_validator("trackers")
    @classmethod
    def _once(cls, names: list[TrackerName]) -> list[TrackerName]:
        return list(dict.fromkeys(names))

    feature_cache: Path | None = Field(None, strict=False)
    """Folder where features of frozen layers are kept, for later runs with the same base too; None: in memory."""


class JobConfig(Section):
    """What a client of the service may choose."""

    lora: LoraConfig = LoraConfig()
    dataset: DatasetOptions = DatasetOptions()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _consistent(self) -> JobConfig:
        if self.evaluation.metric.startswith("segm") and not self.training.enable_segmentation:
            raise ValueError(
                "evaluation.metric needs masks, but training.enable_segmentation is false: choose bbox_mAP"
            )
        return self


class RunConfig(JobConfig):
    """A complete run on this machine."""

    model: ModelConfig = ModelConfig()
    dataset: DatasetConfig
    output: OutputConfig = OutputConfig()


def _paths_of(section: Any) -> frozenset[str]:
    fields = section.model_fields.items()
    return frozenset(name for name, field in fields if Path in (field.annotation, *get_args(field.annotation)))


_PATHS = {name: _paths_of(field.annotation) for name, field in RunConfig.model_fields.items()}


def without_paths(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """What a run resolved (`{config, ...}`) without the paths in `config`, which lead nowhere on other machines."""
    config = resolved.get("config")
    if not isinstance(config, dict):
        return dict(resolved)
    kept = {
        section: {name: value for name, value in values.items() if name not in _PATHS[section]}
        if section in _PATHS and isinstance(values, dict)
        else values
        for section, values in config.items()
    }
    return {**resolved, "config": kept}


class ComparedModel(Section):
    """A model to measure: an adapter on its base, or a base alone."""

    name: str
    """What the report calls it."""
    base: BaseName
    """Its base."""
    adapter: Path | None = Field(None, strict=False)
    """Adapter folder; None: the base alone."""


class ComparisonConfig(Section):
    """Two models that are measured on the same images."""

    models: list[ComparedModel] = Field(min_length=2, max_length=2)
    """The measure, and the one that is judged by it."""
    images: Path = Field(strict=False)
    """Folder that the annotations' file names are relative to."""
    annotations: Path = Field(strict=False)
    """COCO JSON."""
    checkpoint: Path | None = Field(None, strict=False)
    """Local file of official weights (`sam3.pt`); None: the hub."""
    max_images: int | None = Field(None, ge=1, lt=2**31)
    """Measure on the first so many images (by id); None: all."""
    metric: Metric = "segm_mAP"
    """The metric of the report's headline."""
    title: str
    """Of the report."""
    facts: dict[str, str] = {}
    """Label -> text, shown at the top of the report."""
    output: Path = Field(strict=False)
    """Folder to write."""


C = TypeVar("C", bound=Section)


def parse(schema: type[C], values: object) -> C:
    """Validate plain values against a schema of this module.

    Raises:
        ConfigError: with every fault as `{pointer, code, message}`; pointers are RFC 6901.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        faults = faults_of(schema, error)
        summary = "; ".join(f"{fault['pointer'] or '/'}: {fault['message']}" for fault in faults[:5])
        raise ConfigError(f"invalid configuration: {summary}", errors=faults) from None


def faults_of(schema: type[BaseModel], error: ValidationError) -> list[dict[str, str]]:
    """Every fault of a validation error as `{pointer, code, message}`, with the nearest known key for unknown ones."""
    faults = []
    for item in error.errors(include_url=False):
        path = [str(part) for part in item["loc"]]
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            known = _keys_at(schema, path[:-1])
            message = f"unknown key {path[-1]!r}{_nearest(path[-1], known)}"
        pointer = "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)
        faults.append({"pointer": pointer, "code": item["type"], "message": message})
    return faults


def load(path: Path) -> RunConfig:
    """Read a YAML run configuration.

    Raises:
        ConfigError: if the file cannot be read, is not YAML, or has faults.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    return parse(RunConfig, values)


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _keys_at(schema: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = schema.model_fields.get(part)
        inner = [] if field is None else [field.annotation, *get_args(field.annotation)]
        models = [t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)]
        if not models:
            return []
        schema = models[0]
    return list(schema.model_fields)
