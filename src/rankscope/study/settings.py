"""The product of what a study lists beside model, task, rank and scaling rule: its settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rankscope.study.sections import Arm, Fixed
from rankscope.study.trial import LISTED, OF_FULL


@dataclass(frozen=True)
class Setting:
    """``values`` in place of ``[fixed]``'s; ``listed``: how the study writes those that a trial
    bears otherwise (``trial.setting_of``)."""

    values: dict[str, Any]
    listed: dict[str, str]


def settings(arm: Arm, fixed: Fixed, method: str) -> Iterator[Setting]:
    """Those of an arm's trials by "lora" or "full", which has no factors."""
    names = LISTED if method == "lora" else OF_FULL
    lists = {name: values for name in names if (values := getattr(arm, name)) is not None}
    for chosen in itertools.product(*lists.values()):
        values = dict(zip(lists, chosen, strict=True))
        listed = {
            name: _written(values[name])
            for name in ("lora_alpha", "target_modules")
            if name in values
        }
        if values.get("lora_plus_ratio") == 1:
            values["lora_plus_ratio"] = None
        whole = {name: getattr(fixed, name) for name in LISTED} | values
        has_ratio = method == "lora" and whole["lora_plus_ratio"] is not None
        if has_ratio and whole["optimizer"] != "adamw":
            raise ValueError(
                'lora_plus_ratio: expected optimizer = "adamw" in every trial that has it; '
                f"found {whole['optimizer']!r}. Take an [[arm]] for one of them"
            )
        yield Setting(values, listed)


def _written(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
