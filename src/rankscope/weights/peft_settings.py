"""Writes PEFT's settings for a rank and a scale per layer: LoraConfig's patterns.

``lora_config`` reads them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any


def peft_settings(ranks: Mapping[str, int], scales: Mapping[str, float]) -> dict[str, Any]:
    """LoraConfig's ``r``, ``lora_alpha``, ``rank_pattern`` and ``alpha_pattern`` for a rank per
    layer.

    The most common rank is ``r``, other layers have patterns. ``lora_alpha`` is s r, so that
    each layer keeps the scale s that it was trained with. All experts of one parameter
    get the largest of their ranks.
    """
    wanted: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for layer, rank in ranks.items():
        module = re.sub(r"\[\d+\]$", "", layer)
        wanted[module] = max(rank, wanted.get(module, 1))
        alphas[module] = scales[layer] * wanted[module]
    if not wanted:
        return {}
    r = _commonest(wanted.values())
    alpha = _commonest(alphas[layer] for layer in wanted if wanted[layer] == r)
    return {
        "r": r,
        "lora_alpha": _plain(alpha),
        "rank_pattern": _patterns({layer: k for layer, k in wanted.items() if k != r}, wanted),
        "alpha_pattern": _patterns(
            {layer: _plain(a) for layer, a in alphas.items() if a != alpha}, wanted
        ),
        "use_rslora": False,
    }


def _patterns(values: Mapping[str, Any], layers: Iterable[str]) -> dict[str, Any]:
    """One regular expression for all layers that differ only in one number and share a value.

    PEFT matches it against the end of a layer's name, and the first match wins. A layer whose name
    is the end of another layer's gets a leading ``^``, so that each expression matches its own
    layers only.
    """
    ends = {layer[dot.end() :] for layer in layers for dot in re.finditer(r"\.", layer)}
    groups: dict[tuple[str, str, str, Any], list[str]] = {}
    for layer, value in values.items():
        number = re.search(r"(?<![^.])\d+(?![^.])", layer)
        start, middle, end = (
            (layer[: number.start()], number[0], layer[number.end() :])
            if number
            else (layer, "", "")
        )
        anchor = "^" if layer in ends else ""
        groups.setdefault((anchor, start, end, value), []).append(middle)
    patterns = {}
    for (anchor, start, end, value), numbers in groups.items():
        middle = numbers[0] if len(numbers) == 1 else f"({'|'.join(numbers)})"
        patterns[f"{anchor}{re.escape(start)}{middle}{re.escape(end)}"] = value
    return patterns


def _commonest(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _plain(number: float) -> float | int:
    return int(number) if number == int(number) else number
