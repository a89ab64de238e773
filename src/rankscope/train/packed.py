"""Layers that hold K trials: one frozen base, K adapters, K heads, one dropout mask for all.

Letters: K trials, B batch, T tokens, n in, m out, r rank, N = B*T. Activations are (K*B, T,
n), trial k in rows k*B .. (k+1)*B, or (K, B, T, n); (1, B, T, n) is what all trials still
share, before the first adapter.

Ranks come in buckets: neighbours of similar rank are zero-padded to the largest of them and
computed in one batched product. Padding stays exactly zero: its gradient is a product with the
other factor's padding, and AdamW leaves a zero parameter with zero gradient at zero.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

ONE_AT_A_TIME = "its trials train one at a time, by the model's and PEFT's own layers"
BY_ITS_OWN_FORWARD = (
    "its packs go through the model's own forward pass, repeated per trial: on a CPU hardly faster "
    "than one trial after the other"
)


class NotIsolated(RuntimeError):
    """The trials of a pack affect each other in this model, so they must train one at a time."""


class DropoutMasks(TorchFunctionMode):
    """The random stream of a pack in training, with one dropout mask for all trials.

    A pack draws what a single run draws, in the same order. While it is active as a mode, every
    ``torch.nn.functional.dropout`` of a model draws here, also inside the model's own attention.
    """

    def __init__(self, trials: int, seed: int, device: torch.device) -> None:
        self.trials = trials
        self.batch = 1  # rows of the batch at hand
        self._devices = [device] if device.type == "cuda" else []
        generators = [torch.Generator(where) for where in (torch.device("cpu"), *self._devices)]
        self.state = [generator.manual_seed(seed).get_state() for generator in generators]

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Makes torch draw from this stream; its own generators are restored afterwards."""
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self.state[0])
            for device, state in zip(self._devices, self.state[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
            self.state = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._devices)]

    def mask(self, shape: Sequence[int], p: float, like: Tensor) -> Tensor:
        """A dropout mask, scaled to mean 1; drawn on the CPU for Apple's GPU."""
        place = "cpu" if like.device.type == "mps" else like.device
        mask = torch.empty(tuple(shape), dtype=like.dtype, device=place)
        return mask.bernoulli_(1 - p).div_(1 - p).to(like.device)

    def drop(self, x: Tensor, p: float) -> Tensor:
        """Dropout of ``x`` (K*B, ...), or (B, ...) where trials still share it, with one mask for
        all trials."""
        if len(x) == self.batch:
            return x * self.mask(x.shape, p, x)
        if not _is_cut_by_trials(x, self):
            raise NotIsolated(_unlike("a dropout", x, self))
        each = x.unflatten(0, (self.trials, -1))
        return (each * self.mask(each.shape[1:], p, x)).flatten(0, 1)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return (self._dropout if func is F.dropout else func)(*args, **(kwargs or {}))

    def _dropout(
        self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        return self.drop(input, p) if training and p > 0 else input


def _unlike(what: str, x: Tensor, masks: DropoutMasks) -> str:
    return f"{what} meets {tuple(x.shape)}, which is not {masks.trials} trials x {masks.batch} rows"


class SharedDropout(nn.Module):
    """``nn.Dropout`` whose mask is the same for all trials of the pack."""

    def __init__(self, p: float, masks: DropoutMasks) -> None:
        super().__init__()
        self.p, self.masks = p, masks

    @property
    def active(self) -> bool:
        return self.training and self.p > 0

    def forward(self, x: Tensor) -> Tensor:
        return self.masks.drop(x, self.p) if self.active else x


def rank_buckets(ranks: Sequence[int]) -> list[slice]:
    """Neighbours that are padded to one rank: all up to 16, and above it those up to the same power
    of two."""
    starts = [0]
    keys = [max(16, 1 << (r - 1).bit_length()) for r in ranks]
    starts += [k for k in range(1, len(keys)) if keys[k] != keys[k - 1]]
    return [slice(a, b) for a, b in itertools.pairwise([*starts, len(ranks)])]


class _Updated(torch.autograd.Function):
    """y + s B A x for all trials, one batched product per bucket and factor."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, scale: Tensor, buckets: list[slice], *factors: Tensor
    ) -> Tensor:
        """y (K or 1, N, m), x (K or 1, N, n), scale (K, 1, 1); factors B (k, m, r), A (k, r, n),
        bucket by bucket."""
        K = len(scale)
        out = y.new_empty(K, *y.shape[1:])
        y, x = y.expand(K, -1, -1), x.expand(K, -1, -1)
        inner = []
        for bucket, B, A in zip(buckets, factors[::2], factors[1::2], strict=True):
            h = torch.bmm(x[bucket], A.mT).mul_(scale[bucket])  # (k, N, r)
            torch.baddbmm(y[bucket], h, B.mT, out=out[bucket])
            inner.append(h)
        if not any(ctx.needs_input_grad[4:]):  # frozen factors
            x, inner = x.new_empty(0), [h.new_empty(0) for h in inner]
        ctx.save_for_backward(x, scale, *factors, *inner)
        ctx.buckets = buckets
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients  # (K, N, m)
        x, scale, *rest = ctx.saved_tensors
        buckets: list[slice] = ctx.buckets
        needs_y, needs_x = ctx.needs_input_grad[:2]
        factors, inner = rest[: 2 * len(buckets)], rest[2 * len(buckets) :]
        is_trained = any(ctx.needs_input_grad[4:])
        dx = g.new_empty(*g.shape[:-1], factors[1].shape[-1]) if needs_x else None
        found: list[Tensor | None] = []
        for bucket, B, A, h in zip(buckets, factors[::2], factors[1::2], inner, strict=True):
            u = torch.bmm(g[bucket], B).mul_(scale[bucket])  # (k, N, r)
            if is_trained:
                found += [torch.bmm(g[bucket].mT, h), torch.bmm(u.mT, x[bucket])]
            else:
                found += [None, None]
            if dx is not None:
                torch.bmm(u, A, out=dx[bucket])
        return g if needs_y else None, dx, None, None, *found


class PackedLoRA(nn.Module):
    """base(x) + s B A dropout(x), with the factors of K trials. PEFT's ``lora.Linear``, K at a
    time. ``start``: frozen B0 and A0, and s B0 A0 x is taken off (``train.starts``)."""

    scale: Tensor

    def __init__(
        self, base: nn.Module, *, B: Sequence[Tensor], A: Sequence[Tensor], scale: Tensor,
        buckets: list[slice],
        dropout: float, masks: DropoutMasks, start: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.base, self.buckets, self.masks = base, buckets, masks
        self.B = nn.ParameterList(B)  # (k, m, r) each
        self.A = nn.ParameterList(A)  # (k, r, n)
        self.start = nn.ParameterList(f for pair in start for f in pair).requires_grad_(False)
        self.register_buffer("scale", scale[:, None, None])  # (K, 1, 1)
        self.dropout = SharedDropout(dropout, masks)

    @property
    def weight(self) -> Tensor:
        """The base's, as PEFT's layers have it: T5 asks its layers for their dtype."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        return weight

    def forward(self, x: Tensor, *, tokens: int | None = None) -> Tensor:
        """x (K*B, T, n), (K*B*T, n), or (K or 1, B, T, n). With ``tokens`` only the first so many
        are wanted.

        ``NotIsolated`` for anything else: its rows can't be given to trials.
        """
        K = len(self.scale)
        x = self.checked(x)
        # contiguous: torch would multiply strided rows one by one, with a
        # copy of the weight for each
        met = x[..., :tokens, :].contiguous() if x.ndim > 2 else x
        y = self.base(met)
        groups = 1 if x.ndim == 4 and len(x) == 1 else K
        lead = met.shape[:-1] if x.ndim < 4 else (K, *met.shape[1:-1])
        scale = self.scale.to(
            torch.promote_types(y.dtype, torch.float32)
        )  # in bfloat16 s is off by 1e-3
        out = y.reshape(groups, -1, y.shape[-1])
        if len(self.start):
            taken = [f.to(y.dtype) for f in self.start]
            flat = met.to(y.dtype).reshape(groups, -1, x.shape[-1])
            out = _Updated.apply(out, flat, -scale, self.buckets, *taken)
        if self.dropout.active:
            dropped = self.dropout(x.flatten(0, -3) if x.ndim == 4 else x).view(x.shape)
            met = dropped[..., :tokens, :] if x.ndim > 2 else dropped
        factors = [f.to(y.dtype) for pair in zip(self.B, self.A, strict=True) for f in pair]
        flat = met.to(y.dtype).reshape(groups, -1, x.shape[-1])
        out = _Updated.apply(out, flat, scale, self.buckets, *factors)
        return out.view(*lead, -1)

    def checked(self, x: Tensor) -> Tensor:
        """The tensor itself; ``NotIsolated`` if its rows can't be split among trials."""
        if x.ndim < 4 and not _is_cut_by_trials(x, self.masks):
            raise NotIsolated(_unlike("an adapter", x, self.masks))
        return x

    def starts(self) -> list[tuple[Tensor, Tensor] | None]:
        """B0 (k, m, r) and A0 (k, r, n) of each bucket; None where nothing was taken out."""
        if not len(self.start):
            return [None] * len(self.buckets)
        return list(zip(self.start[::2], self.start[1::2], strict=True))

    def place_of(self, k: int) -> tuple[int, int]:
        """The bucket of trial k, and its place there."""
        found = next(i for i, bucket in enumerate(self.buckets) if k < bucket.stop)
        return found, k - self.buckets[found].start


def _is_cut_by_trials(x: Tensor, masks: DropoutMasks) -> bool:
    """Whether the first dimension of x is trials x rows (x tokens, if x is a matrix)."""
    rows = masks.trials * masks.batch
    return len(x) % rows == 0 if x.ndim == 2 else len(x) == rows


class PackedLinear(nn.Module):
    """K linear layers of one shape: the trials' own heads."""

    def __init__(self, *, weight: Tensor, bias: Tensor | None, masks: DropoutMasks) -> None:
        super().__init__()
        self.masks = masks
        self.weight = nn.Parameter(weight)  # (K, m, n)
        self.bias = None if bias is None else nn.Parameter(bias)  # (K, m)

    def forward(self, x: Tensor) -> Tensor:
        K, m, n = self.weight.shape
        if not _is_cut_by_trials(x, self.masks):
            raise NotIsolated(_unlike("a head", x, self.masks))
        y = torch.bmm(x.reshape(K, -1, n), self.weight.mT)
        if self.bias is not None:
            y = y + self.bias[:, None, :]
        return y.reshape(*x.shape[:-1], m)


class PackedLayerNorm(nn.Module):
    """K layer norms of one width: those of the trials' own heads."""

    def __init__(
        self, *, weight: Tensor, bias: Tensor | None, eps: float, masks: DropoutMasks
    ) -> None:
        super().__init__()
        self.masks = masks
        self.weight = nn.Parameter(weight)  # (K, d)
        self.bias = None if bias is None else nn.Parameter(bias)  # (K, d)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (K*B, ..., d)"""
        K, d = self.weight.shape
        if not _is_cut_by_trials(x, self.masks):
            raise NotIsolated(_unlike("a norm of the head", x, self.masks))
        y = nn.functional.layer_norm(x, (d,), eps=self.eps).reshape(K, -1, d) * self.weight[:, None]
        if self.bias is not None:
            y = y + self.bias[:, None]
        return y.view(x.shape)


def packed_copies(layer: nn.Module, masks: DropoutMasks) -> PackedLinear | PackedLayerNorm:
    """K copies of a layer that each trial trains in full; ``NotIsolated`` for a kind that has no
    packed one."""
    if not isinstance(layer, nn.Linear | nn.LayerNorm):
        raise NotIsolated(f"a {type(layer).__name__} in the head has no packed kind")
    weight, bias = (
        None if p is None else _copies(p, masks.trials) for p in (layer.weight, layer.bias)
    )
    assert weight is not None
    if isinstance(layer, nn.Linear):
        return PackedLinear(weight=weight, bias=bias, masks=masks)
    return PackedLayerNorm(weight=weight, bias=bias, eps=layer.eps, masks=masks)


def _copies(parameter: Tensor, K: int) -> Tensor:
    return parameter.detach().expand(K, *parameter.shape).clone()
