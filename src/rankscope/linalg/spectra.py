"""Spectral facts of one matrix or a batch: stable rank, norms, effective rank, singular
values. Formulas: docs/math.md.

M is a tensor (*batch, m, n) of any floating dtype or an operator of that shape. Results are floats
for one matrix and float64 CPU tensors (*batch) for a batch.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from rankscope.linalg.dense import as_operator
from rankscope.linalg.estimate import Estimate
from rankscope.linalg.low_rank import LowRank
from rankscope.linalg.norms import CANCELS, ZERO, Norms, known, norms, spectrum
from rankscope.linalg.norms import frobenius as _frobenius
from rankscope.linalg.operator import Operator, exponent
from rankscope.linalg.rounding import sized, undisturbed
from rankscope.linalg.sigma import Sigma, SigmaOptions

OUT_OF_RANGE = "lies outside float64's range; its stable rank does not"


@dataclass(frozen=True)
class Summary:
    """All facts of a matrix or a batch. ``effective_rank`` is NaN where it was not asked for or is
    undefined. ``singular_values`` (*batch, p) float64 CPU, p as in ``singular_values``, or None
    where they were not needed."""

    stable_rank: Estimate
    spectral_norm: float | Tensor
    frobenius_norm: float | Tensor
    effective_rank: float | Tensor
    singular_values: Tensor | None = None


@undisturbed
def stable_rank(
    M: Tensor | Operator,
    rtol: float = 1e-3,
    *,
    certify: bool = False,
    confidence: float = 1 - 1e-3,
    generator: torch.Generator | None = None,
) -> Estimate:
    """||M||_F^2 / ||M||_2^2, in [1, rank M]; NaN with a reason where M is zero or
    not finite: docs/math.md, (1).

    The bounds lie within a relative `rtol` of each other, or `met` is False. They hold with
    probability `confidence` over the random start, or, with `certify=True`, for certain, by a
    Cholesky factor of tau^2 I - M^T M. A LowRank is exact to rounding in any case. Without a
    `generator` the start is drawn afresh, and its seed kept in the Estimate.
    """
    op = as_operator(M)
    start, seed = _start(generator)
    found = norms(op, SigmaOptions(_sigma_width(rtol), certify, confidence, start, slack=rtol / 24))
    return _estimate(_stable_rank(found, op, rtol, seed), op.batch_shape)


@undisturbed
def spectral_norm(
    M: Tensor | Operator,
    rtol: float = 1e-4,
    *,
    certify: bool = False,
    confidence: float = 1 - 1e-3,
    generator: torch.Generator | None = None,
) -> Estimate:
    """sigma_1 = ||M||_2, with the options of `stable_rank`; 0 for a zero matrix.
    docs/math.md, (9) to (17)."""
    op = as_operator(M)
    start, seed = _start(generator)
    found = norms(op, SigmaOptions(rtol, certify, confidence, start))
    s, value = found.sigma, sized(found.sigma.value, found.size)
    lost = value.isnan() & ~s.value.isnan()
    reasons = zip(found.reason, lost.tolist(), strict=True)
    reason = tuple(
        OUT_OF_RANGE if out else None if r in (ZERO, CANCELS) else r for r, out in reasons
    )
    met = _met(s.lower, s.upper, rtol)
    lower, upper = (torch.where(lost, torch.nan, x * found.size) for x in (s.lower, s.upper))
    rounded = (upper > 0) & (upper < torch.finfo(torch.float64).tiny)  # to a multiple of 2^-1074
    lower = torch.where(rounded, lower.nextafter(torch.zeros_like(lower)), lower)
    upper = torch.where(rounded, upper.nextafter(torch.ones_like(upper)), upper)
    return _estimate(
        Estimate(
            value, lower, upper, s.confidence, s.method, s.products, reason, met, _used(s, seed)
        ),
        op.batch_shape,
    )


@undisturbed
def frobenius_norm(M: Tensor | Operator) -> float | Tensor:
    """||M||_F, summed in float64, exact to rounding; NaN where M is not
    finite. docs/math.md, (4)."""
    op = as_operator(M)
    return _shaped(_frobenius(op), op.batch_shape)


@undisturbed
def singular_values(M: Tensor | Operator) -> Tensor:
    """All singular values, descending, float64: (*batch, min(m, n)); of a LowRank (*batch,
    min(m, n, r)), from factors.

    Exact to rounding; anything but a LowRank is formed. NaN where M is not finite.
    """
    op = as_operator(M)
    if isinstance(op, LowRank):
        found = spectrum(op)
        return found.reshape(*op.batch_shape, found.shape[-1])
    dense = op.to_dense()
    finite = dense.isfinite().all(-1).all(-1)[..., None]
    dense = torch.nan_to_num(dense)
    size = torch.exp2(exponent(dense, 2).double())
    sigma = torch.linalg.svdvals(dense / size[..., None, None])
    return torch.where(finite, known(sigma, size), torch.nan).cpu()


@undisturbed
def effective_rank(M: Tensor | Operator) -> float | Tensor:
    """exp of the entropy of sigma_i / sum sigma (Roy and Vetterli 2007); NaN where M is zero, or
    is to rounding. docs/math.md, (2)."""
    return summary(M, effective_rank=True).effective_rank


@undisturbed
def summary(
    M: Tensor | Operator,
    rtol: float = 1e-3,
    *,
    certify: bool = False,
    confidence: float = 1 - 1e-3,
    generator: torch.Generator | None = None,
    effective_rank: bool | None = None,
    exact: bool = False,
) -> Summary:
    """Stable rank (within `rtol`), both norms and effective rank, each norm computed once.

    The effective rank needs all singular values; by default it is given where they are
    cheap, for a LowRank. With `exact` sigma_1 is taken from them in any case: faster than
    iterating for a few small matrices.
    """
    op = as_operator(M)
    wanted = isinstance(op, LowRank) if effective_rank is None else effective_rank
    start, seed = _start(generator)
    width = _sigma_width(rtol)
    found = norms(op, SigmaOptions(width, certify, confidence, start, all=wanted or exact))
    batch = op.batch_shape
    if not wanted:
        rank = torch.full_like(found.frobenius, torch.nan)
    else:
        assert found.spectrum is not None
        rank = _effective(found.spectrum)
    sigma = None if found.spectrum is None else known(found.spectrum, found.size)
    return Summary(
        _estimate(_stable_rank(found, op, rtol, seed), batch),
        _shaped(sized(found.sigma.value, found.size), batch),
        _shaped(sized(found.frobenius, found.size), batch),
        _shaped(rank, batch),
        None if sigma is None else sigma.reshape(*batch, sigma.shape[-1]),
    )


def _effective(sigma: Tensor) -> Tensor:
    """(*batch, p) -> (*batch): docs/math.md, (2)."""
    share = sigma / sigma.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()


def _start(generator: torch.Generator | None) -> tuple[torch.Generator, int | None]:
    """The generator of the start vector, and its seed where it is drawn here: from the system's
    entropy, so that no matrix can have been made against it."""
    if generator is not None:
        return generator, None
    seed = secrets.randbits(63)
    return torch.Generator().manual_seed(seed), seed


def _used(sigma: Sigma, seed: int | None) -> int | None:
    return seed if sigma.products else None


def _sigma_width(rtol: float) -> float:
    """sqrt(1 + rtol) - 1: bounds on sigma_1 that lie as near to each other give a stable rank, in
    which it stands squared, to `rtol`."""
    if not 0 < rtol < 1:
        raise ValueError(f"rtol must lie in (0, 1); got {rtol}.")
    return rtol / (1 + (1 + rtol) ** 0.5)


def _met(lower: Tensor, upper: Tensor, rtol: float) -> Tensor:
    """(N,) bool: do the bounds lie within a relative rtol of each other, up to float64's
    last digits? True for NaN."""
    return ~(upper > lower * (1 + rtol) * (1 + 1e-14))


def _stable_rank(found: Norms, op: Operator, rtol: float, seed: int | None) -> Estimate:
    """From both norms, their errors carried along. It is at most the rank, and so at most min(m, n)
    or r."""
    s, F = found.sigma, found.frobenius
    most = float(
        min(*op.shape[-2:], op.A.shape[-2]) if isinstance(op, LowRank) else min(op.shape[-2:])
    )
    lower = (F * (1 - found.error) / s.upper).square().clamp(min=1, max=most)
    lower = torch.where(F == 0, torch.nan, lower)
    upper = (F * (1 + found.error) / s.lower).square().clamp(max=most)
    value = torch.maximum((F / s.value).square(), lower).clamp(max=most)
    upper = torch.maximum(upper, value)
    met = _met(lower, upper, rtol)
    return Estimate(
        value, lower, upper, s.confidence, s.method, s.products, found.reason, met, _used(s, seed)
    )


def _shaped(flat: Tensor, batch: torch.Size) -> float | Tensor:
    return flat.reshape(batch) if batch else float(flat)


def _estimate(flat: Estimate, batch: torch.Size) -> Estimate:
    """An estimate over a flat batch (N,) as one over `batch`; floats where `batch` is empty."""
    reasons = flat.reason if isinstance(flat.reason, tuple) else (flat.reason,) * prod(batch)
    numbers = (
        torch.as_tensor(x).cpu() for x in (flat.value, flat.lower, flat.upper, flat.confidence)
    )
    if not batch:
        value, lower, upper, confidence = (float(x.reshape(())) for x in numbers)
        met = bool(torch.as_tensor(flat.met).all())
        return Estimate(
            value, lower, upper, confidence, flat.method, flat.products, reasons[0], met, flat.seed
        )
    values, lowers, uppers, confidences = (x.reshape(batch) for x in numbers)
    reason = reasons if any(reasons) else None
    mets = torch.as_tensor(flat.met).expand(prod(batch)).reshape(batch)
    return Estimate(
        values, lowers, uppers, confidences, flat.method, flat.products, reason, mets, flat.seed
    )
