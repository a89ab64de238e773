"""Random matrices of every kind that has been measured wrongly somewhere, and the bounds
of each against float64 SVD.

    python tests/random_matrices.py --count 3000 --seed 0

prints how many bounds were missed, by kind. tests/linalg/test_random_matrices.py runs a part of it
in the suite.

Letters: m rows, n columns, p = min(m, n), r rank, c matrices of a batch.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import comb

import numpy as np
import torch
from torch import Tensor

import rankscope.linalg as la

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ASPECTS = (1.0, 1.0, 1.25, 1.5, 2.0, 4.0, 16.0)
ORACLE = 1e-13  # relative rounding of the oracle itself: its SVD is of at most 800 x 800
SPECTRA = (
    "gaussian",
    "flat",
    "clustered",
    "twin",
    "power",
    "rank-deficient",
    "constant",
    "outlier",
)
FORMS = (
    "dense",
    "dense",
    "dense",
    "transposed",
    "batched",
    "sum",
    "cancelling sum",
    "difference",
    "scaled",
    "factors",
)
# Forms whose terms cancel: what rounding leaves of them may be wider than the narrowest widths.
CANCELLING = ("cancelling sum", "difference")
WIDTHS = (0.3, 1e-1, 1e-2, 1e-3, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10)
SIZES = ("ordinary", "ordinary", "ordinary", "any", "denormal")


@dataclass(frozen=True)
class Drawn:
    """An operator, the exact matrices (c, m, n) in extended precision, and how it was made."""

    M: Tensor | la.Operator
    exact: np.ndarray
    kind: str


@dataclass
class Tally:
    """What was checked: estimates, misses of certain bounds, of probable ones, and widths neither
    met nor flagged; and flagged ones that can be reached."""

    matrices: int = 0
    certain: Counter[str] = field(default_factory=Counter)
    likely: int = 0
    missed: list[str] = field(default_factory=list)
    unlucky: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    needless: list[str] = field(default_factory=list)
    wide: Counter[str] = field(default_factory=Counter)


def spectrum(source: np.random.Generator, name: str, p: int) -> np.ndarray:
    """(p,) singular values, of which the largest is 1."""
    i = np.arange(p)
    match name:
        case "flat":
            return np.ones(p)
        case "clustered":  # a few values, each of them many times
            return np.repeat(np.sort(source.uniform(0.1, 1, 4))[::-1], -(-p // 4))[:p]
        case "twin":  # a second value that is nearly as large as the first
            return np.where(
                i == 0, 1.0, (1 - 10.0 ** -source.integers(2, 13)) * (1 + i) ** -0.1 * 2**0.1
            )
        case "power":
            return (1.0 + i) ** -source.uniform(0.1, 2)
        case "rank-deficient":
            return np.where(i < source.integers(1, p + 1), 1.0 - 0.9 * i / p, 0.0)
        case "outlier":
            return np.where(i == 0, 1.0, 10.0 ** -source.uniform(0.5, 4))
    raise ValueError(name)


def matrix(source: np.random.Generator, name: str, m: int, n: int) -> np.ndarray:
    """(m, n) float64 of the spectrum `name`, of entries near 1 / sqrt(m n) times sqrt(p) or
    below."""
    if name == "gaussian":
        return source.standard_normal((m, n)) / (m + n) ** 0.5
    if name == "constant":
        return np.full((m, n), source.uniform(0.1, 1) / (m * n) ** 0.5)
    p = min(m, n)
    U, V = (np.linalg.qr(source.standard_normal((d, p)))[0] for d in (m, n))
    sigma = spectrum(source, name, p)
    return (U * (sigma / sigma.max())) @ V.T


def draw(source: np.random.Generator, largest: int) -> Drawn:
    name, form, size = (str(source.choice(options)) for options in (SPECTRA, FORMS, SIZES))
    dtype = DTYPES[source.integers(len(DTYPES))]
    aspect = float(source.choice(ASPECTS))
    p = int(np.exp(source.uniform(np.log(2), np.log(largest / aspect**0.5))))
    m, n = max(1, round(p * aspect)), p
    if source.random() < 0.3:
        m, n = n, m
    if name == "constant" and source.random() < 0.7:  # m n a perfect square: sr = 1 to the last bit
        m = n = int(np.ceil((m * n) ** 0.5))
    power = exponent(source, size, dtype)
    kind = f"{name}, {form}, {size} {dtype} 2^{power}, {m} x {n}"

    def tensor(X: np.ndarray, power: int = power) -> Tensor:
        return torch.from_numpy(np.ldexp(X, power)).to(dtype)

    def wide(X: Tensor) -> np.ndarray:
        return X.double().numpy().astype(np.longdouble)

    c = int(source.integers(2, 6)) if form == "batched" else 1
    W = tensor(np.stack([matrix(source, name, m, n) for _ in range(c)]))
    if form == "batched" and source.random() < 0.5:  # one of another size beside the others
        W[0] = (W[0].double() * 2.0 ** -source.integers(0, 30)).to(dtype)
    match form:
        case "dense":
            return Drawn(W[0], wide(W), kind)
        case "transposed":
            return Drawn(W[0].mT, wide(W.mT), kind)
        case "batched":
            return Drawn(W, wide(W), kind)
        case "difference":  # of two neighbours, as of two checkpoints
            near = (
                W[0].double() * (1 + 1e-3 * torch.from_numpy(source.standard_normal((m, n))))
            ).to(dtype)
            return Drawn(la.Dense(near) - la.Dense(W[0]), wide(near[None]) - wide(W), kind)
        case "scaled":
            d = torch.from_numpy(np.exp(source.standard_normal(m)))
            return Drawn(la.Scaled(la.Dense(W[0]), d), wide(d[:, None]) * wide(W), kind)
    r = int(source.integers(1, max(2, min(m, n) // 2)))
    if form == "cancelling sum":  # W - B A, where W is B A, rounded
        B, A = source.standard_normal((m, r)), source.standard_normal((r, n)) / (m * n) ** 0.5
        half = power // 2
        B, A = tensor(B, half), tensor(A, power - half)
        W = (
            B.double() @ A.double() * (1 + 1e-4 * torch.from_numpy(source.standard_normal((m, n))))
        ).to(dtype)
        scale = -1.0
        W = W[None]
    else:
        B = tensor(source.standard_normal((m, r)) / m**0.5, 0)
        A = tensor(source.standard_normal((r, n)) / n**0.5)
        scale = float(source.choice([0.0, 1.0, 16.0, 1 / 3, 1e-6]))
    if form == "factors":
        return Drawn(
            la.LowRank(B=B, A=A, scale=scale),
            np.longdouble(scale) * (wide(B) @ wide(A))[None],
            kind,
        )
    op = la.Dense(W[0]) + la.LowRank(B=B, A=A, scale=scale)
    return Drawn(op, wide(W) + np.longdouble(scale) * (wide(B) @ wide(A)), kind)


def exponent(source: np.random.Generator, size: str, dtype: torch.dtype) -> int:
    """Of the power of two by which the entries are multiplied: 1e-30 to 1e30, or to the bottom of
    the dtype."""
    if size == "ordinary":
        return 0
    if size == "denormal":
        return int(np.log2(torch.finfo(dtype).tiny)) + int(source.integers(-4, 5))
    return (
        int(source.integers(-8, 8)) if dtype == torch.float16 else int(source.integers(-100, 100))
    )


def truth(exact: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(c,) sigma_1 and stable ranks, NaN where a matrix is zero: by float64 SVD of the matrix
    divided by a power of two."""
    ranks, norms = [], []
    for M in exact:
        size = np.abs(M).max()
        if size == 0:
            ranks.append(np.nan)
            norms.append(0.0)
            continue
        power = int(np.frexp(size)[1])
        sigma = np.linalg.svd(np.ldexp(M, -power).astype(np.float64), compute_uv=False)
        ranks.append(((sigma / sigma[0]) ** 2).sum())
        norms.append(np.ldexp(sigma[0], power))
    return np.array(norms), np.array(ranks)


