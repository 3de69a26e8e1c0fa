"""The official SAM3 loss, built from `sam3.train.loss` with the weights of the public training config.

Weights: facebookresearch/sam3@99d02f2 `roboflow_v100_full_ft_100_images.yaml` (segmentation variant).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sam3_lora.model import upstream

if TYPE_CHECKING:
    from sam3.model.data_misc import BatchedDatapoint

# Mask2Former's sampling (arXiv 2112.01527, sec. 3.3): full-resolution mask loss on one-to-one plus
# one-to-many matches at 1008 px runs out of memory even on an H200 (facebookresearch/sam3#163, #343).
MASK_POINTS, OVERSAMPLE_RATIO, IMPORTANCE_RATIO = 12544, 3.0, 0.75


class Sam3Loss(nn.Module):
    """Total loss and its parts for the output of a SAM3 model in train mode.

    The model has already matched queries to objects (`out["indices"]`); nothing is matched twice.

    Args:
        masks: add mask, dice and semantic losses.
        mask_points: points sampled per mask, or None for the whole mask at target resolution.
        normalization: "local" for one process, "global" under torch.distributed.
    """

    def __init__(self, *, masks: bool, mask_points: int | None = MASK_POINTS, normalization: str = "local") -> None:
        super().__init__()
        upstream.install()
        from sam3.train.loss.loss_fns import Boxes, IABCEMdetr, Masks, SemanticSegCriterion
        from sam3.train.loss.sam3_loss import Sam3LossWrapper
        from sam3.train.matcher import BinaryOneToManyMatcher

        parts: list[nn.Module] = [
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
        ]
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
                Masks(
                    focal_alpha=0.25,
                    focal_gamma=2.0,
                    weight_dict={"loss_mask": 200.0, "loss_dice": 10.0},
                    compute_aux=False,
                    **sampling,
                )
            )
            semantic = SemanticSegCriterion(
                presence_head=True,
                presence_loss=False,
                focal=True,
                focal_alpha=0.6,
                focal_gamma=2.0,
                downsample=False,
                weight_dict={"loss_semantic_seg": 20.0, "loss_semantic_presence": 1.0, "loss_semantic_dice": 30.0},
            )
        self.wrapper = Sam3LossWrapper(
            loss_fns_find=parts,
            normalization=normalization,
            matcher=upstream.matcher(),
            o2m_matcher=BinaryOneToManyMatcher(alpha=0.3, threshold=0.4, topk=4),
            o2m_weight=2.0,
            use_o2m_matcher_on_o2m_aux=False,
            loss_fn_semantic_seg=semantic,
            scale_by_find_batch_size=True,
        )

    def forward(
        self, outputs: object, batch: BatchedDatapoint, model: upstream.Sam3Image
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch.

        Returns:
            The scalar to minimise, and detached parts of the last decoder layer by name (unweighted).
        """
        targets = [model.back_convert(target) for target in batch.find_targets]
        losses = self.wrapper(outputs, targets)
        total = losses.pop("core_loss")
        parts = {
            name: value.detach()
            for name, value in losses.items()
            if "_aux_" not in name and not name.endswith("_o2m") and isinstance(value, torch.Tensor)
        }
        return total, parts
