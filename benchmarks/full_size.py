"""SAM3 at its full size with random weights, and the step that public trainers of LoRA on SAM3 take with it.

Time and memory of a step do not depend on the weights' values, so that no download is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3_lora.config import LoraConfig, TrainingConfig
from sam3_lora.data.datapoint import Batch, Query, Sample, normalise
from sam3_lora.lora.inject import adapter_parameters
from sam3_lora.losses.sam3 import Sam3Loss
from sam3_lora.model import upstream
from sam3_lora.model.architecture import SAM3, Architecture
from sam3_lora.model.build import build_model
from sam3_lora.model.encoders import Encoders
from sam3_lora.model.features import MemoryStore
from sam3_lora.model.lean import as_upstream
from sam3_lora.training.optim import build_optimizer
from sam3_lora.training.setup import adapt, amp_dtype_of
from sam3_lora.training.step import Stepper

if TYPE_CHECKING:
    from sam3.model.data_misc import BatchedDatapoint

RANK, ALPHA = 16, 32.0


def random_model(architecture: Architecture = SAM3) -> nn.Module:
    """The image model (840 M parameters) with random weights, in train mode."""
    torch.manual_seed(0)
    return build_model(architecture).train()


def random_batch(images: int, prompts: int, resolution: int, *, seed: int = 0) -> Batch:
    """Noise with `prompts` texts for each image; every second text has two objects, the others are absent."""
    rng = np.random.default_rng(seed)
    samples = []
    for number_of_image in range(images):
        pixels = rng.integers(0, 256, (resolution, resolution, 3), dtype=np.uint8)
        queries: list[Query] = []
        boxes: list[Any] = []
        for number in range(prompts):
            objects: tuple[int, ...] = ()
            if number % 2 == 0:
                objects = (len(boxes), len(boxes) + 1)
                boxes += [rng.uniform([0.3, 0.3, 0.1, 0.1], [0.7, 0.7, 0.4, 0.4]) for _ in objects]
            queries.append(Query(f"thing {number}", objects))
        samples.append(
            Sample(
                image_CHW=normalise(torch.from_numpy(pixels)),
                boxes_N4=torch.tensor(np.array(boxes), dtype=torch.float32),
                masks_NHW=torch.from_numpy(np.stack([_filled(box, resolution) for box in boxes])),
                queries=tuple(queries),
                view=f"image {number_of_image}",
            )
        )
    return Batch.of(samples, masks=True)


def _filled(box: Any, resolution: int) -> Any:
    x, y, width, height = box * resolution
    mask = np.zeros((resolution, resolution), bool)
    mask[int(y - height / 2) : int(y + height / 2), int(x - width / 2) : int(x + width / 2)] = True
    return mask


def our_step(
    model: nn.Module,
    lora: LoraConfig,
    *,
    device: str = "cpu",
    recomputed: upstream.Recomputed = "encoders",
) -> Stepper:
    """The step of a training run with the default settings, and features of frozen blocks kept in memory."""
    upstream.set_activation_checkpointing(model, recomputed)
    config = TrainingConfig()
    amp_dtype = amp_dtype_of(config, torch.device(device).type)
    adapt(model, lora, config, amp_dtype)
    adapters = adapter_parameters(model.to(device))
    return Stepper(
        model,
        Sam3Loss(masks=True, mask_points=config.mask_points),
        build_optimizer(adapters, config),
        list(adapters.values()),
        amp_dtype=amp_dtype,
        max_grad_norm=config.max_grad_norm,
        encoders=Encoders(model, MemoryStore(10**10)),
    )


# --- what public trainers do --------------------------------------------------------------------------------


class PlainLoRA(nn.Module):
    """A frozen linear layer and its low-rank update, in the precision of the weights."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(RANK, base.in_features) / RANK)
        self.b = nn.Parameter(torch.zeros(base.out_features, RANK))

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + F.linear(F.linear(x, self.a), self.b) * (ALPHA / RANK)