def compare(
    tally: Tally, what: str, found: la.Estimate, true: np.ndarray, rtol: float, most: float
) -> None:
    """Is every truth (c,) inside its bounds, the value too, and the width met or flagged?"""
    fields = (found.value, found.lower, found.upper, found.confidence, found.met)
    columns = [np.atleast_1d(np.asarray(x)) for x in fields]
    for value, lower, upper, sure, met, t in zip(*columns, true, strict=True):
        label = (
            f"{what}: {float(lower)!r} {float(value)!r} {float(upper)!r} for {float(t)!r}, "
            f"{found.method}"
        )
        if np.isnan(t):
            if not np.isnan(value) or found.reason is None:
                tally.missed.append(label + ", of zero")
            continue
        inside = (
            lower <= t * (1 + ORACLE)
            and t * (1 - ORACLE) <= upper
            and lower <= value <= upper <= most
        )
        if sure == 1:
            tally.certain[found.method] += 1
        else:
            tally.likely += 1
        if not inside:  # NaN is not
            (tally.missed if sure == 1 else tally.unlucky).append(label)
        if met != (upper <= lower * (1 + rtol) * (1 + 1e-12)):
            tally.silent.append(label + f", rtol {rtol}, met {bool(met)}")
        if not met:
            tally.wide[what.split(": ")[0]] += 1
            if not any(form in what for form in CANCELLING):
                tally.needless.append(label + f", rtol {rtol}")


