"""Which rank is enough: the smallest whose best metric is not worse than any other's by a margin.

Of a rank r let w(r) be how much worse its mean metric over seeds is than that of the best rank. No
rank is taken for the best one because it came out best, which would flatter it: r is compared with
every other rank j, by the differences between their trials of the same seed, each seed at the rate
that is best over the other seeds (`rankscope.analysis.rate_choice`). If U_j is the upper end of the
one-sided 95 % interval of the mean difference, the largest U_j is such an end for w(r), because it
is at least that of the truly best rank (intersection-union: Berger 1982, Technometrics 24,
295-300). A rank is enough if that lies at or below the margin.

Ranks are tried from the largest down, an order that no result chooses, and the first that cannot be
shown to be enough ends it. An error means that the first rank of this order which is not enough
passed, so that it has probability 0.05 at most, whatever the means are (fixed sequences: Maurer,
Hothorn and Lehmacher 1995, in Biometrie in der chemisch-pharmazeutischen Industrie 6). The price: a
largest rank that is itself worse than the margin leaves nothing to suggest.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rankscope.analysis.frames import Frames
from rankscope.analysis.inference import FEWEST_SEEDS
from rankscope.analysis.rate_choice import Choice, left_out, upper
from rankscope.analysis.selection import sign_of
from rankscope.analysis.settings import by_setting

MARGIN = 0.01
GROUP = ["model", "task", "scaling"]


@dataclass(frozen=True)
class Tried:
    """A rank at its chosen rate: mean ``value`` over ``seeds``; ``worse``, how much it is worse
    than the best other rank (below 0: better than all); ``at_most``, the upper end of the one-sided
    95 % interval of that, NaN where it is unknown, with ``why``. Ranks with fewer than two seeds
    are compared with none."""

    rank: int
    learning_rate: float
    edge: str
    value: float
    seeds: int
    worse: float
    at_most: float
    why: str


@dataclass(frozen=True)
class Suggestion:
    """What one model, task and scaling rule says: ``rank`` and its ``learning_rate``, None where no
    rank is shown to be enough; ``reason``, one sentence; ``ranks``, ascending, what it rests on;
    ``trials``: those at that rank and rate."""

    model: str
    task: str
    scaling: str
    metric: str
    margin: float
    rank: int | None
    learning_rate: float | None
    at_most: float | None
    reason: str
    ranks: tuple[Tried, ...]
    notes: tuple[str, ...]
    trials: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a number that is unknown is None."""
        found = asdict(self)
        for one in found["ranks"]:
            unknown = [k for k, v in one.items() if isinstance(v, float) and not math.isfinite(v)]
            one |= dict.fromkeys(unknown)
        return found


def suggest(
    frames: Frames, *, margin: float = MARGIN, task: str | None = None
) -> tuple[Suggestion, ...]:
    """One suggestion per model (with its setting, where a study has several), task and scaling rule
    of the LoRA trials, from ``frames``.

    ``margin`` is in units of the metric; ``task``: only this one. Full fine-tunes are ignored.
    Raises ``ValueError`` if ``margin`` is not a positive number, or ``task`` not in the study.
    """
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(
            f"margin: expected a positive number in units of the metric; found {margin:g}. "
            f"--margin {MARGIN}"
        )
    found = by_setting(frames)
    tasks = sorted(set(found.trials["task"].astype(str)))
    if task is not None and task not in tasks:
        raise ValueError(f"task: expected one of {', '.join(tasks)}; found {task!r:.60}")
    lora = found.chosen[found.chosen["method"].eq("lora") & found.chosen["rank"].notna()]
    if task is not None:
        lora = lora[lora["task"].eq(task)]
    if lora.empty:
        raise ValueError(
            "expected LoRA trials with a metric; found none. Train ranks, or collect runs that "
            "say theirs"
        )
    return tuple(
        _of_group(found, dict(zip(GROUP, map(str, key), strict=True)), trials, margin)
        for key, trials in lora.groupby(GROUP, sort=True)
    )


def _of_group(
    frames: Frames, group: dict[str, str], trials: pd.DataFrame, margin: float
) -> Suggestion:
    """``trials``: those of one group at their ranks' chosen rates."""
    sign = float(sign_of(trials).iloc[0])
    trials, choices = left_out(frames.trials, trials, sign)
    values = trials.pivot_table(
        index="rank", columns="seed", values="reported", aggfunc="mean", dropna=False
    ).sort_index()
    rates = _of(frames.learning_rates, group)
    learnt = set(_of(frames.learnt, group).query("learnt")["rank"].astype(int))
    lost = set(trials.loc[trials["reported"].isna(), "rank"].astype(int))
    ranks = [int(rank) for rank in values.index]
    signed = sign * values.to_numpy(dtype=float, na_value=np.nan)  # (ranks, seeds)
    own_choices = [choices[rank] for rank in ranks]
    tried = tuple(
        _tried(place, rank, signed, rates, own_choices, rank in learnt, rank in lost)
        for place, rank in enumerate(ranks)
    )
    enough = _from_the_largest(tried, margin)
    return Suggestion(
        **group,
        metric=str(trials["metric"].iloc[0]),
        margin=margin,
        rank=enough.rank if enough else None,
        learning_rate=enough.learning_rate if enough else None,
        at_most=enough.at_most if enough else None,
        reason=_reason(tried, enough, margin, bool(learnt)),
        ranks=tried,
        notes=_notes(tried, choices, enough),
        trials=tuple(sorted(trials.loc[trials["rank"].eq(enough.rank), "trial"])) if enough else (),
    )


