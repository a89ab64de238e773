"""The trained weights of a pack's trials, one row of a matrix per trial, and likewise their
gradients.

Clipping, AdamW, the best copy and a checkpoint are then a few operations, whatever the number of
layers. Modules keep their parameters: views into the rows. Letters: K trials, P weights of one
trial.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Rows:
    """Args:
    parameters: each (K, ...), or any shape if K = 1; they become views of ``values``.
    decays: whether weight decay applies, per parameter; those it applies to are
        the first ``decaying`` columns.
    slots: which trials of the pack these are.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], *, decays: Sequence[bool], slots: slice
    ) -> None:
        K, self.slots = slots.stop - slots.start, slots
        pairs = sorted(zip(parameters, decays, strict=True), key=lambda pair: not pair[1])
        self.parameters = [p for p, _ in pairs]
        self.decaying = sum(p.numel() for p, decay in pairs if decay) // K
        first = self.parameters[0]
        P = sum(p.numel() for p in self.parameters) // K
        self.values = torch.empty(K, P, dtype=first.dtype, device=first.device)
        self.gradients = torch.empty_like(self.values)
        for p, value in zip(self.parameters, self.views(self.values), strict=True):
            value.copy_(p.detach())
            p.data = value

    def views(self, buffer: Tensor) -> list[Tensor]:
        """A buffer like ``values``, seen as the parameters."""
        widths = [p.numel() // len(buffer) for p in self.parameters]
        return [
            part.view(p.shape)
            for part, p in zip(buffer.split(widths, dim=1), self.parameters, strict=True)
        ]

    def differentiated(self, gradients: Sequence[Tensor | None]) -> None:
        """Takes the gradients of ``parameters``; None stands for a weight that the loss does not
        depend on."""
        K = len(self.values)
        found = [
            (torch.zeros_like(p) if g is None else g).reshape(K, -1)
            for p, g in zip(self.parameters, gradients, strict=True)
        ]
        torch.cat(found, dim=1, out=self.gradients)


def differentiate(total: Tensor, rows: Sequence[Rows]) -> None:
    """The gradients of ``total`` with respect to every row."""
    gradients = iter(
        torch.autograd.grad(
            total, [p for group in rows for p in group.parameters], allow_unused=True
        )
    )
    for group in rows:
        group.differentiated([next(gradients) for _ in group.parameters])
