"""The official SAM3 loss, built from `sam3.train.loss` with the weights of the public training config.

Weights: facebookresearch/sam3@99d02f2 `roboflow_v100_full_ft_100_images.yaml` (segmentation variant).

A batch may be computed in parts, on several devices or one after the other: each part is told what the whole batch
holds, and the losses (and gradients) of the parts add up to those of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sam3_lora.model import upstream

if TYPE_CHECKING:
    from sam3.model.data_misc import BatchedDatapoint

    from sam3_lora.model.lean import MaskLogits

# Mask2Former's sampling (arXiv 2112.01527, sec. 3.3): full-resolution mask loss on one-to-one plus
# one-to-many matches at 1008 px runs out of memory even on an H200 (facebookresearch/sam3#163, #343).
MASK_POINTS, OVERSAMPLE_RATIO, IMPORTANCE_RATIO = 12544, 3.0, 0.75
EPSILON = 1e-6  # that `SemanticSegCriterion` adds to its count of queries
# Parts that are means over queries; the others are sums over objects, divided by the objects of the whole batch.
QUERY_MEANS = frozenset({"loss_ce", "ce_f1", "presence_loss", "presence_dec_acc"})
MASKED_QUERY_MEANS = frozenset({"loss_semantic_seg", "loss_semantic_dice"})


@dataclass(frozen=True)
class Counts:
    """What the loss of a batch is divided by."""

    queries: int
    objects: int
    masked_queries: int  # that have objects, each with a mask

    @classmethod
    def of(cls, batch: BatchedDatapoint) -> Counts:
        queries = objects = masked = 0
        for target in batch.find_targets:
            queries += len(target.num_boxes)
            objects += int(target.num_boxes.sum())
            if target.is_valid_segment is not None:
                valid = target.is_valid_segment.split(target.num_boxes.tolist())
                masked += sum(len(flags) > 0 and bool(flags.all()) for flags in valid)
        return cls(queries, objects, masked)


class Sam3Loss(nn.Module):
    """Total loss and its parts for the output of a SAM3 model in train mode.

    The model has already matched queries to objects (`out["indices"]`); nothing is matched twice.

    Args:
        masks: add mask, dice and semantic losses.
        mask_points: points sampled per mask, or None for the whole mask at target resolution.
    """

    def __init__(self, *, masks: bool, mask_points: int | None = MASK_POINTS) -> None:
        super().__init__()
        upstream.install()
        from sam3.train.loss.loss_fns import Boxes, IABCEMdetr
        from sam3.train.matcher import BinaryOneToManyMatcher

        mask_loss, semantic_loss = _mask_loss_classes()

        classification = IABCEMdetr(
            weak_loss=False,
            weight_dict={"loss_ce": 20.0, "presence_loss": 20.0},
            pos_weight=10.0,
            alpha=0.25,
            gamma=2,
            use_presence=True,
            pos_focal=False,
            pad_n_queries=200,
            pad_scale_pos=1.0,
        )
        parts: list[nn.Module] = [Boxes(weight_dict={"loss_bbox": 5.0, "loss_giou": 2.0}), classification]
        semantic = None
        if masks:
            sampling = (
                {}
                if mask_points is None
                else {
                    "num_sample_points": mask_points,
                    "oversample_ratio": OVERSAMPLE_RATIO,
                    "importance_sample_ratio": IMPORTANCE_RATIO,
                }
            )
            parts.append(
                mask_loss(
                    focal_alpha=0.25,
                    focal_gamma=2.0,
                    weight_dict={"loss_mask": 200.0, "loss_dice": 10.0},
                    compute_aux=False,
                    **sampling,
                )
            )
            semantic = semantic_loss(
                presence_head=True,
                presence_loss=False,
                focal=True,
                focal_alpha=0.6,
                focal_gamma=2.0,
                downsample=False,
                weight_dict={"loss_semantic_seg": 20.0, "loss_semantic_presence": 1.0, "loss_semantic_dice": 30.0},
            )
        self.masks = masks
        # Each loss that is a mean, with its official weights, to be scaled by its part's share of the whole batch.
        self._query_means = classification, dict(classification.weight_dict)
        self._masked_query_means = None if semantic is None else (semantic, dict(semantic.weight_dict))
        self.wrapper = _wrapper_class()(
            loss_fns_find=parts,
            normalization="none",
            matcher=upstream.matcher(),
            o2m_matcher=BinaryOneToManyMatcher(alpha=0.3, threshold=0.4, topk=4),
            o2m_weight=2.0,
            use_o2m_matcher_on_o2m_aux=False,
            loss_fn_semantic_seg=semantic,
            scale_by_find_batch_size=False,
        )

    def forward(
        self, outputs: object, batch: BatchedDatapoint, model: upstream.Sam3Image, whole: Counts | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch, or of one part of it.

        Args:
            whole: counts of the batch that `batch` is a part of; None: `batch` is all of it.

        Returns:
            The scalar to minimise, and detached parts of the last decoder layer by name (unweighted). Both are this
            part's contribution: those of all parts of a batch add up to the batch's.
        """
        own = Counts.of(batch)
        whole = whole or own
        of_queries = own.queries / whole.queries
        of_masked_queries = (own.masked_queries + EPSILON) / (whole.masked_queries + EPSILON)
        _weigh(self._query_means, of_queries)
        if self._masked_query_means is not None:
            _weigh(self._masked_query_means, of_masked_queries)
        self.wrapper.object_count = batch.img_batch.new_tensor(float(max(1, whole.objects)))
        losses = self.wrapper(outputs, [model.back_convert(target) for target in batch.find_targets])
        total = losses.pop("core_loss") * whole.queries**0.5  # `scale_by_find_batch_size` of the official wrapper
        shares = {**dict.fromkeys(QUERY_MEANS, of_queries), **dict.fromkeys(MASKED_QUERY_MEANS, of_masked_queries)}
        parts = {
            name: value.detach() * shares.get(name, 1.0)
            for name, value in losses.items()
            if "_aux_" not in name and not name.endswith("_o2m") and isinstance(value, torch.Tensor)
        }
        return total, parts


