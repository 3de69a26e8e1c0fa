"""Load a base model with its weights: the official SAM3 (file or hub) or the `sam3-tiny` shipped here."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sam3_lora.errors import BaseModelError
from sam3_lora.model import upstream
from sam3_lora.model.architecture import SAM3, Architecture
from sam3_lora.model.build import build_skeleton

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)
BASES = Path(__file__).with_name("bases")
HUB_REPOSITORY, HUB_FILE = "facebook/sam3", "sam3.pt"
OFFICIAL_PREFIX = "detector."  # official checkpoints also hold the tracker; the image model is the detector
LARGE = 50_000_000  # parameters


def architecture_of(base: str) -> Architecture:
    """Sizes of a named base, without touching its weights.

    Raises:
        BaseModelError: if there is no base of that name.
    """
    if base == "sam3":
        return SAM3
    try:
        return Architecture.from_dict(json.loads((BASES / base / "architecture.json").read_text(encoding="utf-8")))
    except OSError as error:
        raise BaseModelError(f"unknown base model {base!r}") from error


def load_base(
    base: str,
    *,
    checkpoint: Path | None = None,
    resolution: int | None = None,
    recomputed: upstream.Recomputed | None = None,
) -> nn.Module:
    """Build a base model with its weights, on the CPU, in evaluation mode.

    Args:
        base: "sam3" or the name of a base shipped under `model/bases`.
        checkpoint: official weights on disk (`sam3.pt` or a safetensors file of the same keys); None: the hub.

    Raises:
        BaseModelError: if the weights cannot be had or do not fit.
        ValueError: if the resolution does not suit the model.
    """
    arch = architecture_of(base)
    tensors = _official_weights(checkpoint) if base == "sam3" else _read(BASES / base / "model.safetensors")
    model = build_skeleton(arch, resolution=resolution)  # random weights would take ten seconds to draw, for nothing
    upstream.set_activation_checkpointing(model, recomputed or ("on" if is_large(model) else "off"))
    _load(model, tensors)
    return model.eval()


def is_large(model: nn.Module) -> bool:
    """Whether a training step of the model takes gigabytes."""
    return sum(p.numel() for p in model.parameters()) > LARGE


def _official_weights(checkpoint: Path | None) -> dict[str, Tensor]:
    tensors = _read(checkpoint if checkpoint is not None else _download())
    prefixed = {k.removeprefix(OFFICIAL_PREFIX): v for k, v in tensors.items() if k.startswith(OFFICIAL_PREFIX)}
    return prefixed or tensors


def _download() -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo_id=HUB_REPOSITORY, filename=HUB_FILE))
    except GatedRepoError as error:
        raise BaseModelError(
            f"{HUB_REPOSITORY} is gated",
            hint=f"accept the licence at huggingface.co/{HUB_REPOSITORY} and set HF_TOKEN, or give model.checkpoint",
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BaseModelError(
            f"cannot download {HUB_FILE} of {HUB_REPOSITORY}: {error}",
            hint="check the network and HF_TOKEN, or download the file and give its path as model.checkpoint",
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a torch file (unpickled with `weights_only`, so no code runs)."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        body = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, ImportError) as error:
        raise BaseModelError(f"cannot read base weights {path}: {error}") from error
    except Exception as error:  # torch.load raises UnpicklingError and kin without a common base
        raise BaseModelError(f"{path} is not a checkpoint of plain tensors: {error}") from error
    inner = body.get("model", body) if isinstance(body, dict) else body
    if not isinstance(inner, dict) or not all(isinstance(v, torch.Tensor) for v in inner.values()):
        raise BaseModelError(f"{path} does not hold a dictionary of tensors")
    return inner


def _load(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load strictly; rotary tables are built for the chosen resolution and are not taken from the file.

    The model takes the tensors over: those of a file that is mapped into memory are read when they are first used.
    """
    own = model.state_dict()
    missing = sorted(k for k, v in own.items() if k not in tensors and not v.is_complex())
    extra = sorted(tensors.keys() - own.keys())
    wrong = sorted(k for k, v in own.items() if k in tensors and not v.is_complex() and v.shape != tensors[k].shape)
    if missing or wrong:
        raise BaseModelError(
            f"the weights do not fit: {len(missing)} missing {missing[:3]}, {len(wrong)} of another shape {wrong[:3]}",
            hint="is this a SAM3 image model checkpoint (sam3.pt)?",
        )
    if extra:
        log.warning("base weights hold %d tensors that the image model does not use, e.g. %s", len(extra), extra[:2])
    usable = {k: v.to(own[k].dtype) for k, v in tensors.items() if k in own and not own[k].is_complex()}
    model.load_state_dict(usable, strict=False, assign=True)
