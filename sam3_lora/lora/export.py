"""Write an adapted model in the formats of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from sam3_lora.errors import ConfigError
from sam3_lora.lora.adapter import load_adapter, read_info
from sam3_lora.lora.inject import merge
from sam3_lora.model.weights import OFFICIAL_PREFIX, load_base

if TYPE_CHECKING:
    from torch import Tensor

MERGED_SUFFIXES = (".pt", ".safetensors")


def export_merged(adapter: Path, output: Path, *, checkpoint: Path | None = None) -> None:
    """Fold an adapter into its base and write one file of plain weights with the official names.

    Args:
        adapter: adapter folder; its configuration names the base.
        output: `.pt` loads into `sam3.model_builder.build_sam3_image_model(checkpoint_path=...)`; `.safetensors` holds
            the same tensors without the rotary tables, which are built anew. Either may be `model.checkpoint` of a run.
        checkpoint: official weights on disk, for an adapter of sam3; None: the hub.

    Raises:
        AdapterError: if the adapter is damaged or belongs to another base.
        BaseModelError: if the base's weights cannot be had.
        ConfigError: if `output` has another suffix, exists, or cannot be written.
    """
    if output.suffix not in MERGED_SUFFIXES:
        raise _unusable(output, f"the suffix must be {' or '.join(MERGED_SUFFIXES)}")
    if output.exists():
        raise _unusable(output, "it exists already")
    info = read_info(adapter)
    model = load_base(info.base_model, checkpoint=checkpoint, resolution=info.resolution)
    load_adapter(model, adapter)
    tensors = {OFFICIAL_PREFIX + name: value for name, value in merge(model).state_dict().items()}
    fresh = output.with_name(f".new-{output.name}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _write(tensors, fresh, as_safetensors=output.suffix == ".safetensors")
        fresh.rename(output)
    except (OSError, RuntimeError) as error:  # torch.save reports a failed write as RuntimeError
        raise _unusable(output, f"cannot be written: {error}") from error
    finally:
        fresh.unlink(missing_ok=True)


def _write(tensors: dict[str, Tensor], path: Path, *, as_safetensors: bool) -> None:
    if as_safetensors:
        save_file({name: v.contiguous() for name, v in tensors.items() if not v.is_complex()}, path)
    else:
        torch.save({"model": tensors}, path)


def _unusable(output: Path, message: str) -> ConfigError:
    fault = {"pointer": "/output", "code": "unusable", "message": message}
    return ConfigError(f"cannot write {output}: {message}", errors=[fault])
