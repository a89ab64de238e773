"""Settings of an intervention: what its numbers depend on besides the edits."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass


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