def _weigh(loss_and_weights: tuple[Any, dict[str, float]], share: float) -> None:
    loss, weights = loss_and_weights
    loss.weight_dict = {name: weight * share for name, weight in weights.items()}


@cache
def _mask_loss_classes() -> tuple[Any, Any]:
    """The official mask losses, on what the lean model gives: see `sam3_lora/model/lean.py`."""
    from sam3.train.loss.loss_fns import Masks, SemanticSegCriterion

    class MatchedMasks(Masks):
        """The official mask loss; logits are computed for matched queries of prompts with masks alone."""

        def get_loss(
            self, outputs: dict[str, Any], targets: dict[str, Any], indices: tuple[Tensor, ...], num_boxes: Tensor
        ) -> dict[str, Tensor]:
            masks: MaskLogits | None = outputs.get("pred_masks")
            if masks is None:  # no prompt has an object with a mask
                return dict.fromkeys(("loss_mask", "loss_dice"), outputs["pred_logits"].new_zeros(()))
            prompts, queries, objects = indices
            if objects is None:  # one query for each object, in their order
                objects = torch.arange(len(prompts), device=prompts.device)
            known = masks.row_of_prompt[prompts] >= 0
            logits_NHW, order = masks.of(prompts[known], queries[known])
            objects = objects[known][order]
            numbers = torch.arange(len(order), device=order.device)
            matched = (torch.zeros_like(numbers), numbers, objects)
            return super().get_loss({**outputs, "pred_masks": logits_NHW[None]}, targets, matched, num_boxes)  # type: ignore[no-any-return]

    class SemanticMasks(SemanticSegCriterion):
        """The official semantic loss, which is zero for prompts without masks, on the prompts that have them."""

        def get_loss(self, out_dict: dict[str, Any], targets: dict[str, Any]) -> dict[str, Tensor]:
            if "semantic_seg" not in out_dict:
                names = (*self.weight_dict, "presence_acc", "miou_semantic_seg")
                return dict.fromkeys(names, out_dict["pred_logits"].new_zeros(()))
            chosen, unions = out_dict["prompts_with_masks"], targets["semantic_masks"]
            if unions is not None and len(unions):
                unions = unions[chosen]
            # the prompts left out have no rows in `masks` unless their unions are given
            kept = {"masks": targets["masks"], "num_boxes": targets["num_boxes"][chosen], "semantic_masks": unions}
            return super().get_loss(out_dict, kept)  # type: ignore[no-any-return]

    return MatchedMasks, SemanticMasks


def _wrapper_class() -> Any:
    from sam3.train.loss.sam3_loss import Sam3LossWrapper

    class PartOfBatchLoss(Sam3LossWrapper):
        """The official wrapper, with the number of objects that sums are divided by given instead of counted."""

        object_count: Tensor

        def _get_num_boxes(self, targets: dict[str, Tensor]) -> Tensor:
            return self.object_count

    return PartOfBatchLoss
