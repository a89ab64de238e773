"""Checks, before a pack trains, that its trials do not affect each other and compute what PEFT
computes.

Adapters and heads are first moved away from their initial values (B = 0 would show nothing). Then:

1. on the pack's first batch, in training mode with dropout, the logits of each trial are those of
   the stock model with that adapter alone, through PEFT's own layers;
2. moving the adapters and heads of some trials moves no bit of the other trials' logits;
3. logits in evaluation mode, and gradients, are PEFT's, for one trial of each rank and scaling
   rule.

(2) takes the two shortest rows of the training set, (3) the shortest and the longest: a model may
treat long rows and padding in another way. All in the precision of the weights, before any rounding
to bfloat16. ``benchmarks/cost_of_proof.py`` measures what this costs.

For a language model the losses of all learnt tokens take the place of the logits: on one side by
``language`` from hidden states, on the other from the stock model's own logits.
Letters: K trials, B batch, C classes (or tokens that are learnt, n instead of B, C).
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankscope.train.adapters import AdapterPack
from rankscope.train.data import Encoded
from rankscope.train.full import FullPack
from rankscope.train.language import learnt, token_losses
from rankscope.train.loading import sharing_weights
from rankscope.train.model import weight_of
from rankscope.train.optimizer import differentiate
from rankscope.train.pack import Pack, logits
from rankscope.train.packed import DropoutMasks, NotIsolated
from rankscope.train.packed_dora import PackedDoRA
from rankscope.train.peft_adapter import adapted, leave, trained_weights

Batch = tuple[dict[str, Tensor], Tensor]  # inputs, labels
_SIZE = 0.3  # of a moved update: ||s B A|| / ||W||
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-9}  # of the largest logit, or gradient


def prove(pack: Pack, train: Encoded, rows: Tensor) -> None:
    """``NotIsolated``, one line, where it fails; afterwards the pack is as it was.

    Args:
        rows: the first batch's rows of ``train``.
    """
    if isinstance(pack, AdapterPack):
        _prove_adapters(pack, train, rows)
    elif isinstance(pack, FullPack) and pack.stock is not None:
        _prove_full(pack, pack.stock, train, rows)


def _prove_adapters(pack: AdapterPack, train: Encoded, rows: Tensor) -> None:
    state, training = pack.masks.state, pack.model.training
    kept = [group.values.clone() for group in pack.params]
    try:
        with _refused():
            _move(pack, seed=0)
            reference, every = _PeftReference(pack), range(len(pack.trials))
            first = train.batch(rows)
            with torch.no_grad():
                _equal(_logits(pack, first), reference.logits(first, every), "logits in training")
                by_length = train.lengths.argsort(stable=True)
                _independent(pack, train.batch(by_length[:2]))
                ends = train.batch(by_length[[0, -1]])
                some = list({config: k for k, config in enumerate(reference.configs)}.values())
                pack.model.eval()
                together = _answers(pack, ends)[some]
                _equal(
                    together, reference.logits(ends, some, training=False), "logits in evaluation"
                )
            _gradients(pack, reference, ends, some)
    finally:
        for group, values in zip(pack.params, kept, strict=True):
            group.values.copy_(values)
        pack.masks.state = state
        pack.model.train(training)


def _prove_full(pack: FullPack, stock: PreTrainedModel, train: Encoded, rows: Tensor) -> None:
    """Logits and gradients of the patched model and of the stock model, over the same weights."""
    weights = pack.params[0].parameters
    ends = train.batch(train.lengths.argsort(stable=True)[[0, -1]])
    plain = copy.copy(pack)
    plain.model, plain.own_head = stock.to(pack.params[0].values.device), pack.is_language
    with _refused():
        with torch.no_grad():
            first = train.batch(rows)
            _equal(_logits(pack, first), _logits(plain, first), "logits in training")
        ours, theirs = _logits(pack, ends), _logits(plain, ends)
        found, expected = (torch.autograd.grad(y.square().sum(), weights) for y in (ours, theirs))
        largest = max(float(g.abs().max()) for g in expected)
        for g, h in zip(found, expected, strict=True):
            _equal(g, h, "gradients", largest)
        pack.model.eval()
        stock.eval()
        with torch.no_grad():
            _equal(_answers(pack, ends), _answers(plain, ends), "logits in evaluation")


class _PeftReference:
    """The stock model with PEFT's own layers: one adapter per rank, pattern and scaling rule, into
    which each trial's weights are loaded in turn."""

    def __init__(self, pack: AdapterPack) -> None:
        self.pack, first = pack, pack.params[0].values
        self.configs = [
            (trial.rank, *sorted(trial.rank_pattern.items()), trial.scaling, trial.lora_alpha)
            for trial in pack.trials
        ]
        members = list({config: k for k, config in enumerate(self.configs)}.values())
        self.names = {self.configs[k]: f"trial{k}" for k in members}
        names = list(self.names.values())
        model = adapted(sharing_weights(pack.stock), [pack.config(k) for k in members], names)
        self.model = model.to(device=first.device, dtype=first.dtype).train()
        self.weights = {name: trained_weights(self.model, name) for name in names}
        self.masks = DropoutMasks(1, 0, first.device)

    def load(self, k: int) -> dict[str, nn.Parameter]:
        """Puts trial k's values into its adapter. -> the weights trained, by their names"""
        name = self.names[self.configs[k]]
        state = self.pack.state(k, [group.values for group in self.pack.params])
        weights = self.weights[name]
        if state.keys() != weights.keys():
            odd = sorted(state.keys() ^ weights.keys())[0]
            raise NotIsolated(f"PEFT and the pack train different weights: {odd}")
        with torch.no_grad():
            torch._foreach_copy_([weights[key].data for key in state], list(state.values()))
            for site, (B, A) in self.pack.starts(k).items():
                W = weight_of(self.pack.sites[site].base)
                layer = self.model.get_submodule(f"base_model.model.{site}")
                leave(layer.base_layer, W - self.pack.trials[k].at(site).scale * (B @ A))
        if name != self.model.active_adapter:
            self.model.set_adapter(name)
        return weights

    def forward(self, batch: Batch, *, training: bool) -> Tensor:
        """(B, C)"""
        inputs, labels = batch
        if self.model.training != training:
            self.model.train(training)
        self.masks.state, self.masks.batch = self.pack.masks.state, len(inputs["input_ids"])
        device = self.pack.params[0].values.device
        with contextlib.ExitStack() as stack:
            if training:
                stack.enter_context(self.masks.drawing())
                if device.type != "cpu":  # torch's fused dropout draws in another order there
                    stack.enter_context(self.masks)
            found: Tensor = self.model(**{name: x.to(device) for name, x in inputs.items()}).logits
        if not self.pack.is_language:
            return found
        rows, places = learnt(labels)
        targets = labels[rows, places + 1].to(device)
        return nn.functional.cross_entropy(found[rows, places], targets, reduction="none")

    def logits(self, batch: Batch, trials: Iterable[int], *, training: bool = True) -> Tensor:
        """(trials, B, C)"""
        found = []
        for k in trials:
            self.load(k)
            found.append(self.forward(batch, training=training))
        return torch.stack(found)