class PlainAttention(nn.Module):
    """Multi-head attention as softmax(Q K^T) V, whose weights are materialised; every projection is adapted."""

    def __init__(self, base: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.embed_dim, self.batch_first = base.num_heads, base.embed_dim, base.batch_first
        self.dropout = nn.Dropout(base.dropout)
        self.q, self.k, self.v, self.out = (PlainLoRA(nn.Linear(base.embed_dim, base.embed_dim)) for _ in range(4))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (self._heads(part, x) for part, x in ((self.q, query), (self.k, key), (self.v, value)))
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        if attn_mask is not None:
            scores = scores + attn_mask.view(*scores.shape)
        if key_padding_mask is not None:
            scores = scores.masked_fill(key_padding_mask[:, None, None], float("-inf"))
        mixed = self.dropout(scores.softmax(-1)) @ v
        output = self.out(mixed.transpose(1, 2).flatten(2))
        return (output if self.batch_first else output.transpose(0, 1)), None

    def _heads(self, projection: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = projection(x)
        return y.view(*y.shape[:2], self.num_heads, -1).transpose(1, 2)


# The vision encoder keeps upstream's fused attention; the text encoder is not adapted.
PLAIN_TARGETS = ("qkv", "proj", "fc1", "fc2", "linear1", "linear2")
PLAIN_COMPONENTS = ("backbone.vision_backbone.trunk", "transformer", "geometry_encoder", "segmentation_head")


def adapt_plainly(model: nn.Module) -> nn.Module:
    """Adapters on vision encoder and detector as public trainers put them."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        if not name.startswith(PLAIN_COMPONENTS):
            continue
        parent, _, child = name.rpartition(".")
        if isinstance(module, nn.MultiheadAttention):
            setattr(model.get_submodule(parent), child, PlainAttention(module))
        elif isinstance(module, nn.Linear) and child in PLAIN_TARGETS:
            setattr(model.get_submodule(parent), child, PlainLoRA(module))
    return model


def official_loss() -> nn.Module:
    """The wrapper as roboflow_v100_full_ft_100_images.yaml (facebookresearch/sam3@99d02f2) spells it out."""
    upstream.install()
    from sam3.train.loss.loss_fns import Boxes, IABCEMdetr, Masks, SemanticSegCriterion
    from sam3.train.loss.sam3_loss import Sam3LossWrapper
    from sam3.train.matcher import BinaryHungarianMatcherV2, BinaryOneToManyMatcher

    return Sam3LossWrapper(  # type: ignore[no-any-return]
        matcher=BinaryHungarianMatcherV2(
            focal=True, cost_class=2.0, cost_bbox=5.0, cost_giou=2.0, alpha=0.25, gamma=2, stable=False
        ),
        o2m_matcher=BinaryOneToManyMatcher(alpha=0.3, threshold=0.4, topk=4),
        o2m_weight=2.0,
        use_o2m_matcher_on_o2m_aux=False,
        normalization="local",
        scale_by_find_batch_size=True,
        loss_fns_find=[
            Boxes(weight_dict={"loss_bbox": 5.0, "loss_giou": 2.0}),
            IABCEMdetr(
                weak_loss=False,
                weight_dict={"loss_ce": 20.0, "presence_loss": 20.0},
                pos_weight=10.0,
                alpha=0.25,
                gamma=2,
                use_presence=True,
                pos_focal=False,
                pad_n_queries=200,
                pad_scale_pos=1.0,
            ),
            Masks(
                focal_alpha=0.25,
                focal_gamma=2.0,
                weight_dict={"loss_mask": 200.0, "loss_dice": 10.0},
                compute_aux=False,
            ),
        ],
        loss_fn_semantic_seg=SemanticSegCriterion(
            presence_head=True,
            presence_loss=False,
            focal=True,
            focal_alpha=0.6,
            focal_gamma=2.0,
            downsample=False,
            weight_dict={"loss_semantic_seg": 20.0, "loss_semantic_presence": 1.0, "loss_semantic_dice": 30.0},
        ),
    )


@dataclass
class ReferenceStep:
    """One step in float32: text encoder and vision encoder run, matching done twice, losses on whole masks."""

    model: Any

    def __post_init__(self) -> None:
        upstream.set_activation_checkpointing(self.model, "on")
        adapt_plainly(as_upstream(self.model))
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.loss = official_loss()

    def __call__(self, data: BatchedDatapoint) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        outputs, target = self.model(data), self.model.back_convert(data.find_targets[0])
        self.model._compute_matching(outputs[-1], target)
        total: Any = self.loss(outputs, [target])["core_loss"]
        total.backward()
        self.optimizer.step()
        return float(total.detach())
