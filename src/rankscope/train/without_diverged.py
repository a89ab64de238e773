"""Rebuilds a pack without its diverged trials. Letters: K trials, S sites of one shape, k of them
in a bucket."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from rankscope.train.adapters import AdapterPack
from rankscope.train.run import Run
from rankscope.train.spectra import Record


@torch.no_grad()
def without_diverged(run: Run) -> Run:
    """A run of the trials that have not diverged, with their weights, moments and results.

    Their numbers are those of the whole pack up to rounding: products of fewer rows may be summed
    in another order."""
    assert isinstance(run.pack, AdapterPack)
    kept = run.alive.nonzero().flatten().tolist()
    pack = AdapterPack(
        [run.pack.trials[k] for k in kept],
        model=run.pack.base,
        task=run.task,
        device=run.device,
        dtype=run.pack.params[0].values.dtype,
    )
    pack.masks.state = run.pack.masks.state
    new = type(run)(pack, run.task, run.train, run.validation)
    for buffers, olds in zip(new.buffers().values(), run.buffers().values(), strict=True):
        _carry(pack, buffers, run.pack, olds, kept)
    new.losses = run.losses[kept]
    new.done, new.counted, new.optimizer.steps = run.done, run.counted, run.optimizer.steps
    new.best.metric = [run.best.metric[k] for k in kept]
    new.best.step = [run.best.step[k] for k in kept]
    new.evaluations = [run.evaluations[k] for k in kept]
    new.untrained = None if run.untrained is None else [run.untrained[k] for k in kept]
    found = [_part(record, kept) for record in run.spectra.records]
    new.spectra.records = [record for record in found if record is not None]
    return new


def _carry(
    pack: AdapterPack,
    buffers: Sequence[Tensor],
    old: AdapterPack,
    old_buffers: Sequence[Tensor],
    kept: Sequence[int],
) -> None:
    """Copies each trial's weights, heads to heads and adapters to adapters. Buckets of ranks may
    have changed, and with them the padding."""
    heads = int(bool(pack.heads))  # language models have none
    for i, (group, buffer) in enumerate(zip(pack.params, buffers, strict=True)):
        same_kind = slice(0, 1) if i < heads else slice(heads, None)
        for new in range(group.members.start, group.members.stop):
            source, old_buffer = next(
                pair
                for pair in zip(old.params[same_kind], old_buffers[same_kind], strict=True)
                if pair[0].members.start <= kept[new] < pair[0].members.stop
            )
            for view, was in zip(group.views(buffer), source.views(old_buffer), strict=True):
                row = was[kept[new] - source.members.start]
                view[new - group.members.start] = row[tuple(map(slice, view.shape[1:]))]


def _part(record: Record, kept: Sequence[int]) -> Record | None:
    """The record of the kept trials, in their new places."""
    places = [new for new, k in enumerate(kept) if 0 <= k - record.start < len(record.alive)]
    if not places:
        return None
    columns = [kept[new] - record.start for new in places]
    alive = [record.alive[column] for column in columns]
    return dataclasses.replace(
        record, start=places[0], alive=alive, numbers=record.numbers[:, :, columns]
    )
