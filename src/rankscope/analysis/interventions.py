"""H6, is drift the cause of a loss or its marker? Edited trials against themselves, on the same
rows.

docs/analysis.md has the definitions. Letters: T trials, P points of a path, N validation rows, V
edited variants of all trials, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rankscope.analysis.inference import LEVEL, Interval, stratified_draws, student
from rankscope.analysis.selection import LOWER
from rankscope.analysis.weighted_metrics import LANGUAGE, METRICS

Array = NDArray[np.float64]

GOOD, COLLAPSED = (
    0.8,
    0.2,
)  # shares of the gain that a good trial keeps at least, a collapsed one at most
CONFIGURATION = ["model", "task", "method", "rank", "scaling", "learning_rate"]
OWN = ("scale", 1.0)  # the variant that changes nothing
NO_UPDATE = ("scale", 0.0)  # the variant that takes the whole update away


@dataclass(frozen=True)
class Edited:
    """Edited trials of one model and task, all evaluated on the same N rows.

    Attributes:
        table: V rows: `trial`, its configuration and `seed`, `family`, `level`, `log_drift` (median
            over layers of log(sr(W + dW) / sr(W))) and `rho`. Each trial has its OWN variant.
        answers: (V, N) predicted classes; scores in a regression; a language model's mean losses.
        labels: (N,); of a language model how many tokens each row has learnt.
        metric: a name in METRICS.
    """

    table: pd.DataFrame
    answers: Array
    labels: Array
    metric: str

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric: expected one of {', '.join(METRICS)}; found {self.metric!r}")
        if self.answers.shape != (len(self.table), len(self.labels)):
            raise ValueError(
                f"answers: expected {len(self.table)} variants of {len(self.labels)} rows; "
                f"found {self.answers.shape}"
            )

    def values(self, weights: Array | None = None) -> Array:
        """The metric of every variant, (V, R), with row weights (R, N); without: of the rows as
        they are."""
        weights = np.ones((1, len(self.labels))) if weights is None else weights
        return METRICS[self.metric](self.answers, self.labels, weights)

    @property
    def sign(self) -> float:
        """1, or -1 where a lower metric is better."""
        return -1.0 if self.metric.endswith(LOWER) else 1.0

    def constant(self) -> float:
        """c0, where the gain begins: the metric of the best constant answer; of a language model
        that of the base, NaN where no variant is the base alone."""
        one = np.ones((1, len(self.labels)))
        if self.metric == LANGUAGE:
            family, level = NO_UPDATE
            is_base = self.table["family"].eq(family) & self.table["level"].eq(level)
            return float(self.values()[is_base.to_numpy(), 0].mean()) if is_base.any() else np.nan
        classes, counts = np.unique(self.labels, return_counts=True)
        answer = one if self.metric == "f1" else classes[counts.argmax()] * one
        return float(METRICS[self.metric](answer, self.labels, one)[0, 0])


@dataclass(frozen=True)
class Resamples:
    """Rows and trials drawn anew, together: weights (R, N) of rows and (R, T) of trials.

    Rows by multinomial draws. Trials by the rescaled bootstrap (Rao and Wu 1988): of the n seeds of
    a configuration n - 1 are drawn, each counting n / (n - 1), which makes the variance of a mean
    unbiased also with few seeds. Where some configuration has one seed, the trials are one group.
    """

    rows: Array
    trials: Array
    degrees: int

    @classmethod
    def draw(
        cls, trials: pd.DataFrame, rows: int, *, rng: np.random.Generator, resamples: int
    ) -> Resamples:
        """``trials``: one line each, with its configuration."""
        strata = np.asarray(trials.groupby(CONFIGURATION, dropna=False).ngroup(), dtype=np.int64)
        if np.bincount(strata).min() < 2:
            strata = np.zeros_like(strata)
        weights = stratified_draws(strata, resamples, rng)
        drawn = rng.multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(float)
        return cls(drawn, weights, len(strata) - len(np.unique(strata)))


@dataclass(frozen=True)
class Groups:
    """Trials by how much of the gain G they keep: metric better than c0 + 0.8 G, and worse than
    c0 + 0.2 G, drifted."""

    good: list[str]
    collapsed: list[str]


def groups(edited: Edited, *, gain: float, near: float) -> Groups:
    """``gain`` is G of H2, ``near`` the largest |log_drift| that counts as none. Other trials
    belong to neither group."""
    own = unedited(edited)
    kept = edited.sign * (edited.values()[own.index, 0] - edited.constant()) / gain
    drifted = own["log_drift"].abs().to_numpy() > near
    return Groups(
        own["trial"][kept >= GOOD].tolist(), own["trial"][(kept <= COLLAPSED) & drifted].tolist()
    )


def changes(
    edited: Edited, trials: list[str], *, rng: np.random.Generator, resamples: int = 1000
) -> pd.DataFrame:
    """Mean change of the metric against each trial's own, by family and level.

    -> `family`, `level`, `trials`, `ratio` (median of sr(W + dW) / sr(W)), `rho` (median), `metric`
    (mean), `change`: an `Interval` over new seeds and new rows. Levels with several random draws
    are averaged inside their trial first. Where the language loss was taken, `forgetting`: by how
    much it exceeds the base's, an `Interval` over new seeds, on this text.
    """
    own = unedited(edited).query("trial in @trials").reset_index()
    if own.empty:
        return pd.DataFrame()
    drawn = Resamples.draw(own, len(edited.labels), rng=rng, resamples=resamples)
    plain, again = edited.values()[:, 0], edited.values(drawn.rows)  # (V,), (V, R)
    lines = []
    for (family, level), part in edited.table.query("trial in @trials").groupby(
        ["family", "level"]
    ):
        held = [part.index[part["trial"] == name].to_numpy() for name in own["trial"]]
        there = np.array([len(index) > 0 for index in held])
        pairs = [(i, o) for i, o in zip(held, own["index"], strict=True) if len(i)]
        change = np.array([plain[i].mean() - plain[o] for i, o in pairs])  # (T,)
        redone = np.array([again[i].mean(axis=0) - again[o] for i, o in pairs])  # (T, R)
        forgotten = _forgetting(edited.table, held, drawn, there)
        lines.append(
            {
                "family": family,
                "level": level,
                "trials": int(there.sum()),
                "ratio": float(np.exp(part["log_drift"].median())),
                "rho": float(part["rho"].median()),
                "metric": float(np.mean([plain[i].mean() for i, _ in pairs])),
                "change": over_trials(change, redone, drawn, there),
            }
            | ({} if forgotten is None else {"forgetting": forgotten})
        )
    return pd.DataFrame(lines)


def _forgetting(
    table: pd.DataFrame, held: list[NDArray[np.int64]], drawn: Resamples, there: NDArray[np.bool_]
) -> Interval | None:
    """Mean over trials of the language loss less the base's; ``held``: each trial's places in the
    table. None where it was not taken."""
    if "lm_loss" not in table:
        return None
    more = (table["lm_loss"] - table["base_lm_loss"]).to_numpy(dtype=float)
    values = np.array([more[index].mean() for index in held if len(index)])
    if not np.isfinite(values).all():
        return None
    return over_trials(values, np.repeat(values[:, None], 2, axis=1), drawn, there)


def over_trials(
    values: Array, redone: Array, drawn: Resamples, there: NDArray[np.bool_] | slice = slice(None)
) -> Interval:
    """Mean of the trials' `values` (T,), for new trials and new rows; `redone` (T, R) has the rows
    redrawn.

    Two variances are added: that of the mean under redrawn trials, which holds what each trial's
    rows do to it alone, and that of what the rows do to all trials at once (docs/analysis.md).
    Redrawing both together would count the former three times.
    """
    T = len(values)
    if drawn.degrees < 1 or T < 2:
        return Interval(float(values.mean()), np.nan, np.nan, "trial", T)
    weights = drawn.trials[:, there]
    of_trials = ((weights @ values) / weights.sum(axis=1)).var(ddof=1)
    together, apart = redone.mean(axis=0).var(ddof=1), redone.var(axis=1, ddof=1).sum() / T**2
    of_rows = max(0.0, together - apart) * T / (T - 1)
    reach = float(student.ppf((1 + LEVEL) / 2, drawn.degrees) * np.sqrt(of_trials + of_rows))
    mean = float(values.mean())
    return Interval(mean, mean - reach, mean + reach, "trial", T)


def unedited(edited: Edited) -> pd.DataFrame:
    family, level = OWN
    own = edited.table[edited.table["family"].eq(family) & edited.table["level"].eq(level)]
    missing = set(edited.table["trial"]) - set(own["trial"])
    if missing:
        raise ValueError(
            f"trial {sorted(missing)[0]}: expected its own variant, scale 1; found none"
        )
    return own
