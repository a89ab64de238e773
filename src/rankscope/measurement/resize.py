"""Smaller adapters with the error proved: each update s B A is cut to its leading singular
directions, which is the nearest matrix of that rank in both norms (Eckart and Young 1936; Mirsky
1960). docs/math.md, section 9.

Letters: m rows, n columns, r stored rank, k kept rank, s scale, p = min(m, n, r).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankscope.linalg import LowRank, error_of, singular_subspaces, singular_values
from rankscope.measurement.new_folder import new_folder, write_json, written_whole
from rankscope.weights.lora_pairs import LoraPairs, Pair, open_pairs

Factors = tuple[Tensor, Tensor]  # B (m, k) and A (k, n)
RESULT = "resize.json"


@dataclass(frozen=True)
class Goal:
    """How far to cut; exactly one of these is given.

    ``energy``: the smallest k whose k largest sigma_i^2 hold that share of ||dW||_F^2. ``error``:
    the smallest k for which what is written, rounding and all, lies within that relative Frobenius
    distance. ``rank``: k itself. ``budget``: bytes of the file of tensors; singular values of all
    layers above one threshold are kept (PARA, arXiv 2604.27796), and at least one in each layer.
    """

    energy: float | None = None
    rank: int | None = None
    error: float | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        given = self.given
        if len(given) != 1:
            raise ValueError(
                "expected exactly one of energy, rank, error and budget; found "
                f"{', '.join(given) or 'none'}."
            )
        ((name, value),) = given.items()
        whole = name in ("rank", "budget")
        fits = (
            isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if whole
            else math.isfinite(value) and 0 < value <= 1 and (name == "energy" or value < 1)
        )
        if not fits:
            wanted = "a whole number from 1" if whole else "a share above 0 and below 1"
            raise ValueError(f"{name}: expected {wanted}; found {value!r:.40}.")

    @property
    def given(self) -> dict[str, Any]:
        """The one that is given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Cut:
    """One layer: its rank before and after, and how far what is written lies from dW.

    ``error`` is ||dW - dW_k||_F / ||dW||_F, ``spectral_error`` the same in the spectral norm, both
    of the stored, rounded factors; each is off by ``uncertainty`` at most. An update that is zero
    stays zero: rank 0, errors 0.
    """

    layer: str
    shape: tuple[int, int]
    r: int
    rank: int
    scale: float
    frobenius_norm: float
    spectral_norm: float
    error: float
    spectral_error: float
    uncertainty: float
    note: str | None = None


@dataclass(frozen=True)
class Lost:
    """A tensor that changed and that the adapter does not hold. ``share``: ||W' - W||_F / ||W||_F,
    None where that has no value."""

    name: str
    why: str
    share: float | None


