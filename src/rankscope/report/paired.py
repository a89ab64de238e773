"""A metric before and after a change, on the same rows: the paired difference with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankscope.analysis.inference import end
from rankscope.analysis.weighted_metrics import LANGUAGE, METRICS

RESAMPLES, LEVEL = 4000, 0.95


@dataclass(frozen=True)
class Paired:
    """``change`` = ``after`` - ``before`` over ``rows``; ``low`` and ``high``, percentiles of it
    over resampled rows, the same for both; None where ``metric`` has no interval here. ``unlike``:
    rows that are answered differently (of a language model: with another loss)."""

    metric: str
    rows: int
    before: float
    after: float
    change: float
    low: float | None
    high: float | None
    unlike: int

    def line(self, task: str) -> str:
        """One sentence."""
        if self.low is None or self.high is None:
            interval = f", no interval for {self.metric}"
        else:
            interval = f" [{end(self.low, '+.4f')}, {end(self.high, '+.4f')}]"
        lower, unlike = "", f"; {self.unlike} rows answered differently"
        if self.metric == LANGUAGE:
            lower, unlike = " (lower is better)", ""
        said = (
            f"{task}, {self.metric} on {self.rows} rows{lower}: {self.before:z.4f} -> "
            f"{self.after:z.4f}, change {self.change:+z.4f}{interval}{unlike}"
        )
        if self.low is not None and self.high is not None and self.low <= 0 <= self.high:
            said += "; no difference is shown"
        return said


def paired(before: Any, after: Any) -> Paired:
    """Compares two ``interventions.beside.Answers`` with the same labels."""
    change = after.value - before.value
    low: float | None = None
    high: float | None = None
    answers = np.stack([before.answers, after.answers]).astype(float)
    if (metric := METRICS.get(before.metric)) is not None:
        weights = _resampled(len(before.labels))
        first, second = metric(answers, before.labels.astype(float), weights)
        low, high = (
            float(x) for x in np.quantile(second - first, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
        )
    unlike = int((answers[0] != answers[1]).sum())
    rows = len(before.labels)
    return Paired(before.metric, rows, before.value, after.value, change, low, high, unlike)


def _resampled(rows: int) -> NDArray[np.float64]:
    """(RESAMPLES, rows): how often each row is drawn, from a fixed seed."""
    draws = np.random.default_rng(0)
    return draws.multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES).astype(float)
