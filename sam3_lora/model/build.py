"""Build a SAM3 image model of any size from upstream's public classes, without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sam3_lora.model import upstream
from sam3_lora.model.lean import image_model_class, mask_predictor_class, vision_transformer_class

if TYPE_CHECKING:
    from sam3_lora.model.architecture import Architecture


def build_skeleton(arch: Architecture, *, resolution: int | None = None) -> nn.Module:
    """The model with names and shapes but no weights: its parameters are on the meta device.

    The full SAM3 takes seconds and no memory for weights. Upstream cannot be built under `torch.device("meta")`,
    since its constructors read values of small tensors; so only parameters are moved, as each is registered.
    """

    def shape_of(_module: nn.Module, _name: str, parameter: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(shape_of)  # type: ignore[arg-type]  # may return a parameter
    try:
        return build_model(arch, resolution=resolution)
    finally:
        hook.remove()


def build_model(
    arch: Architecture, *, resolution: int | None = None, recomputed: upstream.Recomputed = "on"
) -> nn.Module:
    """Build `sam3.model.sam3_image.Sam3Image` with random weights.

    With `architecture.SAM3` the parameter names and shapes are those of `build_sam3_image_model`.

    Args:
        resolution: side of the square input in pixels (default: the architecture's); the rotary tables of
            the global blocks are made for it, all other weights do not depend on it.
        recomputed: the activations that backward recomputes instead of keeping them.

    Raises:
        ValueError: if the resolution does not suit the patch and window sizes.
    """
    upstream.install()
    from sam3.model.maskformer_segmentation import PixelDecoder, UniversalSegmentationHead
    from sam3.model.model_misc import MLP, DotProductScoring, TransformerWrapper
    from sam3.model.model_misc import MultiheadAttentionWrapper as Attention
    from sam3.model.vl_combiner import SAM3VLBackbone

    if problem := arch.check_resolution(resolution or arch.image_size):
        raise ValueError(problem)
    d, heads, drop = arch.d_model, arch.heads, arch.dropout
    backbone = SAM3VLBackbone(visual=_vision(arch, resolution or arch.image_size), text=_text(arch), scalp=1)
    transformer = TransformerWrapper(encoder=_encoder(arch), decoder=_decoder(arch), d_model=d)
    prompt_mlp = MLP(d, arch.ffn, d, 2, dropout=drop, residual=True, out_norm=nn.LayerNorm(d))
    segmentation = UniversalSegmentationHead(
        hidden_dim=d,
        upsampling_stages=3,
        act_ckpt=True,
        cross_attend_prompt=Attention(num_heads=heads, dropout=0, embed_dim=d),
        pixel_decoder=PixelDecoder(num_upsampling_stages=3, interpolation_mode="nearest", hidden_dim=d),
    )
    segmentation.mask_predictor = mask_predictor_class()(hidden_dim=d, mask_dim=d)
    model = image_model_class()(
        backbone=backbone,
        transformer=transformer,
        input_geometry_encoder=_geometry(arch),
        segmentation_head=segmentation,
        num_feature_levels=1,
        o2m_mask_predict=True,
        dot_prod_scoring=DotProductScoring(d_model=d, d_proj=d, prompt_mlp=prompt_mlp),
        use_instance_query=False,
        multimask_output=True,
        matcher=upstream.matcher(),
    )
    upstream.set_activation_checkpointing(model, recomputed)
    return model


def _sine(d_model: int) -> nn.Module:
    from sam3.model.position_encoding import PositionEmbeddingSine

    # precompute_resolution would allocate on CUDA; the cache fills itself at the first forward.
    return PositionEmbeddingSine(num_pos_feats=d_model, normalize=True, precompute_resolution=None)  # type: ignore[no-any-return]


def _vision(arch: Architecture, resolution: int) -> nn.Module:
    from sam3.model.necks import Sam3DualViTDetNeck

    trunk = vision_transformer_class()(
        img_size=resolution,
        pretrain_img_size=arch.vit_pretrain_image_size,
        patch_size=arch.patch_size,
        embed_dim=arch.vit_width,
        depth=arch.vit_depth,
        num_heads=arch.vit_heads,
        mlp_ratio=arch.vit_mlp_ratio,
        norm_layer="LayerNorm",
        drop_path_rate=arch.vit_drop_path,
        qkv_bias=True,
        use_abs_pos=True,
        tile_abs_pos=True,
        global_att_blocks=arch.vit_global_blocks,
        rel_pos_blocks=(),
        use_rope=True,
        use_interp_rope=True,
        window_size=arch.vit_window,
        pretrain_use_cls_token=True,
        retain_cls_token=False,
        ln_pre=True,
        ln_post=False,
        return_interm_layers=False,
        bias_patch_embed=False,
    )
    return Sam3DualViTDetNeck(  # type: ignore[no-any-return]
        position_encoding=_sine(arch.d_model),
        d_model=arch.d_model,
        scale_factors=[4.0, 2.0, 1.0, 0.5],
        trunk=trunk,
    )


def _text(arch: Architecture) -> nn.Module:
    from sam3.model.text_encoder_ve import VETextEncoder

    encoder = VETextEncoder(
        tokenizer=upstream.tokenizer(),
        d_model=arch.d_model,
        width=arch.text_width,
        heads=arch.text_heads,
        layers=arch.text_depth,
        context_length=arch.text_context,
    )
    upstream.initialise_text_parameters(encoder)
    return encoder  # type: ignore[no-any-return]


def _fusion_layer(arch: Architecture, **attention: bool) -> nn.Module:
    from sam3.model.encoder import TransformerEncoderLayer
    from sam3.model.model_misc import MultiheadAttentionWrapper as Attention

    batch_first = attention.pop("batch_first")
    kwargs = {"num_heads": arch.heads, "dropout": arch.dropout, "embed_dim": arch.d_model, "batch_first": batch_first}
    return TransformerEncoderLayer(  # type: ignore[no-any-return]
        activation="relu",
        d_model=arch.d_model,
        dim_feedforward=arch.ffn,
        dropout=arch.dropout,
        pos_enc_at_cross_attn_queries=False,
        pre_norm=True,
        self_attention=Attention(**kwargs),
        cross_attention=Attention(**kwargs),
        **attention,
    )


def _encoder(arch: Architecture) -> nn.Module:
    from sam3.model.encoder import TransformerEncoderFusion

    return TransformerEncoderFusion(  # type: ignore[no-any-return]
        layer=_fusion_layer(arch, pos_enc_at_attn=True, pos_enc_at_cross_attn_keys=False, batch_first=True),
        num_layers=arch.encoder_layers,
        d_model=arch.d_model,
        num_feature_levels=1,
        use_act_checkpoint=True,
        add_pooled_text_to_img_feat=False,
        pool_text_with_mask=True,
    )


def _decoder(arch: Architecture) -> nn.Module:
    from sam3.model.decoder import TransformerDecoder, TransformerDecoderLayer
    from sam3.model.model_misc import MultiheadAttentionWrapper as Attention

    layer = TransformerDecoderLayer(
        activation="relu",
        d_model=arch.d_model,
        dim_feedforward=arch.ffn,
        dropout=arch.dropout,
        cross_attention=Attention(num_heads=arch.heads, dropout=arch.dropout, embed_dim=arch.d_model),
        n_heads=arch.heads,
        use_text_cross_attention=True,
    )
    # resolution and stride would fill the coordinate cache on CUDA; it fills itself at the first forward.
    return TransformerDecoder(  # type: ignore[no-any-return]
        layer=layer,
        num_layers=arch.decoder_layers,
        num_queries=arch.queries,
        return_intermediate=True,
        box_refine=True,
        num_o2m_queries=0,
        dac=True,
        boxRPB="log",
        d_model=arch.d_model,
        frozen=False,
        interaction_layer=None,
        dac_use_selfatt_ln=True,
        use_act_checkpoint=True,
        presence_token=True,
    )


def _geometry(arch: Architecture) -> nn.Module:
    encoder = upstream.geometry_encoder_class()
    return encoder(
        pos_enc=_sine(arch.d_model),
        encode_boxes_as_points=False,
        points_direct_project=True,
        points_pool=True,
        points_pos_enc=True,
        boxes_direct_project=True,
        boxes_pool=True,
        boxes_pos_enc=True,
        d_model=arch.d_model,
        num_layers=arch.geometry_layers,
        layer=_fusion_layer(arch, pos_enc_at_attn=False, pos_enc_at_cross_attn_keys=True, batch_first=False),
        use_act_ckpt=True,
        add_cls=True,
        add_post_encode_proj=True,
    )
