"""The families of edits that are made of each trained update."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

ALL = "all"  # the scope of a variant that edits all chosen layers at once

# Levels of each family: factors t, shares c of sigma_1(W), numbers of directions k, draws.
FAMILIES: dict[str, tuple[float, ...]] = {
    "scale": (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.5, 6.5, 9.0),
    "cap": (0.25, 0.5, 1.0),
    "restore": (0.0,),
    "top": (1, 2, 4),
    "without_top": (1, 2, 4),
    "flat": (8,),
    "random": (0, 1, 2, 3, 4),
}
OWN = ("scale", 1.0)  # the variant that changes nothing; every trial has it


@dataclass(frozen=True)
class Variant:
    """One edit of one trained update. ``level`` is the family's number; for "random" it is 0, and
    ``draw`` numbers the draws. ``scope``: "all", or the one layer that is edited while the
    others stay as trained."""

    family: str
    level: float = 0.0
    draw: int = 0
    scope: str = ALL


def variants(
    families: Collection[str] = tuple(FAMILIES), *, layers: Collection[str] = ()
) -> list[Variant]:
    """The variants of every update, the unedited one (scale 1) first; with ``layers`` each edit
    also on each of them alone.

    ``ValueError`` for an unknown family.
    """
    for family in families:
        if family not in FAMILIES:
            raise ValueError(f"families: expected some of {', '.join(FAMILIES)}; found {family!r}")
    found = [Variant(*OWN)]
    for family in (name for name in FAMILIES if name in families):
        for level in FAMILIES[family]:
            one = Variant(family, draw=int(level)) if family == "random" else Variant(family, level)
            found += [one] if one not in found else []
    alone = [
        Variant(one.family, one.level, one.draw, layer) for layer in layers for one in found[1:]
    ]
    return found + alone
