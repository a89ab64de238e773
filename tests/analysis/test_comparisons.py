"""Holm's adjustment on the example that everybody computes by hand."""

from __future__ import annotations

import numpy as np

from rankscope.analysis.comparisons import holm


def test_holm_by_hand():
    assert np.allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])


def test_untested_stays_unknown_and_does_not_count():
    found = holm(np.array([0.02, np.nan, 0.03]))
    assert np.isnan(found[1])
    assert np.allclose(found[[0, 2]], [0.04, 0.04])


def test_one_test_is_not_adjusted():
    assert holm(np.array([0.2])) == [0.2]
    assert holm(np.array([0.9, 0.8])).max() == 1
    assert len(holm(np.array([]))) == 0
