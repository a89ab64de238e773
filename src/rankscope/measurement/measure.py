"""Measures an adapter or a checkpoint, with or without its base, as a table of its layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from rankscope.linalg.rounding import undisturbed
from rankscope.measurement.row import Row, compared, measured_together
from rankscope.measurement.table import Table
from rankscope.weights import read
from rankscope.weights.matrix import Matrix, Reading, Skipped, distinct
from rankscope.weights.tensors import one_line

T = TypeVar("T")
R = TypeVar("R")

# bytes of matrices that wait for others of their shape: about the size of a processor's caches
TOGETHER = 2**22
COUNT = 1024  # of them
AT_ONCE = 2  # large matrices, each on its own thread
SMALL = 2**23  # bytes up to which threads gain nothing: Python's own work counts there
ROOM = 2**28  # bytes of matrices that may be in memory while the next is read, in any case


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


@undisturbed
def tabulated(
    reading: Reading,
    source: str,
    base: str | None,
    *,
    rtol: float,
    certify: bool = False,
    energy: bool = True,
    together: bool = False,
) -> Table:
    """Measures the matrices of a reader, one in memory at a time.

    With ``together`` small matrices wait for others of their shape and are measured in one pass,
    and large ones are measured two at a time; only for readers whose matrices outlast the next one,
    as those gathered from a sharded model do not.

    A matrix is skipped, with the reason, if LAPACK fails on it or memory runs out. With
    ``energy=False`` the singular values for effective ranks and energy ranks are not computed.
    """

    def measured(group: list[Matrix] | Skipped) -> _Outcome:
        if isinstance(group, Skipped):
            return _Outcome((), (group,), {})
        spectra: dict[str, tuple[int, ...]] = {}
        try:
            rows = measured_together(
                group, rtol=rtol, certify=certify, spectra=spectra if energy else None
            )
        except (torch.linalg.LinAlgError, torch.OutOfMemoryError, MemoryError) as error:
            if len(group) > 1:
                return _joined([measured([one]) for one in group])
            why = f"{group[0].matrix} cannot be measured: {one_line(error)}"
            return _Outcome((), (Skipped(group[0].layer, why),), {})
        return _Outcome(tuple(rows), (), spectra)

    groups = _groups(distinct(reading), together)
    threads = torch.get_num_threads() if together else 1
    found = _joined(overlapped(groups, measured, _size, threads))
    return Table(source, base, compared(found.rows), found.skipped, found.energy_ranks)


class _Outcome(NamedTuple):
    """What became of some matrices, in their order."""

    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    energy_ranks: dict[str, tuple[int, ...]]


def _joined(parts: list[_Outcome]) -> _Outcome:
    return _Outcome(
        tuple(row for part in parts for row in part.rows),
        tuple(one for part in parts for one in part.skipped),
        {layer: ranks for part in parts for layer, ranks in part.energy_ranks.items()},
    )


def _groups(reading: Reading, together: bool) -> Iterator[list[Matrix] | Skipped]:
    """The matrices that are measured in one pass, and what was skipped. Holds none of them while
    the next are read."""
    waiting: list[Matrix] = []
    held = 0
    for one in reading:
        if isinstance(one, Skipped):
            yield one
            continue
        waiting.append(one)
        held += _size([one])[0]
        del one  # before the next is read
        if not together or held > TOGETHER or len(waiting) >= COUNT:
            group, waiting, held = waiting, [], 0
            yield group
            del group
    if waiting:
        yield waiting


def _size(group: list[Matrix] | Skipped) -> tuple[int, int]:
    """Bytes of the matrices of a group, and how many numbers they are."""
    matrices = [] if isinstance(group, Skipped) else group
    leaves = [leaf for one in matrices if one.operator is not None for leaf in one.operator.leaves]
    return sum(leaf.nbytes for leaf in leaves), sum(leaf.numel() for leaf in leaves)


def overlapped(
    items: Iterable[T], work: Callable[[T], R], size: Callable[[T], tuple[int, int]], threads: int
) -> list[R]:
    """``[work(item) for item in items]``. Items are taken in order by the calling thread.

    ``size`` gives the bytes of an item and how many numbers they are. Small items are worked on by
    the calling thread. Two threads share the others, each with half of torch's ``threads``: two
    cores then work on two matrices, and no core waits for the disk. Three items are held at most,
    and only if two take no more than ``ROOM`` or are numbers of 16 bits: three of these need 1.5
    times what one takes in float32, which is the limit of memory (benchmarks/streaming.py).
    """
    before, largest = torch.get_num_threads(), 0
    found: list[Future[R]] = []
    running: dict[Future[R], int] = {}
    pool = ThreadPoolExecutor(AT_ONCE, "measure", torch.set_num_threads, (threads // AT_ONCE,))
    try:
        for item in items:
            held, entries = size(item)
            largest = max(largest, 2 * held if held == 2 * entries else 0)
            room = max(ROOM, largest)
            if threads >= AT_ONCE and SMALL < held <= room:
                future = pool.submit(work, item)
                running[future] = held
            else:
                future = Future()
                future.set_result(work(item))
            found.append(future)
            del item  # before the next is read
            while len(running) > AT_ONCE or sum(running.values()) > room:
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[done]
        return [future.result() for future in found]
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # a thread sets the number of all that start after it
