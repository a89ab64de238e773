"""||M||_F and sigma_1 of one matrix or of a batch; every other quantity is computed from them.

Matrices with equally many nonzero factor columns are measured together, as many as a cache holds.
Zero-padded factors (a pack of trials of different ranks) are cut to their nonzero columns, so rank
1 costs what rank 1 costs. Small matrices stay together. A matrix that cannot be measured gets a
reason. Letters: N matrices of a flat batch, *batch leading dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankscope.linalg import low_rank
from rankscope.linalg.low_rank import LowRank
from rankscope.linalg.operator import Operator
from rankscope.linalg.rounding import gamma, sized
from rankscope.linalg.scaled_group import normalized
from rankscope.linalg.sigma import Sigma, SigmaOptions, by_svd, direct, largest

# entries of the matrices that are measured together on a CPU: what its last-level cache holds
GROUP = 2**22
# entries up to which sums of different ranks stay together: padding costs less than more calls
TOGETHER = 2**20
ACCELERATED = 2**28  # on an accelerator, where memory is the limit
NOT_FINITE = "has NaN or infinite entries, or overflows float64"
ZERO = "is exactly zero"
# where the error of ||M||_F may be all of it
CANCELS = "is zero to rounding: its terms cancel"


@dataclass(frozen=True)
class Norms:
    """``frobenius`` (N,) float64 CPU, to a relative ``error`` (N,); ``sigma``; the ``reason`` why a
    matrix has no value (NaN) or is zero; and, for a LowRank or where they were asked for, all
    singular values (N, min(m, n) or r).

    All of them are of the matrices divided by ``size`` (N,), powers of two: ratios stay exact where
    a norm itself leaves float64's range.
    """

    size: Tensor
    frobenius: Tensor
    error: Tensor
    sigma: Sigma
    reason: tuple[str | None, ...]
    spectrum: Tensor | None = None


def norms(op: Operator, options: SigmaOptions) -> Norms:
    """Both norms of every matrix of ``op``. The other matrices of the batch change a result by far
    less than the width asked for."""
    generator = options.generator
    state = generator.get_state()
    parts, order = [], []
    for index, group in groups(op):
        generator.set_state(state)
        parts.append(_of_group(group, options))
        order.append(index)
    return _joined(parts, order)


def frobenius(op: Operator) -> Tensor:
    """||M||_F (N,) float64 CPU; NaN where M is not finite."""
    parts, order = [], []
    for index, group in groups(op):
        if isinstance(group, LowRank):
            value = low_rank.frobenius_norm(group).cpu()
        else:
            scaled, size = normalized(group, form=False)
            value = sized(scaled.norm, size)
        parts.append(torch.where(value.isfinite(), value, torch.nan))
        order.append(index)
    return joined(parts, order)


def spectrum(op: LowRank) -> Tensor:
    """(N, min(m, n, r)) float64 CPU, descending; NaN where the factors are not finite."""
    order, parts = [], []
    for index, group in groups(op):
        assert isinstance(group, LowRank)
        part = low_rank.spectrum(group)
        parts.append(known(part.sigma, part.size).cpu())
        order.append(index)
    found = _spectra(parts, order)
    return torch.nn.functional.pad(found, (0, min(*op.shape[-2:], op.A.shape[-2]) - found.shape[1]))


def known(sigma: Tensor, size: Tensor) -> Tensor:
    """Singular values (*batch, p), descending, times their powers of two (*batch): all NaN where
    the first lies outside float64's range. Later ones may underflow to zero."""
    lost = sized(sigma[..., :1], size[..., None]).isnan()
    return torch.where(lost, torch.nan, sigma * size[..., None])


