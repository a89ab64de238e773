"""dW from its factors: exact, batched, at any r, and never formed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import rankscope.linalg as la


def factors(
    m: int, n: int, r: int, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float64
) -> Any:
    source = torch.Generator().manual_seed(m + n + r)
    B = torch.randn(*batch, m, r, generator=source, dtype=torch.float64).to(dtype)
    return B, torch.randn(*batch, r, n, generator=source, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize(
    ("m", "n", "r"),
    [(40, 30, 1), (40, 30, 4), (30, 40, 30), (12, 40, 20), (40, 12, 20), (9, 7, 16), (1, 1, 1)],
)
def test_the_whole_spectrum(
    m: int, n: int, r: int, batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    B, A = factors(m, n, r, batch, dtype)
    op = la.LowRank(B=B, A=A, scale=-2.0)
    sigma = torch.linalg.svdvals(2 * B.double() @ A.double())[..., : min(m, n, r)]
    found = la.singular_values(op)
    assert found.shape == (*batch, min(m, n, r))
    top = sigma[..., :1]
    assert_close(found / top, sigma / top, rtol=0, atol=1e-12)
    sr = la.stable_rank(op)
    assert_close(
        torch.as_tensor(sr.value, dtype=torch.float64),
        (sigma**2).sum(-1) / sigma[..., 0] ** 2,
        rtol=1e-12,
        atol=0,
    )
    assert sr.method == "factors"
    assert_close(
        torch.as_tensor(la.frobenius_norm(op), dtype=torch.float64),
        (sigma**2).sum(-1).sqrt(),
        rtol=1e-12,
        atol=0,
    )
    assert float(
        (
            torch.as_tensor(sr.upper, dtype=torch.float64)
            - torch.as_tensor(sr.lower, dtype=torch.float64)
        ).max()
    ) < 1e-9 * float(sigma.shape[-1])


def test_one_scale_per_matrix_and_its_sign() -> None:
    B, A = factors(20, 30, 3, (4,))
    scale = torch.tensor([1.0, -2.0, 0.0, 0.5])
    op = la.LowRank(B=B, A=A, scale=scale)
    assert_close(op.to_dense(), scale.double()[:, None, None] * (B @ A))
    found = la.stable_rank(op)
    assert found.value.isnan().tolist() == [False, False, True, False]
    assert found.reason == (None, None, "is exactly zero", None)
    U, sigma, V = la.singular_subspaces(la.LowRank(B=B, A=A, scale=-2.0), 3)
    assert_close(U * sigma[:, None] @ V.mT, -2 * B @ A)


def test_the_scale_moves_the_norm_and_not_the_stable_rank() -> None:
    B, A = factors(50, 60, 8)
    one, many = la.summary(la.LowRank(B=B, A=A)), la.summary(la.LowRank(B=B, A=A, scale=16.0))
    assert many.stable_rank.value == pytest.approx(one.stable_rank.value, rel=1e-14)
    assert many.spectral_norm == pytest.approx(16 * one.spectral_norm, rel=1e-14)
    assert many.effective_rank == pytest.approx(one.effective_rank, rel=1e-13)


@pytest.mark.parametrize("size", [1e-30, 1e30, 1e-150, 1e150])
def test_extreme_factors_neither_overflow_nor_vanish(size: float) -> None:
    B, A = factors(30, 20, 4)
    expected = la.stable_rank(la.LowRank(B=B, A=A)).value
    assert la.stable_rank(la.LowRank(B=size * B, A=A)).value == pytest.approx(expected, rel=1e-12)
    assert la.stable_rank(la.LowRank(B=size * B, A=A / size)).value == pytest.approx(
        expected, rel=1e-12
    )


def test_ill_conditioned_factors_lose_nothing() -> None:
    """B^T B would square a condition of 1e10 away; the QR core does not."""
    B, A = factors(60, 50, 6)
    stretch = torch.logspace(0, -10, 6, dtype=torch.float64)
    B = torch.linalg.qr(B).Q * stretch
    A = torch.linalg.qr(A.mT).Q.mT
    assert_close(la.singular_values(la.LowRank(B=B, A=A)), stretch, rtol=1e-5, atol=1e-16)


class Watch(TorchDispatchMode):
    """Remembers the entries of the largest tensor that any operation returned, and the
    shapes decomposed by SVD."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0
        self.decomposed: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._linalg_svd.default:
            self.decomposed.append(tuple(args[0].shape))
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.entries = max(self.entries, x.numel())
        return out


