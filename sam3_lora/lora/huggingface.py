"""Write an adapter in the format of peft, for the `Sam3Model` of transformers. Needs neither package.

transformers gives SAM3's modules other names and one linear to each of q, k and v, cut from the fused projections
as they are. So each adapted projection is exactly one `nn.Linear` there, and A and B are copied unchanged.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from sam3_lora.errors import AdapterError
from sam3_lora.lora.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterInfo
from sam3_lora.lora.export import new_folder, read_complete
from sam3_lora.lora.layers import LINEAR
from sam3_lora.model.weights import HUB_REPOSITORY

CARD_FILE, PROVENANCE_FILE = "README.md", "sam3_lora.json"
_LORA_NAMES = {"a": "lora_A", "b": "lora_B"}

_BLOCK, _VIT = r"backbone\.vision_backbone\.trunk\.blocks\.(\d+)\.", r"vision_encoder.backbone.layers.\1."
_RESBLOCK = r"backbone\.language_backbone\.encoder\.transformer\.resblocks\.(\d+)\."
_CLIP = r"text_encoder.text_model.encoder.layers.\1."
_GEOMETRY, _GEOMETRY_HF = r"geometry_encoder\.encode\.(\d+)\.", r"geometry_encoder.layers.\1."
_ENCODER, _ENCODER_HF = r"transformer\.encoder\.layers\.(\d+)\.", r"detr_encoder.layers.\1."
_DECODER, _DECODER_HF = r"transformer\.decoder\.layers\.(\d+)\.", r"detr_decoder.layers.\1."
_QKVO = r"([qkvo])(?:ut)?_proj"  # q_proj, k_proj, v_proj; out_proj is o_proj there, except in the text encoder

# pattern of an official projection (module, then role where it has several), its module in transformers
_TABLE: tuple[tuple[str, str], ...] = (
    (_BLOCK + r"attn\.qkv\.([qkv]_proj)", _VIT + r"attention.\2"),
    (_BLOCK + r"attn\.proj", _VIT + r"attention.o_proj"),
    (_BLOCK + r"mlp\.(fc[12])", _VIT + r"mlp.\2"),
    (_RESBLOCK + r"attn\.((?:q|k|v|out)_proj)", _CLIP + r"self_attn.\2"),
    (_RESBLOCK + r"mlp\.c_fc", _CLIP + r"mlp.fc1"),
    (_RESBLOCK + r"mlp\.c_proj", _CLIP + r"mlp.fc2"),
    (_GEOMETRY + r"self_attn\." + _QKVO, _GEOMETRY_HF + r"self_attn.\2_proj"),
    (_GEOMETRY + r"cross_attn_image\." + _QKVO, _GEOMETRY_HF + r"cross_attn.\2_proj"),
    (_GEOMETRY + r"linear([12])", _GEOMETRY_HF + r"mlp.fc\2"),
    (_ENCODER + r"self_attn\." + _QKVO, _ENCODER_HF + r"self_attn.\2_proj"),
    (_ENCODER + r"cross_attn_image\." + _QKVO, _ENCODER_HF + r"cross_attn.\2_proj"),
    (_ENCODER + r"linear([12])", _ENCODER_HF + r"mlp.fc\2"),
    (_DECODER + r"self_attn\." + _QKVO, _DECODER_HF + r"self_attn.\2_proj"),
    (_DECODER + r"ca_text\." + _QKVO, _DECODER_HF + r"text_cross_attn.\2_proj"),
    (_DECODER + r"cross_attn\." + _QKVO, _DECODER_HF + r"vision_cross_attn.\2_proj"),
    (_DECODER + r"linear([12])", _DECODER_HF + r"mlp.fc\2"),
    (r"segmentation_head\.cross_attend_prompt\." + _QKVO, r"mask_decoder.prompt_cross_attn.\1_proj"),
    (r"segmentation_head\.mask_predictor\.mask_embed\.layers\.(\d+)", r"mask_decoder.mask_embedder.layers.\1"),
    (r"dot_prod_scoring\.prompt_mlp\.layers\.0", r"dot_product_scoring.text_mlp.layer1"),
    (r"dot_prod_scoring\.prompt_mlp\.layers\.1", r"dot_product_scoring.text_mlp.layer2"),
    (r"dot_prod_scoring\.hs_proj", r"dot_product_scoring.query_proj"),
    (r"dot_prod_scoring\.prompt_proj", r"dot_product_scoring.text_proj"),
)


def export_peft(adapter: Path, output: Path) -> None:
    """Write an adapter as a folder that `peft.PeftModel.from_pretrained` loads onto transformers' `Sam3Model`.

    Beside peft's two files the folder holds a model card and the adapter's own configuration.

    Raises:
        AdapterError: if the adapter is damaged, or adapts a module that `Sam3Model` does not have.
        BaseModelError: if its base is unknown.
        ConfigError: if `output` is there already or cannot be written.
    """
    info, injection, tensors = read_complete(adapter)
    component_of = {module.module: module.component for module in injection.modules}
    components: dict[str, str] = {}  # transformers' module -> our component
    converted = {}
    for name, tensor in tensors.items():
        module, _, parameter = name.partition(".lora.")
        role, matrix = parameter.split(".")
        theirs = huggingface_module(module, role, component_of[module])
        components[theirs] = component_of[module]
        converted[f"base_model.model.{theirs}.{_LORA_NAMES[matrix]}.weight"] = tensor
    with new_folder(output) as folder:
        save_file(converted, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        _write_json(folder / CONFIG_FILE, _peft_config(info, components))
        _write_json(folder / PROVENANCE_FILE, info.to_dict())
        (folder / CARD_FILE).write_text(_card(info), encoding="utf-8")


def huggingface_module(module: str, role: str, component: str) -> str:
    """Name in `Sam3Model` of the linear that is `role` of our adapted `module`.

    Raises:
        AdapterError: if it has none.
    """
    projection = module if role == LINEAR else f"{module}.{role}"
    for pattern, theirs in _TABLE:
        if match := re.fullmatch(pattern, projection):
            return match.expand(theirs)
    raise AdapterError(
        f"{projection} has no counterpart in transformers' Sam3Model, so that this adapter cannot be written for peft",
        hint=f"an adapter trained with lora.apply_to_{component}: false can; or export it as native, or merge it",
    )


def _peft_config(info: AdapterInfo, components: dict[str, str]) -> dict[str, Any]:
    """What peft's `LoraConfig` needs; the scale is alpha / rank (/ sqrt(rank) with use_rslora) in both."""
    lora = info.lora
    official = info.base_model == "sam3"
    # peft matches a pattern against the whole name. One for each component: no two share the first part of the name.
    patterns = {component: name.split(".")[0] + r"\..+" for name, component in components.items()}
    alphas = {component: lora.component_alpha.get(component, lora.alpha) for component in patterns}
    ranks = {component: lora.rank_of(component) for component in patterns}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": {
            "base_model_class": "Sam3Model",
            "parent_library": "transformers.models.sam3.modeling_sam3",
        },
        "base_model_name_or_path": HUB_REPOSITORY if official else None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.use_rslora,
        "lora_dropout": lora.dropout,
        "rank_pattern": {patterns[c]: rank for c, rank in ranks.items() if rank != lora.rank},
        "alpha_pattern": {patterns[c]: alpha for c, alpha in alphas.items() if alpha != lora.alpha},
        "target_modules": sorted(components),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "modules_to_save": None,
    }