@dataclass(frozen=True)
class Resized:
    """What ``resize`` or ``extract`` wrote. ``kept``: the other tensors, unchanged; ``threshold``:
    the smallest singular value that a budget left, None without one; ``lost``: of a full
    fine-tune."""

    source: str
    to: str
    format: str
    goal: Mapping[str, Any]
    bytes_before: int
    bytes_after: int
    layers: tuple[Cut, ...]
    kept: tuple[str, ...]
    threshold: float | None = None
    notes: tuple[str, ...] = ()
    lost: tuple[Lost, ...] = ()

    @property
    def error(self) -> float:
        """The relative Frobenius error of all layers together."""
        whole = math.hypot(*(cut.frobenius_norm for cut in self.layers))
        lost = math.hypot(*(cut.error * cut.frobenius_norm for cut in self.layers))
        return lost / whole if whole else 0.0

    @property
    def spectral_error(self) -> float:
        """The same in the spectral norm, of the block-diagonal matrix of all layers."""
        whole = max(cut.spectral_norm for cut in self.layers)
        lost = max(cut.spectral_error * cut.spectral_norm for cut in self.layers)
        return lost / whole if whole else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The content of resize.json."""
        from rankscope import __version__

        content = asdict(self) | {"error": self.error, "spectral_error": self.spectral_error}
        long = {name: content.pop(name) for name in ("layers", "kept", "lost")}
        return {"rankscope": __version__, **content, **long}


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
    spectra = {}
    if goal.budget is not None:
        spectra = {pair.layer: singular_values(pairs.read(pair)) for pair in pairs.pairs}
    ranks, threshold = shared_ranks(pairs, goal, spectra)
    cuts, factors = [], {}
    for pair in pairs.pairs:
        found, factors[pair.layer] = _cut(pairs, pair, goal, ranks.get(pair.layer))
        cuts.append(found)
    before = pairs.size({pair.layer: pairs.rank(pair) for pair in pairs.pairs})
    after = pairs.size({layer: A.shape[0] for layer, (_, A) in factors.items()})
    notes = [f"not resized: the adapter in {name}" for name in pairs.neighbours]
    result = Resized(
        str(source), str(to), pairs.format, goal.given, before, after, tuple(cuts),
        tuple(pairs.others), threshold, tuple(notes),
    )  # fmt: skip

    def write(folder: Path) -> None:
        pairs.write(folder, factors)
        check_written(pairs, folder, factors)
        write_json(folder / RESULT, result.to_dict())

    written_whole(place, write)
    return result


def shared_ranks(
    pairs: LoraPairs, goal: Goal, spectra: Mapping[str, Tensor]
) -> tuple[dict[str, int], float | None]:
    """The ranks that a budget gives, and its threshold; none otherwise. ``spectra``: layer -> all
    singular values, descending."""
    if goal.budget is None:
        return {}, None
    ranks = dict.fromkeys(spectra, 1)
    if (least := pairs.size(ranks)) > goal.budget:
        raise ValueError(
            f"{pairs.source}: expected a budget of {least} bytes at least, which rank 1 in each "
            f"layer and the {len(pairs.others)} other tensors take; found {goal.budget}."
        )
    values = sorted(
        (
            (sigma, layer)
            for layer, own in spectra.items()
            for sigma in own.tolist()[1:]
            if sigma > 0
        ),
        key=lambda one: -one[0],
    )

    def with_first(count: int) -> dict[str, int]:
        found = dict(ranks)
        for _, layer in values[:count]:
            found[layer] += 1
        return found

    low, high = 0, len(values)  # the most that fit: the size grows with each
    while low < high:
        middle = (low + high + 1) // 2
        fits = pairs.size(with_first(middle)) <= goal.budget
        low, high = (middle, high) if fits else (low, middle - 1)
    return with_first(low), values[low - 1][0] if low else None


def _cut(pairs: LoraPairs, pair: Pair, goal: Goal, k: int | None) -> tuple[Cut, Factors]:
    """One layer, cut and compared. ``k``: the rank that a budget gave it."""
    update = pairs.read(pair)
    r = pairs.rank(pair)
    U, sigma, V = singular_subspaces(update, min(*update.shape, r))
    if k is None:
        k = goal.rank or smallest_rank(sigma, goal)
    k = min(k, len(sigma))
    shape = (update.shape[0], update.shape[1])
    note: str | None = None
    if float(sigma[0]) == 0:
        note = "the update is zero; written at rank 1, since formats have no rank 0"
        kept = Cut(pair.layer, shape, r, 0, pair.scale, 0.0, 0.0, 0.0, 0.0, 0.0, note)
        return kept, (torch.zeros_like(update.B[:, :1]), update.A[:1])
    while True:
        scale = pairs.scale_at(pair, k)
        if k >= r:
            k, factors, note = r, (update.B, update.A), "factors kept as they are"
        else:
            factors = truncated(U, sigma, V, k, scale, (update.B.dtype, update.A.dtype))
            note = None
        off, spectral, uncertainty = _errors(update, factors, scale, sigma)
        if goal.error is None or off + uncertainty <= goal.error:
            break
        if k >= len(sigma):  # of full rank, and only rounding is left: the factors themselves
            if k >= r:
                break
            k = r
        else:
            k += 1
    norms = float(torch.linalg.vector_norm(sigma)), float(sigma[0])
    found = Cut(pair.layer, shape, r, k, scale, *norms, off, spectral, uncertainty, note)
    return found, factors


def smallest_rank(sigma: Tensor, goal: Goal) -> int:
    """The smallest k that an energy or an error asks for, by the spectrum alone."""
    share = goal.energy if goal.energy is not None else 1 - (goal.error or 0.0) ** 2
    energy = (sigma / sigma[0].clamp(min=torch.finfo(sigma.dtype).tiny)).square()
    return 1 + int((energy.cumsum(0) < share * energy.sum() * (1 - 1e-14)).sum())


def truncated(
    U: Tensor, sigma: Tensor, V: Tensor, k: int, scale: float, dtypes: tuple[torch.dtype, ...]
) -> Factors:
    """B (m, k), A (k, n) with scale B A = U_k Sigma_k V_k^T, equally large, in ``dtypes``."""
    root = (sigma[:k] / abs(scale)).sqrt()
    B, A = U[:, :k] * root * math.copysign(1.0, scale), (V[:, :k] * root).mT
    return B.to(dtypes[0]).contiguous(), A.to(dtypes[1]).contiguous()


def _errors(
    update: LowRank, factors: Factors, scale: float, sigma: Tensor
) -> tuple[float, float, float]:
    """Relative Frobenius and spectral error of ``scale`` B A, and how far each may be off."""
    B, A = factors
    if not bool(B.isfinite().all() and A.isfinite().all()):
        raise ValueError(f"the cut factors overflow {B.dtype}. Nothing was written.")
    frobenius, spectral, rounding = error_of(update, LowRank(B=B, A=A, scale=scale))
    norm, top = float(torch.linalg.vector_norm(sigma)), float(sigma[0])
    return frobenius / norm, spectral / top, rounding / top


def check_written(pairs: LoraPairs, folder: Path, factors: Mapping[str, Factors]) -> None:
    """Reads the new file back: the same factors, ranks and scales, or ``ValueError``."""
    written = open_pairs(folder / pairs.file)
    if [pair.layer for pair in written.pairs] != [pair.layer for pair in pairs.pairs]:
        raise ValueError(f"{pairs.source}: the file written has other layers. Nothing was kept.")
    for pair, before in zip(written.pairs, pairs.pairs, strict=True):
        update, (B, A) = written.read(pair), factors[pair.layer]
        same = torch.equal(update.B, B.flatten(1)) and torch.equal(update.A, A.flatten(1))
        scale = pairs.scale_at(before, A.shape[0])
        if not same or not math.isclose(pair.scale, scale, rel_tol=4e-16, abs_tol=0.0):
            raise ValueError(
                f"{pairs.source}: {pair.layer} does not read back as written: expected scale "
                f"{scale!r}; found {pair.scale!r}. Nothing was kept."
            )
