"""What a run needs before its first step: device, data, model with adapters."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import torch
from torch import nn

from sam3_lora.coco import schema
from sam3_lora.coco.schema import CocoDataset
from sam3_lora.config import DatasetConfig, LoraConfig, ModelConfig, RunConfig, TrainingConfig
from sam3_lora.data.concepts import Concept, default_text, find_concepts
from sam3_lora.data.dataset import TrainingSet, split_off_validation, subset
from sam3_lora.errors import ConfigError, DatasetError
from sam3_lora.lora.adapter import AdapterInfo, fingerprint, start_from
from sam3_lora.lora.inject import Injection, inject
from sam3_lora.lora.layers import LowRank
from sam3_lora.model.encoders import count_frozen_blocks
from sam3_lora.model.features import FolderStore, MemoryStore
from sam3_lora.model.memory import free_memory
from sam3_lora.model.precision import computes_bfloat16, hold_frozen_weights
from sam3_lora.model.weights import architecture_of, load_base

if TYPE_CHECKING:
    from sam3_lora.coco.schema import Category
    from sam3_lora.model.features import FeatureStore

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Data:
    """Training samples, and the validation set as annotated (None: a run without validation)."""

    train: TrainingSet
    concepts: list[Concept]
    validation: CocoDataset | None
    validation_folder: Path
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Adapted:
    """The base model with fresh adapters, on its device."""

    model: nn.Module
    injection: Injection
    info: AdapterInfo
    device: torch.device
    amp_dtype: torch.dtype | None  # None: full precision


def choose_device(name: Literal["auto", "cpu", "cuda"], local_rank: int = 0) -> torch.device:
    """The CPU, or this process's GPU: that of its number among the processes of the machine.

    Raises:
        ConfigError: where CUDA is asked for but not there, or there are fewer GPUs than processes.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        fault = {"pointer": "/training/device", "code": "unavailable", "message": "there is no CUDA device"}
        raise ConfigError("training.device is cuda, but there is no CUDA device here", errors=[fault])
    if name == "cpu" or not available:
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        message = (
            f"{torch.cuda.device_count()} GPUs for more processes: lower resources.gpus (torchrun: --nproc-per-node)"
        )
        raise ConfigError(message, errors=[{"pointer": "/training/device", "code": "unavailable", "message": message}])
    torch.cuda.set_device(local_rank)  # collectives and kernels without a device argument go there
    return torch.device("cuda", local_rank)


def choose_resolution(model: ModelConfig, wanted: int | None) -> int:
    """The configured resolution, or the base's own.

    Raises:
        ConfigError: if it does not suit the base's patches and windows.
    """
    architecture = architecture_of(model.base)
    resolution = wanted or architecture.image_size
    if problem := architecture.check_resolution(resolution):
        fault = {"pointer": "/dataset/resolution", "code": "unsuitable", "message": problem}
        raise ConfigError(f"dataset.resolution: {problem}", errors=[fault])
    return resolution


def prepare_data(config: RunConfig, resolution: int) -> Data:
    """Read the annotations, split off validation where none is given, and check that there is work.

    Raises:
        DatasetError: if files are missing or malformed, or nothing can be trained on.
    """
    options = config.dataset
    training = schema.load(options.train_ann_file)
    if all(annotation.is_crowd for annotation in training.annotations):
        raise DatasetError(
            f"{options.train_ann_file.name} has no object to learn from",
            hint="a model that is only ever told what is absent learns to find nothing; check the export",
        )
    validation, folder = _validation(options)
    notices = []
    if validation is not None:
        validation, unknown_names = _in_categories_of(training, validation)
        if unknown_names:
            notices.append(f"categories {unknown_names} are only in the validation set: not measured")
    if validation is None and options.val_fraction > 0:
        training, validation = split_off_validation(training, options.val_fraction, config.training.seed)
        folder = options.train_img_folder
        notices.append(f"no validation set given: {len(validation.images)} training images are held out for it")
    if validation is None:
        notices.append("no validation: the last checkpoint counts as the best, and nothing is measured")
    if options.limit_images is not None:
        training, notice = _few(training, options.limit_images, config.training.seed)
        notices.append(notice)
    concepts = find_concepts(training, options.prompts)
    unknown = sorted(set(options.prompts) - {category.name for category in training.categories.values()})
    if unknown:
        fault = {"pointer": "/dataset/prompts", "code": "unknown_category", "message": f"no category {unknown}"}
        raise ConfigError(f"dataset.prompts names categories that the data lacks: {unknown}", errors=[fault])
    notices += _about_categories(training, concepts)
    train = TrainingSet(
        training,
        options.train_img_folder,
        concepts,
        options,
        resolution=resolution,
        masks=config.training.enable_segmentation,
        seed=config.training.seed,
    )
    return Data(train, concepts, validation, folder, tuple(notices))


