"""Our base models as transformers' `Sam3Model`: same sizes, same weights. For comparing outputs."""

from __future__ import annotations

import re

from torch import Tensor, nn
from transformers import CLIPTextConfig, Sam3Config, Sam3Model, Sam3ViTConfig
from transformers.models.sam3.configuration_sam3 import (
    Sam3DETRDecoderConfig,
    Sam3DETREncoderConfig,
    Sam3GeometryEncoderConfig,
    Sam3MaskDecoderConfig,
    Sam3VisionConfig,
)

from sam3_lora.lora.huggingface import huggingface_module
from sam3_lora.lora.layers import LINEAR, OUT
from sam3_lora.lora.targets import QKV, Site, find_sites
from sam3_lora.model.architecture import Architecture

TEXT_PROJECTION = 512  # width of CLIP's pooled text, which SAM3 has but does not use

# What no adapter reaches. The same parameter of an official module has the name on the right.
_TABLE = (
    (r"backbone\.vision_backbone\.trunk\.pos_embed", "vision_encoder.backbone.embeddings.position_embeddings"),
    (
        r"backbone\.vision_backbone\.trunk\.patch_embed\.proj",
        "vision_encoder.backbone.embeddings.patch_embeddings.projection",
    ),
    (r"backbone\.vision_backbone\.trunk\.ln_pre", "vision_encoder.backbone.layer_norm"),
    (r"backbone\.vision_backbone\.trunk\.blocks\.(\d+)\.norm(\d)", r"vision_encoder.backbone.layers.\1.layer_norm\2"),
    (
        r"backbone\.vision_backbone\.convs\.(\d+)\.dconv_2x2(?:_0)?",
        r"vision_encoder.neck.fpn_layers.\1.scale_layers.0",
    ),
    (r"backbone\.vision_backbone\.convs\.(\d+)\.dconv_2x2_1", r"vision_encoder.neck.fpn_layers.\1.scale_layers.2"),
    (r"backbone\.vision_backbone\.convs\.(\d+)\.conv_1x1", r"vision_encoder.neck.fpn_layers.\1.proj1"),
    (r"backbone\.vision_backbone\.convs\.(\d+)\.conv_3x3", r"vision_encoder.neck.fpn_layers.\1.proj2"),
    (
        r"backbone\.language_backbone\.encoder\.positional_embedding",
        "text_encoder.text_model.embeddings.position_embedding.weight",
    ),
    (r"backbone\.language_backbone\.encoder\.text_projection", "text_encoder.text_projection.weight"),
    (r"backbone\.language_backbone\.encoder\.token_embedding", "text_encoder.text_model.embeddings.token_embedding"),
    (
        r"backbone\.language_backbone\.encoder\.transformer\.resblocks\.(\d+)\.ln_(\d)",
        r"text_encoder.text_model.encoder.layers.\1.layer_norm\2",
    ),
    (r"backbone\.language_backbone\.encoder\.ln_final", "text_encoder.text_model.final_layer_norm"),
    (r"backbone\.language_backbone\.resizer", "text_projection"),
    (r"geometry_encoder\.img_pre_norm", "geometry_encoder.vision_layer_norm"),
    (r"geometry_encoder\.norm", "geometry_encoder.prompt_layer_norm"),
    (r"geometry_encoder\.encode_norm", "geometry_encoder.output_layer_norm"),
    (r"geometry_encoder\.encode\.(\d+)\.norm(\d)", r"geometry_encoder.layers.\1.layer_norm\2"),
    (
        r"geometry_encoder\.(label_embed|cls_embed|boxes_direct_project|boxes_pool_project|boxes_pos_enc_project|final_proj)",
        r"geometry_encoder.\1",
    ),
    (r"transformer\.encoder\.layers\.(\d+)\.norm(\d)", r"detr_encoder.layers.\1.layer_norm\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm1", r"detr_decoder.layers.\1.vision_cross_attn_layer_norm"),
    (r"transformer\.decoder\.layers\.(\d+)\.catext_norm", r"detr_decoder.layers.\1.text_cross_attn_layer_norm"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm2", r"detr_decoder.layers.\1.self_attn_layer_norm"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm3", r"detr_decoder.layers.\1.mlp_layer_norm"),
    (r"transformer\.decoder\.norm", "detr_decoder.output_layer_norm"),
    (r"transformer\.decoder\.presence_token_out_norm", "detr_decoder.presence_layer_norm"),
    (r"transformer\.decoder\.(query_embed|reference_points|presence_token)", r"detr_decoder.\1"),
    (r"transformer\.decoder\.bbox_embed\.layers\.(\d)", r"detr_decoder.box_head.layer\1"),
    (r"transformer\.decoder\.presence_token_head\.layers\.(\d)", r"detr_decoder.presence_head.layer\1"),
    (r"transformer\.decoder\.ref_point_head\.layers\.(\d)", r"detr_decoder.ref_point_head.layer\1"),
    (r"transformer\.decoder\.boxRPB_embed_([xy])\.layers\.(\d)", r"detr_decoder.box_rpb_embed_\1.layer\2"),
    (r"segmentation_head\.pixel_decoder\.(conv_layers|norms)\.(\d)", r"mask_decoder.pixel_decoder.\1.\2"),
    (r"segmentation_head\.cross_attn_norm", "mask_decoder.prompt_cross_attn_norm"),
    (r"segmentation_head\.semantic_seg_head", "mask_decoder.semantic_projection"),
    (r"segmentation_head\.instance_seg_head", "mask_decoder.instance_projection"),
    (r"dot_prod_scoring\.prompt_mlp\.out_norm", "dot_product_scoring.text_mlp_out_norm"),
)
# Point prompts belong to the tracker, and rotary tables are computed: transformers has neither here.
_ABSENT = r"geometry_encoder\.points_.+|.+\.freqs_cis"