def test_no_m_by_n_array_is_made() -> None:
    d, r = 16384, 64
    B, A = factors(d, d, r, dtype=torch.float32)
    with Watch() as seen:
        found = la.summary(la.LowRank(B=B, A=A, scale=2.0))
        la.singular_subspaces(la.LowRank(B=B, A=A), 4)
    assert seen.entries <= 2 * d * r
    assert 1 < found.stable_rank.value < r
    with Watch() as dense:  # the watch itself sees an m x n array when there is one
        la.LowRank(B=B[:512], A=A[:, :4096]).to_dense()
    assert dense.entries == 512 * 4096


def test_differences_of_two_updates_stay_factors() -> None:
    (B, A), (C, D) = factors(30, 40, 3, (2,)), factors(30, 40, 5)
    op = la.LowRank(B=B, A=A, scale=2.0) - la.LowRank(B=C, A=D, scale=0.5)
    assert isinstance(op, la.LowRank)
    assert_close(op.to_dense(), 2 * B @ A - 0.5 * C @ D)
    same = la.LowRank(B=B, A=A) - la.LowRank(B=B, A=A)
    assert float(la.frobenius_norm(same).max()) < 1e-12


def padded(ranks: list[int], m: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sites of one trial per rank, padded with zeros to the largest rank: B (2, K, m, r), A (2,
    K, r, n)."""
    B, A = torch.zeros(2, len(ranks), m, max(ranks)), torch.zeros(2, len(ranks), max(ranks), n)
    for k, r in enumerate(ranks):
        B[:, k, :, :r], A[:, k, :r] = factors(m, n, r, (2,), torch.float32)
    return B, A


def test_padding_changes_nothing() -> None:
    ranks = [3, 1, 20, 3]
    B, A = padded(ranks, 70, 60)
    scale = torch.tensor([1.0, 2.0, 0.5, 4.0])
    W = factors(70, 60, 60, (2,))[0].float() @ factors(70, 60, 60, (2,))[1].float()
    low = la.LowRank(B=B, A=A, scale=scale)
    dW, tuned = la.summary(low), la.summary(la.Dense(W[:, None]) + low)
    spectrum = la.singular_values(low)
    assert spectrum.shape == (2, 4, 20)
    for i, k in [(i, k) for i in range(2) for k in range(4)]:
        r = ranks[k]
        one = la.LowRank(B=B[i, k, :, :r], A=A[i, k, :r], scale=float(scale[k]))
        alone, merged = la.summary(one), la.summary(la.Dense(W[i]) + one)
        assert dW.stable_rank[i, k].value == pytest.approx(alone.stable_rank.value, rel=1e-13)
        assert float(dW.effective_rank[i, k]) == pytest.approx(alone.effective_rank, rel=1e-12)
        assert float(dW.spectral_norm[i, k]) == pytest.approx(alone.spectral_norm, rel=1e-13)
        assert float(tuned.frobenius_norm[i, k]) == pytest.approx(merged.frobenius_norm, rel=1e-13)
        assert tuned.stable_rank[i, k].value == pytest.approx(merged.stable_rank.value, rel=1e-6)
        assert_close(spectrum[i, k, :r], la.singular_values(one), rtol=1e-12, atol=1e-13)
        assert not spectrum[i, k, r:].any()


def test_padding_costs_nothing_and_the_core_is_computed_once() -> None:
    B, A = padded([1, 2, 8], 40, 40)
    with Watch() as seen:
        la.summary(la.LowRank(B=B, A=A))
    assert seen.decomposed == [(2, 1, 1), (2, 2, 2), (2, 8, 8)]


def test_a_hole_between_columns_is_not_padding() -> None:
    B, A = factors(30, 20, 5)
    B[:, 1], A[4] = 0, 0
    assert la.LowRank(B=B, A=A).used_rank() == 4
    expected = la.LowRank(B=B[:, [0, 2, 3]], A=A[[0, 2, 3]])
    assert la.stable_rank(la.LowRank(B=B, A=A)).value == pytest.approx(
        la.stable_rank(expected).value, rel=1e-13
    )
    A[4, 0] = torch.nan
    assert la.stable_rank(la.LowRank(B=B, A=A)).reason is not None
