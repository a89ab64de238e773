"""A rank for each layer from the energies of updates, at the parameters of one rank for all, and
whether it pays when it is trained.

Letters: L layers, c parameters that one rank of a layer takes (m + n), r the uniform rank.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankscope.analysis.inference import Interval, jackknife

DESIGNS = ("pattern", "uniform", "shuffled")
PER_DIRECTION = 2  # ranks that stand for one measured direction


@dataclass(frozen=True)
class Layer:
    """One adapted layer: its shape, and sigma_i^2 of its updates, descending, mean over trials."""

    m: int
    n: int
    energy: NDArray[np.float64]

    @property
    def cost(self) -> int:
        """Parameters of one rank."""
        return self.m + self.n


@dataclass(frozen=True)
class RankPattern:
    """``ranks``: layer -> rank, with the ``parameters`` of rank ``uniform`` in every layer, or
    fewer by less than one rank takes; of ``trials`` updates."""

    ranks: Mapping[str, int]
    uniform: int
    parameters: int
    uniform_parameters: int
    trials: int


def pattern_of(layers: Mapping[str, Layer], *, rank: int, trials: int) -> RankPattern:
    """The parameters of a uniform ``rank``, given to the directions with the most energy.

    Every layer gets one rank; then each further one goes to the layer whose next direction holds
    the most energy per parameter, as EVA does at the start of training (Paischer et al. 2024,
    arXiv 2410.07170). Updates of rank r show r directions a layer and a layer may want more, so a
    direction stands for two ranks: no layer gets more than 2 r (EVA's rho = 2).

    ``ValueError``, one line, where no layer can have less than another.
    """
    if rank < 2:
        raise ValueError("rank 1 cannot be shared out: each layer needs one")
    if len(layers) < 2:
        raise ValueError(f"one layer has an update: no other can give or take ranks (rank {rank})")
    ranks = dict.fromkeys(layers, 1)
    budget = rank * sum(layer.cost for layer in layers.values())
    left = budget - sum(layer.cost for layer in layers.values())
    # equal energies go to the layer with fewer ranks, not to the first name
    waiting = [(-_worth(layer, 1), 1, name) for name, layer in layers.items()]
    heapq.heapify(waiting)
    while waiting:
        _, _, name = heapq.heappop(waiting)
        layer = layers[name]
        if layer.cost > left or ranks[name] >= _most(layer, rank):
            continue  # for good: what is left only shrinks
        ranks[name] += 1
        left -= layer.cost
        heapq.heappush(waiting, (-_worth(layer, ranks[name]), ranks[name], name))
    if len(set(ranks.values())) == 1:
        raise ValueError(f"the energies ask for rank {rank} in every layer")
    return RankPattern(ranks, rank, budget - left, budget, trials)


def _most(layer: Layer, rank: int) -> int:
    return min(PER_DIRECTION * rank, layer.m, layer.n)


def _worth(layer: Layer, k: int) -> float:
    """Energy per parameter of the direction that rank k + 1 stands for."""
    place = k // PER_DIRECTION
    return float(layer.energy[place]) / layer.cost if place < len(layer.energy) else 0.0


def shuffled(ranks: Mapping[str, int], layers: Mapping[str, Layer], seed: int) -> dict[str, int]:
    """The same ranks, drawn anew among the layers of each shape: equal parameters. Another order
    than ``ranks`` has. ``ValueError`` where layers of one shape all have one rank."""
    shapes: dict[tuple[int, int], list[str]] = {}
    for name, layer in layers.items():
        shapes.setdefault((layer.m, layer.n), []).append(name)
    if all(len({ranks[name] for name in names}) == 1 for names in shapes.values()):
        raise ValueError("layers of one shape all have one rank: there is nothing to shuffle")
    rng = np.random.default_rng([seed, 20261127])
    while True:
        found = dict(ranks)
        for names in shapes.values():
            drawn = rng.permutation([ranks[name] for name in names]).tolist()
            found |= dict(zip(names, drawn, strict=True))
        if found != dict(ranks):
            return found


@dataclass(frozen=True)
class Contrast:
    """The pattern's metric minus another design's, paired over seeds, with its 95 % interval (NaN
    with one seed)."""

    against: str
    difference: Interval
    is_better: bool | None  # None: not shown either way

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = self.difference
        low, high = (x if found.known else None for x in (found.low, found.high))
        return {"against": self.against, "difference": found.estimate, "low": low, "high": high,
                "seeds": found.clusters, "is_better": self.is_better}  # fmt: skip


@dataclass(frozen=True)
class Validation:
    """What retraining says of a pattern: mean metric of each design, and the two contrasts.
    ``lost``: seeds without a metric in one of the designs."""

    store: str
    metric: str
    seeds: tuple[int, ...]
    values: Mapping[str, float]
    parameters: Mapping[str, int]
    contrasts: tuple[Contrast, ...]
    lost: tuple[int, ...] = ()

    @property
    def sentence(self) -> str:
        """The verdict."""
        if all(one.is_better for one in self.contrasts):
            return "the pattern is better than a uniform rank and than its own shuffled ranks"
        worse = [one.against for one in self.contrasts if one.is_better is False]
        if worse:
            return f"the pattern is worse than {_words(worse)}: do not take it"
        open_ = [one.against for one in self.contrasts if one.is_better is None]
        return f"the pattern is not shown to be better than {_words(open_)}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        own = asdict(self) | {"seeds": list(self.seeds), "lost": list(self.lost)}
        contrasts = [one.to_dict() for one in self.contrasts]
        return own | {"contrasts": contrasts, "sentence": self.sentence}


def _words(designs: Sequence[str]) -> str:
    said = {"uniform": "a uniform rank", "shuffled": "its own shuffled ranks"}
    return " and than ".join(said[design] for design in designs)


def validation(
    values: Mapping[str, Mapping[int, float]],
    *,
    sign: int,
    store: str,
    metric: str,
    parameters: Mapping[str, int],
) -> Validation:
    """Compares ``values``, design -> seed -> metric, of ``DESIGNS``; ``sign`` is 1 if a greater
    metric is better, else -1. ``ValueError`` if no seed has all three."""
    seeds = sorted(set.union(*(set(values[design]) for design in DESIGNS)))
    whole = [s for s in seeds if all(np.isfinite(values[d].get(s, np.nan)) for d in DESIGNS)]
    if not whole:
        raise ValueError(f"{store}: expected a seed with all of {', '.join(DESIGNS)}; found none")
    contrasts = []
    for other in DESIGNS[1:]:
        by_seed = {seed: values["pattern"][seed] - values[other][seed] for seed in whole}
        found = jackknife(whole, _mean_of(by_seed))
        ends = sorted((sign * found.low, sign * found.high)) if found.known else (-1.0, 1.0)
        verdict = True if ends[0] > 0 else False if ends[1] < 0 else None
        contrasts.append(Contrast(other, found, verdict))
    return Validation(
        store=store,
        metric=metric,
        seeds=tuple(whole),
        values={d: _mean([values[d][s] for s in whole]) for d in DESIGNS},
        parameters=dict(parameters),
        contrasts=tuple(contrasts),
        lost=tuple(seed for seed in seeds if seed not in whole),
    )


def _mean_of(by_seed: Mapping[int, float]) -> Callable[[list[Any]], float]:
    return lambda kept: _mean([by_seed[seed] for seed in kept])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
