"""Every number against dense float64 SVD, over shapes, dtypes and spectra, and invariances that
need no oracle."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import rankscope.linalg as la
from memory import Peak
from rankscope.linalg.frobenius import BLOCK
from rankscope.linalg.lanczos import CACHED
from rankscope.linalg.norms import GROUP
from rankscope.linalg.sigma import EXACT

SHAPES = [
    (1, 1),
    (1, 9),
    (9, 1),
    (5, 3),
    (33, 47),
    (64, 64),
    (90, 60),
    (60, 130),
    (130, 130),
    (2, 3, 50, 70),
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SPECTRA: dict[str, Any] = {
    "gaussian": None,
    "power": lambda i, k: (i + 1.0) ** -1.0,
    "slow power": lambda i, k: (i + 1.0) ** -0.25,
    "geometric": lambda i, k: 0.5**i,
    "flat": lambda i, k: torch.ones(k),
    "flat top": lambda i, k: torch.where(i < (k + 1) // 2, 1.0, 0.5),
    "near tie": lambda i, k: torch.where(i == 0, 1.0, torch.where(i == 1, 1 - 1e-9, 0.9)),
    "rank one": lambda i, k: (i == 0).double(),
    "one outlier": lambda i, k: torch.where(i == 0, 1.0, 1e-3),
}
CASES = list(itertools.product(SHAPES, DTYPES, SPECTRA))


def matrix(shape: tuple[int, ...], spectrum: str, seed: int) -> Tensor:
    """A random matrix with the spectrum asked for, float64."""
    source = torch.Generator().manual_seed(seed)
    (m, n), k = shape[-2:], min(shape[-2:])
    X = torch.randn(shape, dtype=torch.float64, generator=source)
    if SPECTRA[spectrum] is None:
        return X
    Y = torch.randn((*shape[:-2], n, m), dtype=torch.float64, generator=source)
    sigma = SPECTRA[spectrum](torch.arange(k, dtype=torch.float64), k)
    return torch.linalg.qr(X).Q[..., :k] * sigma @ torch.linalg.qr(Y).Q[..., :k].mT


def truth(M: Tensor) -> tuple[Tensor, Tensor]:
    """sigma_1 and the stable rank, by dense float64 SVD."""
    sigma = torch.linalg.svdvals(M.double())
    return sigma[..., 0], sigma.square().sum(-1) / sigma[..., 0].square()


def contains(found: la.Estimate, true: Tensor, slack: float = 1e-13) -> bool:
    """Does the interval hold the truth, to the oracle's own rounding?"""
    lower, value, upper = (
        torch.as_tensor(x, dtype=torch.float64) for x in (found.lower, found.value, found.upper)
    )
    assert bool(((lower <= value) & (value <= upper)).all())
    return bool(((lower <= true * (1 + slack)) & (true <= upper * (1 + slack))).all())


@pytest.mark.parametrize(("shape", "dtype", "spectrum"), CASES)
def test_bounds_hold_and_are_as_narrow_as_asked(
    shape: tuple[int, ...], dtype: torch.dtype, spectrum: str
) -> None:
    M = matrix(shape, spectrum, seed=len(spectrum)).to(dtype)
    sigma, sr = truth(M)
    found = la.stable_rank(M)
    assert contains(found, sr)
    width = (
        torch.as_tensor(found.upper, dtype=torch.float64)
        - torch.as_tensor(found.lower, dtype=torch.float64)
    ) / torch.as_tensor(found.value, dtype=torch.float64)
    assert float(width.max()) <= 1e-3
    assert_close(torch.as_tensor(found.value, dtype=torch.float64), sr, rtol=1e-3, atol=0)
    precise = la.spectral_norm(M, 1e-7)
    assert contains(precise, sigma)
    assert_close(torch.as_tensor(precise.value, dtype=torch.float64), sigma, rtol=1e-7, atol=0)


@pytest.mark.parametrize(("shape", "dtype", "spectrum"), CASES[::2])
def test_certified_bounds_always_hold(
    shape: tuple[int, ...], dtype: torch.dtype, spectrum: str
) -> None:
    M = matrix(shape, spectrum, seed=1 + len(spectrum)).to(dtype)
    methods = {"svd"} if min(shape[-2:]) <= 48 else {"cholesky", "gram"}
    check_certified(M, la.spectral_norm(M, 1e-3, certify=True), methods)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(52, 90), (160, 70), (3, 60, 60)], ids=str)
def test_certified_bounds_of_larger_matrices(shape: tuple[int, ...], spectrum: str) -> None:
    for dtype in (torch.float32, torch.float64):
        M = matrix(shape, spectrum, seed=1 + len(spectrum)).to(dtype)
        check_certified(M, la.spectral_norm(M, 1e-3, certify=True), {"cholesky", "gram"})


def check_certified(M: torch.Tensor, found: la.Estimate, methods: set[str]) -> None:
    assert contains(found, truth(M)[0])
    assert found.method in methods
    confidence, lower, upper = (
        torch.as_tensor(x, dtype=torch.float64)
        for x in (found.confidence, found.lower, found.upper)
    )
    assert float(confidence.min()) == 1.0
    assert float((upper / lower - 1).max()) <= 1e-3


