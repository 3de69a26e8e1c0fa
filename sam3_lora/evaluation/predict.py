"""Ask a SAM3 model for concepts in an image, with the official post-processing.

score = sigmoid(pred_logits) x sigmoid(presence_logit_dec): the class loss is zeroed on absent concepts, so that
only the presence score says "not here"; without it a tuned model fires on every prompt (arXiv 2511.16719, A.1).

Shapes: Q queries of the model, K kept detections, H and W pixels of the original image.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from sam3_lora.data.transforms import place_image, whole
from sam3_lora.errors import OutOfMemoryError
from sam3_lora.lora.adapter import AdapterInfo, load_adapter, read_info
from sam3_lora.model.encoders import Encoders
from sam3_lora.model.memory import free_unused, ran_out_of_memory
from sam3_lora.model.weights import architecture_of, load_base

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from sam3_lora.model.upstream import Sam3Image

MAX_DETECTIONS = 100  # per prompt, as COCO evaluation
PROMPTS_PER_PASS = 16  # at first: the model's batch is the number of prompts


@dataclass(frozen=True)
class Detections:
    """What one prompt found in one image, best first. All on the CPU."""

    scores_K: Tensor
    boxes_xyxy_K4: Tensor  # pixels of the original image
    masks_KHW: Tensor | None  # bool, original size
    presence: float  # probability that the prompt's concept is in the image at all


@dataclass(frozen=True)
class EncodedImage:
    """An image as the vision encoder sees it."""

    features: dict[str, Any]
    size_HW: tuple[int, ...]  # of the original


class Predictor:
    """A model with the settings it predicts with. Text features are computed once per prompt and kept."""

    def __init__(
        self,
        model: Sam3Image,
        *,
        resolution: int,
        amp_dtype: torch.dtype | None = None,
        masks: bool = True,
        encoders: Encoders | None = None,
    ) -> None:
        self.encoders = encoders or Encoders(model)
        self.model, self.resolution, self.amp_dtype, self.masks = model.eval(), resolution, amp_dtype, masks
        self.device = next(model.parameters()).device
        self.prompts_per_pass = PROMPTS_PER_PASS  # becomes smaller where that many do not fit
        self._texts: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()  # not inference_mode: sam3 caches position tables, which training then uses
    def encode(self, pixels_HW3: NDArray[np.uint8], view: Callable[[], str] | None = None) -> EncodedImage:
        """What the model sees in an 8-bit RGB image; it can be asked about any number of times.

        Args:
            view: says what `view_name` calls the image; asked only if features are kept.
        """
        with self._autocast():
            image = place_image(pixels_HW3, whole(self.resolution)).to(self.device)
            name = None if view is None or self.encoders.store is None else view()
            return EncodedImage(self.encoders.images(image[None], (name,)), pixels_HW3.shape[:2])

    @torch.no_grad()
    def recall(self, view: Callable[[], str], size_HW: tuple[int, int]) -> EncodedImage | None:
        """What `encode` has made of an image before, without reading it; None where features are not kept.

        Args:
            size_HW: of the image.
        """
        if self.encoders.store is None:
            return None
        with self._autocast():
            features = self.encoders.recall(view())
        return None if features is None else EncodedImage(features, size_HW)

    @torch.no_grad()
    def ask(
        self,
        image: EncodedImage,
        texts: Sequence[str],
        *,
        boxes_xywh: Sequence[Sequence[float]] = (),
        min_score: float = 0.0,
    ) -> list[Detections]:
        """One `Detections` for each text.

        Args:
            boxes_xywh: objects to show beside each text, in pixels; with the text `exemplars.BOX_ALONE`, alone.
            min_score: detections below are dropped; 0 keeps all, as average precision needs.

        Raises:
            OutOfMemoryError: if not even one prompt at a time fits.
        """
        boxes = self._normalised(boxes_xywh, image.size_HW)
        found: list[Detections] = []
        with self._autocast():
            while len(found) < len(texts):
                chunk = texts[len(found) : len(found) + self.prompts_per_pass]
                detected = self._try(image, chunk, boxes, min_score)
                if detected is not None:
                    found.extend(detected)
                elif len(chunk) == 1:
                    raise OutOfMemoryError("out of memory in a prediction", hint="lower dataset.resolution")
                else:
                    free_unused(self.device)
                    self.prompts_per_pass = len(chunk) // 2
        return found

    def predict(
        self,
        pixels_HW3: NDArray[np.uint8],
        texts: Sequence[str],
        *,
        boxes_xywh: Sequence[Sequence[float]] = (),
        min_score: float = 0.0,
    ) -> list[Detections]:
        """`encode` and `ask` in one."""
        return self.ask(self.encode(pixels_HW3), texts, boxes_xywh=boxes_xywh, min_score=min_score)

    def _normalised(self, boxes_xywh: Sequence[Sequence[float]], size_HW: tuple[int, ...]) -> Tensor:
        """Boxes (N, 4) as cxcywh in [0, 1]."""
        height, width = size_HW
        xywh = torch.tensor(boxes_xywh, dtype=torch.float32, device=self.device).view(-1, 4)
        scaled = xywh / torch.tensor([width, height, width, height], device=self.device)
        return torch.cat([scaled[:, :2] + scaled[:, 2:] / 2, scaled[:, 2:]], 1)

    def _try(
        self, image: EncodedImage, texts: Sequence[str], boxes_N4: Tensor, min_score: float
    ) -> list[Detections] | None:
        """Detections of these prompts; None if memory ran out."""
        try:
            return self._detections(self._ground(image.features, texts, boxes_N4), image.size_HW, min_score)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            return None

    def _ground(self, features: dict[str, Any], texts: Sequence[str], boxes_N4: Tensor) -> dict[str, Tensor]:
        from sam3.model.data_misc import FindStage
        from sam3.model.geometry_encoders import Prompt

        encoded = [self._text(text) for text in texts]
        count = len(texts)
        stage = FindStage(
            img_ids=torch.zeros(count, dtype=torch.long, device=self.device),
            text_ids=torch.arange(count, device=self.device),
            input_boxes=None,
            input_boxes_mask=None,
            input_boxes_label=None,
            input_points=None,
            input_points_mask=None,
        )
        exemplars = Prompt(
            box_embeddings=boxes_N4[:, None].expand(-1, count, -1),
            box_mask=torch.zeros(count, len(boxes_N4), dtype=torch.bool, device=self.device),
            box_labels=torch.ones(len(boxes_N4), count, dtype=torch.long, device=self.device),
        )
        outputs: dict[str, Tensor] = self.model.forward_grounding(
            backbone_out={
                **features,
                "language_features": torch.cat([feature for feature, _ in encoded], 1),
                "language_mask": torch.cat([mask for _, mask in encoded], 0),
            },
            find_input=stage,
            find_target=None,
            geometric_prompt=exemplars,
        )
        return outputs

    def _text(self, text: str) -> tuple[Tensor, Tensor]:
        """Features (tokens, 1, d) and padding mask (1, tokens) of a prompt."""
        if text not in self._texts:
            encoded = self.encoders.texts([text])
            self._texts[text] = encoded["language_features"], encoded["language_mask"]
        return self._texts[text]

    def _detections(self, outputs: dict[str, Tensor], size_HW: tuple[int, ...], min_score: float) -> list[Detections]:
        height, width = size_HW
        presence_B = outputs["presence_logit_dec"].float().sigmoid().flatten()
        scores_BQ = outputs["pred_logits"].float().squeeze(-1).sigmoid() * presence_B[:, None]
        scale = torch.tensor([width, height, width, height], device=scores_BQ.device)
        results = []
        for index, scores_Q in enumerate(scores_BQ):
            scores_K, kept = scores_Q.topk(min(MAX_DETECTIONS, len(scores_Q)))
            above = scores_K >= min_score
            scores_K, kept = scores_K[above], kept[above]
            boxes_K4 = outputs["pred_boxes_xyxy"][index, kept].float().clamp(0, 1) * scale
            masks = None
            if self.masks:
                masks = cut(outputs["pred_masks"][index, kept].float(), (height, width))
            results.append(Detections(scores_K.cpu(), boxes_K4.cpu(), masks, float(presence_B[index])))
        return results

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.amp_dtype)


def open_predictor(
    adapter: Path | None,
    *,
    base: str = "sam3",
    checkpoint: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> tuple[Predictor, AdapterInfo | None]:
    """A predictor for an adapter on its base, or for the base alone.

    Args:
        adapter: adapter folder; its configuration names the base. None: the base named by `base`.
        checkpoint: official weights on disk, for base "sam3"; None: the hub.

    Raises:
        AdapterError: if the adapter is damaged or belongs to another base.
        BaseModelError: if the base's weights cannot be had.
    """
    info = None if adapter is None else read_info(adapter)
    resolution = architecture_of(base).image_size if info is None else info.resolution
    model = load_base(base if info is None else info.base_model, checkpoint=checkpoint, resolution=resolution)
    if adapter is not None:
        load_adapter(model, adapter)
    model, amp_dtype = place(model, device)
    return Predictor(model, resolution=resolution, amp_dtype=amp_dtype), info


def place(model: nn.Module, device: Literal["auto", "cpu", "cuda"]) -> tuple[nn.Module, torch.dtype | None]:
    """The model where it predicts (auto: CUDA if there is any), and the number format used there (None: its own)."""
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return model.to("cuda" if cuda else "cpu"), torch.bfloat16 if cuda else None


def cut(logits_KHW: Tensor, size_HW: tuple[int, int]) -> Tensor:
    """Masks (bool, on the CPU) at the original size: logits are resized bilinearly, one at a time to bound memory."""
    masks = [
        F.interpolate(m[None, None], size_HW, mode="bilinear", align_corners=False)[0, 0].gt(0).cpu()  # sigmoid > 0.5
        for m in logits_KHW
    ]
    return torch.stack(masks) if masks else torch.zeros((0, *size_HW), dtype=torch.bool)