def _of(table: pd.DataFrame, group: dict[str, str]) -> pd.DataFrame:
    """The LoRA rows of a group."""
    own = table["method"].eq("lora") & table["rank"].notna()
    for name, value in group.items():
        own &= table[name].astype(str).eq(value)
    return table[own]


def _tried(
    place: int,
    rank: int,
    signed: NDArray[np.float64],
    rates: pd.DataFrame,
    choices: list[Choice],
    is_learnt: bool,
    has_lost: bool,
) -> Tried:
    row = rates[rates["rank"].eq(rank)].iloc[0]
    own, choice = signed[place], choices[place]
    others = [j for j, other in enumerate(signed) if j != place and _seeds(other)]
    differences = [signed[j] - own for j in others]
    bounds = np.array([
        upper(d[np.isfinite(d)], max(choice.rates, choices[j].rates))
        for j, d in zip(others, differences, strict=True)
    ])  # fmt: skip
    means = np.array([d[np.isfinite(d)].mean() for d in differences if np.isfinite(d).any()])
    worse = float(means.max()) if len(means) else np.nan
    at_most = float(bounds.max()) if len(bounds) else np.nan  # NaN if any is unknown
    why = ""
    if not is_learnt:
        why = "learnt nothing"
    elif has_lost:
        why = "a seed without any evaluation"
    elif not _seeds(own):
        why = "left out: one seed"
    elif choice.mixed:
        why = "its rates were trained with different seeds"
    elif not len(bounds):
        why = "no other rank with two seeds"
    elif not np.isfinite(at_most):
        why = "two seeds shared with another rank differ by the same, or none are shared"
    return Tried(
        rank=rank,
        learning_rate=float(row["learning_rate"]),
        edge=str(row["edge"]),
        value=float(row["value"]),
        seeds=int(np.isfinite(own).sum()),
        worse=worse,
        at_most=np.nan if why else at_most,
        why=why,
    )


def _seeds(values: NDArray[np.float64]) -> bool:
    """Whether a rank's values (seeds,) are enough to compare it."""
    return int(np.isfinite(values).sum()) >= FEWEST_SEEDS


def _from_the_largest(tried: tuple[Tried, ...], margin: float) -> Tried | None:
    """The last rank that is enough, going down from the largest until one is not. Ranks without two
    seeds take no part."""
    enough = None
    for one in reversed([one for one in tried if one.seeds >= FEWEST_SEEDS]):
        if not one.at_most <= margin:
            break
        enough = one
    return enough


def _reason(tried: tuple[Tried, ...], enough: Tried | None, margin: float, learnt: bool) -> str:
    if not learnt:
        return "no rank learnt anything: there is nothing to compare"
    if len(tried) == 1:
        return f"only rank {tried[0].rank} was tried: a comparison takes two ranks or more"
    compared = [one for one in tried if one.seeds >= FEWEST_SEEDS]
    if not compared:
        return "one seed each: without a second there is no interval. Train two seeds, better three"
    if len(compared) == 1:
        return f"only rank {compared[0].rank} has two seeds: a comparison takes two such ranks"
    if enough is not None:
        start = f"worse than the best by {max(0.0, enough.at_most):.2g} at most (one-sided 95 %)"
        below = [one for one in compared if one.rank < enough.rank]
        if not below:
            return f"{start}; it is the smallest compared"
        return f"{start}; of rank {below[-1].rank} that is not shown: {_missed(below[-1])}"
    return (
        f"none is shown to be within {margin:g} of the best: ranks are tried from the largest "
        f"down, and already of rank {compared[-1].rank} it is not shown: {_missed(compared[-1])}"
    )


def _missed(one: Tried) -> str:
    than = "better than every other" if one.worse < 0 else "worse than the best other"
    return one.why or f"{abs(one.worse):.2g} {than}, perhaps up to {one.at_most:.2g} worse"


def _notes(
    tried: tuple[Tried, ...], choices: dict[int, Choice], enough: Tried | None
) -> tuple[str, ...]:
    notes = []
    alone = [str(one.rank) for one in tried if one.seeds < FEWEST_SEEDS]
    if enough is not None and alone:
        notes.append(f"not compared, for want of a second seed: rank {', '.join(alone)}")
    if enough is not None and enough.edge not in ("none", ""):
        notes.append(
            f"the rate of rank {enough.rank} is the {enough.edge}: a better one may lie outside"
            if enough.edge != "only one tried"
            else f"rank {enough.rank} was trained at one rate only"
        )
    if (most := max(choice.rates for choice in choices.values())) > 1:
        notes.append(
            "each seed is compared at the rate that is best over the others; intervals are wider "
            f"where several rates may be as good (up to {most} here)"
        )
    if enough is not None and max(one.seeds for one in tried) == FEWEST_SEEDS:
        notes.append("two seeds: intervals with one degree of freedom; three say much more")
    return tuple(notes)
