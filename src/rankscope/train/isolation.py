"""Proof, before a pack trains, that its trials do not touch each other and compute what PEFT
computes.

With adapters and heads moved away from their start (B = 0 would prove nothing):

1. on the pack's first batch, in training mode with dropout, the logits of each trial are those of
   the stock model with that adapter alone, through PEFT's own layers;
2. moving the adapters and heads of some trials moves no bit of the other trials' logits;
3. logits in evaluation mode, and gradients, are PEFT's, for one trial
    of each rank and scaling rule.

(2) and (3) take two rows, the shortest and the longest of the training set: other lengths may take
other paths in a model. All in the precision of the weights, before any rounding to bfloat16.
Letters: K trials, B batch, C classes.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankscope.train.adapters import AdapterPack
from rankscope.train.data import Encoded
from rankscope.train.full import FullPack
from rankscope.train.loading import sharing_weights
from rankscope.train.model import weight_of
from rankscope.train.one_at_a_time import adapted, trained_weights
from rankscope.train.optimizer import differentiate
from rankscope.train.pack import Pack, logits
from rankscope.train.packed import DropoutMasks, NotIsolated

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
            _move(pack, range(len(pack.trials)), seed=0)
            alone, every = _Alone(pack), range(len(pack.trials))
            first, _ = train.batch(rows)
            with torch.no_grad():
                _equal(_logits(pack, first), alone.logits(first, every), "logits in training")
                ends, _ = train.batch(train.lengths.argsort(stable=True)[[0, -1]])
                _isolated(pack, ends)
                some = list({config: k for k, config in enumerate(alone.configs)}.values())
                pack.model.eval()
                together = logits(pack, ends)[some]
                _equal(together, alone.logits(ends, some, training=False), "logits in evaluation")
            _gradients(pack, alone, ends, some)
    finally:
        for group, values in zip(pack.params, kept, strict=True):
            group.values.copy_(values)
        pack.masks.state = state
        pack.model.train(training)


def _prove_full(pack: FullPack, stock: PreTrainedModel, train: Encoded, rows: Tensor) -> None:
    """Logits and gradients of the patched model and of the stock model, over the same weights."""
    weights = pack.params[0].parameters
    ends, _ = train.batch(train.lengths.argsort(stable=True)[[0, -1]])
    plain = copy.copy(pack)
    plain.model = stock.to(pack.params[0].values.device)
    with _refused():
        with torch.no_grad():
            first, _ = train.batch(rows)
            _equal(_logits(pack, first), _logits(plain, first), "logits in training")
        ours, theirs = _logits(pack, ends), _logits(plain, ends)
        found, expected = (torch.autograd.grad(y.square().sum(), weights) for y in (ours, theirs))
        largest = max(float(g.abs().max()) for g in expected)
        for g, h in zip(found, expected, strict=True):
            _equal(g, h, "gradients", largest)
        pack.model.eval()
        stock.eval()
        with torch.no_grad():
            _equal(logits(pack, ends), logits(plain, ends), "logits in evaluation")


class _Alone:
    """Each trial by PEFT on the stock model: one PEFT adapter per rank and scaling rule,
    filled anew for each trial."""

    def __init__(self, pack: AdapterPack) -> None:
        self.pack, first = pack, pack.params[0].values
        self.configs = [(trial.rank, trial.scaling, trial.lora_alpha) for trial in pack.trials]
        members = list({config: k for k, config in enumerate(self.configs)}.values())
        self.names = {self.configs[k]: f"trial{k}" for k in members}
        names = list(self.names.values())
        model = adapted(sharing_weights(pack.stock), [pack.config(k) for k in members], names)
        self.model = model.to(device=first.device, dtype=first.dtype)
        self.weights = {name: trained_weights(self.model, name) for name in names}
        self.masks = DropoutMasks(1, 0, first.device)

    def becomes(self, k: int) -> dict[str, nn.Parameter]:
        """Puts trial k's values into its adapter. -> the weights trained, by their names"""
        name, state = (
            self.names[self.configs[k]],
            self.pack.state(k, [g.values for g in self.pack.params]),
        )
        weights = self.weights[name]
        if state.keys() != weights.keys():
            odd = sorted(state.keys() ^ weights.keys())[0]
            raise NotIsolated(f"PEFT and the pack train different weights: {odd}")
        with torch.no_grad():
            torch._foreach_copy_([weights[key].data for key in state], list(state.values()))
        if name != self.model.active_adapter:
            self.model.set_adapter(name)
        return weights

    def one(self, inputs: dict[str, Tensor], *, training: bool) -> Tensor:
        """(B, C)"""
        self.model.train(training)
        self.masks.state, self.masks.batch = self.pack.masks.state, len(inputs["input_ids"])
        device = self.pack.params[0].values.device
        with contextlib.ExitStack() as stack:
            if training:
                stack.enter_context(self.masks.drawing())
                if device.type == "cuda":  # torch's fused dropout draws in another order there
                    stack.enter_context(self.masks)
            found: Tensor = self.model(**{name: x.to(device) for name, x in inputs.items()}).logits
        return found

    def logits(
        self, inputs: dict[str, Tensor], trials: Iterable[int], *, training: bool = True
    ) -> Tensor:
        """(trials, B, C)"""
        found = []
        for k in trials:
            self.becomes(k)
            found.append(self.one(inputs, training=training))
        return torch.stack(found)


