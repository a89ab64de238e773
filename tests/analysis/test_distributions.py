"""Against scipy.stats, bit for bit; and conclusions do without its import."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from scipy import stats

from rankscope.analysis.inference import chi_squared_ppf, normal, student

P = np.array([1e-12, 0.025, 0.5, 0.75, 0.95, 0.975, 1 - 1e-12, np.nan])
X = np.array([-np.inf, -40.0, -1.3, 0.0, 1e-9, 2.5, 9.0, np.inf, np.nan])


def test_normal() -> None:
    np.testing.assert_array_equal(normal.ppf(P), stats.norm.ppf(P))
    np.testing.assert_array_equal(normal.cdf(X), stats.norm.cdf(X))
    np.testing.assert_array_equal(normal.sf(X), stats.norm.sf(X))


def test_student_and_chi_squared() -> None:
    for degrees in (1, 2, 7.5, 30, 1e6, np.inf):
        np.testing.assert_array_equal(student.ppf(P, degrees), stats.t.ppf(P, degrees))
        np.testing.assert_array_equal(student.sf(X, degrees), stats.t.sf(X, degrees))
    for degrees in (0, -1, np.nan):
        assert np.isnan(student.ppf(P, degrees)).all()
        assert np.isnan(student.sf(X, degrees)).all()
    for degrees in (1, 2, 10):
        np.testing.assert_array_equal(chi_squared_ppf(P, degrees), stats.chi2.ppf(P, degrees))


def test_conclusions_do_not_import_scipy_stats() -> None:
    code = "import sys, rankscope.analysis; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
