"""SAM3's image model without the work that its training step does in vain. Outputs and losses stay the same.

Upstream predicts a mask for each of 400 queries of each prompt, although the losses look at those alone that are
matched to an object, and runs the whole segmentation head for prompts that have no object, whose masks nobody looks
at. Here a prompt without masks skips the head, and masks are computed for matched queries, when the loss asks for them.
The vision encoder can start from tokens that its frozen first blocks have computed before.

The classes are made in functions, since importing sam3 takes seconds.

Shapes: B prompts, Q queries, C channels, H and W of mask logits, h and w of tokens, N matched queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sam3.model.data_misc import BatchedDatapoint, BatchedFindTarget


@dataclass(frozen=True)
class MaskLogits:
    """The mask logits of all queries, as the two factors that they are a product of."""

    queries_BQC: Tensor
    pixels_BCHW: Tensor
    row_of_prompt: Tensor  # of the whole batch; -1 where a prompt was left out

    def __getitem__(self, index: tuple[slice, slice]) -> MaskLogits:
        """A range of queries: `masks[:, :200]`."""
        return MaskLogits(self.queries_BQC[index], self.pixels_BCHW, self.row_of_prompt)

    def of(self, prompts_N: Tensor, queries_N: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, H, W) of these pairs in the order of their prompts, and that order."""
        rows = self.row_of_prompt[prompts_N]
        order = rows.argsort(stable=True)
        counts: list[int] = rows.bincount(minlength=len(self.pixels_BCHW)).tolist()
        chosen = torch.split(self.queries_BQC[rows[order], queries_N[order]], counts)
        return self.product(chosen), order

    def product(self, chosen: Sequence[Tensor]) -> Tensor:
        """Logits (N, H, W) of chosen queries, (n, C) for each prompt that was not left out."""
        logits = [q_nC @ p_CHW.flatten(1) for q_nC, p_CHW in zip(chosen, self.pixels_BCHW, strict=True)]
        return torch.cat(logits).view(-1, *self.pixels_BCHW.shape[-2:])


@dataclass(frozen=True)
class Tokens:
    """What the vision encoder has computed of some images already: the input of block `block`."""

    values_BhwC: Tensor
    block: int


@cache
def image_model_class() -> type[nn.Module]:
    """A subclass of upstream's `Sam3Image`."""
    from sam3.model.act_ckpt_utils import activation_ckpt_wrapper
    from sam3.model.geometry_encoders import Prompt
    from sam3.model.model_misc import SAM3Output
    from sam3.model.sam3_image import Sam3Image

    class LeanSam3Image(Sam3Image):
        def forward(self, batch: BatchedDatapoint, features: dict[str, Any] | None = None) -> Any:
            """Upstream's outputs of a batch; `features` is what the encoders made of its images and texts."""
            if features is None:
                return super().forward(batch)
            stage = batch.find_inputs[0]
            boxes = Prompt(
                box_embeddings=stage.input_boxes,
                box_mask=stage.input_boxes_mask,
                box_labels=stage.input_boxes_label,
            )
            out = self.forward_grounding(features, stage, batch.find_targets[0], boxes)
            return SAM3Output([[out]], iter_mode=SAM3Output.IterMode.LAST_STEP_PER_STAGE)

        def forward_grounding(
            self, backbone_out: dict[str, Any], find_input: Any, find_target: Any, geometric_prompt: Any
        ) -> dict[str, Any]:
            if not self.training:
                return super().forward_grounding(backbone_out, find_input, find_target, geometric_prompt)  # type: ignore[no-any-return]
            prompt, prompt_mask, backbone_out = self._encode_prompt(backbone_out, find_input, geometric_prompt)
            backbone_out, encoded, _ = self._run_encoder(backbone_out, find_input, prompt, prompt_mask)
            memory = encoded["encoder_hidden_states"]
            out: dict[str, Any] = {"encoder_hidden_states": memory}
            out, hidden = self._run_decoder(
                encoded["pos_embed"], memory, encoded["padding_mask"], out, prompt, prompt_mask, encoded
            )
            chosen = out["prompts_with_masks"] = self.prompts_with_masks(find_target)
            if self.segmentation_head is not None and len(chosen):
                self._predict_masks(out, chosen, backbone_out, find_input.img_ids, memory, prompt, prompt_mask, hidden)
            self._compute_matching(out, self.back_convert(find_target))
            return out

        def prompts_with_masks(self, target: BatchedFindTarget) -> Tensor:
            """Which prompts, ascending, have an object with a mask."""
            if target.segments is None:
                return torch.zeros_like(target.num_boxes[:0])
            prompts = torch.arange(len(target.num_boxes), device=target.num_boxes.device)
            return torch.unique(prompts.repeat_interleave(target.num_boxes)[target.is_valid_segment.bool()])  # type: ignore[no-any-return]

        def _predict_masks(
            self,
            out: dict[str, Any],
            chosen: Tensor,
            backbone_out: dict[str, Any],
            img_ids: Tensor,
            memory: Tensor,
            prompt: Tensor,
            prompt_mask: Tensor,
            hidden: Tensor,
        ) -> None:
            """Run the segmentation head for the chosen prompts and add what it gives to `out`."""

            def pick(values: Tensor, dim: int) -> Tensor:
                return values if len(chosen) == len(img_ids) else values.index_select(dim, chosen)

            head = activation_ckpt_wrapper(self.segmentation_head)(
                backbone_feats=backbone_out["backbone_fpn"],
                obj_queries=pick(hidden[-1:], 1),
                image_ids=pick(img_ids, 0),
                encoder_hidden_states=pick(memory, 1),
                prompt=pick(prompt, 1),
                prompt_mask=pick(prompt_mask, 0),
                act_ckpt_enable=self.use_act_checkpoint_seg_head,
            )
            queries, pixels = head["pred_masks"]
            rows = torch.full_like(img_ids, -1)
            rows[chosen] = torch.arange(len(chosen), device=chosen.device)
            masks, one_to_one = MaskLogits(queries, pixels, rows), out["queries"].shape[1]
            out["pred_masks"], out["pred_masks_o2m"] = masks[:, :one_to_one], masks[:, one_to_one:]
            out["semantic_seg"], out["presence_logit"] = head["semantic_seg"], head["presence_logit"]

    return LeanSam3Image


