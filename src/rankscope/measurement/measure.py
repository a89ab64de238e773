"""Measures an adapter or a checkpoint, with or without its base, as a table of its layers."""

from __future__ import annotations

import re
from pathlib import Path

from rankscope.measurement.row import Row
from rankscope.measurement.table import Table, tabulated
from rankscope.weights import Skipped, read

__all__ = ["Row", "Skipped", "Table", "measure"]


def measure(
    source: str | Path,
    *,
    base: str | Path | None = None,
    layers: str | None = None,
    rtol: float = 1e-3,
    certify: bool = False,
    alpha: float | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    base_revision: str | None = None,
) -> Table:
    """Stable ranks of W, dW and W + dW, layer by layer; nothing is dropped silently.

    Args:
        source: an adapter of any method of PEFT, a LoRA file of loralib, kohya,
            ComfyUI or diffusers, or a full
            checkpoint: a path or a hub id.
        base: the pretrained model, a path or a hub id, read tensor by tensor. Without it
            an adapter gives dW alone, and a checkpoint its weights W; with it a
            checkpoint gives dW = W_FT - W.
        layers: a regular expression; only layers whose name it finds are measured, the
            others are listed as skipped.
        rtol: target relative width of the bounds on the stable rank.
        certify: prove the upper bounds, which otherwise hold with high probability.
        alpha: LoRA's alpha for loralib files, which store none; without it the scale is taken to
            be 1.
        subfolder: the folder inside ``source``, where that holds several adapters.
        revision: branch, tag or commit of ``source`` on the hub.
        base_revision: the same for ``base``; by default the adapter's configuration decides.

    Returns a Table: ``.rows``, ``.skipped``, ``.to_dict()``, ``.to_pandas()``, ``.summary()``,
    ``.peft_settings()``. Raises ``ValueError``, one line, where a file is missing, malformed, or no
    low-rank update.

        >>> measure("adapter", base="model").to_pandas()[["layer", "matrix"]]  # doctest: +SKIP
    """
    if not 0 < rtol < 1:
        raise ValueError(f"rtol: expected a number in (0, 1), such as 0.001; found {rtol}.")
    reading = read(
        source,
        base=base,
        layers=pattern(layers),
        alpha=alpha,
        subfolder=subfolder,
        revision=revision,
        base_revision=base_revision,
    )
    name = None if base is None else str(base)
    return tabulated(reading, str(source), name, rtol=rtol, certify=certify, together=True)


def pattern(layers: str | None) -> re.Pattern[str] | None:
    """``layers`` compiled; ``ValueError``, one line, if it is not a regular expression."""
    try:
        return None if layers is None else re.compile(layers)
    except re.error as error:
        raise ValueError(
            f"layers: expected a regular expression; found {layers!r}: {error}."
        ) from error
