import pytest
import torch

from sam3_lora.config import COMPONENTS, TARGETS, LoraConfig
from sam3_lora.errors import ConfigError
from sam3_lora.lora.adapter import fingerprint
from sam3_lora.lora.inject import adapter_parameters, inject, merge
from sam3_lora.lora.layers import adapters_off
from sam3_lora.lora.targets import find_sites
from sam3_lora.losses.sam3 import Sam3Loss
from tests.models import largest_difference, micro_model, mixed_batch, outputs_of

EVERYWHERE = LoraConfig(apply_to_text_encoder=True, apply_to_geometry_encoder=True, target_modules=["all"])


def only(component: str, **values: object) -> LoraConfig:
    return LoraConfig(**{f"apply_to_{name}": name == component for name in COMPONENTS}, **values)


def randomise(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in adapter_parameters(model).values():
        parameter.data.normal_(0, 0.05, generator=generator)


def test_untrained_adapters_change_nothing():
    model, batch = micro_model(), mixed_batch()
    before, identity = outputs_of(model, batch), fingerprint(model)
    inject(model, EVERYWHERE)
    assert largest_difference(outputs_of(model, batch), before) < 1e-5
    assert fingerprint(model) == identity


def test_merged_equals_base_plus_adapter_under_the_official_names():
    model, batch = micro_model(), mixed_batch()
    official, before = set(model.state_dict()), outputs_of(model, batch)
    inject(model, EVERYWHERE)
    randomise(model)
    tuned = outputs_of(model, batch)
    assert largest_difference(tuned, before) > 0.01
    with adapters_off(model):
        assert largest_difference(outputs_of(model, batch), before) < 1e-5
    merge(model)
    assert largest_difference(outputs_of(model, batch), tuned) < 1e-5
    assert set(model.state_dict()) == official
    stock = micro_model(seed=9)
    stock.load_state_dict(model.state_dict())
    assert largest_difference(outputs_of(stock, batch), tuned) < 1e-5


def test_every_adapter_and_nothing_else_gets_a_gradient():
    model, batch = micro_model(), mixed_batch(images=3)
    inject(model, EVERYWHERE)
    randomise(model)
    loss, _ = Sam3Loss(masks=True)(model(batch), batch, model)
    loss.backward()
    adapters = adapter_parameters(model)
    for name, parameter in model.named_parameters():
        if name in adapters:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_switch_adapts_its_component_alone(component: str):
    injection = inject(micro_model(), only(component))
    assert {module.component for module in injection.modules} == {component}
    assert injection.trainable_parameters > 0


@pytest.mark.parametrize("target", TARGETS)
def test_usual_names_reach_the_vision_blocks(target: str):
    injection = inject(micro_model(), only("vision_encoder", target_modules=[target]))
    assert len(injection.modules) == 4  # one in each of the four blocks
    assert all(module.targets == (target,) for module in injection.modules)


def test_native_names_are_aliases():
    def adapted(*names: str) -> list[tuple[str, tuple[str, ...]]]:
        injection = inject(micro_model(), only("vision_encoder", target_modules=list(names)))
        return [(m.module, m.targets) for m in injection.modules]

    assert adapted("qkv") == adapted("q_proj", "k_proj", "v_proj")
    assert adapted("proj", "fc1", "fc2") == adapted("out_proj", "linear1", "linear2")


def test_names_are_exact_never_substrings():
    model = micro_model()
    sites = {site.module for site in find_sites(model)}
    assert not any("points_direct_project" in site or "final_proj" in site for site in sites)
    assert "geometry_encoder.encode.0.self_attn.out_proj" not in sites


def test_last_vision_layers_only():
    injection = inject(micro_model(), only("vision_encoder", vision_layers=1))
    assert {m.module.split(".blocks.")[1].split(".")[0] for m in injection.modules} == {"3"}
    with pytest.raises(ConfigError, match="4 blocks"):
        inject(micro_model(), only("vision_encoder", vision_layers=5))


def test_switch_or_target_that_matches_nothing_is_an_error():
    with pytest.raises(ConfigError) as caught:
        inject(micro_model(), only("scoring", target_modules=["v_proj", "q_proj"]))
    assert [fault["pointer"] for fault in caught.value.errors] == ["/lora/target_modules"]
    with pytest.raises(ConfigError) as caught:
        inject(micro_model(), LoraConfig(target_modules=["v_proj"]))
    assert [fault["pointer"] for fault in caught.value.errors] == ["/lora/apply_to_scoring"]


def test_counts_are_what_is_there():
    model = micro_model()
    injection = inject(model, LoraConfig())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert injection.trainable_parameters == trainable == sum(m.parameters for m in injection.modules)
    assert injection.total_parameters == sum(p.numel() for p in model.parameters())


def test_rank_alpha_and_rslora_act():
    def scale_and_rank(config: LoraConfig) -> tuple[float, int]:
        model = micro_model()
        inject(model, config)
        low_rank = model.get_submodule("transformer.decoder.layers.0.linear1").lora["linear"]
        return low_rank.scale, low_rank.a.shape[0]

    assert scale_and_rank(LoraConfig(rank=4, alpha=8.0)) == (2.0, 4)
    assert scale_and_rank(LoraConfig(rank=4, alpha=8.0, use_rslora=True)) == (4.0, 4)


def test_components_may_have_their_own_rank_and_alpha():
    model = micro_model()
    inject(model, LoraConfig(rank=4, alpha=8.0, component_rank={"detr_decoder": 2}, component_alpha={"scoring": 16.0}))

    def of(module: str) -> tuple[int, float]:
        low_rank = model.get_submodule(module).lora["linear"]
        return low_rank.a.shape[0], low_rank.scale

    assert of("transformer.encoder.layers.0.linear1") == (4, 2.0)
    assert of("transformer.decoder.layers.0.linear1") == (2, 4.0)
    assert of("dot_prod_scoring.hs_proj") == (4, 4.0)
