"""How much memory training needs, found by a step on tensors that have shapes but no values.

Everything that the model does is done: its own modules, with the configured adapters, precision and recomputation,
forward and backward, on torch's fake tensors, and the bytes of all living storages are added up. Only matching, which
needs values, is left out: the losses are taken on as many arbitrary queries as there would be objects.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sam3_lora.lora.inject import Injection, adapter_parameters
from sam3_lora.losses.sam3 import Sam3Loss
from sam3_lora.model.build import build_skeleton
from sam3_lora.model.encoders import Encoders
from sam3_lora.model.memory import free_memory
from sam3_lora.model.upstream import Recomputed, set_activation_checkpointing
from sam3_lora.model.weights import architecture_of, is_large
from sam3_lora.training.setup import Adapted, Data, adapt, amp_dtype_of, choose_device, choose_resolution

if TYPE_CHECKING:
    from sam3_lora.config import RunConfig
    from sam3_lora.model.lean import MaskLogits

log = logging.getLogger(__name__)
ADAM_MOMENTS = 2  # float32 each, beside the gradient
LEAST_FIRST: tuple[Recomputed, ...] = ("off", "encoders", "on")
RECOMPUTED = {"on": "all", "encoders": "those of the encoders", "off": "none"}  # as users read it
MARGIN = 1.1  # estimates were within a tenth
BESIDE_TENSORS = {"cuda": 10**9, "cpu": 2 * 10**9}  # bytes: contexts, workspaces of libraries, fragmentation
ONE_TO_MANY = 4  # queries that the one-to-many matcher gives an object (losses/sam3.py: topk)


@dataclass(frozen=True)
class BatchShape:
    """What a micro-batch holds."""

    images: int
    queries: int
    positives: int  # queries that have objects
    objects: int


def largest_batch(config: RunConfig, data: Data) -> BatchShape:
    """The images with most queries, with most concepts and with most objects, in one micro-batch."""
    options, images = config.dataset, data.train.entries
    queries, present, objects = [], [], []
    for _, kept, annotated in images:
        found = {a.category_id for a in kept}
        positives = sum(not found.isdisjoint(concept.category_ids) for concept in data.concepts)
        absent = sum(annotated.isdisjoint(concept.category_ids) for concept in data.concepts)
        negatives = min(options.negatives_per_image, absent) if options.exhaustive else 0
        queries.append(min(positives + negatives + options.generic_negatives, options.max_queries_per_image))
        present.append(positives)
        objects.append(len(kept))
    size = min(config.training.batch_size, len(images))
    most = (sum(sorted(values, reverse=True)[:size]) for values in (queries, present, objects))
    return BatchShape(size, *most)


def assumed_batch(config: RunConfig) -> BatchShape:
    """A micro-batch where there are no annotations to look at: two categories and four objects in each image."""
    options, size = config.dataset, config.training.batch_size
    negatives = options.negatives_per_image if options.exhaustive else 0
    queries = min(2 + negatives + options.generic_negatives, options.max_queries_per_image)
    return BatchShape(size, size * queries, size * min(2, queries), size * 4)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of tensors at the worst moment of a step.

    Beside them a process needs about a gigabyte, and on a CPU the workspaces of its libraries: 2 GB more, measured with
    SAM3 at 1008 pixels, where the tensors themselves were within 2 % of the estimate.
    """

    weights: int
    adapters: int  # with gradients and optimiser state
    activations: int

    @property
    def peak(self) -> int:
        return self.weights + self.adapters + self.activations

    def needed_on(self, device_type: str) -> int:
        """Bytes that a device of this type should have: with a margin, and what a process has beside its tensors."""
        return int(self.peak * MARGIN) + BESIDE_TENSORS[device_type]

    def to_dict(self) -> dict[str, int]:
        return {**asdict(self), "peak": self.peak}


def adapted_skeleton(
    config: RunConfig, recomputed: Recomputed | None = None, *, device_type: str
) -> tuple[nn.Module, Injection]:
    """The model that a run on such a device would train, without weights, and what is adapted in it.

    Args:
        recomputed: activations that backward recomputes; None: as configured, and as many as can be where that is left
            to the run.

    Raises:
        ConfigError: if switches, targets or resolution do not fit the base.
    """
    resolution = choose_resolution(config.model, config.dataset.resolution)
    model = build_skeleton(architecture_of(config.model.base), resolution=resolution)
    wanted = config.training.activation_checkpointing
    least: Recomputed = "on" if is_large(model) else "off"
    set_activation_checkpointing(model, recomputed or (least if wanted == "auto" else wanted))
    return model, adapt(model, config.lora, config.training, amp_dtype_of(config.training, device_type))


