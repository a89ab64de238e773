"""Low-rank factors under names that are read nowhere: such a file is no table of weights W.

Letters: m rows, n columns, r rank. A pair is (r, n) and (m, r) in one module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rankscope.weights.tensors import READABLE, Tensors

# What names the two factors of a pair; other names count only where r is small.
SAID = re.compile(r"lora|adapter|(^|[._])(a|b|down|up|left|right|low|rank)([._]|$)", re.IGNORECASE)
# times r at most min(m, n), of a pair whose names say nothing: a transformer's MLP has 4 r = m = n
SMALL = 4


def check_no_factors(tensors: Tensors) -> None:
    """``ValueError`` where more than two thirds of a file's matrices are pairs of factors."""
    shapes = {
        name: header.shape
        for name, header in tensors.headers.items()
        if header.dtype in READABLE and len(header.shape) == 2
    }
    modules: dict[str, list[str]] = {}
    for name in shapes:
        modules.setdefault(_module(name), []).append(name)
    pairs = [names for names in modules.values() if len(names) == 2 and _are_factors(names, shapes)]
    if 3 * len(pairs) > len(shapes):
        one, other = pairs[0]
        raise ValueError(
            f"{tensors.where}: expected weights, or factors under names of a LoRA format; "
            "found pairs that look "
            f"like factors (r, n) and (m, r), such as {one} {shapes[one]} and {other} "
            f"{shapes[other]}. "
            "Rename them to LAYER.lora_A and LAYER.lora_B, or give the base that they are "
            "weights beside: --base MODEL"
        )


def _module(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[0]


def _are_factors(names: list[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    for one, other in (names, names[::-1]):
        (r, n), (m, r2) = shapes[one], shapes[other]
        if r == r2 and r <= min(m, n):
            ends = [name.removeprefix(_module(names[0])) for name in names]
            if all(SAID.search(end) for end in ends) or SMALL * r < min(m, n):
                return True
    return False
