"""Adapters that take turns: each answers as if it were alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sam3_lora.config import LoraConfig
from sam3_lora.errors import AdapterError
from sam3_lora.evaluation.predict import Predictor
from sam3_lora.lora.adapter import AdapterInfo, fingerprint, load_adapter, save_adapter
from sam3_lora.lora.inject import adapter_parameters, inject
from sam3_lora.lora.switch import AdapterSwitch
from tests.models import micro_model

PIXELS = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
CONFIGS = {
    "wide": LoraConfig(rank=4),
    "vision": LoraConfig(rank=2, target_modules=["q_proj", "v_proj"], apply_to_detr_decoder=False),
    "text": LoraConfig(rank=3, apply_to_text_encoder=True, apply_to_vision_encoder=False),
}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of adapters with different modules and weights."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, config) in enumerate(CONFIGS.items()):
        model = micro_model()
        base = fingerprint(model)
        inject(model, config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapter_parameters(model).values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        save_adapter(model, folder / name, AdapterInfo("micro", base, 140, config, {}))
    return {name: folder / name for name in CONFIGS}


def scores(model: torch.nn.Module) -> torch.Tensor:
    return Predictor(model, resolution=140).predict(PIXELS, ["circle"])[0].scores_K


def alone(folder: Path) -> torch.Tensor:
    model = micro_model()
    load_adapter(model, folder)
    return scores(model)


def test_each_adapter_answers_as_if_it_were_alone(adapters: dict[str, Path]):
    base = scores(micro_model())
    expected = {name: alone(folder) for name, folder in adapters.items()}
    switch = AdapterSwitch(micro_model(), keep=3)
    for name in ("wide", "vision", "wide", "text", "vision", "text", "wide"):
        switch.use(name, adapters[name])
        torch.testing.assert_close(scores(switch.model), expected[name], rtol=0, atol=0)
        assert not torch.allclose(expected[name], base)
    switch.use_none()
    torch.testing.assert_close(scores(switch.model), base, rtol=0, atol=0)
    assert not adapter_parameters(switch.model)


def test_the_least_recently_used_is_forgotten(adapters: dict[str, Path]):
    switch = AdapterSwitch(micro_model(), keep=2)
    used = ["wide", "vision", "wide", "text", "vision"]
    assert [switch.use(name, adapters[name]) for name in used] == [[], [], [], ["vision"], ["wide"]]
    torch.testing.assert_close(scores(switch.model), alone(adapters["vision"]), rtol=0, atol=0)


def test_adapters_in_memory_share_the_weights_of_the_base(adapters: dict[str, Path]):
    model = micro_model()
    before = {name: value.data_ptr() for name, value in model.state_dict().items()}
    switch = AdapterSwitch(model, keep=3)
    for name, folder in adapters.items():
        switch.use(name, folder)
    own = {name: value.data_ptr() for name, value in model.state_dict().items() if ".lora." not in name}
    assert own == before


def test_a_damaged_adapter_leaves_the_base(adapters: dict[str, Path], tmp_path: Path):
    (tmp_path / "adapter_config.json").write_bytes((adapters["wide"] / "adapter_config.json").read_bytes())
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x08damaged")
    switch = AdapterSwitch(micro_model(), keep=2)
    switch.use("vision", adapters["vision"])
    with pytest.raises(AdapterError):
        switch.use("damaged", tmp_path)
    torch.testing.assert_close(scores(switch.model), scores(micro_model()), rtol=0, atol=0)
    switch.use("vision", adapters["vision"])
    torch.testing.assert_close(scores(switch.model), alone(adapters["vision"]), rtol=0, atol=0)
