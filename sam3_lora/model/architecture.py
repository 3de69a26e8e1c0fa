"""The sizes of a SAM3 image model as plain data; torch-free.

`SAM3` are the numbers of upstream's `sam3.model_builder` (sam3 0.1.4); `SAM3_TINY` those of the small
base that this repository ships for trying the system.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """Every size that the public SAM3 classes need. Lengths of images are in pixels, widths in channels."""

    image_size: int = 1008
    patch_size: int = 14
    vit_width: int = 1024
    vit_depth: int = 32
    vit_heads: int = 16
    vit_mlp_ratio: float = 4.625
    vit_window: int = 24  # patches per side of a windowed-attention block
    vit_global_blocks: tuple[int, ...] = (7, 15, 23, 31)
    vit_pretrain_image_size: int = 336
    vit_drop_path: float = 0.1
    text_width: int = 1024
    text_depth: int = 24
    text_heads: int = 16
    text_context: int = 32  # tokens, start and end included; longer prompts are cut
    d_model: int = 256
    heads: int = 8
    ffn: int = 2048
    dropout: float = 0.1
    encoder_layers: int = 6
    decoder_layers: int = 6
    geometry_layers: int = 3
    queries: int = 200

    @property
    def resolution_step(self) -> int:
        """Input sides must be multiples of this, so that attention windows tile the patch grid."""
        return self.patch_size * self.vit_window

    def check_resolution(self, resolution: int) -> str | None:
        """Say what is wrong with an input side of `resolution` pixels, or None."""
        if resolution < self.resolution_step or resolution % self.resolution_step:
            step = self.resolution_step
            nearest = max(step, round(resolution / step) * step)
            return f"resolution {resolution} is not a multiple of {step} (patch x window); the nearest is {nearest}"
        return None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "vit_global_blocks": list(self.vit_global_blocks)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        return cls(**{**values, "vit_global_blocks": tuple(values["vit_global_blocks"])})


SAM3 = Architecture()

SAM3_TINY = Architecture(
    image_size=140,
    vit_width=128,
    vit_depth=4,
    vit_heads=4,
    vit_mlp_ratio=4.0,
    vit_window=5,
    vit_global_blocks=(1, 3),
    vit_pretrain_image_size=140,
    vit_drop_path=0.0,
    text_width=32,
    text_depth=1,
    text_heads=2,
    text_context=8,
    d_model=64,
    heads=4,
    ffn=256,
    dropout=0.0,
    encoder_layers=2,
    decoder_layers=3,
    geometry_layers=1,
    queries=20,
)