def check(tally: Tally, drawn: Drawn, source: np.random.Generator) -> None:
    """Both measurements of one draw, at a random width, certified or not."""
    norms, ranks = truth(drawn.exact)
    rtol = float(source.choice(WIDTHS))
    certify = bool(source.random() < 0.3)
    start = torch.Generator().manual_seed(int(source.integers(2**62)))
    label = f"{drawn.kind}, rtol {rtol}, certify {certify}"
    found = la.stable_rank(drawn.M, rtol, certify=certify, generator=start)
    compare(tally, f"sr: {label}", found, ranks, rtol, float(min(drawn.exact.shape[-2:])))
    found = la.spectral_norm(drawn.M, rtol, certify=certify, generator=start)
    compare(tally, f"sigma_1: {label}", found, norms, rtol, np.inf)
    tally.matrices += len(ranks)


def tallied(seed: int, count: int, largest: int = 200) -> Tally:
    """`count` draws, of sides up to `largest` times the root of the aspect."""
    source, tally = np.random.default_rng(seed), Tally()
    while tally.matrices < count:
        check(tally, draw(source, largest), source)
    return tally


def allowed(trials: int, rate: float) -> int:
    """The number of failures that is exceeded with probability 1e-4 at most, at `rate` per
    trial."""
    terms = (comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in itertools.count())
    sums: Iterator[float] = itertools.accumulate(terms)
    return next(k for k, total in enumerate(sums) if total >= 1 - 1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--largest", type=int, default=200)
    options = parser.parse_args()
    tally = tallied(options.seed, options.count, options.largest)
    for name in ("missed", "unlucky", "silent", "needless"):
        for line in getattr(tally, name):
            print(name, line)
    print(
        f"{tally.matrices} matrices; certain bounds {dict(tally.certain)}, missed "
        f"{len(tally.missed)}"
    )
    print(
        f"probable {tally.likely}, missed {len(tally.unlucky)}, allowed "
        f"{allowed(tally.likely, 1e-3)}"
    )
    print(
        f"wider than asked, and flagged: {sum(tally.wide.values())}; in silence: "
        f"{len(tally.silent)}; that could be reached: {len(tally.needless)}"
    )


if __name__ == "__main__":
    main()
