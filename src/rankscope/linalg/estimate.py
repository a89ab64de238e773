"""A measured value with its bounds, their confidence, and the method."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from numpy import ndindex
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """`lower <= value <= upper`; floats for one matrix, float64 CPU tensors of the batch's shape
    for a batch.

    `met`: whether the bounds are as close to each other as was asked; where it is False, `value` is
    not known to that width, and certify=True or a larger rtol may help. `confidence` is the
    probability, over the random start vector, that the true value lies within the bounds; 1.0 where
    they are certain. `method` is "factors", "svd", "gram" (eigenvalues of M^T M), "lanczos" or
    "cholesky" (which proved the upper bound). `products` counts the products M x and M^T x that
    were computed, per matrix. `seed` is that of the start vector, if it was drawn without a given
    generator: generator=torch.Generator().manual_seed(seed) draws it again. Where the quantity is
    undefined, all three numbers are NaN, `met` is True and `reason` says why; for a batch `reason`
    is a tuple in row-major order. `estimate[i]` is that of one matrix.
    """

    value: float | Tensor
    lower: float | Tensor
    upper: float | Tensor
    confidence: float | Tensor
    method: str
    products: int
    reason: str | tuple[str | None, ...] | None = None
    met: bool | Tensor = True
    seed: int | None = None

    def __getitem__(self, index: int | tuple[int, ...]) -> Estimate:
        """The estimate of one matrix of a batch, e.g. `estimate[3]` or `estimate[3, 0]`."""
        if not isinstance(self.value, Tensor):
            raise IndexError("this Estimate is of one matrix; only one of a batch can be indexed.")
        index = (index,) if isinstance(index, int) else tuple(index)
        shape = self.value.shape
        if len(index) != len(shape):
            raise IndexError(
                f"this Estimate has batch shape {tuple(shape)}; index it with {len(shape)} "
                "integers."
            )
        flat = int(torch.arange(prod(shape)).reshape(shape)[index])
        reason = self.reason[flat] if isinstance(self.reason, tuple) else self.reason
        numbers = (self.value, self.lower, self.upper, self.confidence)
        value, lower, upper, confidence = (float(torch.as_tensor(x)[index]) for x in numbers)
        met = bool(torch.as_tensor(self.met).expand(shape)[index])
        return Estimate(
            value, lower, upper, confidence, self.method, self.products, reason, met, self.seed
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the value between its bounds, and how sure they are; of a batch
        the first rows."""
        from rankscope.notebook import MOST, number, table

        shape = tuple(self.value.shape) if isinstance(self.value, Tensor) else ()
        single = not isinstance(self.value, Tensor)
        places = list(ndindex(shape))[:MOST]
        held = [self if single else self[place] for place in places]
        rows = [
            [
                *([] if single else [", ".join(map(str, place))]),
                *(number(float(x), ".6g") for x in (one.value, one.lower, one.upper)),
                "certain" if one.confidence == 1 else number(float(one.confidence)),
                one.reason or ("" if one.met else "wider than was asked"),
            ]
            for place, one in zip(places, held, strict=True)
        ]
        names = ["value", "lower", "upper", "confidence", "note"]
        more = f"{prod(shape) - len(rows)} more" if prod(shape) > len(rows) else ""
        return table(
            names if single else ["matrix", *names],
            rows,
            numbers=[True] * (4 if single else 5) + [False],
            note=", ".join(part for part in (f"by {self.method}", more) if part),
        )