def huggingface_base(model: nn.Module, arch: Architecture) -> Sam3Model:
    """transformers' model with the weights of `model`, which has no adapters, in evaluation mode."""
    converted = Sam3Model(huggingface_config(arch))
    converted.load_state_dict(_state_dict(model))
    return converted.eval()


def huggingface_config(arch: Architecture) -> Sam3Config:
    transformer = {"hidden_size": arch.d_model, "num_attention_heads": arch.heads}
    feed_forward = {"intermediate_size": arch.ffn, "dropout": arch.dropout}
    vit = Sam3ViTConfig(
        hidden_size=arch.vit_width,
        intermediate_size=int(arch.vit_width * arch.vit_mlp_ratio),
        num_hidden_layers=arch.vit_depth,
        num_attention_heads=arch.vit_heads,
        image_size=arch.image_size,
        patch_size=arch.patch_size,
        window_size=arch.vit_window,
        global_attn_indexes=list(arch.vit_global_blocks),
        pretrain_image_size=arch.vit_pretrain_image_size,
        layer_norm_eps=1e-5,  # as sam3; transformers' default is 1e-6
    )
    text = CLIPTextConfig(
        hidden_size=arch.text_width,
        intermediate_size=4 * arch.text_width,
        projection_dim=TEXT_PROJECTION,
        num_hidden_layers=arch.text_depth,
        num_attention_heads=arch.text_heads,
        max_position_embeddings=arch.text_context,
        vocab_size=49408,
        hidden_act="gelu",
    )
    return Sam3Config(
        vision_config=Sam3VisionConfig(backbone_config=vit, fpn_hidden_size=arch.d_model),
        text_config=text,
        geometry_encoder_config=Sam3GeometryEncoderConfig(
            num_layers=arch.geometry_layers, **transformer, **feed_forward
        ),
        detr_encoder_config=Sam3DETREncoderConfig(num_layers=arch.encoder_layers, **transformer, **feed_forward),
        detr_decoder_config=Sam3DETRDecoderConfig(
            num_layers=arch.decoder_layers, num_queries=arch.queries, **transformer, **feed_forward
        ),
        mask_decoder_config=Sam3MaskDecoderConfig(**transformer),
    )


def linears_of(site: Site) -> dict[str, str]:
    """The plain linears that an adaptable module is made of: our role -> name in transformers."""
    roles = {"linear": (LINEAR,), "fused_qkv": QKV, "attention": (*QKV, OUT)}[site.kind]
    return {role: huggingface_module(site.module, role, site.component) for role in roles}


def _state_dict(model: nn.Module) -> dict[str, Tensor]:
    official = {name: value for name, value in model.state_dict().items() if not re.fullmatch(_ABSENT, name)}
    converted = {}
    for site in find_sites(model):
        linears = linears_of(site)
        for kind in ("weight", "bias"):
            if site.kind == "attention":
                values = [
                    *official.pop(f"{site.module}.in_proj_{kind}").chunk(3),
                    official.pop(f"{site.module}.{OUT}.{kind}"),
                ]
            else:
                values = list(official.pop(f"{site.module}.{kind}").chunk(len(linears)))
            for theirs, value in zip(linears.values(), values, strict=True):
                converted[f"{theirs}.{kind}"] = value
    for name, value in official.items():
        theirs = _other(name)
        if name.endswith("pos_embed"):  # without the class token's
            value = value[:, 1:]
        converted[theirs] = value.T if name.endswith("text_projection") else value
    return {name: value.contiguous() for name, value in converted.items()}


def _other(name: str) -> str:
    for pattern, theirs in _TABLE:
        if match := re.fullmatch(pattern + r"((?:\.weight|\.bias)?)", name):
            renamed = match.expand(theirs) + match.group(match.lastindex or 0)
            return re.sub(r"\.layer(\d)(?=\.\w+$)", lambda m: f".layer{int(m[1]) + 1}", renamed)  # counted from 1
    raise KeyError(name)
