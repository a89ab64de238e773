"""rankscope: how complex is a fine-tuning update?

The public names, imported when they are first used: ``import rankscope`` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Dense": "linalg",
    "LowRank": "linalg",
    "Estimate": "linalg",
    "stable_rank": "linalg",
    "spectral_norm": "linalg",
    "effective_rank": "linalg",
    "measure": "measurement.measure",
    "probe": "measurement.probe",
    "StableRankCallback": "measurement.callback",
    "edit": "interventions.edit",
    "intervene": "interventions.run",
    "Study": "study.study_file",
    "Store": "store.store",
    "run": "sweep.run",
    "analyze": "report.from_store",
    "write_report": "report.from_store",
}

_MODULES = {"plot": "report.plot"}

__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = importlib.import_module(f"rankscope.{_MODULES[name]}")
        globals()[name] = value
        return value
    if name not in _HOME:
        raise AttributeError(
            f"module 'rankscope' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    value = getattr(importlib.import_module(f"rankscope.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
