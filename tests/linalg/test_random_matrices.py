"""Bounds over random matrices of every kind, against float64 SVD; docs/log.md has the outcome of
many more."""

from __future__ import annotations

import pytest

import random_matrices
from random_matrices import allowed, tallied


@pytest.mark.fuzz
@pytest.mark.parametrize("part", range(4))
def test_no_bound_is_missed_and_no_width_in_silence(part: int, seed: int) -> None:
    """Certain bounds hold always, the others at their rate; a width is met, or `met` is False, and
    that only where terms cancel."""
    tally = tallied(4 * seed + part, 120)
    assert tally.missed == []
    assert len(tally.unlucky) <= allowed(tally.likely, 1e-3)
    assert tally.silent == []
    assert tally.needless == []
    assert (
        sum(tally.certain.values()) + tally.likely > 200
    )  # a draw of zero matrices only would pass as well


def test_a_wrong_bound_would_be_seen() -> None:
    """The comparison itself can fail: a truth outside the bounds, a value outside them, a width in
    silence."""
    import numpy as np

    from rankscope.linalg import Estimate

    right = Estimate(2.0, 1.9, 2.1, 1.0, "svd", 0, met=False)
    for found, truth, column in (
        (right, 2.2, "missed"),
        (Estimate(2.2, 1.9, 2.1, 1.0, "svd", 0, met=False), 2.0, "missed"),
        (Estimate(2.0, 1.9, 2.1, 0.999, "lanczos", 9, met=False), 1.8, "unlucky"),
        (Estimate(2.0, 1.9, 2.1, 1.0, "svd", 0, met=True), 2.0, "silent"),
        (Estimate(2.0, 1.9, 9.0, 1.0, "svd", 0, met=False), 2.0, "missed"),  # above min(m, n) = 3
        (Estimate(float("nan"), float("nan"), float("nan"), 1.0, "none", 0), 2.0, "missed"),
    ):
        tally = random_matrices.Tally()
        random_matrices.compare(tally, "sr: x", found, np.array([truth]), 1e-3, 3.0)
        assert getattr(tally, column)
    tally = random_matrices.Tally()
    random_matrices.compare(tally, "sr: x", right, np.array([2.0]), 1e-3, 3.0)
    assert [*tally.missed, *tally.unlucky, *tally.silent] == []
