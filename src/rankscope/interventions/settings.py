"""The families of edits that ``rankscope intervene`` makes, and the other settings that its numbers
depend on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass

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


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on besides the edits.

    Attributes:
        rows: validation rows, the first ones.
        refit: training rows for a refitted head, drawn once; 0: no refitted head.
        layers: a regular expression: only layers with matching names are edited.
        weights: which of a trial's weights are edited, "last" or "best".
        precision: of matrix products, "float32" or "bfloat16".
        forgetting: SHA-256 of the text for the language loss; None: no such loss.
    """

    rows: int = 512
    refit: int = 512
    layers: str | None = None
    weights: str = "last"
    precision: str = "float32"
    forgetting: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("rows", 2), ("refit", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name}: expected a number from {least}; found {value}")
        if self.weights not in ("last", "best"):
            raise ValueError(f'weights: expected "last" or "best"; found {self.weights!r}')
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f'precision: "float32" or "bfloat16"; found {self.precision!r}')
        try:
            re.compile(self.layers or "")
        except re.error as error:
            raise ValueError(f"layers: expected a regular expression; {error}") from None

    @property
    def key(self) -> str:
        """The name of the results' folder: equal settings give equal numbers."""
        settings = asdict(self)
        if self.forgetting is None:  # the key of stores that are older than this setting
            del settings["forgetting"]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
