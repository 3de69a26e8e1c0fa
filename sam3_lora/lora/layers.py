"""LoRA forms of the three projections that SAM3 has: linear, fused q/k/v, and multi-head attention.

Each form takes over the frozen parameters of the module it replaces under their original names, so that the
state dict of the base is unchanged; adapters add keys `<module>.lora.<role>.a|b`.

Shapes: N = leading dims, I = in, O = out, R = rank, B = batch, L/S = target/source length, E = embedding,
H = heads, D = E / H.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3_lora.lora.targets import QKV

LINEAR = "linear"  # role of a form with one projection
OUT = "out_proj"


class LowRank(nn.Module):
    """The update (alpha / rank) B A x of a frozen projection (arXiv 2106.09685, sec. 4.1).

    B starts at zero, so that step 0 equals the base model. Parameters are float32 whatever the base is.
    """

    def __init__(
        self, inputs: int, outputs: int, *, rank: int, scale: float, dropout: float, device: torch.device
    ) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, inputs, device=device))
        self.b = nn.Parameter(torch.zeros(outputs, rank, device=device))
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.active = True
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x_NI: Tensor, y_NO: Tensor) -> Tensor:
        """The frozen projection's output with the update, in one pass over it."""
        low_NR = F.linear(self.dropout(x_NI), self.a)
        return torch.addmm(y_NO.flatten(0, -2), low_NR.flatten(0, -2), self.b.t(), alpha=self.scale).view_as(y_NO)

    def dense(self) -> Tensor:
        """The update as an (O, I) float32 matrix."""
        return (self.b.float() @ self.a.float()) * self.scale


class Adapted:
    """What the three forms share: `lora` holds one `LowRank` for each adapted role."""

    lora: nn.ModuleDict

    def _updated(self, role: str, x_NI: Tensor, y_NO: Tensor) -> Tensor:
        """`y_NO`, what the frozen projection makes of `x_NI`, with the role's update, if it is adapted."""
        if role not in self.lora:
            return y_NO
        adapter: Any = self.lora[role]
        return adapter(x_NI, y_NO) if adapter.active else y_NO

    def merged(self) -> nn.Module:
        """The plain module with the updates added to its weights."""
        raise NotImplementedError


