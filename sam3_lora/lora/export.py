"""Write adapters and adapted models to give to others: checked first, and there as a whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sam3_lora.errors import ConfigError
from sam3_lora.lora.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterInfo, load_adapter, load_weights, read_info
from sam3_lora.lora.inject import Injection, inject, merge
from sam3_lora.model.build import build_skeleton
from sam3_lora.model.weights import OFFICIAL_PREFIX, architecture_of, load_base

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


def export_native(adapter: Path, output: Path) -> None:
    """Copy the two files of an adapter into a folder of their own, without any training state beside them.

    Raises:
        AdapterError: if the adapter is damaged.
        BaseModelError: if its base is unknown.
        ConfigError: if `output` is there already or cannot be written.
    """
    read_complete(adapter)
    with new_folder(output) as folder:
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            shutil.copyfile(adapter / name, folder / name)


def read_complete(adapter: Path) -> tuple[AdapterInfo, Injection, dict[str, Tensor]]:
    """Read an adapter strictly, against the names and shapes of its base but without the base's weights.

    Raises:
        AdapterError: if a file is damaged or any tensor is missing, extra, misshapen or non-finite.
        BaseModelError: if its base is unknown.
        ConfigError: if its configuration adapts what the base does not have.
    """
    info = read_info(adapter)
    skeleton = build_skeleton(architecture_of(info.base_model))
    injection = inject(skeleton, info.lora)
    load_weights(skeleton, adapter)  # checks only: parameters on the meta device keep no values
    return info, injection, load_file(adapter / WEIGHTS_FILE)


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `output` at the end of the block or, if that fails, is gone.

    Raises:
        ConfigError: if `output` is there already (it may be an empty folder) or cannot be written.
    """
    output = output.absolute()  # "." has no name to put a sibling beside
    fresh = output.with_name(f".new-{output.name}")
    try:
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            raise _unusable(output, "it exists already")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        yield fresh
        fresh.rename(output)
    except (OSError, SafetensorError) as error:  # safetensors reports a failed write as its own error
        raise _unusable(output, f"cannot be written: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write(tensors: dict[str, Tensor], path: Path, *, as_safetensors: bool) -> None:
    if as_safetensors:
        save_file({name: v.contiguous() for name, v in tensors.items() if not v.is_complex()}, path)
    else:
        torch.save({"model": tensors}, path)


def _unusable(output: Path, message: str) -> ConfigError:
    fault = {"pointer": "/output", "code": "unusable", "message": message}
    return ConfigError(f"cannot write {output}: {message}", errors=[fault])
