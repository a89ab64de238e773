"""Evaluates edited variants: the task's metric with their own head and with a refitted one.

Letters: V variants, K of them in a pack, N validation rows, F training rows, C classes, d width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from rankscope.evaluation.heads import refitted
from rankscope.evaluation.matrices import is_expert
from rankscope.evaluation.pack import Edited, VariantPack
from rankscope.evaluation.text import learnt_in_rows, most_variants, row_losses
from rankscope.study.tasks import Task
from rankscope.train.data import Encoded
from rankscope.train.evaluation import loss
from rankscope.train.metrics import (
    deviation,
    flattened,
    is_constant,
    may_be_rounding,
    rounded_at_random,
    score,
)
from rankscope.train.pack import padding_counts

BATCH = 16  # rows; with K = 8 the sequences still fit the caches
CPU = torch.device("cpu")
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Evaluated:
    """One variant on the validation rows. ``answers`` (N,): classes, scores of a regression, or of
    a language model the mean loss of a row's tokens;
    ``refit_`` with a head refitted on training rows (None if there is none). ``feature_sd`` is
    the standard deviation over the rows of the pooled features, mean over features."""

    value: float
    loss: float
    is_constant: bool
    answers: NDArray[Any]
    feature_sd: float | None = None
    refit_value: float | None = None
    refit_answers: NDArray[Any] | None = None


class Evaluation:
    """Evaluates variants of one base model on one task, K at a time.

    Every pack is first compared with the stock model on the shortest and the longest row; if they
    differ, all variants are evaluated one at a time by the stock model, and ``say`` reports it. If
    a model's answers depend on padding, only rows of equal length are batched.

    Args:
        load: makes the pretrained model; called again if packs are not isolated.
        refit: training rows for a refitted head; None: no such head.
        mixed: whether matrix products use bfloat16.
    """

    def __init__(
        self,
        load: Callable[[], PreTrainedModel],
        layers: Sequence[str],
        task: Task,
        validation: Encoded,
        *,
        refit: Encoded | None = None,
        K: int = 8,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
        mixed: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.task, self.validation, self.refit = task, validation, refit
        self.mixed, self.say, self.device = mixed, say, device
        self._make = lambda K, model: VariantPack(model, layers, K=K, device=device, dtype=dtype)
        self._load, model = load, load()
        self.pack = self._make(
            most_variants(model, validation, K) if task.is_language else K, model
        )
        if any(map(is_expert, layers)):
            say("variants are evaluated one at a time, by the model's own layers: it has experts")
        self._padded: bool | None = None  # whether rows of different lengths may share a batch
        self._ends = validation.batch(validation.lengths.argsort(stable=True)[[0, -1]])[0]

    def __call__(self, variants: Sequence[Edited]) -> list[Evaluated]:
        """At most K variants; all of one full fine-tune, or all of adapters."""
        return self._each(variants, self._evaluated)

    def losses(self, variants: Sequence[Edited]) -> list[tuple[float, Tensor | None]]:
        """The mean loss of each of at most K variants, as above, and its pooled features (N, d)."""
        return self._each(variants, self._losses)

    @torch.no_grad()
    def _each(self, variants: Sequence[Edited], read: Callable[[], list[_Found]]) -> list[_Found]:
        """What ``read`` returns for each variant, after a check that it equals the variant
        alone."""
        if len(variants) > self.pack.K:
            return [self._each([one], read)[0] for one in variants]
        self.pack.hold(variants)
        try:
            self.pack.prove(self._ends)
        except Exception as error:
            if self.pack.K == 1 or isinstance(error, torch.OutOfMemoryError | ImportError):
                raise
            reason = " ".join(str(error).split())[:160]
            self.say(f"variants are evaluated one at a time, by the model's own layers: {reason}")
            self.pack = self._make(1, self._load())
            return [self._each([one], read)[0] for one in variants]
        if self._padded is None:
            self._padded = self.task.is_language or not padding_counts(
                self.pack.logits, self.validation
            )
        return read()

    def _losses(self) -> list[tuple[float, Tensor | None]]:
        found, features = self._all(self.validation)  # (K, N, C), (K, N, d)
        first = len(self.validation) - self.validation.beside
        losses = loss(found[:, :first].double(), self.validation.labels[:first]).tolist()
        pooled = [None] * len(found) if features is None else list(features[:, :first])
        return list(zip(losses, pooled, strict=True))

    def _evaluated(self) -> list[Evaluated]:
        if self.task.is_language:
            return self._of_text()
        found, features = self._all(self.validation)  # (K, N, C), (K, N, d)
        labels, first = self.validation.labels, len(self.validation) - self.validation.beside
        losses = loss(found[:, :first], labels[:first])
        constant = is_constant(found, labels, rounding=self._rounding(found))
        predictions = flattened(found, constant)
        scores = score(predictions[:, :first], labels[:first], self.task)
        answers = predictions[..., 0] if self.task.num_labels == 1 else predictions.argmax(-1)
        heads = self._refitted(features, first)
        return [
            Evaluated(
                value=scores[k][self.task.metric],
                loss=float(losses[k]),
                is_constant=bool(constant[k]),
                answers=answers[k, :first].numpy(),
                feature_sd=None if features is None else float(features[k].double().std(0).mean()),
                **heads[k],
            )
            for k in range(len(found))
        ]

    def _of_text(self) -> list[Evaluated]:
        sums = row_losses(self.pack, self.validation, mixed=self.mixed)  # (K, N)
        counts = learnt_in_rows(self.validation)
        means = (sums.sum(1) / counts.sum()).tolist()
        return [
            Evaluated(mean, mean, False, (row / counts).numpy())
            for mean, row in zip(means, sums, strict=True)
        ]

    def _refitted(self, features: Tensor | None, first: int) -> list[dict[str, Any]]:
        """Metric and answers with a head fitted on training rows, per variant."""
        count = len(self.pack.variants)
        if self.refit is None or features is None:
            return [{}] * count
        _, fitted_on = self._all(self.refit)
        assert fitted_on is not None
        found = []
        for k in range(count):
            answers, value = refitted(
                fitted_on[k].double().numpy(),
                self.refit.labels.numpy(),
                features[k, :first].double().numpy(),
                self.validation.labels[:first].numpy(),
                self.task,
            )
            found.append({"refit_answers": answers, "refit_value": value})
        return found

    def _all(self, split: Encoded) -> tuple[Tensor, Tensor | None]:
        """Logits (K, N, C), and pooled features (K, N, d) where the head shows them, on the CPU."""
        logits: Tensor | None = None
        features: Tensor | None = None
        for rows, inputs in split.by_length(BATCH, padded=bool(self._padded)):
            mixed = torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed)
            with _head_inputs(self.pack) as seen, mixed:
                found = self.pack.logits(inputs).cpu()
            if logits is None:
                logits = found.new_empty(len(found), len(split), found.shape[-1])
            logits[:, rows] = found
            pooled = _pooled(seen, inputs, len(self.pack.variants))
            if pooled is not None:
                if features is None:
                    features = torch.empty(len(found), len(split), pooled.shape[-1])
                features[:, rows] = pooled[: len(found)].float().cpu()
        assert logits is not None
        return logits, features

    def _rounding(self, answers: Tensor) -> Tensor | None:
        """How far rounding alone can move the answers
        (``train.run.Run.rounding``)."""
        if not may_be_rounding(answers, deviation(answers), bfloat16=self.mixed).any():
            return None
        rows, inputs = next(self.validation.by_length(BATCH, padded=bool(self._padded)))
        model = self.pack.model if self.pack.K > 1 else self.pack.stock
        with (
            rounded_at_random(model),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed),
        ):
            return deviation(self.pack.logits(inputs).cpu() - answers[:, rows])


@contextlib.contextmanager
def _head_inputs(pack: VariantPack) -> Iterator[list[Tensor]]:
    """Records the input of the head's first layer in forward passes within this context."""
    model = pack.model if pack.K > 1 else pack.stock
    seen: list[Tensor] = []
    if pack.reads_features is None:
        yield seen
        return
    hook = model.get_submodule(pack.reads_features).register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].detach())
    )
    try:
        yield seen
    finally:
        hook.remove()


def _pooled(seen: Sequence[Tensor], inputs: Mapping[str, Tensor], K: int) -> Tensor | None:
    """(K, B, d): the head's input; for a head that reads every token (decoders), that of the last
    non-padding token. None for any other head."""
    B, T = inputs["input_ids"].shape
    if len(seen) != 1 or len(seen[0]) != K * B:
        return None
    x = seen[0].unflatten(0, (K, B))  # (K, B, d) or (K, B, T, d)
    if x.ndim == 4 and x.shape[2] == 1:
        return x[:, :, 0]
    if x.ndim == 4 and x.shape[2] == T and "attention_mask" in inputs:
        last = (inputs["attention_mask"].cpu() * torch.arange(T)).argmax(-1)
        return x[:, torch.arange(B), last]
    return x if x.ndim == 3 else None
