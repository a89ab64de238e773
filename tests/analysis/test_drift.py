"""How far W + dW has drifted, and which stable ranks count."""

from __future__ import annotations

import numpy as np
import pandas as pd

from rankscope.analysis.drift import condensed, drift, known

TRIALS = pd.DataFrame({"trial": ["a"], "best_step": [10]})


def spectra(upper: float = 4.0) -> pd.DataFrame:
    """W of stable rank 4 and W + dW of 2 in two layers; the second's W has the bounds 4 and
    `upper`."""
    rows = [
        (step, layer, matrix, rank, rank, upper if (layer, matrix) == ("y", "W") else rank)
        for step, matrix, rank in ((0, "W", 4.0), (10, "dW", 1.5), (10, "W+dW", 2.0))
        for layer in ("x", "y")
    ]
    frame = pd.DataFrame(rows, columns=["step", "layer", "matrix", "stable_rank", "lower", "upper"])
    return frame.assign(
        trial="a", m=9, n=9, spectral_norm=1.0, frobenius_norm=2.0, effective_rank=np.nan
    )


def test_a_stable_rank_without_near_bounds_is_not_known() -> None:
    """An old store may hold 768 with the bounds 45 and 768, where 344 is right."""
    found = known(spectra(upper=9.0))
    wide = found["layer"].eq("y") & found["matrix"].eq("W")
    assert found.loc[wide, "stable_rank"].isna().all()
    assert found.loc[~wide, "stable_rank"].notna().all()
    assert found.loc[wide, "upper"].tolist() == [9.0]
    near = spectra(upper=4.03)
    pd.testing.assert_frame_equal(known(near), near)


def test_layers_without_a_known_stable_rank_take_no_part_in_the_drift() -> None:
    assert drift(spectra())["layers"].tolist() == [2]
    assert drift(spectra(upper=9.0))["layers"].tolist() == [1]
    kept = condensed(TRIALS, spectra(upper=9.0))
    assert kept.loc[kept["matrix"].eq("W"), "stable_rank"].isna().tolist() == [False, True]