def _about_categories(training: CocoDataset, concepts: list[Concept]) -> list[str]:
    """What is done with categories that are not simply asked for by their name."""
    notices = []
    if training.unused_super_category is not None:
        notices.append(f"category {training.unused_super_category!r} is only the others' super-category: left out")
    drawn = {annotation.category_id for annotation in training.annotations}
    for concept in concepts:
        if len(concept.category_ids) > 1:
            notices.append(f"categories {list(concept.category_ids)} share the text {concept.texts[0]!r}: one concept")
        if drawn.isdisjoint(concept.category_ids):
            notices.append(f"category {concept.name!r} has no object in the training set: it is only asked as absent")
    return notices


def _few(training: CocoDataset, count: int, seed: int) -> tuple[CocoDataset, str]:
    """A seeded choice of `count` images that hold an object, and a notice about it."""
    annotated = sorted({a.image_id for a in training.annotations if not a.is_crowd}, key=str)
    chosen = np.random.default_rng(seed).permutation(len(annotated))[:count]
    notice = f"dataset.limit_images: {len(chosen)} of {len(annotated)} annotated training images are used"
    return subset(training, {annotated[i] for i in chosen}), notice


def _validation(options: DatasetConfig) -> tuple[CocoDataset | None, Path]:
    if options.val_ann_file is None or options.val_img_folder is None:
        return None, options.train_img_folder
    validation = schema.load(options.val_ann_file)
    if not validation.images:
        raise DatasetError("the validation set has no images", hint="leave it out to split one off the training set")
    return validation, options.val_img_folder


def _in_categories_of(training: CocoDataset, validation: CocoDataset) -> tuple[CocoDataset, list[str]]:
    """The validation set with the training set's category ids, and the names of the categories it has for itself.

    Two files may number the same categories differently: names count, as prompts do.
    """

    def text(category: Category) -> str:
        return default_text(category.name).casefold()

    known = {text(category): category.id for category in reversed(training.categories.values())}
    renumbered = {c.id: known[text(c)] for c in validation.categories.values() if text(c) in known}
    own = [category.name for category in validation.categories.values() if category.id not in renumbered]
    if not renumbered:
        raise DatasetError(
            f"training and validation set have no category in common: {own[:10]} are only in the latter",
            hint="name the categories alike in both",
        )
    annotations = [
        replace(a, category_id=renumbered[a.category_id]) for a in validation.annotations if a.category_id in renumbered
    ]
    return CocoDataset(training.categories, validation.images, annotations), own


def prepare_model(config: RunConfig, resolution: int, concepts: list[Concept], local_rank: int = 0) -> Adapted:
    """Load the base, add adapters, move to the device.

    Raises:
        BaseModelError: if the base cannot be had.
        ConfigError: if device, precision, switches or targets do not fit.
    """
    device = choose_device(config.training.device, local_rank)
    amp_dtype = amp_dtype_of(config.training, device.type)
    if amp_dtype is torch.float16 and device.type != "cuda":
        fault = {"pointer": "/training/amp_dtype", "code": "unavailable", "message": "float16 needs CUDA"}
        raise ConfigError("training.amp_dtype float16 needs CUDA; use bfloat16", errors=[fault])
    wanted = config.training.activation_checkpointing
    model = load_base(
        config.model.base,
        checkpoint=config.model.checkpoint,
        resolution=resolution,
        recomputed=None if wanted == "auto" else wanted,
    )
    base_fingerprint = fingerprint(model)
    injection = adapt(model, config.lora, config.training, amp_dtype)
    if config.model.adapter is not None:
        start_from(model, config.model.adapter, config.lora, base_fingerprint)
    info = AdapterInfo(
        base_model=config.model.base,
        base_fingerprint=base_fingerprint,
        resolution=resolution,
        lora=config.lora,
        prompts={concept.name: concept.texts[0] for concept in concepts},
    )
    return Adapted(model.to(device), injection, info, device, amp_dtype)