def _write_json(path: Path, body: dict[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


_CARD = """\
---
{base_model}library_name: peft
license: other
license_name: sam-license
license_link: https://github.com/facebookresearch/sam3/blob/main/LICENSE
tags:
- sam3
- lora
---

# LoRA adapter for SAM3

Fine-tunes `{base}` to these prompts (category: text):

{prompts}

## Use

Needs `transformers>=5.20` and `peft>=0.21`.

```python
import torch
from peft import PeftModel
from PIL import Image
from transformers import Sam3Config, Sam3Model, Sam3Processor

base, side = "{repository}", {resolution}  # the adapter was trained on images of this side
config = Sam3Config.from_pretrained(base)
config.image_size = side
model = PeftModel.from_pretrained(Sam3Model.from_pretrained(base, config=config), "path/of/this/folder").eval()
processor = Sam3Processor.from_pretrained(base, size={{"height": side, "width": side}})

inputs = processor(images=Image.open("image.jpg").convert("RGB"), text={prompt!r}, return_tensors="pt")
# SAM3 as published, and this adapter in training, encode the box prompts even where there are none. Sam3Model skips
# that without a box; one box that is padding (label -10) makes its outputs those of the published model.
inputs["input_boxes"], inputs["input_boxes_labels"] = torch.zeros(1, 1, 4), torch.full((1, 1), -10)
with torch.no_grad():
    outputs = model(**inputs)
sizes = inputs["original_sizes"].tolist()
found = processor.post_process_instance_segmentation(outputs, threshold=0.5, target_sizes=sizes)[0]
```

## Provenance

Trained by sam3-lora on the base `{base}` at {resolution} x {resolution} pixels. Fingerprint of that base (SHA-256 over
names, shapes and a sample of its weights, under the official names):

    {fingerprint}

`{provenance}` is the adapter's own configuration, with every setting of LoRA.

## Licence

SAM License: the adapter is a derivative of SAM Materials. Whoever passes it on passes on a copy of that licence too.
"""


def _card(info: AdapterInfo) -> str:
    official = info.base_model == "sam3"
    prompts = json.dumps(info.prompts, indent=2, ensure_ascii=False)
    return _CARD.format(
        base_model=f"base_model: {HUB_REPOSITORY}\n" if official else "",
        base=info.base_model,
        repository=HUB_REPOSITORY if official else "path/of/the/base",
        resolution=info.resolution,
        # indented, so that no text can end the block early
        prompts="\n".join(f"    {line}" for line in prompts.splitlines()),
        prompt=next(iter(info.prompts.values()), "object"),
        fingerprint=info.base_fingerprint,
        provenance=PROVENANCE_FILE,
    )
