"""Leading directions by block Lanczos, against the float64 SVD."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rankscope.linalg.leading import is_cheaper, leading


def matrix(m: int, n: int, sigma: Tensor) -> Tensor:
    g = torch.Generator().manual_seed(3)
    U, V = (
        torch.linalg.qr(torch.randn(side, len(sigma), generator=g, dtype=torch.float64))[0]
        for side in (m, n)
    )
    return (U * sigma) @ V.mT


SPECTRA = {
    "decaying": torch.exp(-6 * torch.arange(200) / 200),
    "steep": 0.5 ** torch.arange(200),
    "clustered at k": torch.cat([torch.ones(3), torch.full((10,), 0.5), torch.full((187,), 0.1)]),
    "low rank": torch.cat([torch.linspace(1, 0.2, 5), torch.zeros(195)]),
    "tiny": 1e-150 * torch.exp(-6 * torch.arange(200).double() / 200),
}


@pytest.mark.parametrize("shape", [(260, 200), (200, 260)])
@pytest.mark.parametrize("name", SPECTRA)
def test_values_and_the_energy_left_are_those_of_the_svd(name: str, shape: tuple[int, int]) -> None:
    sigma, k = SPECTRA[name].double(), 8
    M = matrix(*shape, sigma)
    found = leading(M, k)
    assert found is not None
    values, Q = found
    size = float(sigma[0])
    whole = float(torch.linalg.vector_norm(M))
    assert float((values - sigma[:k]).abs().max()) < 1e-4 * size
    assert bool((values <= sigma[:k] * (1 + 1e-7) + 1e-7 * size).all())
    assert Q.shape == (200, k)
    assert float((Q.mT @ Q - torch.eye(k)).abs().max()) < 1e-12
    left = M - (Q @ (Q.mT @ M) if shape[0] < shape[1] else (M @ Q) @ Q.mT)
    tail = float(sigma[k:].norm())
    assert float(left.norm()) == pytest.approx(tail, rel=1e-5, abs=1e-9 * whole)


def test_a_flat_spectrum_is_given_up() -> None:
    g = torch.Generator().manual_seed(0)
    assert leading(torch.randn(300, 260, generator=g).double(), 16) is None


def test_it_is_for_few_directions_of_large_matrices() -> None:
    assert is_cheaper(768, 32)
    assert not is_cheaper(768, 128)
    assert not is_cheaper(24, 3)
