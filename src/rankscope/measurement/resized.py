"""A smaller adapter as a result: what each layer lost, and the folder it is written into.
docs/formats.md, "Written: resized adapters"."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankscope.weights.lora_pairs import LoraPairs, open_pairs


def new_folder(to: str | Path, source: str | Path) -> Path:
    """The path of a new folder ``to``. ``ValueError``, one line, if it exists, has no parent
    folder, or lies inside ``source``."""
    place = Path(to).expanduser()
    if not str(to) or "\0" in str(to):
        raise ValueError(
            f"{str(to)!r}: expected a folder's name to make; found none that can be one."
        )
    if os.path.lexists(place):
        raise ValueError(f"{to}: expected a folder that is not there yet; found one. Name another.")
    parent = place.absolute().parent
    if not parent.is_dir():
        raise ValueError(f"{to}: expected a folder {parent} to make it in; found none.")
    own = Path(source).expanduser()
    if own.is_dir() and parent.resolve().is_relative_to(own.resolve()):
        raise ValueError(f"{to}: expected a folder outside {source}; found one inside.")
    return place


def written_whole(place: Path, write: Callable[[Path], None]) -> None:
    """Makes the folder ``place`` with all that ``write`` puts into it, or not at all."""
    parent = place.absolute().parent
    partial = Path(tempfile.mkdtemp(dir=parent, prefix=f".{place.name[:40]}."))
    try:
        write(partial)
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o777 & ~mask)
        if os.path.lexists(place):
            raise ValueError(f"{place}: expected no such folder; one appeared meanwhile.")
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON, one entry and one list item per line: faster than ``indent`` for thousands of
    items. NaN is an error, as JSON has none."""
    entries = [f"{json.dumps(name)}: {_lines(value)}" for name, value in content.items()]
    path.write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")


def _lines(value: Any) -> str:
    if not (isinstance(value, list) and value):
        return json.dumps(value, allow_nan=False)
    return "[\n " + ",\n ".join(json.dumps(one, allow_nan=False) for one in value) + "\n]"


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