@cache
def mask_predictor_class() -> type[nn.Module]:
    """A subclass of upstream's `MaskPredictor`."""
    from sam3.model.maskformer_segmentation import MaskPredictor

    class LeanMaskPredictor(MaskPredictor):
        def forward(self, obj_queries: Tensor, pixel_embed: Tensor) -> Any:
            """In training the factors of `MaskLogits` instead of their product."""
            if not self.training:
                return super().forward(obj_queries, pixel_embed)
            return self.mask_embed(obj_queries), pixel_embed

    return LeanMaskPredictor


@cache
def vision_transformer_class() -> type[nn.Module]:
    """A subclass of upstream's `ViT`."""
    from sam3.model.vitdet import ViT, get_abs_pos

    class LeanViT(ViT):
        def stem(self, images: Tensor) -> Tensor:
            """Patches with their positions: the input of the first block."""
            patches = self.patch_embed(images)
            size = patches.shape[1], patches.shape[2]
            tiled = get_abs_pos(
                self.pos_embed, self.pretrain_use_cls_token, size, self.retain_cls_token, tiling=self.tile_abs_pos
            )
            return self.ln_pre(patches + tiled)  # type: ignore[no-any-return]

        def forward(self, images: Tensor | Tokens) -> list[Tensor]:
            if isinstance(images, Tokens):
                x, first = images.values_BhwC, images.block
            else:
                x, first = self.stem(images), 0
            for block in self.blocks[first:]:
                recompute = self.use_act_checkpoint and self.training
                x = checkpoint.checkpoint(block, x, use_reentrant=False) if recompute else block(x)
            return [self.ln_post(x).permute(0, 3, 1, 2)]

        def first_blocks(self, images: Tensor, count: int) -> Tokens:
            """What the blocks before block `count` make of images, without gradients."""
            with torch.no_grad():
                x = self.stem(images)
                for block in self.blocks[:count]:
                    x = block(x)
            return Tokens(x, count)

    return LeanViT


def as_upstream(model: nn.Module) -> nn.Module:
    """The same model with upstream's own forward passes, in place: to compare with."""
    lean = (image_model_class(), mask_predictor_class(), vision_transformer_class())
    for module in model.modules():
        if type(module) in lean:
            module.__class__ = type(module).__mro__[1]
    return model
