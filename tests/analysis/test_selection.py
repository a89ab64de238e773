"""Learning rates: seeds are averaged first, edges are flagged."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rankscope.analysis.drift import at_best
from rankscope.analysis.frames import Frames
from rankscope.analysis.selection import baselines, best_learning_rates, chosen
from simulate import Truth, study


def table(values: dict[tuple[float, int], float | None]) -> pd.DataFrame:
    rows = [
        {
            "trial": f"{rate}-{seed}",
            "learning_rate": rate,
            "seed": seed,
            "best": best,
            "status": "done" if best is not None else "diverged",
        }
        for (rate, seed), best in values.items()
    ]
    same = {
        "model": "m",
        "task": "t",
        "method": "lora",
        "rank": 4,
        "scaling": "alpha/r",
        "metric": "accuracy",
    }
    return pd.DataFrame(rows).assign(**same).astype({"rank": "Int64", "best": float})


def test_seeds_are_averaged_before_the_choice():
    trials = table({(1e-4, 0): 0.8, (1e-4, 1): 0.8, (1e-3, 0): 0.9, (1e-3, 1): 0.5})
    best = best_learning_rates(trials).iloc[0]
    assert best["learning_rate"] == 1e-4
    assert best["value"] == pytest.approx(0.8)
    assert set(chosen(trials)["seed"]) == {0, 1}


@pytest.mark.parametrize(
    ("best", "edge"),
    [
        ((0.9, 0.5, 0.5), "smallest tried"),
        ((0.5, 0.5, 0.9), "largest tried"),
        ((0.5, 0.9, 0.5), "none"),
    ],
)
def test_edges_are_flagged(best, edge):
    trials = table({(rate, 0): value for rate, value in zip((1e-4, 1e-3, 1e-2), best, strict=True)})
    assert best_learning_rates(trials)["edge"].item() == edge


def test_a_single_rate_is_flagged():
    assert best_learning_rates(table({(1e-3, 0): 0.9}))["edge"].item() == "only one tried"


def test_ties_go_to_the_smaller_rate():
    assert (
        best_learning_rates(table({(1e-3, 0): 0.9, (1e-4, 0): 0.9}))["learning_rate"].item() == 1e-4
    )


def test_a_rate_that_lost_a_seed_does_not_win_by_luck():
    trials = table({(1e-4, 0): 0.7, (1e-4, 1): 0.7, (1e-2, 0): 0.9, (1e-2, 1): None})
    assert best_learning_rates(trials)["learning_rate"].item() == 1e-4


def test_full_fine_tuning_is_a_configuration_too():
    trials = study(seeds=1)["trials"]
    assert len(best_learning_rates(trials)) == 4 + 1
    assert chosen(trials)["method"].eq("full").sum() == 1


def test_spectra_are_read_at_the_best_step_or_the_last():
    frames = study(seeds=1)
    one = frames["trials"].iloc[[0]].assign(best_step=80)
    assert set(at_best(one, frames["spectra"], "dW")["step"]) == {80}
    assert set(at_best(one.assign(best_step=7), frames["spectra"], "dW")["step"]) == {200}


def test_missing_columns_are_named():
    frames = study(seeds=1)
    with pytest.raises(ValueError, match=r"spectra needs the columns .*; layer, m missing"):
        Frames(**frames | {"spectra": frames["spectra"].drop(columns=["layer", "m"])})


def test_repeated_trials_are_refused():
    frames = study(seeds=1)
    twice = pd.concat([frames["trials"], frames["trials"].iloc[:1]])
    with pytest.raises(ValueError, match="'t00000' more than once"):
        Frames(**frames | {"trials": twice})


def test_text_where_a_number_belongs_is_named():
    frames = study(seeds=1)
    wrong = frames["metrics"].astype({"metric_value": object})
    wrong.loc[0, "metric_value"] = "high"
    with pytest.raises(ValueError, match=r"metrics\['metric_value'\] must hold numbers"):
        Frames(**frames | {"metrics": wrong})


def test_a_rate_is_chosen_by_some_rows_and_reported_by_the_others():
    trials = study(Truth(), seeds=1, rates=(1e-4, 1e-3), ranks=(8,), full=False)["trials"]
    trials = trials.assign(best=[0.80, 0.90], held_out=[0.85, 0.82])
    row = best_learning_rates(trials).iloc[0]
    assert row["learning_rate"] == 1e-3
    assert row["value"] == 0.82
    assert row["optimism"] == pytest.approx(0.08)
    whole = best_learning_rates(trials.drop(columns="held_out")).iloc[0]
    assert whole["value"] == 0.90
    assert np.isnan(whole["optimism"])


def test_a_plateau_of_few_rows_is_not_taken_for_a_constant_answer() -> None:
    """512 rows and little noise: values on the plateau repeat more often than 0.535."""
    truth = Truth(rows=512, floor=0.535, recorded=False, noise=0.005, threshold=1.3, decline=0.4)
    for seed in range(6):
        tables = study(truth, seed=seed, full=False, seeds=2, evaluations=6)
        row = baselines(tables["trials"], tables["metrics"]).iloc[0]
        assert row["source"] == "repeated value"
        assert row["constant"] == pytest.approx(0.535, abs=1 / 512)