def amp_dtype_of(config: TrainingConfig, device_type: str) -> torch.dtype | None:
    """Number format of mixed precision; None: full precision, also where the device could only emulate bfloat16."""
    if not config.use_amp or (config.amp_dtype == "bfloat16" and not computes_bfloat16(device_type)):
        return None
    return AMP_DTYPES[config.amp_dtype]


def adapt(model: nn.Module, lora: LoraConfig, training: TrainingConfig, amp_dtype: torch.dtype | None) -> Injection:
    """Add adapters to a base model and make of its frozen part what training wants, in place.

    Args:
        amp_dtype: what `amp_dtype_of` says for the device.

    Raises:
        ConfigError: if a switch or target matches nothing.
    """
    injection = inject(model, lora)
    if not training.frozen_dropout:
        switch_off_frozen_dropout(model)
    hold_frozen_weights(model, amp_dtype)
    return injection


def open_feature_store(config: RunConfig, adapted: Adapted, data: Data) -> FeatureStore | None:
    """Where the work of the vision encoder's frozen blocks is kept; None: nowhere.

    Raises:
        ConfigError: if `training.cache_features` is on, but nothing of training could be kept.
    """
    wanted, frozen = config.training.cache_features, count_frozen_blocks(adapted.model)
    if wanted == "on":
        if frozen == 0:
            _refuse_cache("the first block of the vision encoder is adapted: set lora.vision_layers or switch it off")
        if not data.train.views_repeat:
            _refuse_cache("each epoch augments images anew: set dataset.augmented_views")
        if config.training.frozen_dropout:
            _refuse_cache("dropout makes the features of frozen blocks random: set training.frozen_dropout: false")
    if wanted == "off" or frozen == 0 or config.training.frozen_dropout:
        return None
    folder, limit = config.output.feature_cache, config.training.feature_cache_gb
    if folder is None:
        return MemoryStore(int(limit * 1e9) if limit is not None else free_memory(torch.device("cpu")) // 4)
    info = adapted.info
    depends_on = f"{info.base_fingerprint} {info.resolution} {frozen} {adapted.amp_dtype}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        capacity = int(limit * 1e9) if limit is not None else shutil.disk_usage(folder).free // 4
        return FolderStore(folder, depends_on, capacity)
    except OSError as error:
        raise unwritable("feature_cache", folder, error) from error


def unwritable(key: str, folder: Path, error: OSError) -> ConfigError:
    """The error for a folder of the output section that cannot be written into."""
    fault = {"pointer": f"/output/{key}", "code": "unwritable", "message": str(error)}
    return ConfigError(f"output.{key}: cannot write into {folder}: {error}", errors=[fault])


def _refuse_cache(reason: str) -> NoReturn:
    fault = {"pointer": "/training/cache_features", "code": "impossible", "message": reason}
    raise ConfigError(f"training.cache_features is on, but {reason}", errors=[fault])


def switch_off_frozen_dropout(model: nn.Module) -> None:
    """Set every dropout and drop-path of the frozen modules to zero; the adapters' own stays."""
    own = {id(module.dropout) for module in model.modules() if isinstance(module, LowRank)}
    module: Any
    for module in model.modules():
        if isinstance(module, nn.Dropout) and id(module) not in own:
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        elif hasattr(module, "drop_prob"):  # timm's DropPath
            module.drop_prob = 0.0