class LoRALinear(Adapted, nn.Linear):
    """y = W x + bias + update(x), with W and bias frozen."""

    def __init__(self, base: nn.Linear, **low_rank: Any) -> None:
        nn.Linear.__init__(self, base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.lora = nn.ModuleDict(
            {LINEAR: LowRank(base.in_features, base.out_features, device=base.weight.device, **low_rank)}
        )

    def forward(self, x_NI: Tensor) -> Tensor:
        return self._updated(LINEAR, x_NI, F.linear(x_NI, self.weight, self.bias))

    def merged(self) -> nn.Linear:
        return _plain_linear(self, _added(self.weight, self.lora[LINEAR]))


class LoRAFusedQKV(Adapted, nn.Linear):
    """The ViT's fused projection I -> 3 O' with separate updates for the q, k and v slices of its output."""

    def __init__(self, base: nn.Linear, roles: tuple[str, ...], **low_rank: Any) -> None:
        nn.Linear.__init__(self, base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.width = base.out_features // 3
        device = base.weight.device
        self.lora = nn.ModuleDict({r: LowRank(base.in_features, self.width, device=device, **low_rank) for r in roles})

    def forward(self, x_NI: Tensor) -> Tensor:
        """All updates in one pass over the output: their B side by side as blocks of one matrix."""
        y_NO = F.linear(x_NI, self.weight, self.bias)
        adapters: list[tuple[int, Any]] = [(QKV.index(r), a) for r, a in self.lora.items() if a.active]
        if not adapters:
            return y_NO
        low_NR = torch.cat([F.linear(adapter.dropout(x_NI), adapter.a) for _, adapter in adapters], -1)
        last = len(QKV) - 1
        b_RO = torch.cat([F.pad(a.b.t() * a.scale, (i * self.width, (last - i) * self.width)) for i, a in adapters])
        return torch.addmm(y_NO.flatten(0, -2), low_NR.flatten(0, -2), b_RO).view_as(y_NO)

    def merged(self) -> nn.Linear:
        return _plain_linear(self, _added_slices(self.weight, self.lora, self.width))


class LoRAMultiheadAttention(Adapted, nn.MultiheadAttention):
    """`nn.MultiheadAttention` with updates on q, k, v and out; attention is never materialised.

    Keeps `in_proj_weight`, `in_proj_bias`, `out_proj`, `num_heads`, `embed_dim`, `batch_first`. Returns
    `(output, None)` whatever `need_weights` says. A row whose keys are all masked gives finite output.
    """

    def __init__(self, base: nn.MultiheadAttention, roles: tuple[str, ...], **low_rank: Any) -> None:
        if base.in_proj_weight is None or base.bias_k is not None or base.add_zero_attn:
            raise TypeError("only attention with one fused in-projection and without extra keys is supported")
        nn.MultiheadAttention.__init__(
            self,
            base.embed_dim,
            base.num_heads,
            dropout=base.dropout,
            bias=base.in_proj_bias is not None,
            batch_first=base.batch_first,
            device="meta",
        )
        self.in_proj_weight, self.in_proj_bias, self.out_proj = base.in_proj_weight, base.in_proj_bias, base.out_proj
        width, device = base.embed_dim, base.in_proj_weight.device
        self.lora = nn.ModuleDict({role: LowRank(width, width, device=device, **low_rank) for role in roles})

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        del need_weights, average_attn_weights, is_causal  # the mask says what may be seen
        query_BHLD = self._heads(query, 0)
        key_BHSD = self._heads(key, 1)
        value_BHSD = self._heads(value, 2)
        mask = _attention_mask(attn_mask, key_padding_mask, query_BHLD, key_BHSD.shape[-2])
        dropout = self.dropout if self.training else 0.0
        mixed_BHLD = F.scaled_dot_product_attention(query_BHLD, key_BHSD, value_BHSD, mask, dropout)
        order = (0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)
        mixed = mixed_BHLD.permute(order).reshape(query.shape)
        return self._updated(OUT, mixed, F.linear(mixed, self.out_proj.weight, self.out_proj.bias)), None

    def _heads(self, x: Tensor, index: int) -> Tensor:
        """Project (B, L, E) or (L, B, E) with slice `index` of the in-projection; return (B, H, L, D)."""
        # With a frozen weight, F.linear on a non-contiguous 3-D input copies the weight per batch element for a
        # bmm instead of folding to one matmul: three times slower (measured at 5184 tokens).
        x = x.contiguous()
        rows = slice(index * self.embed_dim, (index + 1) * self.embed_dim)
        bias = None if self.in_proj_bias is None else self.in_proj_bias[rows]
        y = self._updated(QKV[index], x, F.linear(x, self.in_proj_weight[rows], bias))
        y = y.view(*y.shape[:-1], self.num_heads, -1)
        return y.permute((0, 2, 1, 3) if self.batch_first else (1, 2, 0, 3))

    def merged(self) -> nn.MultiheadAttention:
        from sam3.model.model_misc import MultiheadAttentionWrapper

        plain = MultiheadAttentionWrapper(
            self.embed_dim,
            self.num_heads,
            dropout=self.dropout,
            bias=self.in_proj_bias is not None,
            batch_first=self.batch_first,
            device="meta",
        )
        weight = _added_slices(self.in_proj_weight, self.lora, self.embed_dim)
        plain.in_proj_weight = nn.Parameter(weight, requires_grad=False)
        plain.in_proj_bias, plain.out_proj = self.in_proj_bias, self.out_proj
        if OUT in self.lora:
            plain.out_proj.weight = nn.Parameter(_added(self.out_proj.weight, self.lora[OUT]), requires_grad=False)
        return plain  # type: ignore[no-any-return]


def _attention_mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, query_BHLD: Tensor, sources: int
) -> Tensor | None:
    """One mask for SDPA from nn.MultiheadAttention's two (bool: True is hidden; float: added to the scores).

    `attn_mask` is (L, S) or (B * H, L, S), `key_padding_mask` (B, S); the result broadcasts to (B, H, L, S).
    """
    batch, heads, targets = query_BHLD.shape[:3]
    if attn_mask is not None and attn_mask.dim() == 3:
        attn_mask = attn_mask.view(batch, heads, targets, sources)
    padding = None if key_padding_mask is None else key_padding_mask.view(batch, 1, 1, sources)
    masks = [m for m in (attn_mask, padding) if m is not None]
    if not masks:
        return None
    if all(m.dtype == torch.bool for m in masks):
        hidden = masks[0] if len(masks) == 1 else masks[0] | masks[1]
        return ~hidden
    added = [_additive(m, query_BHLD.dtype) for m in masks]
    return added[0] if len(added) == 1 else added[0] + added[1]


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


def _added(weight: Tensor, adapter: Any) -> Tensor:
    merged: Tensor = weight.detach().float() + adapter.dense().detach()
    return merged.to(weight.dtype)


def _added_slices(weight: Tensor, lora: nn.ModuleDict, width: int) -> Tensor:
    merged = weight.detach().float().clone()
    for index, role in enumerate(QKV):
        if role in lora:
            rows = slice(index * width, (index + 1) * width)
            merged[rows] = _added(merged[rows], lora[role])
    return merged.to(weight.dtype)


def _plain_linear(adapted: nn.Linear, weight: Tensor) -> nn.Linear:
    plain = nn.Linear(adapted.in_features, adapted.out_features, bias=adapted.bias is not None, device="meta")
    plain.weight, plain.bias = nn.Parameter(weight, requires_grad=False), adapted.bias
    return plain


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Run the base model: every adapter of `model` is inactive inside the block."""
    adapters = [module for module in model.modules() if isinstance(module, LowRank)]
    before = [adapter.active for adapter in adapters]
    for adapter in adapters:
        adapter.active = False
    try:
        yield
    finally:
        for adapter, active in zip(adapters, before, strict=True):
            adapter.active = active
