"""Which ranks would have been enough: the energy ranks of each update, and PEFT's settings for
training with them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

SHARES = (0.90, 0.95, 0.99)


def energy_ranks(sigma: Tensor) -> list[tuple[int, ...]]:
    """Of each row of sigma (N, r) the smallest k whose k largest sigma_i^2 hold each of SHARES of
    ||dW||_F^2: docs/math.md, (3)."""
    energy = sigma.double().square()
    held = energy.cumsum(-1) / energy.sum(-1, keepdim=True)
    wanted = torch.tensor(SHARES, dtype=torch.float64) * (1 - 1e-14)
    below = (held[:, None, :] < wanted[:, None]).sum(-1)  # (N, shares)
    return [tuple(ranks) for ranks in (below + 1).tolist()]


def peft_settings(ranks: Mapping[str, int], scales: Mapping[str, float]) -> dict[str, Any]:
    """LoraConfig's ``r``, ``lora_alpha``, ``rank_pattern`` and ``alpha_pattern`` for a rank per
    layer.

    The commonest rank is ``r``, the other layers have patterns. ``lora_alpha`` is s r, so
    that each layer keeps the scale s that it was trained with. All experts of one parameter
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
        "rank_pattern": _patterns({layer: k for layer, k in wanted.items() if k != r}),
        "alpha_pattern": _patterns({layer: _plain(a) for layer, a in alphas.items() if a != alpha}),
        "use_rslora": False,
    }


def _patterns(values: Mapping[str, Any]) -> dict[str, Any]:
    """One regular expression for all layers that differ in one number only and share a value.

    PEFT matches it against the end of a layer's name, and the first that matches wins: no
    two of these match one layer.
    """
    groups: dict[tuple[str, str, Any], list[str]] = {}
    for layer, value in values.items():
        number = re.search(r"(?<![^.])\d+(?![^.])", layer)
        start, middle, end = (
            (layer[: number.start()], number[0], layer[number.end() :])
            if number
            else (layer, "", "")
        )
        groups.setdefault((start, end, value), []).append(middle)
    patterns = {}
    for (start, end, value), numbers in groups.items():
        middle = numbers[0] if len(numbers) == 1 else f"({'|'.join(numbers)})"
        patterns[f"{re.escape(start)}{middle}{re.escape(end)}"] = value
    return patterns


def _commonest(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _plain(number: float) -> float | int:
    return int(number) if number == int(number) else number
