"""Bytes of tensors alive while a block runs, counted at every operation: no allocator, no page, no
noise."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """``peak`` is the most that tensors made inside held at once, beside what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.peak = 0, 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):  # what was there before is not ours
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage(), ours=False)
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage(), ours=True)
        self.peak = max(self.peak, self.alive)
        return result

    def _note(self, storage: torch.UntypedStorage, *, ours: bool) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes() if ours else 0
        self.alive += size
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size
