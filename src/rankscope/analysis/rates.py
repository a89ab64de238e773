"""H5: the best learning rate against the rank, and beside full fine-tuning's.

The best rate of a configuration is the top of a parabola in the logarithm of the rate, fitted
to the means over seeds of the best metric, at the tried rates around the best of them. It
never lies outside these rates.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rankscope.analysis.frames import Frames
from rankscope.analysis.inference import jackknife
from rankscope.analysis.selection import CONFIGURATION, sign_of

FEWEST_RATES = 3
KEPT = 0.5  # of the gain over a constant answer: rates that lose more are not on the parabola
# the top's standard error in steps of the grid where the metric is no parabola: simulated curves
# that rise slowly and fall steeply (docs/results/calibration)
SHAPE = 0.4
FEWEST_RESIDUALS = 5  # rates; one residual of four says nothing about the shape


@dataclass(frozen=True)
class Curve:
    """Best metric of one configuration: ``values`` has one row per seed and one column per log rate
    (the window).

    ``edge`` says why there is no top inside the grid, if so; ``window`` is then empty.
    """

    values: pd.DataFrame
    edge: str

    @property
    def seeds(self) -> list[Hashable]:
        """Seeds that have all rates of the window."""
        return list(self.values.index)

    def best(self, seeds: list[Hashable]) -> float:
        """Log of the best rate, from the mean over `seeds`; NaN at the edge of the grid."""
        if self.edge or not seeds:
            return np.nan
        mean = self.values.loc[seeds].mean()
        x = mean.index.to_numpy(dtype=float)
        centre = x.mean()
        bend, slope, _ = np.polyfit(x - centre, mean.to_numpy(dtype=float), 2)
        top = centre - slope / (2 * bend) if bend < 0 else x[int(np.argmax(mean.to_numpy()))]
        return float(np.clip(top, x[0], x[-1]))

    @property
    def error(self) -> float:
        """Standard error of the log of the best rate from the grid and the curve's shape, which all
        seeds share: what the residuals say, and with few rates `SHAPE` steps of the grid; NaN at
        the edge."""
        if self.edge:
            return np.nan
        x = self.values.columns.to_numpy(dtype=float)
        step = SHAPE * float(np.diff(x).mean())
        if len(x) < FEWEST_RESIDUALS:
            return step
        (bend, slope, _), covariance = np.polyfit(x - x.mean(), self.values.mean(), 2, cov=True)
        if bend >= 0:
            return step
        by = np.array([slope / (2 * bend**2), -1 / (2 * bend), 0.0])
        return float(np.sqrt(by @ covariance @ by))


@dataclass(frozen=True)
class Rates:
    """``configurations``: one row per configuration that learnt, with ``best`` (rate, ``low``,
    ``high``), ``seeds``, ``rates`` (in the window), ``edge``, and for LoRA ``to_full``, its best
    rate over full fine-tuning's.

    ``groups``: one row per model, task and scaling rule, over the ``ranks`` whose best rate
    is inside the grid: ``exponent`` of the best rate against the rank, and ``to_full``
    (geometric mean over ranks), each with ``_low``, ``_high`` and ``_seeds``. Intervals leave
    out one seed at a time (Student), and have the error of the grid added (`Curve.error`).
    """

    configurations: pd.DataFrame
    groups: pd.DataFrame


def rates(frames: Frames) -> Rates:
    """Best rates of all configurations that learnt, from every trial of the study's own budget."""
    known = frames.learnt[frames.learnt["learnt"]]
    curves: dict[tuple[object, ...], Curve] = {}
    for row in known.to_dict("records"):
        same = np.logical_and.reduce(
            [
                frames.trials[name].isna()
                if pd.isna(row[name])
                else frames.trials[name].eq(row[name])
                for name in CONFIGURATION
            ]
        )
        floor = row["sign"] * row["constant"] if np.isfinite(row["constant"]) else -np.inf
        key = tuple(None if pd.isna(row[name]) else row[name] for name in CONFIGURATION)
        curves[key] = curve(frames.trials[same], floor)
    configurations = [_configuration(key, found, curves) for key, found in curves.items()]
    groups = [
        _group(model, task, scaling, curves)
        for model, task, scaling in dict.fromkeys(
            (k[0], k[1], k[4]) for k in curves if k[2] == "lora"
        )
    ]
    return Rates(pd.DataFrame(configurations), pd.DataFrame(groups))


