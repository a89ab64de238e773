"""The interface of a pack, as the training loop uses it, and its forward pass. Letters: K trials, B
batch, T tokens, C classes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rankscope.study.trial import Trial
from rankscope.train.data import Encoded
from rankscope.train.optimizer import FlatParams
from rankscope.train.packed import DropoutMasks
from rankscope.train.spectra import Updates


class Pack(Protocol):
    """K trials that train together: ``AdapterPack``, or with K = 1 ``FullPack`` and ``PeftTrial``.

    ``params`` are their trained weights. The model takes inputs (B, T), repeated ``repeats`` times;
    where ``takes_dropouts``, its calls of dropout are answered by ``masks``. Where ``own_head``,
    the losses of a language model are taken from its own logits (``language``).
    """

    trials: list[Trial]
    model: Any
    masks: DropoutMasks
    params: list[FlatParams]
    repeats: int
    takes_dropouts: bool
    own_head: bool

    def updates(self) -> Iterable[Updates]: ...

    def save(self, k: int, buffers: Sequence[Tensor], folder: Path) -> None: ...


def logits(pack: Pack, inputs: dict[str, Tensor]) -> Tensor:
    """All trials on one batch: inputs (B, T), on any device -> (K, B, C)."""
    found = outputs(pack, inputs).to(pack.params[0].values.dtype)
    return found.unflatten(0, (len(pack.trials), -1))


def outputs(pack: Pack, inputs: dict[str, Tensor], *, hidden: bool = False) -> Tensor:
    """The model's output for one batch, trial after trial: logits, or with ``hidden`` the input of
    its head."""
    masks = pack.masks
    masks.batch = len(inputs["input_ids"])
    device = pack.params[0].values.device
    repeated = {
        name: x.to(device, non_blocking=True).repeat(pack.repeats, 1) for name, x in inputs.items()
    }
    with contextlib.ExitStack() as stack:
        if pack.model.training:
            stack.enter_context(masks.drawing())
            if pack.takes_dropouts:
                stack.enter_context(masks)
        model = pack.model
        found: Tensor = model.base_model(**repeated)[0] if hidden else model(**repeated).logits
    return found


PADDED = 1e-5  # of the largest logit: beyond rounding in float32


def reads_padding(pack: Pack, split: Encoded) -> bool:
    """`padding_counts` of a pack, without dropout."""
    training = pack.model.training
    pack.model.eval()
    found = padding_counts(lambda inputs: logits(pack, inputs), split)
    pack.model.train(training)
    return found


@torch.no_grad()
def padding_counts(answers: Callable[[dict[str, Tensor]], Tensor], split: Encoded) -> bool:
    """Whether a short row's ``answers``, inputs (B, T) -> (K, B, C), change when it is padded
    beside the longest: ConvBERT's convolutions, Funnel's pooling and FNet's transform reach into
    padding, whatever the mask says.

    ``ValueError``, one line, where they change from call to call."""
    ends = split.lengths.argsort(stable=True)[[0, -1]]
    alone, again, both = (answers(split.batch(rows)[0]) for rows in (ends[:1], ends[:1], ends))
    if bool((again - alone).abs().max() > PADDED * alone.abs().max()):
        raise ValueError(
            "expected a model that answers the same row alike each time; found answers drawn at "
            "random: its metrics could not be reproduced (Reformer: set hash_seed in config.json)"
        )
    return not bool((both[:, :1] - alone).abs().max() <= PADDED * both.abs().max())
