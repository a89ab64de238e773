"""H3: whether drift grows as training goes on, and whether validation worsens with it, inside
trials.

The second question is a regression with one intercept per trial (fixed effects), two slopes
joined at a stated drift, and standard errors clustered by trial (`clustered`); a trial and the one
that trains it for longer have the same start, so both are one cluster. Beside it stands the direct
comparison: the same configuration trained for longer (`continued`). Letters: G clusters, K slopes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rankscope.analysis.drift import LABELS, checkpoints
from rankscope.analysis.frames import Frames
from rankscope.analysis.inference import LEVEL, Interval, cluster_of, holm, mean_interval, student
from rankscope.analysis.selection import sign_of
from rankscope.analysis.threshold.evidence import NEAR

Array = NDArray[np.float64]

FEWEST_STEPS = 3
FEWEST_TRIALS = 3
KNOT = float(np.log(2))  # a stable rank that has halved
SAME = ["model", "task", "method", "rank", "scaling", "learning_rate", "seed"]


@dataclass(frozen=True)
class Dynamics:
    """``tasks`` has one row per model and task whose LoRA configurations learnt anything,
    ``left_out`` the others.

    ``growing`` (``_low``, ``_high``, ``_cluster``, ``_clusters``) is the mean over trials of
    Spearman's correlation of the drift's magnitude with the step. ``metric_before``,
    ``metric_after``, ``loss_before``, ``loss_after`` are the changes of the metric and of the
    evaluation loss per unit of log drift below and beyond the knot (``_low``, ``_high``, ``_p``,
    and ``_p_holm`` of the ``after`` ones over tasks), from ``trials`` trials with three
    checkpoints beyond a drift of a tenth, ``beyond`` of them with one past the knot; NaN where
    these are of fewer than three runs.
    ``by_rate`` has one row per method, learning rate and rank: the median drift at the end and the
    mean correlation with the step.
    """

    tasks: pd.DataFrame
    by_rate: pd.DataFrame
    left_out: list[str]
    lower: frozenset[tuple[str, str]] = frozenset()  # models and tasks with a metric to be lowered

    def sign(self, model: str, task: str) -> int:
        """-1 where the metric is better when it is lower."""
        return -1 if (model, task) in self.lower else 1


def dynamics(frames: Frames, *, rng: np.random.Generator, resamples: int = 1000) -> Dynamics:
    """Correlate drift with time, and regress both outcomes on drift, inside the LoRA trials of each
    task.

    Trials of a longer budget count among them; ``by_rate``, whose drifts are those at the end,
    leaves them out.
    """
    trials = frames.all_trials
    trials = trials.assign(
        growing=trials["trial"].map(_growing(frames.drifts)),
        run=trials.groupby(SAME, dropna=False)["trial"].transform("first"),
    )
    seen = checkpoints(trials, frames.metrics, frames.drifts)
    seen = seen.merge(trials[["trial", "run"]], on="trial")
    learnt = frames.learnt[frames.learnt["method"].eq("lora") & frames.learnt["learnt"]]
    known = set(zip(learnt["model"], learnt["task"], strict=True))
    rows, left_out = [], []
    for (model, task), own in trials[trials["method"].eq("lora")].groupby(["model", "task"]):
        if (model, task) not in known:
            left_out.append(str(task))
            continue
        cluster, labels = cluster_of(own.assign(trial=own["run"]), "trial")
        whole = mean_interval(own["growing"], labels, cluster, rng=rng, resamples=resamples)
        grown = whole.within(-1, 1)  # p is of the interval before it is cut
        row = {"model": model, "task": task, "growing": grown.estimate, "growing_low": grown.low}
        row |= {"growing_high": grown.high, "growing_p": whole.p(0)}
        row |= {"growing_cluster": cluster, "growing_clusters": grown.clusters}
        rows.append(row | slopes(seen[seen["trial"].isin(own["trial"])]))
    tasks = pd.DataFrame(rows)
    for name in ("metric_after", "loss_after"):
        p = tasks[f"{name}_p"].to_numpy(dtype=float) if len(tasks) else np.array([])
        tasks[f"{name}_p_holm"] = holm(p)
    lowered = trials[sign_of(trials).lt(0)]
    lower = frozenset(zip(lowered["model"], lowered["task"], strict=True))
    return Dynamics(tasks, _by_rate(frames, trials), left_out, lower)


def _growing(drifts: pd.DataFrame) -> pd.Series:
    """Correlation of drift with step inside each trial; step 0 has no drift by
    construction and is left out."""
    moved = drifts[drifts["step"].gt(0)]
    return rank_correlation(moved.assign(size=moved["log_drift"].abs()), "step", "size")


def slopes(points: pd.DataFrame) -> dict[str, float]:
    """Slopes of both outcomes on the magnitude of drift below and beyond the knot, inside trials,
    per e-fold.

    `points` are `checkpoints`; those that drifted by less than a tenth are left out, since there a
    model is still learning. ``run``, where it is a column, is what trials that share their start
    have in common. NaN where fewer than three runs have checkpoints on both sides of the knot or
    either slope is undetermined.
    """
    drifts = points["log_drift"]
    sign = 1.0 if (drifts * drifts.abs()).sum() > 0 else -1.0
    rows = points.assign(u=sign * drifts, run=points.get("run", points["trial"]))
    rows = rows[rows["u"].gt(NEAR)]
    rows = rows[rows.groupby("trial")["step"].transform("size").ge(FEWEST_STEPS)]
    row: dict[str, float] = {"trials": rows["trial"].nunique(), "knot": float(np.exp(sign * KNOT))}
    row["beyond"] = rows.loc[rows["u"].gt(KNOT), "trial"].nunique()
    for name, outcome in (("metric", "metric_value"), ("loss", "eval_loss")):
        values = _fixed_effects(rows[np.isfinite(rows[outcome].astype(float))], outcome)
        for place, side in enumerate(("before", "after")):
            keys = (
                f"{name}_{side}",
                f"{name}_{side}_low",
                f"{name}_{side}_high",
                f"{name}_{side}_p",
            )
            row |= dict(zip(keys, values[place], strict=True))
    return row


def _fixed_effects(rows: pd.DataFrame, outcome: str) -> list[tuple[float, float, float, float]]:
    """(slope, low, high, p) below and beyond the knot."""
    codes = pd.factorize(rows["trial"])[0]
    runs, names = pd.factorize(rows["run"])
    count = len(names)
    beyond = rows.loc[rows["u"].gt(KNOT), "run"].nunique()
    unknown = [(np.nan, np.nan, np.nan, np.nan)] * 2
    if count < FEWEST_TRIALS or beyond < FEWEST_TRIALS:
        return unknown
    columns = np.stack(
        [np.minimum(rows["u"], KNOT), np.maximum(0, rows["u"] - KNOT), rows[outcome]], 1
    )
    means = (
        np.stack([np.bincount(codes, c) for c in columns.astype(float).T], 1)
        / np.bincount(codes)[:, None]
    )
    inside = columns.astype(float) - means[codes]
    x, y = inside[:, :2], inside[:, 2]
    if np.linalg.cond(x.T @ x) > 1e8:
        return unknown
    slope = np.linalg.solve(x.T @ x, x.T @ y)
    own, scores = np.zeros((count, 2, 2)), np.zeros((count, 2))
    np.add.at(own, runs, x[:, :, None] * x[:, None, :])
    np.add.at(scores, runs, x * (y - x @ slope)[:, None])
    error, degrees = clustered(own, scores)
    reach = student.ppf((1 + LEVEL) / 2, degrees) * error
    p = 2 * student.sf(np.abs(slope) / np.where(error > 0, error, np.nan), degrees)
    return [
        (float(b), float(low), float(high), float(q))
        for b, low, high, q in zip(slope, slope - reach, slope + reach, p, strict=True)
    ]


def clustered(own: Array, scores: Array) -> tuple[Array, Array]:
    """Standard errors (K,) of least-squares slopes and Student's degrees of freedom for each, from
    every cluster's x'x (G, K, K) and x'residual (G, K).

    Residuals are put right for what each cluster takes of its own error into the fit (CR2), and the
    degrees are Satterthwaite's: Bell and McCaffrey 2002, Survey Methodology 28, 169-181; with
    intercepts inside clusters Pustejovsky and Tipton 2018, J. Business and Economic Statistics 36,
    672-683. The usual G - 1 is far too many where few clusters reach far: it covered 74 to 94 %
    where this covers 95 to 98 (benchmarks/calibration_effects.py, `inside`). NaN where one cluster
    alone decides a slope.
    """
    bread = np.linalg.inv(own.sum(axis=0))
    root = np.linalg.cholesky(bread)
    share, turn = np.linalg.eigh(root.T @ own @ root)  # of the fit's information, by direction
    rest = np.maximum(1 - share, 0.0)
    scale = np.where(rest > 1e-9, np.maximum(rest, 1e-9) ** -0.5, 0.0)[:, None, :]
    adjust = root @ (turn * scale) @ turn.transpose(0, 2, 1) @ np.linalg.inv(root)  # (G, K, K)
    adjusted = np.einsum("gji,gj->gi", adjust, scores)
    error = np.sqrt(np.diag(bread @ (adjusted.T @ adjusted) @ bread))
    degrees = np.full(len(error), np.nan)
    for k, column in enumerate(bread.T):
        lever = adjust @ column  # (G, K)
        sums = np.einsum("gij,gj->gi", own, lever)
        squares, shared = np.einsum("gi,gi->g", lever, sums), sums @ bread
        mixed = np.einsum("gi,gi->g", shared, sums)
        total = squares.sum() - mixed.sum()
        again = (squares**2 - 2 * squares * mixed).sum() + np.trace(
            (bread @ (sums.T @ sums)) @ (bread @ (sums.T @ sums))
        )
        if total > 1e-9 * bread[k, k]:
            degrees[k] = total**2 / again
    return error, degrees


def _by_rate(frames: Frames, trials: pd.DataFrame) -> pd.DataFrame:
    ends = (
        frames.drifts[frames.drifts["step"].gt(0)]
        .sort_values("step")
        .groupby("trial")["log_drift"]
        .last()
    )
    once = trials[trials["trial"].isin(frames.trials["trial"])][[*LABELS, "growing"]]
    once = once.assign(
        final=once["trial"].map(ends).astype("float64"), growing=once["growing"].astype("float64")
    )
    return once.groupby(["method", "learning_rate", "rank"], dropna=False, as_index=False).agg(
        trials=("trial", "size"), final=("final", "median"), growing=("growing", "mean")
    )


def rank_correlation(rows: pd.DataFrame, x: str, y: str) -> pd.Series:
    """Spearman's correlation of columns `x` and `y` inside each trial, indexed by trial.

    NaN for fewer than three points and where x or y is constant. Ties take their mean rank.
    """
    names = rows["trial"]
    ranks = rows.groupby("trial")[[x, y]].rank()
    a = ranks[x] - ranks[x].groupby(names).transform("mean")
    b = ranks[y] - ranks[y].groupby(names).transform("mean")
    parts = pd.DataFrame({"ab": a * b, "aa": a * a, "bb": b * b, "n": 1.0}).groupby(names).sum()
    below = (parts["aa"] * parts["bb"]) ** 0.5
    return (parts["ab"] / below.where(below > 0)).where(parts["n"] >= FEWEST_STEPS)


@dataclass(frozen=True)
class Continued:
    """Pairs of trials that differ in their budget alone, LoRA and full fine-tuning alike.

    ``pairs`` has one row per trial of a longer arm whose twin is there: the configuration,
    ``budget``, and of both ``trial``, (``_once`` for the twin) ``log_drift`` (at the last step),
    ``best`` and ``last`` (validation metric). ``drift`` is the mean change of |log_drift|, ``best``
    and ``last`` those of the metric.
    """

    drift: Interval
    best: Interval
    last: Interval
    pairs: pd.DataFrame


def continued(frames: Frames, *, rng: np.random.Generator, resamples: int = 1000) -> Continued:
    """Sets every trial of a budget above 1 beside the one with the same configuration, rate and
    seed."""
    ends = frames.drifts.sort_values("step").groupby("trial")["log_drift"].last()
    columns = [*SAME, "trial", "log_drift", "best", "last"]
    plain, more = (
        rows.assign(log_drift=rows["trial"].map(ends).astype("float64"))
        for rows in (frames.trials, frames.continued[frames.continued["budget"].gt(1)])
    )
    pairs = more[[*columns, "budget", "metric"]].merge(
        plain[columns], on=SAME, suffixes=("", "_once")
    )
    change = pd.DataFrame(
        {
            "drift": pairs["log_drift"].abs() - pairs["log_drift_once"].abs(),
            "best": pairs["best"] - pairs["best_once"],
            "last": pairs["last"] - pairs["last_once"],
        }
    )
    cluster, labels = cluster_of(pairs.assign(pair=range(len(pairs))), "pair")
    drifted, best, last = (
        mean_interval(change[name], labels, cluster, rng=rng, resamples=resamples)
        for name in ("drift", "best", "last")
    )
    return Continued(drifted, best, last, pairs)
