"""Number formats: which one mixed precision uses on a device, and frozen weights in it."""

from __future__ import annotations

import re

import torch
from torch import nn

# Their weights are what autocast converts at each use, again and again, since it remembers only weights that train.
CONVERTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.MultiheadAttention)
# Upstream computes these without autocast on CUDA (`TransformerDecoderLayer.forward_ffn`).
FULL_PRECISION = re.compile(r"transformer\.decoder\.layers\.\d+\.linear[12]")


def computes_bfloat16(device_type: str) -> bool:
    """Whether devices of this type have instructions for bfloat16; a GPU that is not there is taken for one that does.

    Without them it is emulated: on a CPU with AVX2 alone a matmul takes 85 times as long as in float32.
    """
    if device_type == "cuda":
        return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def hold_frozen_weights(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Convert the frozen weights that autocast to `dtype` would convert, in place; None: there is no autocast.

    Outputs under autocast keep every bit; the weights take half the memory.
    """
    if dtype is None:
        return
    for name, module in model.named_modules():
        if isinstance(module, CONVERTED) and not FULL_PRECISION.fullmatch(name):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)
