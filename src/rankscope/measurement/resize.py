"""Smaller adapters with the error proved: each update s B A is cut to its leading singular
directions, which is the nearest matrix of that rank in both norms (Eckart and Young 1936; Mirsky
1960). docs/math.md, section 9.

Letters: N layers of one shape and dtype, cut together; m rows, n columns, r stored rank, k kept
rank, s scale, p = min(m, n, r).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from rankscope.linalg import LowRank, Truncation, singular_values
from rankscope.measurement.keep import Goal, first_ranks, next_rank, shared_ranks
from rankscope.measurement.resized import Cut, Factors, Resized, new_folder, write_resized
from rankscope.weights.lora_pairs import LoraPairs, Pair, open_pairs

# entries of the factors that are cut together: what a cache holds of them and their parts
TOGETHER = 2**18
Norms = list[tuple[float, float]]  # of each layer: ||dW||_F and ||dW||_2


@dataclass(frozen=True)
class Alike:
    """Layers of one shape and dtype: their pairs, and their updates (N, m, n)."""

    pairs: list[Pair]
    update: LowRank

    @property
    def r(self) -> int:
        """The stored rank."""
        return self.update.A.shape[-2]

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        """The dtypes of B and A."""
        return self.update.B.dtype, self.update.A.dtype

    def stored(self, pairs: LoraPairs) -> str:
        """In words, what rounds."""
        names = dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
        alpha = " and a float32 alpha" if pairs.format == "kohya" else ""
        return f"{' and '.join(names)} factors{alpha}"


def resize(
    source: str | Path,
    *,
    to: str | Path,
    energy: float | None = None,
    rank: int | None = None,
    error: float | None = None,
    budget: int | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
) -> Resized:
    """Writes a smaller copy of an adapter into the new folder ``to``, with ``resize.json``.

    Args:
        source: an adapter of PEFT's LoRA, or a file of kohya's or diffusers': a path or a hub id.
        to: the folder to make; never one that exists.
        energy, rank, error, budget: one of them; see ``Goal``.
        subfolder: the folder inside ``source``, where that holds several adapters.
        revision: branch, tag or commit of ``source`` on the hub.

    Each layer keeps its scale s (``rank_pattern`` and ``alpha_pattern``; alpha in kohya's files),
    its dtypes and its name; a layer that is not cut keeps its factors as they are. Raises
    ``ValueError``, one line, before anything is written, where an update is not s B A (DoRA, LoHa,
    PiSSA ...), not finite, or the budget is too small.
    """
    goal = Goal(energy, rank, error, budget)
    place = new_folder(to, source)
    pairs = open_pairs(source, subfolder=subfolder, revision=revision)
    spectra = _spectra(pairs) if goal.budget is not None else {}
    ranks, threshold = shared_ranks(pairs, goal, spectra)
    found: dict[str, tuple[Cut, Factors]] = {}
    for alike in _together(pairs):
        found |= _cut(pairs, alike, goal, ranks)
    factors = {pair.layer: found[pair.layer][1] for pair in pairs.pairs}
    before = pairs.size({pair.layer: pairs.rank(pair) for pair in pairs.pairs})
    after = pairs.size({layer: A.shape[0] for layer, (_, A) in factors.items()})
    notes = [f"not resized: the adapter in {name}" for name in pairs.neighbours]
    result = Resized(
        str(source), str(to), pairs.format, goal.given, before, after,
        tuple(found[pair.layer][0] for pair in pairs.pairs), tuple(pairs.others), threshold,
        tuple(notes),
    )  # fmt: skip
    write_resized(place, pairs, factors, result)
    return result


def _together(pairs: LoraPairs) -> Iterator[Alike]:
    """All layers, those of one shape and dtype together, as many as a cache holds."""
    headers, alike = pairs.tensors.headers, dict[object, list[Pair]]()
    for pair in pairs.pairs:
        kind = [(headers[name].shape, headers[name].dtype) for name in (pair.B, pair.A)]
        alike.setdefault(tuple(kind), []).append(pair)
    for those in alike.values():
        size = sum(prod(headers[name].shape) for name in (those[0].B, those[0].A))
        count = max(1, TOGETHER // size)
        for start in range(0, len(those), count):
            part = those[start : start + count]
            yield Alike(part, pairs.read(part))


def _spectra(pairs: LoraPairs) -> dict[str, Tensor]:
    """layer -> all its singular values, descending, in the order of the file."""
    found: dict[str, Tensor] = {}
    for alike in _together(pairs):
        values = singular_values(alike.update)
        found |= {pair.layer: own for pair, own in zip(alike.pairs, values, strict=True)}
    return {pair.layer: found[pair.layer] for pair in pairs.pairs}


def _cut(
    pairs: LoraPairs, alike: Alike, goal: Goal, ranks: Mapping[str, int]
) -> dict[str, tuple[Cut, Factors]]:
    """The layers cut and compared, all that are tried at one rank together. ``ranks``: those
    that a budget gave."""
    update, r = alike.update, alike.r
    whole = Truncation.of(update)
    first = first_ranks(whole.sigma, goal, [ranks.get(pair.layer) for pair in alike.pairs])
    live = (whole.sigma[:, 0] > 0).tolist()
    found = {pair.layer: _zero(alike, i) for i, pair in enumerate(alike.pairs) if not live[i]}
    waiting = {i: k for i, k in enumerate(first) if live[i]}
    p, stored = whole.sigma.shape[-1], alike.stored(pairs)
    norms = [torch.linalg.vector_norm(whole.sigma, dim=-1).tolist(), whole.sigma[:, 0].tolist()]
    sizes: Norms = list(zip(*norms, strict=True))
    while waiting:
        k = min(waiting.values())
        index = [i for i, own in waiting.items() if own == k]
        if k == r:
            tried = _kept(pairs, alike, sizes, index)
        else:
            tried = _at(pairs, alike, sizes, index, whole.select(index), k)
        tails = whole.tail[:, min(k, p)].tolist()
        for i, (cut, factors) in zip(index, tried, strict=True):
            tail = tails[i] if k < r else 0.0
            after = next_rank(
                goal, k, r, cut.error + cut.uncertainty,
                rounding=max(cut.error**2 - tail**2, 0.0) ** 0.5,
                what=f"{cut.layer}: expected {stored}",
            )  # fmt: skip
            if after is None:
                found[cut.layer] = cut, factors
                del waiting[i]
            else:  # of full rank, where only rounding is left: the factors themselves
                waiting[i] = after if after <= p else r
    return found


def _zero(alike: Alike, i: int) -> tuple[Cut, Factors]:
    pair, update = alike.pairs[i], alike.update
    note = "the update is zero; written at rank 1, since formats have no rank 0"
    m, n = update.shape[-2:]
    cut = Cut(pair.layer, (m, n), alike.r, 0, pair.scale, 0.0, 0.0, 0.0, 0.0, 0.0, note)
    return cut, (torch.zeros_like(update.B[i, :, :1]), update.A[i, :1].clone())


def _at(
    pairs: LoraPairs, alike: Alike, sizes: Norms, index: list[int], own: Truncation, k: int
) -> list[tuple[Cut, Factors]]:
    """The layers ``index``, decomposed in ``own``, at rank ``k``."""
    scales = [pairs.scale_at(alike.pairs[i], k) for i in index]
    scale = torch.tensor(scales, dtype=torch.float64)
    (B, A), errors = own.cut(k, scale, alike.dtypes)
    largest = (own.sigma[:, 0] / scale.abs()).sqrt()  # no entry is larger
    if not bool(largest.max() < min(torch.finfo(dtype).max for dtype in alike.dtypes)):
        _check_finite(alike, index, B, A)
    listed = list(zip(*(x.tolist() for x in errors), strict=True))
    return [  # a tensor each: safetensors looks twice at those that share memory
        (_cut_of(alike, sizes, i, k, scales[j], listed[j]), (B[j].clone(), A[j].clone()))
        for j, i in enumerate(index)
    ]


def _check_finite(alike: Alike, index: list[int], B: Tensor, A: Tensor) -> None:
    for factor in (B, A):
        finite = factor.isfinite().all((1, 2)).tolist()
        if not all(finite):
            layer, kind = alike.pairs[index[finite.index(False)]].layer, str(factor.dtype)
            raise ValueError(
                f"{layer}: expected cut factors within the range of "
                f"{kind.removeprefix('torch.')}; found larger ones. Nothing was written. Type "
                f"--rank {alike.r}, which keeps the factors."
            )


def _kept(
    pairs: LoraPairs, alike: Alike, sizes: Norms, index: list[int]
) -> list[tuple[Cut, Factors]]:
    """The layers ``index`` with their own factors: only the scale may be off, by how it is
    written."""
    found = []
    for i in index:
        scale = pairs.scale_at(alike.pairs[i], alike.r)
        off = abs(scale / alike.pairs[i].scale - 1)
        cut = _cut_of(alike, sizes, i, alike.r, scale, (off, off, 0.0), "factors kept as they are")
        found.append((cut, (alike.update.B[i], alike.update.A[i])))
    return found


def _cut_of(
    alike: Alike, sizes: Norms, i: int, k: int, scale: float, errors: tuple[float, ...],
    note: str | None = None,
) -> Cut:  # fmt: skip
    m, n = alike.update.shape[-2:]
    off, spectral, uncertainty = errors
    return Cut(
        alike.pairs[i].layer, (m, n), alike.r, k, scale, *sizes[i], off, spectral, uncertainty, note
    )
