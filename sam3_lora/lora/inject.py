"""Put adapters into a SAM3 model, freeze the rest, and fold adapters back into plain weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from sam3_lora.lora.layers import Adapted, LoRAFusedQKV, LoRALinear, LoRAMultiheadAttention
from sam3_lora.lora.targets import QKV, Site, select_sites

if TYPE_CHECKING:
    from sam3_lora.config import LoraConfig


@dataclass(frozen=True)
class AdaptedModule:
    """One adapted module, for logs and reports."""

    module: str
    component: str
    targets: tuple[str, ...]
    parameters: int


@dataclass(frozen=True)
class Injection:
    """What `inject` did."""

    modules: tuple[AdaptedModule, ...]
    trainable_parameters: int
    total_parameters: int  # base and adapters

    @property
    def trainable_percent(self) -> float:
        return 100.0 * self.trainable_parameters / self.total_parameters

    def to_dict(self) -> dict[str, Any]:
        return {
            "adapted_modules": [asdict(module) for module in self.modules],
            "trainable_parameters": self.trainable_parameters,
            "total_parameters": self.total_parameters,
            "trainable_percent": self.trainable_percent,
        }


def inject(model: nn.Module, config: LoraConfig) -> Injection:
    """Freeze `model` and replace the configured modules by their LoRA forms, in place.

    Raises:
        ConfigError: if a switch or target matches nothing.
    """
    chosen = select_sites(model, config)
    model.requires_grad_(False)
    adapted = []
    for site, targets in chosen:
        module = _adapted(model.get_submodule(site.module), site, targets, config)
        _replace(model, site.module, module)
        count = sum(p.numel() for p in module.lora.parameters())
        adapted.append(AdaptedModule(site.module, site.component, targets, count))
    trainable = sum(module.parameters for module in adapted)
    return Injection(tuple(adapted), trainable, sum(p.numel() for p in model.parameters()))


def merge(model: nn.Module) -> nn.Module:
    """Fold every adapter into its weights, in place: plain modules with the official state dict keys again."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Adapted):
            _replace(model, name, module.merged().train(module.training))  # type: ignore[attr-defined]
    return model


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' parameters by name (`<module>.lora.<role>.a|b`)."""
    return {name: parameter for name, parameter in model.named_parameters() if ".lora." in name}


def _adapted(module: nn.Module, site: Site, targets: tuple[str, ...], config: LoraConfig) -> Any:
    low_rank = {
        "rank": config.rank_of(site.component),
        "scale": config.scale_of(site.component),
        "dropout": config.dropout,
    }
    if site.kind == "attention":
        adapted: nn.Module = LoRAMultiheadAttention(module, targets, **low_rank)  # type: ignore[arg-type]
    elif site.kind == "fused_qkv":
        adapted = LoRAFusedQKV(module, tuple(t for t in targets if t in QKV), **low_rank)  # type: ignore[arg-type]
    else:
        adapted = LoRALinear(module, **low_rank)  # type: ignore[arg-type]
    return adapted.train(module.training)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
