"""Quantiles and tails of the normal, Student's t and chi-squared distributions.

By the functions of scipy.special that scipy.stats calls, so to the last bit its values: importing
scipy.stats takes 0.6 s of processor time, in every command that plans or concludes.
"""

from __future__ import annotations

from typing import Any

from scipy import special


class normal:
    """N(0, 1)."""

    @staticmethod
    def cdf(x: Any) -> Any:
        return special.ndtr(x)

    @staticmethod
    def sf(x: Any) -> Any:
        """1 - cdf, without cancellation."""
        return special.ndtr(-x)

    @staticmethod
    def ppf(p: Any) -> Any:
        """The quantile; p inside 0 and 1, as below."""
        return special.ndtri(p)


class student:
    """t with so many degrees of freedom; NaN for none."""

    @staticmethod
    def sf(x: Any, degrees: Any) -> Any:
        return special.stdtr(degrees, -x)

    @staticmethod
    def ppf(p: Any, degrees: Any) -> Any:
        return special.stdtrit(degrees, p)


def chi_squared_ppf(p: Any, degrees: Any) -> Any:
    """The quantile of chi-squared with so many degrees of freedom."""
    return 2 * special.gammaincinv(degrees / 2, p)
