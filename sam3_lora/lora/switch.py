"""Many adapters on one base: they share its weights and take turns."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from sam3_lora.lora.adapter import load_adapter, read_info
from sam3_lora.lora.targets import select_sites

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


class AdapterSwitch:
    """Puts the adapter that is wanted into a base model. The least recently used ones are forgotten.

    An adapter in memory is its adapted modules, whose frozen weights are those of the base itself.
    """

    def __init__(self, base: nn.Module, *, keep: int) -> None:
        """`keep`: adapters in memory, the one in use among them."""
        self.model = base
        self._keep = keep
        self._plain: dict[str, nn.Module] = {}  # what the adapter in use has replaced, by path
        self._ready: OrderedDict[str, dict[str, nn.Module]] = OrderedDict()

    def use(self, key: str, folder: Path) -> list[str]:
        """Have the model be the base with this adapter; the keys that were forgotten for it.

        Args:
            key: names the adapter: under the same key, the same files.

        Raises:
            AdapterError: if its files are damaged or it belongs to another base; no adapter is in use then.
        """
        self.use_none()
        if key not in self._ready:
            self._load(key, folder)
        else:
            self._ready.move_to_end(key)
            self._plain = self._put(self._ready[key])
        return [self._ready.popitem(last=False)[0] for _ in range(len(self._ready) - self._keep)]

    def use_none(self) -> None:
        """Have the model be the base alone."""
        self._put(self._plain)
        self._plain = {}

    def _load(self, key: str, folder: Path) -> None:
        sites = select_sites(self.model, read_info(folder).lora)
        self._plain = {site.module: self.model.get_submodule(site.module) for site, _ in sites}
        try:
            load_adapter(self.model, folder)
        except BaseException:
            self.use_none()
            raise
        self._ready[key] = {name: self.model.get_submodule(name) for name in self._plain}

    def _put(self, modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
        """Replace modules by path; those that were there."""
        before = {name: self.model.get_submodule(name) for name in modules}
        for name, module in modules.items():
            self.model.set_submodule(name, module)
        return before
