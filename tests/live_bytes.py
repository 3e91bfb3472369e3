"""Counts what tensors take, also those without contents, and what the blocks of a travelling model take together."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from diffusers.hooks.group_offloading import ModuleGroup
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is entered, what operations make is counted until nothing refers to it; `most` is the largest sum.

    Args:
        device: Where it has to lie to be counted.
        not_counted: Tensors that are there already, views of which are not counted either.
    """

    def __init__(self, device: torch.device, not_counted: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._device = device
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in not_counted}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its results."""
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, torch.Tensor) and result.device == self._device:
                self._count(result.untyped_storage())
        self.most = max(self.most, self.now)
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


class Crossings:
    """While groups of blocks cross as diffusers lets them, `most` is the largest sum of those that are on the device.

    Args:
        monkeypatch: Takes the watching away again; what is watched happens as ever.
    """

    def __init__(self, monkeypatch: Any) -> None:
        self.now = self.most = self.count = 0
        onload, offload = ModuleGroup.onload_, ModuleGroup.offload_
        there: dict[int, int] = {}

        def came(group: ModuleGroup) -> None:
            onload(group)
            parameters = [*group.parameters, *(p for module in group.modules for p in module.parameters())]
            there[id(group)] = sum(p.nbytes for p in {id(p): p for p in parameters}.values())
            self.count += 1
            self.most = max(self.most, sum(there.values()))

        def went(group: ModuleGroup) -> None:
            offload(group)
            there.pop(id(group), None)

        monkeypatch.setattr(ModuleGroup, "onload_", came)
        monkeypatch.setattr(ModuleGroup, "offload_", went)