def _answers(pack: AdapterPack | FullPack, batch: Batch) -> Tensor:
    """(K, B, C)"""
    inputs, labels = batch
    return token_losses(pack, inputs, labels) if pack.is_language else logits(pack, inputs)


def _logits(pack: AdapterPack | FullPack, batch: Batch) -> Tensor:
    """(K, B, C) in training, always with the same dropouts."""
    state = pack.masks.state
    if not pack.model.training:
        pack.model.train()
    found = _answers(pack, batch)
    pack.masks.state = state
    return found


def _independent(pack: AdapterPack, batch: Batch) -> None:
    """Moves the trials' weights in turn, and compares each trial's logits bit for bit.

    In round e those trials k are moved whose number k + 1 has bit e - 1; in round 0 none is. These
    sets are distinct, not empty, and none is another's complement, so for any two trials there are
    two rounds in which the one has the same weights and the other has not.
    """
    K, here = len(pack.trials), [group.values.clone() for group in pack.params]
    _move(pack, seed=1)
    there = [group.values.clone() for group in pack.params]
    at: tuple[dict[int, Tensor], ...] = ({}, {})  # the logits of each trial: not moved, moved
    for number in range(K.bit_length() + 1):
        moved = [bool((k + 1) * 2 >> number & 1) for k in range(K)]
        for group, a, b in zip(pack.params, here, there, strict=True):
            which = torch.tensor(moved[group.members], device=a.device)
            torch.where(which[:, None], b, a, out=group.values)
        found = _logits(pack, batch)
        for k in range(K):
            if not torch.equal(found[k], at[moved[k]].setdefault(k, found[k])):
                raise NotIsolated(f"trial {k + 1} of the pack moves with its neighbours'")
    for k in range(K):
        if torch.equal(at[0][k], at[1][k]):
            raise NotIsolated(f"trial {k + 1} of the pack does not move with its own weights")
    for group, values in zip(pack.params, here, strict=True):
        group.values.copy_(values)


