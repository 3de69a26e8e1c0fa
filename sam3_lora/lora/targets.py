"""Where adapters can go: the names that users know, translated to SAM3's modules.

SAM3 spells its projections three ways (fused `qkv`, `nn.MultiheadAttention`, plain linears); users name them
once. Names are exact, never substrings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sam3_lora.config import TARGETS
from sam3_lora.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from sam3_lora.config import LoraConfig

Kind = Literal["linear", "fused_qkv", "attention"]
QKV = ("q_proj", "k_proj", "v_proj")
FFN = ("linear1", "linear2")


@dataclass(frozen=True)
class Site:
    """One module that can be adapted."""

    module: str  # dotted path in the model
    component: str
    kind: Kind
    targets: tuple[str, ...]  # which of the user's target names reach it


_BLOCK = r"backbone\.vision_backbone\.trunk\.blocks\.\d+\."
_TEXT = r"backbone\.language_backbone\.encoder\.transformer\.resblocks\.\d+\."
_GEOMETRY = r"geometry_encoder\.encode\.\d+\."
_ENCODER = r"transformer\.encoder\.layers\.\d+\."
_DECODER = r"transformer\.decoder\.layers\.\d+\."
_ATTENTION = (*QKV, "out_proj")

# component, pattern of the module's path, kind, targets that reach it
_TABLE: tuple[tuple[str, str, Kind, tuple[str, ...]], ...] = (
    ("vision_encoder", _BLOCK + r"attn\.qkv", "fused_qkv", QKV),
    ("vision_encoder", _BLOCK + r"attn\.proj", "linear", ("out_proj",)),
    ("vision_encoder", _BLOCK + r"mlp\.fc1", "linear", ("linear1",)),
    ("vision_encoder", _BLOCK + r"mlp\.fc2", "linear", ("linear2",)),
    ("text_encoder", _TEXT + "attn", "attention", _ATTENTION),
    ("text_encoder", _TEXT + r"mlp\.c_fc", "linear", ("linear1",)),
    ("text_encoder", _TEXT + r"mlp\.c_proj", "linear", ("linear2",)),
    ("geometry_encoder", _GEOMETRY + "(self_attn|cross_attn_image)", "attention", _ATTENTION),
    ("geometry_encoder", _GEOMETRY + "linear1", "linear", ("linear1",)),
    ("geometry_encoder", _GEOMETRY + "linear2", "linear", ("linear2",)),
    ("detr_encoder", _ENCODER + "(self_attn|cross_attn_image)", "attention", _ATTENTION),
    ("detr_encoder", _ENCODER + "linear1", "linear", ("linear1",)),
    ("detr_encoder", _ENCODER + "linear2", "linear", ("linear2",)),
    ("detr_decoder", _DECODER + "(self_attn|ca_text|cross_attn)", "attention", _ATTENTION),
    ("detr_decoder", _DECODER + "linear1", "linear", ("linear1",)),
    ("detr_decoder", _DECODER + "linear2", "linear", ("linear2",)),
    ("mask_decoder", r"segmentation_head\.cross_attend_prompt", "attention", _ATTENTION),
    ("mask_decoder", r"segmentation_head\.mask_predictor\.mask_embed\.layers\.\d+", "linear", FFN),
    ("scoring", r"dot_prod_scoring\.prompt_mlp\.layers\.\d+", "linear", FFN),
    # The score is a dot product of hs_proj(queries) and prompt_proj(prompt): a query and a key projection.
    ("scoring", r"dot_prod_scoring\.hs_proj", "linear", ("q_proj", *FFN)),
    ("scoring", r"dot_prod_scoring\.prompt_proj", "linear", ("k_proj", *FFN)),
)


def find_sites(model: nn.Module) -> list[Site]:
    """Every module of a SAM3 model that can be adapted, in the model's order."""
    sites = []
    for name, _ in model.named_modules():
        for component, pattern, kind, targets in _TABLE:
            if re.fullmatch(pattern, name):
                sites.append(Site(name, component, kind, targets))
    return sites


def select_sites(model: nn.Module, config: LoraConfig) -> list[tuple[Site, tuple[str, ...]]]:
    """The sites that a configuration adapts, each with the user's targets that reach it.

    Raises:
        ConfigError: if a component switch or a target matches no module, or `vision_layers` exceeds the depth.
    """
    sites = find_sites(model)
    if config.vision_layers is not None:
        sites = _last_vision_blocks(sites, config.vision_layers)
    chosen = [
        (site, tuple(t for t in config.targets if t in site.targets))
        for site in sites
        if site.component in config.components
    ]
    chosen = [(site, targets) for site, targets in chosen if targets]
    _check_all_used(config, chosen)
    return chosen


def _last_vision_blocks(sites: list[Site], count: int) -> list[Site]:
    def block(site: Site) -> int:
        return int(site.module.split(".blocks.")[1].split(".")[0])

    depth = 1 + max(block(site) for site in sites if site.component == "vision_encoder")
    if count > depth:
        fault = {"pointer": "/lora/vision_layers", "code": "too_large", "message": f"the model has {depth} blocks"}
        raise ConfigError(f"lora.vision_layers is {count}, but the vision encoder has {depth} blocks", errors=[fault])
    return [s for s in sites if s.component != "vision_encoder" or block(s) >= depth - count]


def _check_all_used(config: LoraConfig, chosen: list[tuple[Site, tuple[str, ...]]]) -> None:
    faults = []
    reached = {target for _, targets in chosen for target in targets}
    wanted = config.targets if config.targets != TARGETS else ()  # all means: whatever is there
    for target in wanted:
        if target not in reached:
            message = f"{target} matches no module of the components that are switched on"
            faults.append({"pointer": "/lora/target_modules", "code": "matches_nothing", "message": message})
    for component in config.components:
        if not any(site.component == component for site, _ in chosen):
            message = f"{component} has none of {', '.join(config.targets)}: add a target or set this to false"
            faults.append({"pointer": f"/lora/apply_to_{component}", "code": "matches_nothing", "message": message})
    if faults:
        raise ConfigError("; ".join(f"{fault['pointer']}: {fault['message']}" for fault in faults), errors=faults)
