"""Every edit against the same edit of the dense matrix, by float64 SVD."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import rankscope as rs
from rankscope import edit
from training import plain_model

SHAPES = [(12, 9, 3), (9, 12, 3), (8, 8, 8), (20, 6, 6), (5, 7, 1)]


def case(m: int, n: int, r: int) -> tuple[Tensor, rs.LowRank, np.ndarray]:
    """W, an update as strong as W, and the update as a dense matrix."""
    draw = torch.Generator().manual_seed(m * n + r)
    W = torch.randn(m, n, generator=draw, dtype=torch.float64)
    B, A = torch.randn(m, r, generator=draw), torch.randn(r, n, generator=draw)
    return W, rs.LowRank(B=B, A=A, scale=2.0), 2 * B.double().numpy() @ A.double().numpy()


def spectrum(M: np.ndarray) -> np.ndarray:
    return np.linalg.svd(M, compute_uv=False)


def with_values(M: np.ndarray, values: np.ndarray) -> Tensor:
    U, _, Vh = np.linalg.svd(M, full_matrices=False)
    return torch.from_numpy((U * values) @ Vh)


@pytest.fixture(params=SHAPES, ids=str)
def given(request: pytest.FixtureRequest) -> tuple[Tensor, rs.LowRank, np.ndarray]:
    return case(*request.param)


@pytest.mark.parametrize("full", [False, True], ids=["factors", "full"])
def test_edits_of_the_singular_values(
    given: tuple[Tensor, rs.LowRank, np.ndarray], full: bool
) -> None:
    W, low_rank, dense = given
    update = rs.Dense(torch.from_numpy(dense)) if full else low_rank
    sigma, r = spectrum(dense), low_rank.A.shape[-2]
    place = np.arange(len(sigma))
    level = 0.5 * spectrum(W.numpy())[0]
    cases = {
        "scale": (edit(update, scale=-0.3), None),
        "cap": (edit(update, cap=0.5, base=W), np.minimum(sigma, level)),
        "top": (edit(update, top=1), sigma * (place < 1)),
        "without_top": (edit(update, without_top=1), sigma * (place >= 1)),
        "flat": (edit(update, flat=r), np.where(place < r, np.sqrt((sigma**2).sum() / r), 0)),
    }
    assert np.count_nonzero(sigma > level) > 0
    for name, (found, values) in cases.items():
        wanted = torch.from_numpy(-0.3 * dense) if values is None else with_values(dense, values)
        assert_close(found.to_dense(), wanted, rtol=0, atol=1e-12 * sigma[0], msg=name)


def test_restore_gives_w_s_stable_rank_back(given: tuple[Tensor, rs.LowRank, np.ndarray]) -> None:
    W, update, dense = given
    before, after = (float(rs.stable_rank(M).value) for M in (W, W + torch.from_numpy(dense)))
    found = edit(update, restore=True, base=W)
    total = W + found.to_dense()
    if after >= before:
        assert_close(found.to_dense(), torch.from_numpy(dense))
        return
    sigma = spectrum(total.numpy())
    assert (sigma**2).sum() / sigma[0] ** 2 == pytest.approx(before, rel=1e-12)
    full = spectrum((W + torch.from_numpy(dense)).numpy())
    assert_close(
        total, with_values((W + torch.from_numpy(dense)).numpy(), np.minimum(full, sigma[0]))
    )
    capped = np.count_nonzero(full > sigma[0] * (1 + 1e-12))
    assert found.A.shape[-2] == update.A.shape[-2] + capped


def test_restore_is_asked_of_updates_that_lower_the_stable_rank() -> None:
    lowered = []
    for shape in SHAPES:
        W, _, dense = case(*shape)
        lowered.append(rs.stable_rank(W + torch.from_numpy(dense)).value < rs.stable_rank(W).value)
    assert any(lowered)


def test_random_directions_keep_the_spectrum_and_nothing_else(
    given: tuple[Tensor, rs.LowRank, np.ndarray],
) -> None:
    _, update, dense = given
    one, again = (
        edit(update, random=torch.Generator().manual_seed(5)).to_dense() for _ in range(2)
    )
    other = edit(update, random=torch.Generator().manual_seed(6)).to_dense()
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    assert spectrum(one.numpy()) == pytest.approx(spectrum(dense), rel=1e-12, abs=1e-12)


def test_random_directions_are_spread_evenly() -> None:
    """The mean square of each coordinate of a uniform unit vector in 4 dimensions is 1/4."""
    draw = torch.Generator().manual_seed(0)
    update = rs.LowRank(B=torch.ones(4, 1), A=torch.ones(1, 4))
    found = torch.stack([edit(update, random=draw).to_dense() / 4 for _ in range(2000)])
    assert_close(
        found.square().mean(0), torch.full((4, 4), 1 / 16, dtype=torch.float64), rtol=0.15, atol=0
    )
    assert found.mean(0).abs().max() < 0.03


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "exactly one of .*; found none"),
        ({"top": 1, "flat": 1}, "found top, flat"),
        ({"top": 4}, r"top must lie in 1 \.\. 3.*; found 4"),
        ({"flat": 0}, r"flat must lie in 1 \.\. 3.*; found 0"),
        ({"cap": 0.5}, "cap needs base="),
        ({"restore": True}, "restore needs base="),
        ({"cap": -1.0, "base": torch.eye(12, 9)}, "at least 0"),
    ],
)
def test_refusals(asked: dict[str, object], says: str) -> None:
    _, update, _ = case(12, 9, 3)
    with pytest.raises(ValueError, match=says):
        edit(update, **asked)  # type: ignore[arg-type]


def test_an_edited_update_is_saved_as_a_peft_adapter(
    tiny_models: dict[str, str], tmp_path: Path
) -> None:
    """And plain PEFT makes of it the model with the dense edit in it."""
    layer = "roberta.encoder.layer.1.attention.self.value"
    before = plain_model(tiny_models["roberta"], torch.float32)
    W = before.get_submodule(layer).weight.detach().clone()
    draw = torch.Generator().manual_seed(0)
    update = rs.LowRank(B=torch.randn(16, 3, generator=draw), A=torch.randn(3, 16, generator=draw))
    found = edit(update, restore=True, base=W)
    found.save_pretrained(tmp_path, layer=layer, base=tiny_models["roberta"])
    merged = peft.PeftModel.from_pretrained(before, tmp_path).merge_and_unload()
    after = merged.get_submodule(layer).weight.detach()
    assert_close(after, W + found.to_dense().float(), rtol=0, atol=1e-5)
    assert rs.stable_rank(after).value == pytest.approx(rs.stable_rank(W).value, rel=1e-3)