def test_a_batch_equals_a_loop() -> None:
    stack = (
        torch.stack([matrix((60, 80), name, seed=5) for name in SPECTRA])
        .float()
        .reshape(3, 3, 60, 80)
    )
    batch = la.summary(stack, generator=torch.Generator().manual_seed(0))
    for i, j in itertools.product(range(3), range(3)):
        alone = la.summary(stack[i, j], generator=torch.Generator().manual_seed(0))
        one = batch.stable_rank[i, j]
        assert one.value == pytest.approx(alone.stable_rank.value, rel=1e-6)
        assert (one.lower, one.upper) == pytest.approx(
            (alone.stable_rank.lower, alone.stable_rank.upper), rel=1e-3
        )
        assert float(batch.frobenius_norm[i, j]) == pytest.approx(alone.frobenius_norm, rel=1e-14)


def test_matrices_leave_a_batch_when_they_are_done_and_nobody_notices() -> None:
    stack = torch.stack([matrix((60, 80), name, seed=6) for name in SPECTRA]).float()
    batch = la.stable_rank(stack, generator=torch.Generator().manual_seed(0))
    for i, M in enumerate(stack):
        alone = la.stable_rank(M, generator=torch.Generator().manual_seed(0))
        assert (batch[i].value, batch[i].upper) == pytest.approx(
            (alone.value, alone.upper), rel=1e-5
        )
    assert batch.products > la.stable_rank(stack[-1]).products


def test_a_batch_too_large_for_one_group() -> None:
    stack = torch.randn(1500, 60, 50, generator=torch.Generator().manual_seed(0))
    assert stack.numel() > GROUP
    found = la.stable_rank(stack)
    for part in (slice(0, 3), slice(1398, 1401), slice(1497, 1500)):  # 1398 fill the first group
        assert_close(found.value[part], truth(stack[part])[1], rtol=1e-3, atol=0)
    assert bool((found.lower <= found.upper).all())


@pytest.mark.parametrize("transposed", [False, True])
def test_a_large_matrix_read_by_blocks_of_rows(transposed: bool) -> None:
    wide = torch.randn(70, CACHED // 64, generator=torch.Generator().manual_seed(2))
    wide *= torch.linspace(1, 0.5, 70)[:, None]
    squares = torch.linalg.eigvalsh(wide.double() @ wide.double().mT)
    M = wide.mT if transposed else wide
    assert M.numel() > CACHED > BLOCK
    found = la.stable_rank(M)
    assert found.method == "lanczos"
    assert contains(found, squares.sum() / squares[-1])
    assert found.value == pytest.approx(float(squares.sum() / squares[-1]), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_large_matrix_is_widened_block_by_block(dtype: torch.dtype) -> None:
    """Never held in the wider dtype as a whole, and measured as if it were."""
    height = EXACT + 9  # else a Gram matrix ends it
    M = torch.randn(height, CACHED // height + 9, generator=torch.Generator().manual_seed(2))
    M = (M * (1 + torch.arange(height))[:, None] ** -0.5).to(dtype)
    assert M.numel() > CACHED
    squares = torch.linalg.eigvalsh(M.double() @ M.double().mT)
    source = torch.Generator()
    wide = la.stable_rank(M.double(), 1e-9, generator=source.manual_seed(5))
    with Peak() as used:
        found = la.stable_rank(M, 1e-9, generator=source.manual_seed(5))  # ends in float64
    assert used.peak < 2 * M.numel()  # bytes; in float64 it has 8 an entry
    assert contains(found, squares.sum() / squares[-1])
    assert found.method == "lanczos"
    assert found.met
    assert found.value == pytest.approx(wide.value, rel=1e-12)
    assert la.stable_rank(M, generator=source.manual_seed(5)).value == pytest.approx(
        wide.value, rel=1e-3
    )


@pytest.mark.parametrize("name", ["singular_values", "effective_rank", "frobenius_norm"])
def test_exact_facts(name: str) -> None:
    M = matrix((3, 40, 30), "slow power", seed=8)
    sigma = torch.linalg.svdvals(M)
    share = sigma / sigma.sum(-1, keepdim=True)
    expected = {
        "singular_values": sigma,
        "effective_rank": (-(share * share.log()).sum(-1)).exp(),
        "frobenius_norm": sigma.square().sum(-1).sqrt(),
    }[name]
    assert_close(getattr(la, name)(M), expected, rtol=1e-12, atol=0)
    assert getattr(la, name)(M[0]) == pytest.approx(expected[0].tolist(), rel=1e-12)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_all_singular_values_give_the_norms_too(size: float) -> None:
    """Also beside a zero matrix and a bad one, and brought back to their size."""
    M = size * matrix((5, 60, 70), "power", 4)
    M[1], M[3, 2, 2] = 0.0, torch.nan
    good = [0, 2, 4]
    sigma = torch.linalg.svdvals(M[good])
    for wanted in (True, False):
        found = la.summary(M, effective_rank=wanted, exact=True)
        assert found.stable_rank.method == "svd"
        assert_close(found.spectral_norm[good], sigma[:, 0], rtol=1e-13, atol=0)
        assert_close(
            found.stable_rank.value[good],
            (sigma / sigma[:, :1]).square().sum(-1),
            rtol=1e-12,
            atol=0,
        )
        assert bool((found.stable_rank.upper / found.stable_rank.lower)[good].lt(1 + 1e-9).all())
        assert found.stable_rank.value[[1, 3]].isnan().all()
        assert found.spectral_norm[1] == 0
        assert found.spectral_norm[3].isnan()
        expected = (
            la.effective_rank(M) if wanted else torch.full((5,), torch.nan, dtype=torch.float64)
        )
        assert_close(found.effective_rank, expected, rtol=1e-12, atol=0, equal_nan=True)