def groups(op: Operator) -> Iterator[tuple[Tensor, Operator]]:
    """Splits a batch: (positions in the flattened batch (N,) int, the matrices there with batch
    shape (N,)), each matrix once."""
    batch, (m, n) = op.batch_shape, op.shape[-2:]
    live = op.used_rank().expand(batch).reshape(-1).cpu()
    room = GROUP if op.device.type == "cpu" else ACCELERATED
    if not isinstance(op, LowRank) and batch.numel() * m * n <= TOGETHER:
        live = live.amax().expand_as(live)
    for r in live.unique().tolist():
        size = r * (m + n) if isinstance(op, LowRank) else m * n
        for index in (live == r).nonzero()[:, 0].split(max(1, room // size)):
            yield index, op.select(index, batch, r or None)


def joined(parts: list[Tensor], order: list[Tensor]) -> Tensor:
    """Results (N, ...) of the groups, in the order of the batch."""
    together = torch.cat(parts)
    out = torch.empty_like(together)
    out[torch.cat(order)] = together
    return out


def _of_group(op: Operator, options: SigmaOptions) -> Norms:
    if isinstance(op, LowRank):
        return _of_factors(op)
    group, size = normalized(op, slack=0.0 if options.certify else options.slack)
    lost = group.real & (group.error >= 1)  # what is left may be rounding alone
    norm = torch.where(lost, 0.0, group.norm)
    vanishing = torch.where(lost, group.frobenius, group.vanishing)
    reason = _reasons(norm, vanishing)
    if options.all:
        values, width = by_svd(group)
        sigma = direct(values[:, 0], width, "svd")
    else:
        values = None
        sigma = (
            direct(norm, torch.zeros_like(norm), "none") if all(reason) else largest(group, options)
        )
    zero = norm == 0
    bad = torch.tensor([r == NOT_FINITE for r in reason])

    def settled(x: Tensor, least: Tensor | float = 0.0) -> Tensor:
        return torch.where(bad, torch.nan, torch.where(zero, least, x))

    confidence = torch.where(zero | bad, 1.0, sigma.confidence)
    value, lower = settled(sigma.value), settled(sigma.lower)
    upper = settled(sigma.upper, vanishing)
    sigma = replace(sigma, value=value, lower=lower, upper=upper, confidence=confidence)
    spectrum = None if values is None else torch.stack([settled(x) for x in values.mT], -1)
    return Norms(size, settled(norm), group.error, sigma, reason, spectrum)


def _of_factors(op: LowRank) -> Norms:
    """Exact to rounding, from the core."""
    found = low_rank.spectrum(op)
    norm, magnitude = found.frobenius.cpu(), found.magnitude.cpu()
    rounding = gamma(4 * (sum(op.shape[-2:]) + op.A.shape[-2])) * magnitude
    error = torch.where(norm > 0, rounding / norm, 0.0)
    lost = error >= 1
    width = rounding + torch.where(lost, norm, 0.0)
    norm = torch.where(lost, 0.0, norm)
    reason = _reasons(norm, magnitude)
    bad = torch.tensor([r == NOT_FINITE for r in reason])
    sigma = torch.where(bad[:, None], torch.nan, found.sigma.cpu())
    sigma = torch.where(lost[:, None], 0.0, sigma)
    value = direct(sigma[:, 0], width, "factors")
    return Norms(found.size.cpu(), torch.where(bad, torch.nan, norm), error, value, reason, sigma)


def _reasons(norm: Tensor, vanishing: Tensor) -> tuple[str | None, ...]:
    """(N,) norms as computed; those of 0 may hide one as large as `vanishing` (N,)."""
    hidden = (CANCELS if x > 0 else ZERO for x in vanishing.tolist())
    found = zip(norm.tolist(), hidden, strict=True)
    return tuple(zero if x == 0 else None if x < torch.inf else NOT_FINITE for x, zero in found)


def _joined(parts: list[Norms], order: list[Tensor]) -> Norms:
    sigmas = [part.sigma for part in parts]
    tensors = {
        name: joined([getattr(s, name) for s in sigmas], order)
        for name in ("value", "lower", "upper", "confidence")
    }
    method = next((s.method for s in sigmas if s.method != "none"), "none")
    places = torch.cat(order).argsort().tolist()
    reasons = [r for part in parts for r in part.reason]
    spectra = [part.spectrum for part in parts if part.spectrum is not None]
    return Norms(
        joined([part.size for part in parts], order),
        joined([part.frobenius for part in parts], order),
        joined([part.error for part in parts], order),
        Sigma(**tensors, method=method, products=max(s.products for s in sigmas)),
        tuple(reasons[place] for place in places),
        _spectra(spectra, order) if spectra else None,
    )


def _spectra(parts: list[Tensor], order: list[Tensor]) -> Tensor:
    """Singular values (N, p) of groups that differ in rank, the shorter ones continued by zeros."""
    width = max(part.shape[1] for part in parts)
    return joined(
        [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts], order
    )
