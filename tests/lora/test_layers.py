import math

import pytest
import torch
from torch import nn

from sam3_lora.lora.layers import LoRAFusedQKV, LoRALinear, LoRAMultiheadAttention, adapters_off

LOW_RANK = {"rank": 3, "scale": 2.0, "dropout": 0.0}
ROLES = ("q_proj", "k_proj", "v_proj", "out_proj")


def randomise(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        if ".lora." in f".{name}":
            nn.init.normal_(parameter, std=0.2)
    return module


def attention_masks(kind: str) -> dict[str, torch.Tensor]:
    """Masks for batch 2, 4 heads, 5 targets, 7 sources."""
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = True
    causal = torch.ones(5, 7, dtype=torch.bool).triu(1)
    return {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "bool": {"attn_mask": causal},
        "float": {"attn_mask": torch.randn(2 * 4, 5, 7)},
        "float_and_padding": {"attn_mask": torch.randn(5, 7), "key_padding_mask": padding},
        "bool_and_padding": {"attn_mask": causal, "key_padding_mask": padding},
    }[kind]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["none", "padding", "bool", "float", "float_and_padding", "bool_and_padding"])
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask")
def test_attention_equals_pytorch_before_training_and_after_merging(kind: str, batch_first: bool):
    torch.manual_seed(0)
    base = nn.MultiheadAttention(16, 4, batch_first=batch_first)
    nn.init.normal_(base.in_proj_bias)
    query, key, value = (torch.randn(2, n, 16) for n in (5, 7, 7))
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    masks = attention_masks(kind)
    expected = base(query, key, value, need_weights=False, **masks)[0]
    adapted = LoRAMultiheadAttention(base, ROLES, **LOW_RANK)
    torch.testing.assert_close(adapted(query, key, value, **masks)[0], expected, atol=1e-6, rtol=1e-5)
    tuned, weights = randomise(adapted)(query, key, value, **masks)
    assert weights is None
    assert (tuned - expected).abs().max() > 0.01
    torch.testing.assert_close(adapted.merged()(query, key, value, **masks)[0], tuned, atol=1e-5, rtol=1e-5)


def test_attention_row_with_every_key_hidden_stays_finite():
    adapted = randomise(LoRAMultiheadAttention(nn.MultiheadAttention(16, 4, batch_first=True), ROLES, **LOW_RANK))
    x = torch.randn(1, 3, 16, requires_grad=True)
    out, _ = adapted(x, x, x, key_padding_mask=torch.ones(1, 3, dtype=torch.bool))
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()


def test_attention_drops_out_only_in_training():
    adapted = LoRAMultiheadAttention(nn.MultiheadAttention(16, 4, dropout=0.5), ROLES, **LOW_RANK)
    x = torch.randn(6, 2, 16)
    assert not torch.equal(adapted.train()(x, x, x)[0], adapted(x, x, x)[0])
    assert torch.equal(adapted.eval()(x, x, x)[0], adapted(x, x, x)[0])


def test_attention_keeps_what_callers_read():
    base = nn.MultiheadAttention(16, 4, batch_first=True)
    adapted = LoRAMultiheadAttention(base, ("q_proj",), **LOW_RANK)
    assert (adapted.num_heads, adapted.embed_dim, adapted.batch_first) == (4, 16, True)
    assert {n for n in adapted.state_dict() if "lora" not in n} == set(base.state_dict())


@pytest.mark.parametrize("roles", [("q_proj",), ("k_proj", "v_proj"), ("q_proj", "k_proj", "v_proj")])
def test_fused_qkv_touches_only_its_slices(roles: tuple[str, ...]):
    base = nn.Linear(8, 24)
    x = torch.randn(2, 5, 8)
    expected = base(x)
    adapted = LoRAFusedQKV(base, roles, **LOW_RANK)
    assert torch.equal(adapted(x), expected)
    change = (randomise(adapted)(x) - expected).abs().amax((0, 1)).view(3, 8)
    for index, role in enumerate(("q_proj", "k_proj", "v_proj")):
        assert bool(change[index].max() > 0.001) == (role in roles)
    torch.testing.assert_close(adapted.merged()(x), adapted(x), atol=1e-5, rtol=1e-5)


def test_linear_update_is_scale_times_b_a():
    base = nn.Linear(8, 4)
    adapted = randomise(LoRALinear(base, **LOW_RANK))
    low_rank = adapted.lora["linear"]
    expected = base.weight + 2.0 * low_rank.b @ low_rank.a
    torch.testing.assert_close(adapted.merged().weight, expected.detach())
    assert set(base.state_dict()) == set(adapted.merged().state_dict())


def test_adapters_off_gives_the_base_and_comes_back():
    base = nn.Linear(8, 4)
    x, adapted = torch.randn(3, 8), randomise(LoRALinear(base, **LOW_RANK))
    tuned = adapted(x)
    with adapters_off(adapted):
        assert torch.equal(adapted(x), base(x))
    assert torch.equal(adapted(x), tuned)


def test_dropout_acts_on_the_adapter_alone():
    adapted = randomise(LoRALinear(nn.Linear(64, 4), **{**LOW_RANK, "dropout": 0.5})).train()
    x = torch.randn(2, 64)
    assert not torch.equal(adapted(x), adapted(x))
    with adapters_off(adapted):
        assert torch.equal(adapted(x), adapted(x))


def test_a_starts_random_and_b_at_zero():
    low_rank = LoRALinear(nn.Linear(100, 4), **LOW_RANK).lora["linear"]
    assert low_rank.b.abs().max() == 0
    assert float(low_rank.a.detach().std()) == pytest.approx(1 / math.sqrt(3 * 100), rel=0.3)


def test_attention_with_separate_projections_is_refused():
    with pytest.raises(TypeError, match="fused"):
        LoRAMultiheadAttention(nn.MultiheadAttention(16, 4, kdim=8), ROLES, **LOW_RANK)
