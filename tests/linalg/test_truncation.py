"""Updates cut to a lower rank: their errors are those of dense matrices, in a batch of any form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rankscope.linalg as la

BF16, F64 = torch.bfloat16, torch.float64


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("dtypes", [(BF16, torch.float16), (BF16, F64), (F64, BF16)])
def test_errors_of_rounded_factors(
    batch: tuple[int, ...], k: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    m, n, r = 30, 50, 4
    generator = torch.Generator().manual_seed(0)
    B, A = (torch.randn(*batch, *x, generator=generator) for x in ((m, r), (r, n)))
    scale = torch.full(batch, -0.5, dtype=torch.float64)
    whole = la.Truncation.of(la.LowRank(B=B, A=A, scale=scale))
    cut, (frobenius, spectral, uncertainty) = whole.cut(k, scale, dtypes)
    assert [tuple(x.shape) for x in cut] == [(*batch, m, k), (*batch, k, n)]

    dW = scale.numpy()[..., None, None] * (B.double() @ A.double()).numpy()
    off = dW - scale.numpy()[..., None, None] * (cut[0].double() @ cut[1].double()).numpy()
    for found, order in ((frobenius, "fro"), (spectral, 2)):
        expected = np.linalg.norm(off, order, axis=(-2, -1)) / np.linalg.norm(
            dW, order, axis=(-2, -1)
        )
        assert found.shape == batch
        assert (np.abs(found.numpy() - expected) <= uncertainty.numpy() + 1e-15).all()
    assert bool((uncertainty < 1e-12).all())
    sigma = np.linalg.svd(dW, compute_uv=False)[..., :r]
    tail = np.sqrt(np.cumsum(sigma[..., ::-1] ** 2, axis=-1)[..., ::-1])
    np.testing.assert_allclose(whole.tail[..., :r], tail / tail[..., :1], rtol=1e-10)
    assert bool((whole.tail[..., r] == 0).all())


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_cut_near_to_what_rounding_moves(k: int) -> None:
    """Cut at 1/2, the sums of what is cut are the error; at 1e-4, 1e-8 and 0 what float32 rounds
    adds to it, and is found from the Gram matrices. One answer, the dense one."""
    generator = torch.Generator().manual_seed(1)
    sigma = torch.tensor([1.0, 0.5, 1e-4, 1e-8], dtype=F64)
    U, V = (
        torch.linalg.qr(torch.randn(2, n, 4, generator=generator, dtype=F64))[0] for n in (40, 30)
    )
    scale = torch.tensor([0.5, -2.0], dtype=F64)
    update = la.LowRank(B=U * sigma, A=V.mT.contiguous(), scale=scale)
    (B, A), (frobenius, spectral, uncertainty) = la.Truncation.of(update).cut(
        k, scale, (torch.float32, torch.float32)
    )
    off = ((U * sigma) @ V.mT - B.double() @ A.double()).numpy()
    for found, order in ((frobenius, "fro"), (spectral, 2)):
        norm = np.linalg.norm(sigma.numpy()) if order == "fro" else 1.0
        expected = np.linalg.norm(off, order, axis=(-2, -1)) / norm
        assert (np.abs(found.numpy() - expected) <= uncertainty.numpy()).all()
    assert bool((uncertainty < 1e-12).all())
    assert float(frobenius.max()) > 1e-8  # float32 cannot do better
