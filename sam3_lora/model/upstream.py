"""Every adaptation of the `sam3` package (0.1.4), each with its reason; nothing else touches upstream.

`tests/model/test_upstream.py` fails when upstream changes one of the places below.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

# sam3 imports `pkg_resources`, which warns that it is going away; the pin setuptools<81 keeps it.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
# sam3's decoder opens a CUDA autocast region even on a machine without CUDA.
warnings.filterwarnings("ignore", message="User provided device_type of 'cuda', but CUDA is not available")
# timm's old import paths, used by sam3.
warnings.filterwarnings("ignore", message="Importing from timm.models.layers is deprecated")

Sam3Image: TypeAlias = Any  # sam3 is untyped; what is called so is a `sam3.model.sam3_image.Sam3Image`
Recomputed = Literal["on", "encoders", "off"]
SKIP_CHECKPOINTING = "sam3_lora_skip_checkpointing"


@cache
def install() -> None:
    """Apply the process-wide adaptations once. Called by whatever builds a model or a loss."""
    _make_checkpointing_optional()
    _make_focal_loss_device_aware()


def _make_checkpointing_optional() -> None:
    """Encoder and decoder assert activation checkpointing in train mode; let a module opt out.

    At small sizes the recomputation costs a third of the step and saves nothing worth having.
    """
    act_ckpt_utils = importlib.import_module("sam3.model.act_ckpt_utils")
    original = act_ckpt_utils.activation_ckpt_wrapper

    def activation_ckpt_wrapper(module: Any) -> Callable[..., Any]:
        if not getattr(module, SKIP_CHECKPOINTING, False):
            return original(module)  # type: ignore[no-any-return]

        def call(*args: Any, act_ckpt_enable: bool = False, use_reentrant: bool = False, **kwargs: Any) -> Any:
            del act_ckpt_enable, use_reentrant
            return module(*args, **kwargs)

        return call

    for name in ("encoder", "decoder"):
        module: Any = importlib.import_module(f"sam3.model.{name}")
        module.activation_ckpt_wrapper = activation_ckpt_wrapper


def _make_focal_loss_device_aware() -> None:
    """The losses always call the Triton focal loss, which needs CUDA; take its torch branch elsewhere."""
    loss_fns: Any = importlib.import_module("sam3.train.loss.loss_fns")
    original = loss_fns.sigmoid_focal_loss

    def sigmoid_focal_loss(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return original(inputs, *args, **{"triton": inputs.is_cuda, **kwargs})  # type: ignore[no-any-return]

    loss_fns.sigmoid_focal_loss = sigmoid_focal_loss


def set_activation_checkpointing(model: Sam3Image, recomputed: Recomputed) -> None:
    """Choose which activations backward recomputes instead of keeping: all, those of the encoders, or none."""
    model.backbone.vision_backbone.trunk.use_act_checkpoint = recomputed != "off"
    model.backbone.language_backbone.encoder.transformer.grad_checkpointing = recomputed != "off"
    enabled = recomputed == "on"
    model.geometry_encoder.use_act_ckpt = enabled
    model.use_act_checkpoint_seg_head = enabled
    if model.segmentation_head is not None:
        # the head is recomputed as a whole: recomputing its pixel decoder once more within would run it three times
        model.segmentation_head.act_ckpt = False
    decoder = model.transformer.decoder
    asserting = [*model.transformer.encoder.layers, *decoder.layers, decoder.boxRPB_embed_x, decoder.boxRPB_embed_y]
    for module in asserting:
        setattr(module, SKIP_CHECKPOINTING, not enabled)


@cache
def geometry_encoder_class() -> type[nn.Module]:
    """`SequenceGeometryEncoder` whose box encoding does not pin memory (which raises without a CUDA driver)."""
    from sam3.model import geometry_encoders
    from sam3.model.box_ops import box_cxcywh_to_xyxy
    from torchvision.ops import roi_align

    class GeometryEncoder(geometry_encoders.SequenceGeometryEncoder):
        def _encode_boxes(
            self, boxes: Tensor, boxes_mask: Tensor, boxes_labels: Tensor, img_feats: Tensor
        ) -> tuple[Tensor, Tensor]:
            count, batch = boxes.shape[:2]
            height, width = img_feats.shape[-2:]
            pixels = box_cxcywh_to_xyxy(boxes) * boxes.new_tensor([width, height, width, height])
            pooled = roi_align(img_feats, list(pixels.float().transpose(0, 1).unbind(0)), self.roi_size)
            pooled = self.boxes_pool_project(pooled).view(batch, count, self.d_model).transpose(0, 1)
            sines = self.pos_enc.encode_boxes(*(part.flatten() for part in boxes.unbind(-1)))
            sines = self.boxes_pos_enc_project(sines.view(count, batch, sines.shape[-1]))
            embedded = self.boxes_direct_project(boxes) + pooled + sines
            return self.label_embed(boxes_labels.long()) + embedded, boxes_mask

    return GeometryEncoder


def initialise_text_parameters(text_encoder: Any) -> None:
    """`VETextEncoder` leaves two parameters as `torch.empty`: from scratch the first forward would be NaN."""
    encoder = text_encoder.encoder
    nn.init.normal_(encoder.positional_embedding, std=0.01)
    nn.init.normal_(encoder.text_projection, std=encoder.width**-0.5)


@cache
def vocabulary_path() -> Path:
    """CLIP's BPE vocabulary. The sam3 wheel lacks the file; `open_clip_torch` ships the identical one."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ImportError("open_clip_torch is not installed: it carries the tokenizer's vocabulary")
    return Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz")


@cache
def tokenizer() -> Any:
    """CLIP's tokenizer; read once, since parsing the vocabulary takes half a second and it has no state of a model."""
    from sam3.model.tokenizer_ve import SimpleTokenizer

    return SimpleTokenizer(bpe_path=str(vocabulary_path()))


@contextmanager
def cpu_stock_builder() -> Iterator[Any]:
    """`sam3.model_builder` with its CUDA-only precomputation off, for comparing our model with the stock one."""
    builder: Any = importlib.import_module("sam3.model_builder")
    position, decoder = builder.PositionEmbeddingSine, builder.TransformerDecoder
    builder.PositionEmbeddingSine = lambda **kw: position(**{**kw, "precompute_resolution": None})
    builder.TransformerDecoder = lambda **kw: decoder(**{**kw, "resolution": None, "stride": None})
    try:
        yield builder
    finally:
        builder.PositionEmbeddingSine, builder.TransformerDecoder = position, decoder


def matcher() -> nn.Module:
    """The one-to-one matcher of official training (roboflow_v100 config)."""
    from sam3.train.matcher import BinaryHungarianMatcherV2

    return BinaryHungarianMatcherV2(  # type: ignore[no-any-return]
        focal=True, cost_class=2.0, cost_bbox=5.0, cost_giou=2.0, alpha=0.25, gamma=2.0, stable=False
    )