def curve(trials: pd.DataFrame, constant: float) -> Curve:
    """The window of one configuration: the rates around the best one that keep half of its gain,
    or the best and the two beside it where one of these keeps less; values are turned so that
    greater is better, as ``constant`` is.

    A collapsed rate beside the best closes the window: a parabola through more rates than three
    need not pass near the best, and the collapsed one would pull its top away.

    Seeds that lack a rate of the window are left out, unless every seed lacks one.
    """
    better = trials.assign(best=sign_of(trials) * trials["best"])
    table = better.pivot_table(index="seed", columns=np.log(trials["learning_rate"]), values="best")
    counts = table.notna().sum()
    mean = table.mean()[counts.eq(counts.max())] if len(table) else pd.Series(dtype=float)
    whole = table.mean()
    if len(whole) < FEWEST_RATES:
        return Curve(table, "fewer than three rates")
    place = list(whole.index).index(mean.idxmax())
    if place in (0, len(whole) - 1):
        return Curve(table, "largest tried" if place else "smallest tried")
    kept = whole.ge(
        constant + KEPT * (whole.iloc[place] - constant) if np.isfinite(constant) else -np.inf
    )
    first, last = place - 1, place + 1
    if kept.iloc[first] and kept.iloc[last]:
        while first > 0 and kept.iloc[first - 1]:
            first -= 1
        while last < len(whole) - 1 and kept.iloc[last + 1]:
            last += 1
    window = table.iloc[:, first : last + 1].dropna()
    return Curve(window, "" if len(window) else "no seed has the rates on both sides")


def _configuration(
    key: tuple[object, ...], found: Curve, curves: dict[tuple[object, ...], Curve]
) -> dict[str, object]:
    best = jackknife(found.seeds, found.best).widened(found.error).exp()
    row = dict(zip(CONFIGURATION, key, strict=True)) | {"best": best.estimate, "low": best.low}
    row |= {
        "high": best.high,
        "seeds": len(found.seeds),
        "rates": found.values.shape[1],
        "edge": found.edge,
    }
    full = curves.get((key[0], key[1], "full", None, None))
    row["to_full"] = np.nan
    if key[2] == "lora" and full is not None:
        row["to_full"] = float(np.exp(found.best(found.seeds) - full.best(full.seeds)))
    return row


def _group(
    model: object, task: object, scaling: object, curves: dict[tuple[object, ...], Curve]
) -> dict[str, object]:
    """One row of `Rates.groups`."""
    own = {
        float(str(key[3])): c
        for key, c in sorted(curves.items(), key=lambda item: float(str(item[0][3] or 0)))
        if (key[0], key[1], key[2], key[4]) == (model, task, "lora", scaling)
    }
    inside = {rank: c for rank, c in own.items() if not c.edge}
    most = max((len(c.seeds) for c in inside.values()), default=0)
    repeated = {rank: c for rank, c in inside.items() if len(c.seeds) == most}
    inside = repeated if len(repeated) > 1 else inside  # ranks common to all seeds, as in H1
    full = curves.get((model, task, "full", None, None))
    row: dict[str, object] = {"model": model, "task": task, "scaling": scaling}
    row |= {
        "ranks": ", ".join(f"{rank:g}" for rank in inside),
        "at_edge": sum(bool(c.edge) for c in own.values()),
    }
    row["full_edge"] = full.edge if full is not None else "not trained"
    common = list(next(iter(inside.values())).seeds) if inside else []
    common = [seed for seed in common if all(seed in c.seeds for c in inside.values())]
    logs = np.log(list(inside))

    def exponent(seeds: list[Hashable]) -> float:
        if len(inside) < 2 or not seeds:
            return np.nan
        return float(np.polyfit(logs, [c.best(seeds) for c in inside.values()], 1)[0])

    def to_full(seeds: list[Hashable]) -> float:
        if full is None or not inside or not seeds:
            return np.nan
        return float(np.mean([c.best(seeds) for c in inside.values()]) - full.best(seeds))

    paired = [seed for seed in common if full is not None and seed in full.seeds]
    exponent_error, ratio_error = errors_of_grid(logs, [c.error for c in inside.values()], full)
    for name, found in (
        ("exponent", jackknife(common, exponent).widened(exponent_error)),
        ("to_full", jackknife(paired, to_full).widened(ratio_error).exp()),
    ):
        row |= {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}
        row[f"{name}_seeds"] = found.clusters
    return row


def errors_of_grid(
    logs: NDArray[np.float64], errors: list[float], full: Curve | None
) -> tuple[float, float]:
    """Standard errors of the exponent and of the log ratio to full fine-tuning from the tops'
    `errors` at the ranks `logs`: independent between ranks for the one, shared for the other."""
    exponent = ratio = np.nan
    if len(logs) > 1:
        apart = logs - logs.mean()
        exponent = float(np.linalg.norm(apart * errors) / (apart**2).sum())
    if len(logs) and full is not None and not full.edge:
        ratio = float(np.hypot(np.mean(errors), full.error))
    return exponent, ratio
