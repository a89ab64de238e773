"""dW of two checkpoints: exactly W' - W."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rankscope.linalg import stable_rank
from rankscope.weights.difference import difference_matrices
from rankscope.weights.tensors import matrices


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_the_bounds_hold_the_difference_of_the_stored_numbers(
    seed: int, dtype: torch.dtype
) -> None:
    """W' - W rounded to float32 has another stable rank, by 1e-9 of itself: outside bounds that say
    "certain"."""
    source = torch.Generator().manual_seed(seed)
    W = torch.randn(60, 50, generator=source)
    after = (W + torch.randn(60, 50, generator=source) * torch.linspace(0.1, 9, 50)).to(dtype)
    W = W.to(dtype)
    (dW,) = [one for one in difference_matrices("x", after, W) if one.matrix == "dW"]
    assert dW.operator is not None
    exact = after.double() - W.double()
    sigma = np.linalg.svd(exact.numpy(), compute_uv=False)
    found = stable_rank(dW.operator, 1e-11, certify=True)
    assert found.lower <= ((sigma / sigma[0]) ** 2).sum() <= found.upper
    if dtype == torch.float32:  # the hazard
        rounded = np.linalg.svd((after - W).double().numpy(), compute_uv=False)
        assert not found.lower <= ((rounded / rounded[0]) ** 2).sum() <= found.upper


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        ("layers.0.mlp.experts.down_proj", [(3, 4)] * 2),
        ("layers.0.mlp.input_linear", [(3, 4)] * 2),  # JetMoe's
        ("layers.0.block_sparse_moe.output_linear.weight", [(3, 4)] * 2),  # in files of Granite's
        ("layers.0.mamba.x_proj_weight", [(3, 4)] * 2),  # Zamba's, one for each head
        ("layers.0.mamba.A_log", [(3, 4)] * 2),
        ("layers.0.mamba.conv1d", [(2, 12)]),
        ("layer.0.rel_attn.q", [(2, 12)]),  # XLNet's, (d, heads, width)
    ],
)
def test_what_is_a_stack_of_matrices(layer: str, shapes: list[tuple[int, int]]) -> None:
    weight = torch.arange(24.0).view(2, 3, 4)
    found = matrices(layer, weight)
    assert [tuple(one.shape) for _, one in found] == shapes
    assert torch.equal(torch.stack([one for _, one in found]).flatten(), weight.flatten())
    assert len({name for name, _ in found}) == len(found)