def estimate_memory(model: nn.Module, config: RunConfig, batch: BatchShape, *, device_type: str) -> MemoryEstimate:
    """Peak memory of a training step on one device of this type, which need not be here.

    Args:
        model: what `adapted_skeleton` made of the configuration; of no use afterwards.
    """
    resolution = choose_resolution(config.model, config.dataset.resolution)
    adapters = sum(p.numel() for p in adapter_parameters(model).values())
    loss = Sam3Loss(masks=config.training.enable_segmentation, mask_points=config.training.mask_points)
    amp_dtype = amp_dtype_of(config.training, device_type)
    living = LivingBytes()
    with FakeTensorMode(allow_non_fake_inputs=True):
        _give_storage(model)
        _without_matching(model, resolution, batch.positives if loss.masks else 0)
        with living:
            for tensor in [*model.parameters(), *model.buffers()]:
                living.watch(tensor)
            held = living.now
            _step(model.train(), loss, batch, resolution, amp_dtype)
    in_optimiser = 4 * adapters * ADAM_MOMENTS
    parameters = 4 * adapters
    gradients = parameters
    return MemoryEstimate(
        weights=held - parameters,
        adapters=parameters + gradients + in_optimiser,
        activations=max(0, living.peak - held - gradients),
    )


@dataclass(frozen=True)
class Inspection:
    """What a run would adapt, recompute and need."""

    injection: Injection
    device_type: str
    recomputed: Recomputed
    memory: MemoryEstimate


def inspect_run(
    config: RunConfig, batch: BatchShape, *, device_type: str | None = None, free: int | None = None
) -> Inspection:
    """What a run would adapt, recompute and need, without weights.

    Args:
        device_type: cpu or cuda, here or not; None: as configured.
        free: bytes that are free there; None: what is free here, or everything is recomputed where there is no such
            device.

    Raises:
        ConfigError: if switches, targets, device or resolution do not fit.
    """
    device = choose_device(config.training.device if device_type is None else "auto")
    kind = device_type or device.type
    if free is None and device.type == kind:
        free = free_memory(device)
    model, injection = adapted_skeleton(config, device_type=kind)
    wanted = config.training.activation_checkpointing
    if wanted == "auto" and is_large(model):
        return Inspection(injection, kind, *least_recomputation(config, batch, kind, free, loaded=False))
    recomputed: Recomputed = "off" if wanted == "auto" else wanted
    return Inspection(injection, kind, recomputed, estimate_memory(model, config, batch, device_type=kind))


def choose_recomputation(config: RunConfig, adapted: Adapted, data: Data) -> Recomputed | None:
    """What to recompute so that the largest batch fits into the memory that is free beside the loaded model.

    None where there is no choice: it is configured, or the model is small and keeps everything.
    """
    if config.training.activation_checkpointing != "auto" or not is_large(adapted.model):
        return None
    batch, free = largest_batch(config, data), free_memory(adapted.device)
    return least_recomputation(config, batch, adapted.device.type, free, loaded=True)[0]


def least_recomputation(
    config: RunConfig, batch: BatchShape, device_type: str, free: int | None, *, loaded: bool
) -> tuple[Recomputed, MemoryEstimate]:
    """The least that must be recomputed to fit into so many bytes, and the memory that a step takes then.

    Everything, where nothing less fits or the free memory is not known (None).

    Args:
        loaded: the free memory is what is left beside the model's weights.
    """
    for recomputed in LEAST_FIRST if free is not None else LEAST_FIRST[-1:]:
        model = adapted_skeleton(config, recomputed, device_type=device_type)[0]
        memory = estimate_memory(model, config, batch, device_type=device_type)
        needed = int((memory.peak - memory.weights) * MARGIN) + BESIDE_TENSORS[device_type]
        needed += 0 if loaded else memory.weights
        if free is not None:
            log.info("activations recomputed: %s: %.1f of %.1f GB", recomputed, needed / 1e9, free / 1e9)
        if free is None or needed <= free:
            break
    return recomputed, memory


