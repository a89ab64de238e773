"""A smaller adapter as a result: what each layer lost, and the folder it is written into.
docs/formats.md, "Written: resized adapters".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankscope.measurement.new_folder import write_json, written_whole
from rankscope.weights.lora_pairs import LoraPairs, open_pairs

Factors = tuple[Tensor, Tensor]  # B (m, k) and A (k, n)
RESULT = "resize.json"


@dataclass(frozen=True)
class Cut:
    """One layer: its rank before and after, and how far what is written lies from dW.

    ``error`` is ||dW - dW_k||_F / ||dW||_F, ``spectral_error`` the same in the spectral norm, both
    of the stored, rounded factors; each is off by ``uncertainty`` at most. An update that is zero
    stays zero: rank 0, errors 0.
    """

    layer: str
    shape: tuple[int, int]
    r: int
    rank: int
    scale: float
    frobenius_norm: float
    spectral_norm: float
    error: float
    spectral_error: float
    uncertainty: float
    note: str | None = None


@dataclass(frozen=True)
class Lost:
    """A tensor that changed and that the adapter does not hold. ``share``: ||W' - W||_F / ||W||_F,
    None where that has no value."""

    name: str
    why: str
    share: float | None


@dataclass(frozen=True)
class Resized:
    """What ``resize`` or ``extract`` wrote. ``kept``: the other tensors, unchanged; ``threshold``:
    the smallest singular value that a budget left, None without one; ``lost``: of a full
    fine-tune."""

    source: str
    to: str
    format: str
    goal: Mapping[str, Any]
    bytes_before: int
    bytes_after: int
    layers: tuple[Cut, ...]
    kept: tuple[str, ...]
    threshold: float | None = None
    notes: tuple[str, ...] = ()
    lost: tuple[Lost, ...] = ()

    @property
    def error(self) -> float:
        """The relative Frobenius error of all layers together."""
        whole = math.hypot(*(cut.frobenius_norm for cut in self.layers))
        lost = math.hypot(*(cut.error * cut.frobenius_norm for cut in self.layers))
        return lost / whole if whole else 0.0

    @property
    def spectral_error(self) -> float:
        """The same in the spectral norm, of the block-diagonal matrix of all layers."""
        whole = max(cut.spectral_norm for cut in self.layers)
        lost = max(cut.spectral_error * cut.spectral_norm for cut in self.layers)
        return lost / whole if whole else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The content of resize.json."""
        from rankscope import __version__

        content = {**vars(self), "error": self.error, "spectral_error": self.spectral_error}
        content |= {"goal": dict(self.goal), "notes": list(self.notes)}
        del content["layers"], content["kept"], content["lost"]
        # not asdict, which copies deeply: a quarter of the time that the cuts take
        layers = [{**vars(cut), "shape": list(cut.shape)} for cut in self.layers]
        long = {"layers": layers, "kept": list(self.kept), "lost": [*map(asdict, self.lost)]}
        return {"rankscope": __version__, **content, **long}


def write_resized(
    place: Path, pairs: LoraPairs, factors: Mapping[str, Factors], result: Resized
) -> None:
    """Makes the folder ``place``, whole or not at all: the tensors, read back, and ``RESULT``."""

    def write(folder: Path) -> None:
        pairs.write(folder, factors)
        check_written(pairs, folder, factors)
        write_json(folder / RESULT, result.to_dict())

    written_whole(place, write)


def check_written(pairs: LoraPairs, folder: Path, factors: Mapping[str, Factors]) -> None:
    """Reads the new file back: the same factors, ranks and scales, or ``ValueError``."""
    written = open_pairs(folder / pairs.file)
    if [pair.layer for pair in written.pairs] != [pair.layer for pair in pairs.pairs]:
        raise ValueError(f"{pairs.source}: the file written has other layers. Nothing was kept.")
    for pair, before in zip(written.pairs, pairs.pairs, strict=True):
        same = all(
            torch.equal(written.tensors.read(name).flatten(1), factor.flatten(1))
            for name, factor in zip((pair.B, pair.A), factors[pair.layer], strict=True)
        )
        A = factors[pair.layer][1]
        scale = pairs.scale_at(before, A.shape[0])
        if not same or not math.isclose(pair.scale, scale, rel_tol=4e-16, abs_tol=0.0):
            raise ValueError(
                f"{pairs.source}: {pair.layer} does not read back as written: expected scale "
                f"{scale!r}; found {pair.scale!r}. Nothing was kept."
            )
