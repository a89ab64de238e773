"""Tensors and surroundings that no training has: a right number, or a reason in one line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import rankscope as rs


def draw(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=source, device="cpu", dtype=torch.float32)


W, CHANGE = draw(60, 50), 0.1 * draw(60, 50, seed=1)
NARROW = torch.float8_e4m3fn


def model(weight: Tensor) -> nn.Module:
    holder = nn.Module()
    holder.lin = nn.Module()
    holder.lin.weight = nn.Parameter(weight, requires_grad=weight.is_floating_point())
    return holder


PAIRS: dict[str, Callable[[], tuple[Tensor, Any]]] = {
    "complex": lambda: (torch.complex(W, W), torch.complex(W, CHANGE)),
    "integers": lambda: (torch.ones(6, 5, dtype=torch.int64), torch.zeros(6, 5).long()),
    "booleans": lambda: (torch.ones(6, 5, dtype=torch.bool), torch.zeros(6, 5).bool()),
    "float8": lambda: (W.to(NARROW), CHANGE.to(NARROW)),
    "a float8 reference": lambda: (W, W.to(NARROW)),
    "sparse": lambda: (W.to_sparse(), CHANGE),
    "a sparse reference": lambda: (W, W.to_sparse()),
    "meta": lambda: (W.to("meta"), W),
    "a meta reference": lambda: (W, W.to("meta")),
    "no rows": lambda: (torch.empty(0, 5), torch.empty(0, 5)),
    "a vector": lambda: (draw(5), draw(5, seed=1)),
    "a number": lambda: (torch.tensor(1.0), torch.tensor(2.0)),
    "NaN": lambda: (W * torch.nan, W),
    "an infinite reference": lambda: (W, W * torch.inf),
    "another shape": lambda: (W, draw(60, 40)),
    "lists": lambda: (W, W.tolist()),
    "no tensor": lambda: (W, None),
    "the same": lambda: (W, W.clone()),
}


def outcome(weight: Tensor, reference: Any) -> list[str]:
    """What is said of dW where there is no number of it; a single line each."""
    try:
        table = rs.probe(model(weight), {"lin.weight": reference})
    except ValueError as error:
        return [str(error)]
    rows = [row for row in table.rows if row.matrix == "dW"]
    assert all(row.stable_rank is None for row in rows)
    return [row.note or "" for row in rows] + [one.why for one in table.skipped]


@pytest.mark.parametrize("name", PAIRS)
def test_what_has_no_number_says_why_in_one_line(name: str) -> None:
    said = outcome(*PAIRS[name]())
    assert said
    assert all(line and "\n" not in line and len(line) < 300 for line in said)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda M: M.T.contiguous().T,
    "a part": lambda M: torch.cat([M, M], dim=1)[:, ::2].contiguous()[:, :25],
    "wide": lambda M: M.double() * 1e100,
    "float16": Tensor.half,
    "one row": lambda M: M[:1],
    "repeated": lambda M: M[:1].expand(60, 50),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_and_sizes(name: str) -> None:
    before, now = LAYOUTS[name](W), LAYOUTS[name](W + CHANGE)
    (row,) = (r for r in rs.probe(model(now), {"lin.weight": before}).rows if r.matrix == "dW")
    scale = float(now.double().abs().max())
    s = np.linalg.svd((now.double() / scale - before.double() / scale).numpy(), compute_uv=False)
    assert row.stable_rank == pytest.approx((s**2).sum() / s[0] ** 2, rel=2e-3)


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "gradients off": lambda: torch.set_grad_enabled(False),
}


@pytest.mark.parametrize("name", AROUND)
def test_surroundings(name: str, tmp_path: Path) -> None:
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    save_file({"lin.weight": W}, base)
    save_file({"lin.weight": W + CHANGE}, tuned)
    trained = model(W + CHANGE)

    def numbers() -> list[float | None]:
        tables = (rs.probe(trained, {"lin.weight": W}), rs.measure(tuned, base=base))
        return [row.stable_rank for table in tables for row in table.rows]

    plain = numbers()
    with AROUND[name]():
        inside = numbers()
    assert len(plain) == 6
    assert inside == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.orthogonal,
        nn.utils.spectral_norm,
    ],
)
def test_parts_of_a_parametrized_weight_are_no_weights(
    make: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    """They were measured as if they were: the weight is what the parametrization makes of them."""
    both = nn.ModuleList([make(nn.Linear(12, 9)), nn.Linear(9, 6)])
    before = {name: one.clone() for name, one in both.state_dict().items()}
    save_file(
        {name: one.contiguous() for name, one in before.items()}, tmp_path / "model.safetensors"
    )
    with torch.no_grad():
        for i, parameter in enumerate(both.parameters()):
            parameter += draw(*parameter.shape, seed=i)
    tables = [rs.probe(both, before), rs.measure(tmp_path / "model.safetensors")]
    for table in tables:
        assert {row.layer for row in table.rows} == {"1"}
        why = {one.layer: one.why for one in table.skipped}
        parts = [name for name in why if name.startswith("0.") and "bias" not in name]
        assert parts
        assert any("remove_parametrizations() leaves that itself" in why[name] for name in parts)


@pytest.mark.parametrize(
    ("given", "reference", "says"),
    [
        (model(W), {"lin.weight": W.numpy()}, "a state dictionary of tensors, {k: v.clone()"),
        (model(W), model(W), "model.state_dict().items()}, kept before training; found Module"),
        ({"lin.weight": W}, {}, "expected a model (nn.Module); found dict"),
        (nn.LazyLinear(3), {"weight": W}, "has been called once; found weight not initialised"),
        (held := model(W.clone()), held.state_dict(), "lin.weight in it is the model's own memory"),
    ],
)
def test_what_is_no_model_or_no_reference_is_one_line(
    given: Any, reference: Any, says: str
) -> None:
    with pytest.raises(ValueError, match=r"^probe: expected") as error:
        rs.probe(given, reference)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_reference_may_share_what_is_frozen() -> None:
    """Memory is saved so; the trained weight alone must be a copy."""
    both = nn.ModuleList([nn.Linear(5, 4), nn.Linear(4, 3)])
    both[0].requires_grad_(False)
    kept = {n: p if n.startswith("0.") else p.clone() for n, p in both.state_dict().items()}
    with torch.no_grad():
        both[1].weight += draw(3, 4)
    (row,) = [r for r in rs.probe(both, kept).rows if (r.layer, r.matrix) == ("1", "dW")]
    dW = (both[1].weight - kept["1.weight"]).detach().double().numpy()
    assert row.spectral_norm == pytest.approx(np.linalg.norm(dW, 2), rel=1e-6)
