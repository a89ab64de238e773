"""Chooses each layer's rank for a given energy, rank, error or budget.
docs/math.md, section 9.

Letters: k kept rank; sigma, all singular values of a layer, descending.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rankscope.weights.lora_pairs import LoraPairs

_SHARE = "a share above 0 and below 1"
_LIKE = {"energy": "0.95", "rank": "8", "error": "0.05", "budget": "3MB"}


@dataclass(frozen=True)
class Goal:
    """How far to cut; exactly one of these is given.

    ``energy``: the smallest k whose k largest sigma_i^2 hold that share of ||dW||_F^2. ``error``:
    the smallest k for which what is written, rounding and all, lies within that relative Frobenius
    distance. ``rank``: k itself. ``budget``: bytes of the file of tensors; singular values of all
    layers above one threshold are kept (PARA, arXiv 2604.27796), and at least one in each layer.
    """

    energy: float | None = None
    rank: int | None = None
    error: float | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        given = self.given
        if len(given) != 1:
            raise ValueError(
                "expected exactly one of energy, rank, error and budget; found "
                f"{', '.join(given) or 'none'}."
            )
        ((name, value),) = given.items()
        whole = name in ("rank", "budget")
        fits = (
            isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if whole
            else math.isfinite(value) and 0 < value <= 1 and (name == "energy" or value < 1)
        )
        if not fits:
            share = "a share above 0, 1 at most" if name == "energy" else _SHARE
            wanted = "a whole number from 1" if whole else share
            raise ValueError(
                f"{name}: expected {wanted}; found {value!r:.40}. Such as --{name} {_LIKE[name]}"
            )

    @property
    def given(self) -> dict[str, Any]:
        """The one that is given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def first_ranks(sigma: Tensor, goal: Goal, shared: Sequence[int | None]) -> list[int]:
    """The ranks to try first, of N layers with ``sigma`` (N, p): those asked for, or for an error
    the smallest that exact factors could have. ``shared``: the ranks that a budget gave."""
    known = [one or goal.rank for one in shared]
    found = smallest_ranks(sigma, goal) if None in known else [0] * len(known)
    return [min(one or own, sigma.shape[-1]) for one, own in zip(known, found, strict=True)]


def next_rank(
    goal: Goal, k: int, most: int, error: float, *, rounding: float = 0.0, what: str
) -> int | None:
    """The rank to try where what is written at rank ``k`` lies ``error`` from dW, relative and
    with all that it may be off: None where that will do, else k + 1, or ``most`` at once.

    ``rounding``: the share of the error that the dtype makes. It only grows with k: where it
    alone is above the goal, nothing below ``most`` can help. ``ValueError``, one line, where the
    goal is out of reach at ``most``; ``what``: the layer and its dtype.
    """
    if goal.error is None or error <= goal.error:
        return None
    if k < most:
        return most if rounding > goal.error else k + 1
    raise ValueError(
        f"{what} within error = {goal.error:g}; rounding alone leaves {error:.2g}. Nothing was "
        f"written. Type --error {_above(error)}, or more."
    )


def _above(value: float) -> str:
    """The next number of two digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{(math.floor(value / unit) + 1) * unit:.2g}"


def smallest_ranks(sigma: Tensor, goal: Goal) -> list[int]:
    """The smallest k that meet an energy or an error, by the spectra ``sigma`` (N, p) alone."""
    share = goal.energy if goal.energy is not None else 1 - (goal.error or 0.0) ** 2
    energy = (sigma / sigma[:, :1].clamp(min=torch.finfo(sigma.dtype).tiny)).square()
    wanted = share * energy.sum(-1, keepdim=True) * (1 - 1e-14)
    return (1 + (energy.cumsum(-1) < wanted).sum(-1)).tolist()


def shared_ranks(
    pairs: LoraPairs, goal: Goal, spectra: Mapping[str, Tensor]
) -> tuple[dict[str, int], float | None]:
    """The ranks that a budget gives, and its threshold; none otherwise. ``spectra``: layer -> all
    singular values, descending."""
    if goal.budget is None:
        return {}, None
    ranks = dict.fromkeys(spectra, 1)
    if (least := pairs.size(ranks)) > goal.budget:
        raise ValueError(
            f"{pairs.source}: expected a budget of {least} bytes at least, which rank 1 in each "
            f"layer and the {len(pairs.others)} other tensors take; found {goal.budget}. "
            f"Type --budget {least}, or more."
        )
    values = sorted(
        (
            (sigma, layer)
            for layer, own in spectra.items()
            for sigma in own.tolist()[1:]
            if sigma > 0
        ),
        key=lambda one: -one[0],
    )

    def with_first(count: int) -> dict[str, int]:
        found = dict(ranks)
        for _, layer in values[:count]:
            found[layer] += 1
        return found

    low, high = 0, len(values)  # the most that fit: the size grows with each
    while low < high:
        middle = (low + high + 1) // 2
        fits = pairs.size(with_first(middle)) <= goal.budget
        low, high = (middle, high) if fits else (low, middle - 1)
    return with_first(low), values[low - 1][0] if low else None