def _step(model: Any, loss: Sam3Loss, batch: BatchShape, resolution: int, amp_dtype: torch.dtype | None) -> None:
    from sam3.model.data_misc import FindStage

    images = torch.empty(batch.images, 3, resolution, resolution)
    segments = torch.empty(batch.objects, resolution, resolution, dtype=torch.bool)
    encoder = model.backbone.language_backbone.encoder
    language = {
        "language_features": torch.empty(encoder.context_length, batch.queries, model.hidden_dim),
        "language_mask": torch.zeros(batch.queries, encoder.context_length, dtype=torch.bool),
    }
    stage = FindStage(
        img_ids=torch.arange(batch.queries) % batch.images,
        text_ids=torch.arange(batch.queries),
        input_boxes=None,
        input_boxes_mask=None,
        input_boxes_label=None,
        input_points=None,
        input_points_mask=None,
    )
    with nullcontext() if amp_dtype is None else torch.autocast("cpu", dtype=amp_dtype):
        outputs = model.forward_grounding(
            backbone_out={**Encoders(model).images(images), **language},
            find_input=stage,
            find_target=None,
            geometric_prompt=model._get_dummy_prompt(batch.queries),
        )
        total = torch.stack([value.float().mean() for value in _trained(outputs)]).sum()
        if loss.masks and batch.positives:
            total = total + _mask_losses(loss, outputs, segments)
    del outputs
    torch.autograd.backward(total)


def _trained(outputs: dict[str, Any]) -> Iterator[Tensor]:
    for layer in [outputs, *outputs.get("aux_outputs", [])]:
        for name, value in layer.items():
            if name.startswith(("pred_", "presence_logit")) and isinstance(value, Tensor) and value.requires_grad:
                yield value


def _mask_losses(loss: Sam3Loss, outputs: dict[str, Any], segments: Tensor) -> Tensor:
    """The mask losses of upstream on the first queries instead of the matched ones."""
    from sam3.train.loss.loss_fns import dice_loss, sigmoid_focal_loss

    masks = next(part for part in loss.wrapper.loss_fns_find if hasattr(part, "num_sample_points"))
    total: Tensor = outputs["semantic_seg"].new_zeros(())
    for name, repeats in (("pred_masks", 1), ("pred_masks_o2m", ONE_TO_MANY)):
        predicted = _first_masks(outputs[name], len(segments) * repeats)
        wanted = segments.repeat(repeats, 1, 1)[: len(predicted)].to(predicted)
        if masks.num_sample_points is not None:
            values = masks._sampled_loss(predicted, wanted, 1.0)
            total = total + values["loss_mask"] + values["loss_dice"]
            continue
        resized = nn.functional.interpolate(predicted[:, None].float(), wanted.shape[-2:], mode="bilinear")
        flat, truth = resized[:, 0].flatten(1), wanted.flatten(1)
        total = total + sigmoid_focal_loss(flat, truth, 1.0, triton=False) + dice_loss(flat, truth, 1.0)
    semantic = nn.functional.interpolate(outputs["semantic_seg"].float(), segments.shape[-2:], mode="bilinear")
    flat = semantic.flatten(1)
    truth = torch.zeros_like(flat, requires_grad=False)
    focal: Tensor = sigmoid_focal_loss(flat, truth, 1.0, triton=False)
    dice: Tensor = dice_loss(flat, truth, 1.0)
    return total + focal + dice


def _first_masks(masks: MaskLogits, count: int) -> Tensor:
    """Logits of so many queries, as evenly from all prompts as can be."""
    shares = torch.arange(count).tensor_split(len(masks.pixels_BCHW))
    each = zip(masks.queries_BQC, shares, strict=True)
    return masks.product([queries_QC[: len(share)] for queries_QC, share in each])


def _give_storage(model: nn.Module) -> None:
    """Parameters off the meta device, and all buffers, become fake tensors that count."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _without_matching(model: Any, resolution: int, prompts_with_masks: int) -> None:
    """Leave out what needs values in upstream's forward: matching, and the grid's size, read from a tensor."""
    decoder = model.transformer.decoder
    grid = resolution // model.backbone.vision_backbone.trunk.patch_embed.proj.kernel_size[0]
    matrix, model._device = decoder._get_rpb_matrix, torch.device("cpu")
    decoder._get_rpb_matrix = lambda boxes, size: matrix(boxes, (grid, grid))
    model._compute_matching, model.back_convert = (lambda out, targets: None), (lambda targets: None)
    model.prompts_with_masks = lambda target: torch.arange(prompts_with_masks)


class LivingBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all storages that operations make, and takes off those that are gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.watch(leaf)
        return result

    def watch(self, tensor: Tensor) -> None:
        """Count a tensor's storage as long as it lives."""
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(storage)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size
