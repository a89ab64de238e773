"""The trained weights of a pack in flat buffers, and AdamW over them with one learning rate and
one gradient clipping per trial.

Loshchilov and Hutter 2019 by torch's own kernel (``torch.optim.AdamW(fused=True)``): a pack steps
as K separate runs would. The kernel makes one pass over a trial's row; separate operations would
be slow on the zeros and subnormal numbers in the second moments of embeddings (a square root of
them takes 5 and 35 times as long). Letters: K trials, P weights of one trial.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rankscope.study.trial import Schedule, Trial

# "fast": at ``lora_plus_ratio`` times the rate; "matrix", and LoRA's factor "B": by Muon
Kind = Literal["plain", "fast", "matrix", "B"]


def widest(device: torch.device) -> torch.dtype:
    """The widest floating type that this device adds in: Apple's GPU (MPS) has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def kind_of(trial: Trial, *, factor: str | None, is_vector: bool = False) -> Kind:
    """How a trial updates factor "A" or "B", or another weight (None). LoRA+ takes the larger rate
    for vectors as well, as PEFT's ``create_loraplus_optimizer`` does."""
    if trial.optimizer == "muon" and factor:
        return "B" if factor == "B" else "matrix"
    is_fast = trial.lora_plus_ratio is not None and (factor == "B" or is_vector)
    return "fast" if is_fast else "plain"


