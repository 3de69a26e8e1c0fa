"""Predictors of adapters on one base, which stays loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sam3_lora.evaluation.predict import Predictor, place
from sam3_lora.lora.adapter import read_info
from sam3_lora.lora.switch import AdapterSwitch
from sam3_lora.model.weights import load_base

if TYPE_CHECKING:
    from pathlib import Path

    import torch

UNTUNED = ""  # key of the base alone
MAX_TEXTS = 1000  # prompts whose features a predictor keeps


class Models:
    """One base model in memory, and the adapters that were asked last."""

    def __init__(
        self, *, checkpoint: Path | None = None, device: Literal["auto", "cpu", "cuda"] = "auto", keep: int = 4
    ) -> None:
        """`checkpoint`: official weights on disk, for adapters of sam3; None: the hub. `keep`: adapters in memory."""
        self._checkpoint, self._device, self._keep = checkpoint, device, keep
        self._base: tuple[str, int] | None = None
        self._switch: AdapterSwitch
        self._amp_dtype: torch.dtype | None = None
        self._predictors: dict[str, tuple[Predictor, set[str]]] = {}

    def predictor(self, key: str, adapter: Path, texts: list[str], *, untuned: bool = False) -> Predictor:
        """The predictor of an adapter, to be asked for these texts before another is asked for.

        Args:
            key: names the adapter: under the same key, the same files.
            untuned: that of the adapter's base alone.

        Raises:
            AdapterError: if the adapter is damaged or belongs to another base.
            BaseModelError: if the base's weights cannot be had.
        """
        info = read_info(adapter)
        if self._base != (info.base_model, info.resolution):
            self._load(info.base_model, info.resolution)
        if untuned:
            self._switch.use_none()
            key = UNTUNED
        else:
            for forgotten in self._switch.use(key, adapter):
                self._predictors.pop(forgotten, None)
        predictor, asked = self._predictors.get(key, (None, set()))
        if predictor is None or len(asked | set(texts)) > MAX_TEXTS:
            predictor = Predictor(self._switch.model, resolution=info.resolution, amp_dtype=self._amp_dtype)
            asked = set()
        self._predictors[key] = predictor, asked | set(texts)
        return predictor

    def _load(self, base: str, resolution: int) -> None:
        self._base, self._predictors = None, {}
        if hasattr(self, "_switch"):
            del self._switch  # the memory of one base must do
        model = load_base(base, checkpoint=self._checkpoint, resolution=resolution)
        model, self._amp_dtype = place(model, self._device)
        self._switch = AdapterSwitch(model, keep=self._keep)
        self._base = base, resolution