def _logits(pack: Pack, inputs: dict[str, Tensor]) -> Tensor:
    """(K, B, C) in training, always with the same dropouts."""
    state = pack.masks.state
    pack.model.train()
    found = logits(pack, inputs)
    pack.masks.state = state
    return found


def _isolated(pack: AdapterPack, inputs: dict[str, Tensor]) -> None:
    """Rounds enough that for any two trials the one is moved in some round and the other is not
    (Sperner: sets of half of the rounds, none inside another)."""
    K, before = len(pack.trials), _logits(pack, inputs)
    rounds = next(n for n in itertools.count(1) if math.comb(n, n // 2) >= K) if K > 1 else 0
    moved_in = list(itertools.islice(itertools.combinations(range(rounds), rounds // 2), K))
    for number in range(rounds):
        moved = [k for k in range(K) if number in moved_in[k]]
        kept = [group.values.clone() for group in pack.params]
        _move(pack, moved, seed=1 + number)
        after = _logits(pack, inputs)
        for group, values in zip(pack.params, kept, strict=True):
            group.values.copy_(values)
        for k in range(K):
            if (k in moved) == torch.equal(after[k], before[k]):
                reason = (
                    "does not move with its own weights"
                    if k in moved
                    else "moves with its neighbours'"
                )
                raise NotIsolated(f"trial {k + 1} of the pack {reason}")


def _gradients(
    pack: AdapterPack, alone: _Alone, inputs: dict[str, Tensor], trials: Iterable[int]
) -> None:
    """Of sum(c logits) with the same random c for all trials."""
    found = _logits(pack, inputs)
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(found.shape[1:], generator=generator, dtype=torch.float64).to(found)
    differentiate((c * found).sum(), pack.params)
    for k in trials:
        weights = alone.becomes(k)
        total = (c * alone.one(inputs, training=True)).sum()
        theirs = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
        ours = pack.state(k, [group.gradients for group in pack.params])
        largest = max(float(g.abs().max()) for g in theirs if g is not None)
        for name, g in zip(weights, theirs, strict=True):
            expected = torch.zeros_like(ours[name]) if g is None else g
            _equal(ours[name], expected, f"gradients of {name}", largest)


@torch.no_grad()
def _move(pack: AdapterPack, trials: Sequence[int], *, seed: int) -> None:
    """Random B, large enough to matter, and random heads; padding stays zero, since A's is."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    for k in trials:
        for site in pack.sites.values():
            bucket, place = site.place_of(k)
            B, A = site.B[bucket][place], site.A[bucket][place]
            size = _SIZE * weight_of(site.base).norm() / (site.scale[k, 0, 0] * A.norm())
            B.copy_(noise(B) * (size / math.sqrt(len(B))).to(B))
        for head in pack.heads.values():
            for parameter in head.parameters():
                spread = parameter[k].std() if parameter[k].numel() > 1 else parameter.new_zeros(())
                parameter[k].add_(noise(parameter[k]) * (0.5 * spread + 0.01))


def _equal(ours: Tensor, theirs: Tensor, what: str, scale: float | None = None) -> None:
    size = float(theirs.detach().abs().max()) if scale is None else scale
    off = float((ours - theirs).detach().abs().max())
    if not off <= _ROUNDING[ours.dtype] * size:  # NaN is not equal
        raise NotIsolated(f"{what} differ from PEFT's by {off:.1g} of {size:.1g}")


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """What the packed model can't compute is refused as well; what the machine can't hold is
    not."""
    try:
        yield
    except (NotIsolated, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        if "can't allocate memory" in str(error):
            raise
        line = " ".join(str(error).split())[:160]
        raise NotIsolated(f"{type(error).__name__} in its forward pass: {line}") from error
