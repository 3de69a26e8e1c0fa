import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sam3_lora.config import LoraConfig
from sam3_lora.errors import AdapterError
from sam3_lora.lora.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterInfo,
    fingerprint,
    load_adapter,
    save_adapter,
)
from sam3_lora.lora.inject import adapter_parameters, inject
from tests.models import largest_difference, micro_model, mixed_batch, outputs_of


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = micro_model()
    info = AdapterInfo("micro", fingerprint(model), 140, LoraConfig(rank=2, alpha=3.0), {"ring": "ring"})
    inject(model, info.lora)
    for parameter in adapter_parameters(model).values():
        parameter.data.normal_(0, 0.05)
    save_adapter(model, tmp_path / "adapter", info)
    torch.save(outputs_of(model, mixed_batch()), tmp_path / "expected.pt")
    return tmp_path / "adapter"


def test_round_trip_gives_the_same_outputs(saved: Path):
    model = micro_model()
    info, _ = load_adapter(model, saved)
    expected = torch.load(saved.parent / "expected.pt", weights_only=True)
    assert largest_difference(outputs_of(model, mixed_batch()), expected) == 0
    assert (info.lora.rank, info.lora.alpha, info.prompts) == (2, 3.0, {"ring": "ring"})


def test_another_base_is_refused(saved: Path):
    with pytest.raises(AdapterError, match="base_fingerprint"):
        load_adapter(micro_model(seed=1), saved)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("rank", 4, "shape"),
        ("target_modules", ["q_proj", "linear1", "linear2"], "unknown"),
        ("apply_to_text_encoder", True, "missing"),
        ("rank", -1, "rank"),
        ("ranks", 4, "ranks"),
    ],
)
def test_configuration_that_does_not_fit_the_weights_is_refused(saved: Path, field: str, value: object, named: str):
    body = json.loads((saved / CONFIG_FILE).read_text())
    body["lora"][field] = value
    (saved / CONFIG_FILE).write_text(json.dumps(body))
    with pytest.raises(AdapterError, match=named):
        load_adapter(micro_model(), saved)


@pytest.mark.parametrize(
    "damage", ["truncated", "absent", "nan", "renamed", "config_absent", "config_garbage", "version"]
)
def test_damaged_files_are_refused(saved: Path, damage: str):
    weights = saved / WEIGHTS_FILE
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-40])
    elif damage == "absent":
        weights.unlink()
    elif damage in ("nan", "renamed"):
        tensors = load_file(weights)
        name = next(iter(tensors))
        if damage == "nan":
            tensors[name] = torch.full_like(tensors[name], float("nan"))
        else:
            tensors["x." + name] = tensors.pop(name)
        save_file(tensors, weights)
    elif damage == "config_absent":
        (saved / CONFIG_FILE).unlink()
    elif damage == "config_garbage":
        (saved / CONFIG_FILE).write_text("[1, 2]")
    else:
        body = json.loads((saved / CONFIG_FILE).read_text())
        (saved / CONFIG_FILE).write_text(json.dumps({**body, "version": 99}))
    with pytest.raises(AdapterError):
        load_adapter(micro_model(), saved)