def _gradients(
    pack: AdapterPack, reference: _PeftReference, batch: Batch, trials: Iterable[int]
) -> None:
    """Compares the gradients of sum(c logits), with the same random c for all trials."""
    found = _logits(pack, batch)
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(found.shape[1:], generator=generator, dtype=torch.float64).to(found)
    differentiate((c * found).sum(), pack.params)
    for k in trials:
        weights = reference.load(k)
        total = (c * reference.forward(batch, training=True)).sum()
        theirs = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
        ours = pack.state(k, [group.gradients for group in pack.params])
        largest = max(float(g.abs().max()) for g in theirs if g is not None)
        for name, g in zip(weights, theirs, strict=True):
            expected = torch.zeros_like(ours[name]) if g is None else g
            _equal(ours[name], expected, f"gradients of {name}", largest)


@torch.no_grad()
def _move(pack: AdapterPack, *, seed: int) -> None:
    """Random B, large enough to matter, and random heads, of all trials. The padding of B may be
    anything: that of A is zero."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    for site in pack.sites.values():
        W = torch.linalg.vector_norm(weight_of(site.base))
        for bucket, B, A in zip(site.buckets, site.B, site.A, strict=True):
            update = site.scale[bucket] * torch.linalg.vector_norm(A, dim=(1, 2), keepdim=True)
            B.copy_(noise(B) * (_SIZE * W / (update * math.sqrt(B.shape[1]))).to(B))
        for magnitude in site.magnitude if isinstance(site, PackedDoRA) else ():
            magnitude.mul_(1 + _SIZE * noise(magnitude))
    for head in pack.heads.values():
        for parameter in head.parameters():
            each = parameter.flatten(1)  # (K, ...)
            spread = each.std(1, keepdim=True) if each.shape[1] > 1 else torch.zeros_like(each)
            each.add_(noise(each) * (0.5 * spread + 0.01))


def _equal(ours: Tensor, theirs: Tensor, what: str, scale: float | None = None) -> None:
    size = float(theirs.detach().abs().max()) if scale is None else scale
    off = float((ours - theirs).detach().abs().max())
    if not off <= _ROUNDING[ours.dtype] * size:  # NaN is not equal
        raise NotIsolated(f"{what} differ from PEFT's by {off:.1g} of {size:.1g}")


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """An error in the packed model's forward pass also means ``NotIsolated``; running out of memory
    does not."""
    try:
        yield
    except (NotIsolated, torch.OutOfMemoryError, ImportError):
        raise
    except Exception as error:
        if "can't allocate memory" in str(error):
            raise
        line = " ".join(str(error).split())[:160]
        raise NotIsolated(f"{type(error).__name__} in its forward pass: {line}") from error
