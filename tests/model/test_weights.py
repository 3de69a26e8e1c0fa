from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sam3_lora.errors import BaseModelError
from sam3_lora.model import weights
from sam3_lora.model.build import build_model
from tests.models import MICRO, largest_difference, micro_model, mixed_batch, outputs_of


@pytest.fixture
def micro_is_sam3(monkeypatch: pytest.MonkeyPatch):
    """Let the name sam3 stand for a model that fits a test."""
    monkeypatch.setattr(weights, "SAM3", MICRO)


def plain(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if not v.is_complex()}


@pytest.mark.usefixtures("micro_is_sam3")
@pytest.mark.parametrize("prefix", ["detector.", ""])
def test_official_checkpoint_loads_with_or_without_the_detector_prefix(tmp_path: Path, prefix: str):
    model = micro_model()
    tensors = {prefix + k: v for k, v in plain(model).items()}
    tracker = {"tracker.memory": torch.zeros(1)} if prefix else {}
    torch.save({"model": {**tensors, **tracker}}, tmp_path / "sam3.pt")
    loaded = weights.load_base("sam3", checkpoint=tmp_path / "sam3.pt")
    assert not loaded.training
    batch = mixed_batch()
    assert largest_difference(outputs_of(loaded, batch), outputs_of(model.eval(), batch)) == 0


@pytest.mark.usefixtures("micro_is_sam3")
@pytest.mark.parametrize("fault", ["missing", "shape", "not_tensors", "damaged", "absent", "code"])
def test_bad_checkpoints_are_refused_by_name(tmp_path: Path, fault: str):
    path, tensors = tmp_path / "sam3.pt", plain(micro_model())
    name = "transformer.decoder.query_embed.weight"
    if fault == "missing":
        del tensors[name]
        torch.save(tensors, path)
    elif fault == "shape":
        torch.save({**tensors, name: torch.zeros(3, 3)}, path)
    elif fault == "not_tensors":
        torch.save({"model": {"a": 1}}, path)
    elif fault == "damaged":
        path.write_bytes(b"PK\x03\x04 not a checkpoint")
    elif fault == "code":
        torch.save({"model": Path}, path)  # a class: refused by weights_only
    with pytest.raises(BaseModelError) as caught:
        weights.load_base("sam3", checkpoint=path)
    assert caught.value.code == "base_model_unavailable"
    if fault in ("missing", "shape"):
        assert name in caught.value.message


def test_unknown_base_is_named():
    with pytest.raises(BaseModelError, match="sam9"):
        weights.load_base("sam9")


def test_gated_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def refuse(**_: object) -> str:
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(BaseModelError) as caught:
        weights.load_base("sam3")
    assert "HF_TOKEN" in caught.value.hint


def test_half_precision_safetensors_load_into_single_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "mini"
    folder.mkdir()
    import json

    (folder / "architecture.json").write_text(json.dumps(MICRO.to_dict()))
    save_file({k: v.half() for k, v in plain(build_model(MICRO)).items()}, folder / "model.safetensors")
    monkeypatch.setattr(weights, "BASES", tmp_path)
    assert all(p.dtype == torch.float32 for p in weights.load_base("mini").parameters())
