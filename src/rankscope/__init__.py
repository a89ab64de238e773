"""rankscope: how complex a fine-tuning update really is.

The public names, imported when they are first used: ``import rankscope`` loads no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Dense": "linalg",
    "LowRank": "linalg",
    "Estimate": "linalg",
    "stable_rank": "linalg",
    "spectral_norm": "linalg",
    "effective_rank": "linalg",
    "measure": "measure",
    "probe": "monitor",
    "StableRankCallback": "monitor",
    "Study": "study.plan",
    "Store": "study.store",
    "run": "sweep",
    "analyze": "findings",
    "write_report": "findings",
}

__all__ = ["__version__", *_HOME]


class _Face(ModuleType):
    """The package, whose public names come from the rooms.

    ``rankscope.measure`` is a function although a module bears that name: when Python binds the imported submodule
    to the package, the function takes its place.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'rankscope' has no attribute {name!r}; it has {', '.join(__all__)}")
        value = getattr(importlib.import_module(f"rankscope.{_HOME[name]}"), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name, value)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *_HOME})


sys.modules[__name__].__class__ = _Face
