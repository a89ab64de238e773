"""AdamW for K trials against torch's own, one at a time; and Hugging Face's schedule."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import get_scheduler

from rankscope.study.trial import Schedule
from rankscope.train.optimizer import (
    FUSED,
    FlatParams,
    PackedAdamW,
    has_fused_kernel,
    share_of_peak,
)

SHAPES = [(3, 4, 5), (3, 7)]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0 ** (step % 3 - 1)
        for shape in SHAPES
    ]


def packed(parameters: list[nn.Parameter], *, fused: bool | None = None) -> PackedAdamW:
    params = FlatParams(parameters, decays=[True, False], members=slice(0, 3))
    return PackedAdamW(
        [params],
        learning_rates=[1e-3, 1e-2, 1e-1],
        weight_decay=0.1,
        betas=(0.9, 0.98),
        epsilon=1e-6,
        max_grad_norm=1.0,
        fused=fused,
    )


@pytest.mark.parametrize("fused", [True, False], ids=["kernel", "plain"])
def test_each_trial_steps_as_torch_does_alone(fused: bool) -> None:
    parameters = [nn.Parameter(p) for p in gradients(100)]
    alone = [[p[k].detach().clone().requires_grad_() for p in parameters] for k in range(3)]
    torch_optimizers = [
        torch.optim.AdamW(
            [{"params": [ps[0]], "weight_decay": 0.1}, {"params": [ps[1]], "weight_decay": 0.0}],
            lr=lr, betas=(0.9, 0.98), eps=1e-6,
        )
        for ps, lr in zip(alone, (1e-3, 1e-2, 1e-1), strict=True)
    ]  # fmt: skip
    optimizer, alive = packed(parameters, fused=fused), torch.ones(3, dtype=torch.bool)
    for step in range(12):
        optimizer.params[0].differentiated(gradients(step))
        alive = optimizer.step(schedule=1.0, alive=alive)
        for k in range(3):
            for p, g in zip(alone[k], gradients(step), strict=True):
                p.grad = g[k].clone()
            torch.nn.utils.clip_grad_norm_(alone[k], 1.0)
            torch_optimizers[k].step()
    assert alive.all()
    for k in range(3):
        for p, q in zip(parameters, alone[k], strict=True):
            assert_close(p[k], q, rtol=1e-11, atol=1e-12)


def test_this_torch_has_the_private_kernel_as_it_was() -> None:
    """If this fails, torch has changed ``_fused_adamw_``. Training goes on by ``plain_adamw`` and
    is right, but its steps are slower: read the new signature, and adapt the call and ``FUSED``."""
    assert str(torch.ops.aten._fused_adamw_.default._schema) == FUSED
    assert has_fused_kernel()


@pytest.mark.parametrize("fused", [True, False], ids=["kernel", "plain"])
def test_a_trial_whose_gradient_is_nan_stands_still_alone(fused: bool) -> None:
    parameters = [nn.Parameter(p) for p in gradients(100)]
    before = [p.detach().clone() for p in parameters]
    optimizer = packed(parameters, fused=fused)
    broken = gradients(0)
    broken[0][1, 0, 0] = torch.nan
    optimizer.params[0].differentiated(broken)
    alive = optimizer.step(schedule=1.0, alive=torch.ones(3, dtype=torch.bool))
    assert alive.tolist() == [True, False, True]
    for p, old in zip(parameters, before, strict=True):
        assert torch.equal(p[1], old[1])
        assert not torch.equal(p[0], old[0])


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (10, 10)])
@pytest.mark.parametrize("schedule", get_args(Schedule))
def test_schedule_is_hugging_faces(schedule: Schedule, warmup: int, total: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_scheduler(schedule, optimizer, warmup, total)
    for step in range(total):
        ours = share_of_peak(schedule, step, warmup=warmup, total=total)
        assert ours == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
