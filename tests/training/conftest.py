"""A micro base under the name sam3-tiny, and a drawn dataset: real training in a second a step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sam3_lora.config import RunConfig, parse
from sam3_lora.model import weights
from sam3_lora.model.build import build_model
from sam3_lora.synthetic.coco_export import write_dataset
from sam3_lora.training import setup
from sam3_lora.training.step import Stepper
from tests.models import MICRO
from tests.training.trainers import Trainer


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    (folder / "sam3-tiny").mkdir()
    torch.manual_seed(0)
    architecture = replace(MICRO, dropout=0.1, vit_drop_path=0.1)  # as the official model
    tensors = {k: v for k, v in build_model(architecture).state_dict().items() if not v.is_complex()}
    save_file(tensors, folder / "sam3-tiny" / "model.safetensors")
    (folder / "sam3-tiny" / "architecture.json").write_text(json.dumps(architecture.to_dict()))
    return folder


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "data"
    write_dataset(folder, concepts=["heart", "cross"], train=6, valid=2, seed=1)
    return folder


@pytest.fixture(autouse=True)
def bfloat16_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed precision is tested on processors that only emulate it, too."""
    monkeypatch.setattr(setup, "computes_bfloat16", lambda device_type: True)


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the gradients of every step from the n-th on be not finite."""

    def spoil(first: int) -> None:
        original = Stepper._accumulate
        calls: list[None] = []

        def poisoned(self: Stepper, *arguments: Any) -> Any:
            values = original(self, *arguments)
            calls.append(None)
            if len(calls) >= first:
                self.parameters[0].grad = torch.full_like(self.parameters[0], float("nan"))
            return values

        monkeypatch.setattr(Stepper, "_accumulate", poisoned)

    return spoil


@pytest.fixture
def make_config(bases: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """A configuration of three steps an epoch on the drawn dataset; keywords override whole sections' keys."""
    monkeypatch.setattr(weights, "BASES", bases)

    def make(name: str = "run", **sections: dict[str, Any]) -> RunConfig:
        values: dict[str, dict[str, Any]] = {
            "model": {"base": "sam3-tiny"},
            "lora": {"rank": 4, "dropout": 0.1},
            "dataset": {
                "train_img_folder": str(drawn / "train"),
                "train_ann_file": str(drawn / "train" / "_annotations.coco.json"),
                "val_img_folder": str(drawn / "valid"),
                "val_ann_file": str(drawn / "valid" / "_annotations.coco.json"),
            },
            "training": {
                "max_epochs": 2,
                "batch_size": 2,
                "learning_rate": 1e-3,
                "use_amp": False,
                "num_workers": 0,
                "mask_points": 256,
            },
            "output": {"dir": str(tmp_path / name), "tensorboard": False},
        }
        for section, keys in sections.items():
            values[section] = {**values.get(section, {}), **keys}
        return parse(RunConfig, values)

    return make


@pytest.fixture
def start(bases: Path, make_config) -> Iterator[Callable[..., Trainer]]:
    trainers = []

    def make(*arguments: str, config: RunConfig | None = None, first: str = "") -> Trainer:
        trainers.append(Trainer(bases, config or make_config(training={"max_epochs": 1000}), *arguments, first=first))
        return trainers[-1]

    yield make
    for trainer in trainers:
        trainer.process.kill()
        trainer.end()
        for stream in (trainer.process.stdin, trainer.process.stdout, trainer.process.stderr):
            stream.close()
