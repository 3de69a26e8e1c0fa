"""Adapter files: `adapter_model.safetensors` and `adapter_config.json` in one folder. Loading is strict.

The configuration carries rank, alpha, targets and the base's fingerprint, so that an adapter can only be
loaded onto the model it was trained on; anything else is refused with the field that differs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sam3_lora.config import LoraConfig, parse
from sam3_lora.errors import AdapterError, ConfigError
from sam3_lora.lora.inject import Injection, adapter_parameters, inject

if TYPE_CHECKING:
    from torch import nn

FORMAT, VERSION = "sam3-lora", 1
WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter's configuration file says."""

    base_model: str
    base_fingerprint: str
    resolution: int
    lora: LoraConfig
    prompts: dict[str, str]  # category name -> the text it is asked with

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "base_model": self.base_model,
            "base_fingerprint": self.base_fingerprint,
            "resolution": self.resolution,
            "lora": self.lora.model_dump(mode="json"),
            "prompts": self.prompts,
        }


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes and a sample of the values of a model's base weights; adapters do not count.

    The same weights give the same fingerprint in half or single precision files, and before or after `inject`.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if ".lora." in name or value.is_complex():  # rotary tables depend on the resolution, not on the weights
            continue
        sample = value.detach().flatten()[:16].to("cpu", torch.bfloat16).float()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def save_adapter(model: nn.Module, folder: Path, info: AdapterInfo) -> None:
    """Write the adapters of `model` into `folder` (made if missing)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in adapter_parameters(model).items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": FORMAT})
    (folder / CONFIG_FILE).write_text(json.dumps(info.to_dict(), indent=2) + "\n", encoding="utf-8")


def read_info(folder: Path) -> AdapterInfo:
    """Read an adapter's configuration.

    Raises:
        AdapterError: if it is missing, malformed, or of another format or version.
    """
    try:
        body = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if (body["format"], body["version"]) != (FORMAT, VERSION):
            raise AdapterError(f"{CONFIG_FILE} is {body['format']} {body['version']}, expected {FORMAT} {VERSION}")
        return AdapterInfo(
            base_model=str(body["base_model"]),
            base_fingerprint=str(body["base_fingerprint"]),
            resolution=int(body["resolution"]),
            lora=parse(LoraConfig, body["lora"]),
            prompts={str(category): str(text) for category, text in body["prompts"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise AdapterError(f"no readable {CONFIG_FILE} in {folder}: {error}") from error


def load_adapter(model: nn.Module, folder: Path) -> tuple[AdapterInfo, Injection]:
    """Inject an adapter's configuration into the untouched base `model` and load its weights.

    Raises:
        AdapterError: if the files are damaged, the base differs, or any tensor is missing, extra or misshapen.
    """
    info = read_info(folder)
    actual = fingerprint(model)
    if info.base_fingerprint != actual:
        raise AdapterError(
            f"base_fingerprint differs: the adapter was trained on {info.base_model} "
            f"({info.base_fingerprint[:12]}...), this base is {actual[:12]}..."
        )
    injection = inject(model, info.lora)
    load_weights(model, folder)
    return info, injection


def start_from(model: nn.Module, folder: Path, lora: LoraConfig, base_fingerprint: str) -> None:
    """Load an earlier adapter's weights into a model with fresh adapters of configuration `lora`.

    Raises:
        AdapterError: naming each field in which the earlier adapter differs, since its weights would mean
            something else (dropout and learning-rate ratio may differ), or if its files are damaged.
    """
    info = read_info(folder)
    differing = [
        f"lora.{name} ({getattr(info.lora, name)!r} there, {getattr(lora, name)!r} here)"
        for name in lora.incompatible_with(info.lora)
    ]
    if info.base_fingerprint != base_fingerprint:
        differing.append(f"the base ({info.base_model} {info.base_fingerprint[:12]}... there)")
    if differing:
        raise AdapterError(f"cannot start from the adapter in {folder}; these differ: {', '.join(differing)}")
    load_weights(model, folder)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load an adapter's tensors into a model that already has adapters of the same configuration.

    Raises:
        AdapterError: if the file is damaged or any tensor is missing, extra, misshapen or non-finite.
    """
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"no readable {WEIGHTS_FILE} in {folder}: {error}") from error
    parameters = adapter_parameters(model)
    _check(tensors, parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _check(tensors: dict[str, torch.Tensor], parameters: dict[str, nn.Parameter]) -> None:
    missing, extra = sorted(parameters.keys() - tensors.keys()), sorted(tensors.keys() - parameters.keys())
    if missing or extra:
        raise AdapterError(
            f"{WEIGHTS_FILE}: {len(missing)} tensors missing {missing[:3]}, {len(extra)} unknown {extra[:3]}"
        )
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            shapes = f"{tuple(tensors[name].shape)}, the model needs {tuple(parameter.shape)}"
            raise AdapterError(f"{WEIGHTS_FILE}: {name} has shape {shapes}")
        if not torch.isfinite(tensors[name]).all():
            raise AdapterError(f"{WEIGHTS_FILE}: {name} holds non-finite values")
