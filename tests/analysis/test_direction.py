"""A metric that is better when it is lower is treated as its mirror image is: the same choices,
thresholds and verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankscope.analysis import Frames, conclude
from rankscope.analysis.conclusions import Conclusions
from rankscope.analysis.selection import baselines, best_learning_rates, learnt, sign_of
from simulate import Truth, study

TOP = 2.0  # a loss is so much less the simulated metric
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def mirrored(frames: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The same study with losses: what was high is low."""
    trials, metrics = frames["trials"], frames["metrics"]
    turned = {name: TOP - trials[name] for name in ("best", "last", "constant") if name in trials}
    trials = trials.assign(**turned, metric="eval_loss", greater_is_better=False)
    return frames | {
        "trials": trials,
        "metrics": metrics.assign(metric_value=TOP - metrics["metric_value"]),
    }


@pytest.fixture(scope="module")
def both() -> tuple[Conclusions, Conclusions]:
    frames: dict[str, Any] = study(Truth(warmup=0.2), seeds=3, rates=RATES, evaluations=12)
    first, second = (conclude(Frames(**each), resamples=100) for each in (frames, mirrored(frames)))
    assert first.threshold.answer == "supported"  # else little would be compared
    return first, second


def test_verdicts_and_numbers_are_those_of_the_mirror_image(
    both: tuple[Conclusions, Conclusions],
) -> None:
    plain, losses = both
    assert [v.verdict for v in losses.verdicts] == [v.verdict for v in plain.verdicts]
    one, other = plain.threshold, losses.threshold
    for name in ("half", "first", "plateau", "loss", "premise", "tolerated"):
        a, b = getattr(one, name), getattr(other, name)
        assert (b.estimate, b.low, b.high) == pytest.approx((a.estimate, a.low, a.high), abs=1e-9)
    assert (other.gain, other.noise) == pytest.approx((one.gain, one.noise))
    assert other.gain > 0.1
    for name in ("constant", "near", "best"):
        assert getattr(other, name) == pytest.approx(TOP - getattr(one, name))
    assert np.allclose(other.line["value"], TOP - one.line["value"])
    assert np.allclose(other.attained["near"], TOP - one.attained["near"], equal_nan=True)
    assert np.allclose(other.attained["loss"], one.attained["loss"], equal_nan=True)
    assert other.greater_is_better is False
    (a,), (b,) = (c.dynamics.tasks.to_dict("records") for c in both)
    assert b["metric_after"] == pytest.approx(-a["metric_after"])
    assert b["loss_after"] == pytest.approx(a["loss_after"])
    pd.testing.assert_frame_equal(plain.rates.groups, losses.rates.groups)
    assert np.isfinite(plain.rates.configurations["best"]).any()
    chosen = ["method", "rank", "learning_rate", "seeds", "edge"]
    pd.testing.assert_frame_equal(plain.learning_rates[chosen], losses.learning_rates[chosen])
    assert np.allclose(losses.learning_rates["value"], TOP - plain.learning_rates["value"])


def test_sentences_say_which_way_is_worse(both: tuple[Conclusions, Conclusions]) -> None:
    plain, losses = (" ".join(s for v in c.verdicts for s in v.sentences) for c in both)
    assert "the metric is lower by" in plain
    assert "the metric is higher, which is worse, by" in losses
    assert "the metric is a loss: lower is better" in losses
    assert "the metric is lower by" not in losses
    assert "fine−tun" not in plain + losses  # a hyphen is no minus
    assert "too good" in " ".join(both[1].caveats)


def test_a_decline_that_is_not_shown_is_named_by_the_way_it_would_go() -> None:
    flat: Any = study(Truth(threshold=None, warmup=0.2), seeds=2, rates=RATES, evaluations=8)
    plain, losses = (
        " ".join(conclude(Frames(**each), resamples=50).verdicts[2].sentences)
        for each in (flat, mirrored(flat))
    )
    assert "that the metric falls with it past" in plain
    assert "that the metric worsens with it past" in losses


def test_the_mirror_image_of_a_study_that_learnt_nothing_learnt_nothing() -> None:
    frames: Any = study(Truth(plateau=0.5, floor=0.5, noise=0.01), seeds=2)
    frames["trials"] = frames["trials"].assign(constant=0.5)
    for each in (frames, mirrored(frames)):
        built = Frames(**each)
        assert set(built.learnt["learnt"]) == {False}


def table(**columns: Any) -> pd.DataFrame:
    rows: dict[str, Any] = {
        "model": "m", "task": "t", "method": "lora", "rank": 8, "scaling": "alpha/r", "seed": 0,
        "status": "done", "metric": "eval_loss",
    }  # fmt: skip
    return pd.DataFrame(rows | columns)


def test_the_lowest_loss_chooses_the_rate_and_what_it_flatters_is_positive() -> None:
    trials = table(
        trial=["a", "b", "c"], learning_rate=[1e-4, 1e-3, 1e-2], best=[3.0, 2.0, 2.5],
        held_out=[3.1, 2.2, 2.6],
    )  # fmt: skip
    (row,) = best_learning_rates(trials).to_dict("records")
    assert (row["learning_rate"], row["value"]) == (1e-3, 2.2)
    assert row["optimism"] == pytest.approx(0.2)
    assert best_learning_rates(trials.assign(metric="accuracy"))["learning_rate"].item() == 1e-4


@pytest.mark.parametrize(
    ("constant", "untrained", "expected", "source"),
    [
        (5.0, 3.0, 3.0, "before training"),  # pretrained: knows more than how often words occur
        (5.0, 9.0, 5.0, "recorded"),  # from nothing: learns that first
        (np.nan, 3.0, 3.0, "before training"),
        (5.0, np.nan, 5.0, "recorded"),
    ],
)
def test_a_language_model_must_beat_what_needs_no_training(
    constant: float, untrained: float, expected: float, source: str
) -> None:
    trials = table(
        trial=["a"], learning_rate=[1e-3], best=[expected - 0.1], constant=[constant],
        untrained=[untrained],
    )  # fmt: skip
    steps = range(1, 7)
    metrics = pd.DataFrame(
        {
            "trial": "a",
            "step": steps,
            "metric_value": [expected - 0.1 + 0.001 * (i % 2) for i in steps],
        }
    )
    found = baselines(trials, metrics)
    (row,) = found.to_dict("records")
    assert (row["constant"], row["source"]) == (expected, source)
    assert learnt(trials, found)["learnt"].item()
    assert not learnt(trials.assign(best=expected + 0.1), found)["learnt"].item()


def test_the_direction_is_the_recorded_one_else_by_name() -> None:
    trials = pd.DataFrame({"metric": ["accuracy", "eval_loss", "perplexity", "my_loss", "f1"]})
    assert sign_of(trials).tolist() == [1, -1, -1, -1, 1]
    recorded = trials.assign(greater_is_better=[None, True, None, None, False])
    assert sign_of(recorded).tolist() == [1, 1, -1, -1, -1]
