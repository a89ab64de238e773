"""How far rounding alone moves the answers of a model, measured.

Monte Carlo arithmetic (D. S. Parker, UCLA CSD-970002, 1997): the output of every layer is
moved at random by up to one unit in its last place, and the answers are compared with the
undisturbed ones. On a real encoder that gives 1 to 3 times the true error (against
float64), in float32 and in bfloat16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

WORTH = 256  # units in the last place: answers that differ by more are no rounding


@contextlib.contextmanager
def rounded_at_random(model: nn.Module, *, seed: int = 0) -> Iterator[None]:
    """Inside it every layer without parts of its own rounds at random."""
    generators: dict[torch.device, torch.Generator] = {}

    def move(_: nn.Module, __: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        device = output.device
        generator = generators.setdefault(device, torch.Generator(device).manual_seed(seed))
        u = (
            torch.rand(output.shape, generator=generator, dtype=output.dtype, device=device)
            .mul_(2)
            .sub_(1)
        )
        return output * u.mul_(torch.finfo(output.dtype).eps).add_(1)

    layers = [module for module in model.modules() if not [*module.children()]]
    handles = [layer.register_forward_hook(move) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def may_be_rounding(logits: Tensor, deviation: Tensor, *, bfloat16: bool) -> Tensor:
    """Whether it is worth measuring: answers that differ by a few units in the last place. -> (K,)
    bool

    Args:
        logits: (K, N, C), from products in bfloat16 or in the logits' own dtype.
        deviation: (K,) of the answers, over the rows.
    """
    unit = torch.finfo(torch.bfloat16 if bfloat16 else logits.dtype).eps
    return deviation <= WORTH * unit * logits.abs().amax((1, 2)).double()
