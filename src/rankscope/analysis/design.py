"""What a study's design can answer, and what it cannot: before it is run, and beside its results.

Nothing is simulated: the power for a loss is a closed form (normal approximation of the contrast
that H2's loss is), tested against t intervals of simulated contrasts, not of whole studies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from rankscope.analysis.growth import LOWEST
from rankscope.analysis.inference import LEVEL, normal, student
from rankscope.analysis.rates import FEWEST_RATES, SHAPE, errors_of_grid
from rankscope.analysis.threshold.evidence import DEEPEST
from rankscope.analysis.threshold.threshold import FEWEST
from rankscope.analysis.verdicts.rates import SAME
from rankscope.analysis.verdicts.verdict import counted

LOSSES = (0.02, 0.05)
SETTLED = 0.8  # an accuracy that rows are taken to be answered with, for the noise of an evaluation
DECADES = 1.0  # of learning rates at least, for slow ones near sr(W) and fast ones that drift
LATE = 6  # evaluations: three at least in the later half of training, for slopes inside trials
CROSSED = 3  # seeds: with two, leaving one out leaves no pair
FULL_BELOW = 3.0  # how many times lower full fine-tuning's best rate is known to lie, at least

Answerable = Literal["yes", "in part", "no"]
COLUMNS = [
    "model", "task", "method", "rank", "scaling", "learning_rate", "seed", "evaluations", "noise",
]  # fmt: skip


@dataclass(frozen=True)
class Check:
    """Whether one task of a model can answer one hypothesis, and what stands in the way."""

    hypothesis: str
    model: str
    task: str
    answerable: Answerable
    reason: str


def design(planned: pd.DataFrame) -> list[Check]:
    """One `Check` per hypothesis, model and task of the trials planned (`COLUMNS`).

    ``evaluations`` is how often a trial is evaluated, ``noise`` the standard deviation of one
    trial's metric (`accuracy_noise`). Raises ValueError where a column is missing.
    """
    missing = [name for name in COLUMNS if name not in planned]
    if missing:
        raise ValueError(f"design needs the columns {', '.join(COLUMNS)}; {missing[0]} is missing.")
    checks = []
    for (model, task), part in planned.groupby(["model", "task"]):
        lora, full = part[part["method"].eq("lora")], part[part["method"].eq("full")]
        for name, (answerable, reason) in (
            ("H1", _growth(lora)),
            ("H2", _threshold(lora)),
            ("H3", _dynamics(lora)),
            ("H4", _alignment(lora, full)),
            ("H5", _rates(lora, full)),
        ):
            checks.append(Check(name, str(model), str(task), answerable, reason))
    return checks


def accuracy_noise(rows: float) -> float:
    """The standard deviation of an accuracy near 0.8 on so many validation rows: binomial.

    Trials evaluated on the same rows differ by less, and trials of different seeds by more.
    """
    return float(np.sqrt(SETTLED * (1 - SETTLED) / max(1.0, rows)))


def power(loss: float, noise: float, near: int, deep: int) -> float:
    """The chance that the interval of H2's loss lies above 0 where the true loss is `loss`.

    Normal approximation of a difference of the means of `near` references and `deep` trials, each
    with standard deviation `noise`.
    """
    if min(near, deep) < 1 or not noise > 0:
        return np.nan
    degrees = max(1, near + deep - 2)
    error = noise * np.sqrt(1 / near + 1 / deep)
    return float(normal.sf(student.ppf((1 + LEVEL) / 2, degrees) - loss / error))


def _seeds(rows: pd.DataFrame) -> set[int]:
    return set(rows["seed"].unique())


def _growth(lora: pd.DataFrame) -> tuple[Answerable, str]:
    best: tuple[list[float], int] = ([], 0)
    for _, part in lora[lora["rank"].ge(LOWEST)].groupby("scaling", dropna=False):
        seeds = part.groupby("rank")["seed"].nunique()
        common = seeds[seeds.eq(part["seed"].nunique())]
        if len(common) > 1 and part["seed"].nunique() > best[1]:
            best = (sorted(map(float, common.index)), part["seed"].nunique())
    ranks, count = best
    if not ranks:
        return "no", f"no two ranks of {LOWEST} or more are common to all seeds of a scaling rule"
    text = f"r = {_list(f'{rank:g}' for rank in ranks)} with {counted(count, 'seed')}"
    if count < 2:
        return "in part", f"{text}: the interval is over layers and says nothing about new seeds"
    return "yes", text


def _threshold(lora: pd.DataFrame) -> tuple[Answerable, str]:
    trials = len(lora)
    if trials < FEWEST:
        return "no", f"{counted(trials, 'LoRA trial')}; {FEWEST} are needed"
    rates = lora["learning_rate"]
    decades = float(np.log10(rates.max() / rates.min()))
    if decades < DECADES:
        return "no", (
            f"rates span {decades:.1f} decades; {DECADES:g} at least, so that some trials stay "
            "near sr(W) and others drift"
        )
    cells = lora.groupby(["rank", "scaling", "learning_rate"], dropna=False)["seed"].nunique()
    near = int(cells.groupby(["rank", "scaling"], dropna=False).max().sum())
    fast = lora["learning_rate"].ge(np.quantile(lora["learning_rate"], 1 - DEEPEST))
    noise = float(lora["noise"].median())
    told = _list(f"{100 * power(loss, noise, near, int(fast.sum())):.0f} %" for loss in LOSSES)
    counts = f"{near} references, {int(fast.sum())} fast trials"
    text = (
        f"power for a loss of {_list(f'{loss:g}' for loss in LOSSES)}: {told} (closed form; "
        f"{counts}, sd {noise:.3f})"
        if np.isfinite(noise)
        else f"{counts}; the noise of an evaluation is not known, so neither is the power"
    )
    if not lora["evaluations"].median() >= 2:
        return "in part", f"{text}; one evaluation a trial: no checkpoint between near and far"
    return "yes", text


def _dynamics(lora: pd.DataFrame) -> tuple[Answerable, str]:
    often = lora["evaluations"].ge(LATE)
    if int(often.sum()) < 3:
        return "no", (
            f"{counted(int(often.sum()), 'trial')} with {LATE} evaluations or more; 3 are needed, "
            "for slopes inside trials after the drift has begun: lower eval_every"
        )
    return "yes", f"{counted(int(often.sum()), 'trial')} with {LATE} evaluations or more"


def _alignment(lora: pd.DataFrame, full: pd.DataFrame) -> tuple[Answerable, str]:
    if full.empty or lora.empty:
        return "no", "full fine-tuning and LoRA are both needed"
    top = lora[lora["rank"].eq(lora["rank"].max())]
    common = len(_seeds(full) & _seeds(top))
    if common < 2:
        return "no", "pairs of different seeds need two seeds of both at least"
    if common < CROSSED:
        return "in part", f"{common} common seeds: an estimate without an interval ({CROSSED})"
    return "yes", f"{common} common seeds at the largest rank"


def _rates(lora: pd.DataFrame, full: pd.DataFrame) -> tuple[Answerable, str]:
    logs = np.log(lora["learning_rate"]).groupby([lora["scaling"], lora["rank"]], dropna=False)
    grids = logs.agg(["nunique", "min", "max"])
    grids = grids[grids["nunique"].ge(FEWEST_RATES)]
    rules = [part for _, part in grids.groupby("scaling", dropna=False) if len(part) > 1]
    if not rules:
        return "no", f"fewer than two ranks with {FEWEST_RATES} rates, so no best one inside a grid"
    wanting = []
    seeds = lora.groupby(["rank", "scaling", "learning_rate"], dropna=False)["seed"].nunique()
    if seeds.groupby(["rank", "scaling"], dropna=False).max().max() < 2:
        wanting.append("one seed: no interval")
    if full.empty:
        wanting.append("no full fine-tuning to set LoRA's rate beside")
    elif full["learning_rate"].min() * FULL_BELOW > lora["learning_rate"].median():
        wanting.append("full fine-tuning's grid does not reach below LoRA's")
    if (reach := max(map(_left_open, rules))) > SAME:
        wanting.append(
            f"so few ranks and rates may leave the exponent open by ±{reach:.2f} (±{SAME} is asked)"
            ": more ranks, or rates closer together"
        )
    text = f"{len(grids)} configurations with {int(grids['nunique'].min())} rates or more"
    return ("in part" if wanting else "yes"), "; ".join([text, *wanting])


def _left_open(grids: pd.DataFrame) -> float:
    """Half the width of the exponent's interval that the grid alone makes, where best rates stand
    on few rates (`rates.Curve.error`); one row per rank, of one scaling rule."""
    steps = (grids["max"] - grids["min"]) / (grids["nunique"] - 1)
    logs = np.log(grids.index.get_level_values("rank").to_numpy(dtype=float))
    exponent_error, _ = errors_of_grid(logs, list(SHAPE * steps), None)
    return float(normal.ppf((1 + LEVEL) / 2)) * exponent_error


def _list(names: Iterable[str]) -> str:
    found = list(names)
    return " and ".join(filter(None, [", ".join(found[:-1]), found[-1]])) if found else "none"
