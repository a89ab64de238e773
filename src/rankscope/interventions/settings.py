"""What the numbers of edited trials depend on beside the edits."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on beside the edits.

    Attributes:
        rows: validation rows, the first ones.
        refit: training rows for a refitted head, drawn once; 0: no refitted head.
        layers: a regular expression: only layers whose name it finds are edited.
        weights: which of a trial's are edited, "last" or "best".
        precision: of products, "float32" or "bfloat16".
        forgetting: SHA-256 of the text that the language loss is taken on; None: no such loss.
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
        """Of the folder that results are kept in: equal settings, equal numbers."""
        settings = asdict(self)
        if self.forgetting is None:  # as before there was such a setting
            del settings["forgetting"]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