class FlatParams:
    """Trained weights as one matrix with a row per trial, and their gradients as another.

    Clipping, AdamW, the best copy and a checkpoint are then a few operations, whatever the number
    of layers. Modules keep their parameters, as views of the matrix.

    Args:
        parameters: each (K, ...), or any shape if K = 1; they become views of ``values``.
        decays: whether weight decay applies, per parameter.
        members: which trials of the pack these are.
        kinds: how each parameter is updated; None: all alike.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        decays: Sequence[bool],
        members: slice,
        kinds: Sequence[Kind] | None = None,
    ) -> None:
        K, self.members = members.stop - members.start, members
        kinds = ["plain"] * len(parameters) if kinds is None else kinds
        together = zip(parameters, decays, kinds, strict=True)
        ordered = sorted(together, key=lambda each: (not each[1], get_args(Kind).index(each[2])))
        self.parameters = [p for p, *_ in ordered]
        self.kinds = [kind for *_, kind in ordered]
        # columns that are updated alike: (whether they decay, kind) -> where
        self.columns: dict[tuple[bool, Kind], slice] = {}
        start = 0
        for p, decay, kind in ordered:
            first = self.columns.get((decay, kind), slice(start, start)).start
            start += p.numel() // K
            self.columns[decay, kind] = slice(first, start)
        example = self.parameters[0]
        P = sum(p.numel() for p in self.parameters) // K
        self.values = torch.empty(K, P, dtype=example.dtype, device=example.device)
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


def differentiate(total: Tensor, params: Sequence[FlatParams]) -> None:
    """Writes the gradients of ``total`` into ``params``."""
    gradients = iter(
        torch.autograd.grad(
            total, [p for group in params for p in group.parameters], allow_unused=True
        )
    )
    for group in params:
        group.differentiated([next(gradients) for _ in group.parameters])


class PackedAdamW:
    """AdamW for all trials of a pack.

    Args:
        params: every trained weight; ``step`` reads its ``gradients`` and overwrites them.
        learning_rates: the peak rate of each trial.
        ratio: the "fast" parameters' rate over the others' (LoRA+; Hayou et al. 2024).
        sgd: plain gradient descent instead, ``torch.optim.SGD``.
        fused: by torch's kernel; None: where ``has_fused_kernel``.
    """

    def __init__(
        self,
        params: Sequence[FlatParams],
        *,
        learning_rates: Sequence[float],
        weight_decay: float,
        betas: tuple[float, float],
        epsilon: float,
        max_grad_norm: float,
        ratio: float = 1.0,
        sgd: bool = False,
        fused: bool | None = None,
    ) -> None:
        self.params = list(params)
        self.learning_rates = list(learning_rates)
        self.weight_decay = weight_decay
        self.betas, self.epsilon, self.max_grad_norm = betas, epsilon, max_grad_norm
        self.ratio = ratio
        if fused is None:  # MPS's kernel has not been tried
            fused = has_fused_kernel() and params[0].values.device.type != "mps"
        self._kernel: Callable[..., None] = torch._fused_adamw_ if fused else plain_adamw
        if sgd:
            self._kernel = plain_sgd
        self.steps = 0
        self.means = [torch.zeros_like(group.values) for group in self.params]
        self.squares = [torch.zeros_like(group.values) for group in self.params]

    @torch.no_grad()
    def step(self, *, schedule: float, alive: Tensor) -> Tensor:
        """One update with learning rate ``schedule`` times the peak; spends the gradients.

        Trials that are not alive, or whose gradient is not finite, keep their
        parameters. -> (K,) bool: still alive
        """
        squares = torch.zeros(len(alive), dtype=widest(alive.device), device=alive.device)
        for group in self.params:
            squares[group.members] += (
                torch.linalg.vector_norm(group.gradients, dim=1).to(squares).square()
            )
        norms = squares.sqrt()  # (K,)
        alive = alive & norms.isfinite()
        clip = (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)[:, None]
        for group in self.params:
            group.gradients.mul_(clip[group.members].to(group.gradients.dtype))
        self.steps += 1
        count, skipped = torch.tensor(float(self.steps), device=alive.device), (~alive).float()
        for k, rate in enumerate(self.learning_rates):
            self._update(k, rate * schedule, count, skipped[k])
        return alive

    def _update(self, k: int, rate: float, count: Tensor, skipped: Tensor) -> None:
        """Trial k. The kernel changes nothing where ``skipped`` is 1; on a GPU without waiting for
        it."""
        buffers = [
            (group, k - group.members.start, (group.values, group.gradients, mean, square))
            for group, mean, square in zip(self.params, self.means, self.squares, strict=True)
            if group.members.start <= k < group.members.stop
        ]
        by_adamw: tuple[Kind, ...] = ("plain", "fast")
        for decays, kind in itertools.product((True, False), by_adamw):
            values, gradients, means, squares = (
                [
                    tensors[i][row, group.columns[decays, kind]]
                    for group, row, tensors in buffers
                    if (decays, kind) in group.columns
                ]
                for i in range(4)
            )
            if not values:
                continue
            self._kernel(
                values, gradients, means, squares, [], [count] * len(values),
                lr=rate * (self.ratio if kind == "fast" else 1.0),
                beta1=self.betas[0],
                beta2=self.betas[1], weight_decay=self.weight_decay if decays else 0.0,
                eps=self.epsilon,
                amsgrad=False, maximize=False, grad_scale=None, found_inf=skipped,
            )  # fmt: skip


# The kernel behind torch.optim.AdamW(fused=True) is private: it is called only as the torch
# it was tested with has it.
FUSED = (
    "aten::_fused_adamw_(Tensor(a!)[] self, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, "
    "Tensor(d!)[] exp_avg_sqs, "
    "Tensor(e!)[] max_exp_avg_sqs, Tensor[] state_steps, *, float lr, float beta1, float "
    "beta2, float weight_decay, "
    "float eps, bool amsgrad, bool maximize, Tensor? grad_scale=None, Tensor? found_inf=None) -> ()"
)


def has_fused_kernel() -> bool:
    """Whether this torch has the kernel, with the arguments that it had."""
    packet = getattr(torch.ops.aten, "_fused_adamw_", None)
    schema = getattr(getattr(packet, "default", None), "_schema", None)
    return hasattr(torch, "_fused_adamw_") and str(schema) == FUSED


def plain_adamw(
    values: Sequence[Tensor], gradients: Sequence[Tensor], means: Sequence[Tensor],
    squares: Sequence[Tensor],
    _: Sequence[Tensor], counts: Sequence[Tensor], *, lr: float, beta1: float, beta2: float,
    weight_decay: float,
    eps: float, found_inf: Tensor, **__: Any,
) -> None:  # fmt: skip
    """The same update in single operations, for a torch without that kernel."""
    if bool(found_inf):
        return
    for p, g, mean, square, count in zip(values, gradients, means, squares, counts, strict=True):
        p.mul_(1 - lr * weight_decay)
        mean.lerp_(g, 1 - beta1)
        square.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        step = float(count)
        denominator = (square.sqrt() / math.sqrt(1 - beta2**step)).add_(eps)
        p.addcdiv_(mean, denominator, value=-lr / (1 - beta1**step))


def plain_sgd(
    values: Sequence[Tensor], gradients: Sequence[Tensor], *_: Any, lr: float, weight_decay: float,
    found_inf: Tensor, **__: Any,
) -> None:  # fmt: skip
    """``torch.optim.SGD`` without momentum: the decay is part of the gradient."""
    if bool(found_inf):
        return
    for p, g in zip(values, gradients, strict=True):
        p.add_(g.add(p, alpha=weight_decay), alpha=-lr)


def share_of_peak(schedule: Schedule, step: int, *, warmup: int, total: int) -> float:
    """Share of the peak rate at ``step`` (from 0), as ``transformers.get_scheduler`` has it: up
    over ``warmup`` steps ("constant" has none), then down to 0 at ``total``, or level."""
    if schedule == "constant":
        return 1.0
    if step < warmup:
        return step / max(1, warmup)
    left = (total - step) / max(1, total - warmup)
    if schedule == "linear":
        return max(0.0, left)
    if schedule == "cosine":  # half a period
        return max(0.0, 0.5 * (1 - math.cos(math.pi * left)))
    return 1.0
