"""Whether a metric is better when it is greater.

Values stay as they were measured, in every frame and table; an estimator that asks what is better
multiplies by the sign.
"""

from __future__ import annotations

import pandas as pd

LOWER = ("loss", "perplexity")  # how metrics end that are better when they are lower


def sign_of(trials: pd.DataFrame) -> pd.Series:
    """1.0 for each trial whose metric is better when it is greater, else -1.0: as recorded
    (``greater_is_better``), else by the metric's name."""
    if not {"metric", "greater_is_better"} & set(trials.columns):
        return pd.Series(1.0, trials.index)
    if "metric" not in trials:
        return trials["greater_is_better"].astype(bool).map({True: 1.0, False: -1.0})
    named = ~trials["metric"].astype(str).str.lower().str.endswith(LOWER)
    if "greater_is_better" not in trials:
        greater = named
    else:
        recorded = trials["greater_is_better"]
        greater = recorded.where(recorded.notna(), named).astype(bool)
    return greater.map({True: 1.0, False: -1.0}).astype(float)
