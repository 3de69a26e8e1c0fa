"""What the vision and the text encoder make of a batch, with the work of frozen layers done once.

A text's features are kept where no layer of the text encoder is adapted. An image's are kept up to the first adapted
block of the vision encoder, where the caller can name the view of the image that it hands in: its file and how it was
placed and coloured. Each view is then encoded alone, so that what is kept does not depend on its batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sam3_lora.model.lean import Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from sam3_lora.model.features import FeatureStore
    from sam3_lora.model.upstream import Sam3Image


class Encoders:
    """The encoders of a model whose adapters are in place.

    Args:
        store: where tokens of named views are kept; None: nowhere.
    """

    def __init__(self, model: Sam3Image, store: FeatureStore | None = None) -> None:
        self.model, self.store = model, store
        self.frozen_blocks = count_frozen_blocks(model)
        self.text_is_frozen = _is_frozen(model.backbone.language_backbone)
        self._texts: dict[str, tuple[Tensor, Tensor]] = {}

    def images(
        self, images_BCHW: Tensor, views: Sequence[str | None] = (), known: Sequence[Tensor | None] = ()
    ) -> dict[str, Any]:
        """Upstream's `backbone_out` of images.

        Args:
            views: names of the images (None: not to be kept).
            known: for each image what `store.load` has given for it, so that its pixels are not looked at (None:
                nothing).
        """
        if self.frozen_blocks == 0:
            return self.model.backbone.forward_image(images_BCHW)  # type: ignore[no-any-return]
        if self.store is None or not any(views):
            tokens = self._first_blocks(images_BCHW)
        else:
            each = zip(torch.split(images_BCHW, 1), views, known or [None] * len(views), strict=True)
            tokens = torch.cat([self._kept(image, view, loaded) for image, view, loaded in each])
        return self._rest(tokens)

    def recall(self, view: str) -> dict[str, Any] | None:
        """Upstream's `backbone_out` of an image that is not read again; None where nothing is kept of it."""
        kept = None if self.store is None or self.frozen_blocks == 0 else self.store.get(view)
        return None if kept is None else self._rest(kept.to(self.model.device, non_blocking=True))

    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Upstream's `language_features` and `language_mask` of texts."""
        if not self.text_is_frozen:
            encoded = self.model.backbone.forward_text(list(texts), device=self.model.device)
            return {name: encoded[name] for name in ("language_features", "language_mask")}
        for text in texts:
            if text not in self._texts:
                with torch.no_grad():
                    encoded = self.model.backbone.forward_text([text], device=self.model.device)
                self._texts[text] = encoded["language_features"], encoded["language_mask"]
        features, masks = zip(*(self._texts[text] for text in texts), strict=True)
        return {"language_features": torch.cat(features, 1), "language_mask": torch.cat(masks)}

    def _first_blocks(self, images_BCHW: Tensor) -> Tensor:
        trunk, device = self.model.backbone.vision_backbone.trunk, images_BCHW.device.type
        tokens: Tensor = trunk.first_blocks(images_BCHW, self.frozen_blocks).values_BhwC
        if self.frozen_blocks == len(trunk.blocks) and torch.is_autocast_enabled(device):
            return tokens.to(torch.get_autocast_dtype(device))  # as the convolutions that come next would
        return tokens

    def _rest(self, tokens_BhwC: Tensor) -> dict[str, Any]:
        return self.model.backbone.forward_image(Tokens(tokens_BhwC, self.frozen_blocks))  # type: ignore[no-any-return]

    def _kept(self, image_1CHW: Tensor, view: str | None, loaded: Tensor | None) -> Tensor:
        assert self.store is not None
        kept = self.store.get(view) if loaded is None and view is not None else loaded
        if kept is None:
            kept = self._first_blocks(image_1CHW)
            if view is not None:
                self.store.put(view, kept)
        return kept.to(image_1CHW.device, non_blocking=True)


def count_frozen_blocks(model: Sam3Image) -> int:
    """Blocks of the vision encoder before the first one that trains; all of them where none does."""
    blocks = model.backbone.vision_backbone.trunk.blocks
    return next((index for index, block in enumerate(blocks) if not _is_frozen(block)), len(blocks))


def _is_frozen(module: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())
