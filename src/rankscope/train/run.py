"""One pack in training: K trials on the same batches, each with its own adapters, head and learning
rate.

Letters: K trials, N validation rows, B batch, C classes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rankscope.store.trial_dir import TrialDir
from rankscope.study.tasks import Task
from rankscope.study.trial import Trial
from rankscope.system import malloc_trim
from rankscope.train.data import Encoded, length_grouped_batches, split_rows
from rankscope.train.evaluation import HELD_OUT, constant_metric, evaluate, losses_of
from rankscope.train.model import stream
from rankscope.train.muon import PackedMuon
from rankscope.train.optimizer import (
    FlatParams,
    PackedAdamW,
    differentiate,
    share_of_peak,
    widest,
)
from rankscope.train.pack import Pack, logits, reads_padding
from rankscope.train.spectra import Record, Recorder

# steps between two calls of malloc_trim: variable batch lengths fragment the heap (docs/log.md)
_TRIM = 8
# steps between two looks at whether any trial is left: a look waits for the device
LOOK = 32


class Run:
    """A pack, its optimiser and the results of its trials so far; ``state`` and ``restore`` carry
    them through a checkpoint."""

    def __init__(self, pack: Pack, task: Task, train: Encoded, validation: Encoded) -> None:
        self.pack, self.task, self.train, self.validation = pack, task, train, validation
        self.device = pack.params[0].values.device
        self.K, trial = len(pack.trials), pack.trials[0]
        self.total = trial.total_steps(len(train))
        # weights stay in float32, matrix products are in bfloat16
        self.mixed = trial.precision_on(self.device.type) == "bfloat16"
        self.warmup = math.ceil(trial.warmup_ratio * self.total)
        self.optimizer = optimizer_of(pack)
        self.done = 0  # steps taken
        self.alive = torch.ones(self.K, dtype=torch.bool, device=self.device)
        # the step at which a trial diverged; 0: it did not
        self.diverged_at = torch.zeros(self.K, dtype=torch.int64, device=self.device)
        # sums of losses since the last evaluation
        self.losses = torch.zeros(self.K, dtype=widest(self.device), device=self.device)
        self.counted = 0
        self.best = Best(pack.params, self.K, greater_is_better=task.greater_is_better)
        self.evaluations: list[list[dict[str, float]]] = [[] for _ in pack.trials]
        self.untrained: list[float] | None = None  # the metric of a language model as it came
        self.spectra = Recorder(pack)
        # a model that reads padding validates rows of one length together, as it would one by one
        self.padded = task.is_language or not reads_padding(pack, validation)
        self.choosing, self.held_out = split_rows(
            len(validation) - validation.beside, trial.validation_split
        )

    def steps(self) -> Iterator[int]:
        """Trains on; yields after every optimiser step, with spectra recorded and
        evaluations made on the way."""
        per_epoch = math.ceil(len(self.train) / self.pack.trials[0].batch_size)
        evaluations = evaluation_steps(
            self.pack.trials[0].eval_every, per_epoch=per_epoch, total=self.total
        )
        if self.done == 0:
            self.spectra.record(0, alive=self.alive)
            if self.task.is_language:
                with torch.no_grad():
                    self.untrained = [line[self.task.metric] for line in evaluate(self)]
        left = True
        for rows in rows_of(self.pack.trials[0], self.train, self.total)[self.done :]:
            step = self.done + 1
            if step % LOOK == 1:
                left = bool(self.alive.any())
            if left:  # else nothing is left to train; the steps still count as taken
                self.step(rows, step)
                if step in evaluations or is_power_of_four(step):
                    self.spectra.record(step, alive=self.alive)
                if step in evaluations:
                    self.evaluate(step, epoch=step / per_epoch)
                if step % _TRIM == 0 and self.device.type == "cpu":
                    malloc_trim()(0)
            self.done = step
            yield step

    def step(self, rows: Tensor, step: int) -> Tensor:
        """One optimiser step on these training rows. -> (K,) losses before it"""
        self.pack.model.train()
        inputs, labels = self.train.batch(rows)
        losses = losses_of(self, inputs, labels)
        differentiate(
            losses.sum(), self.pack.params
        )  # each trial's weights see its own mean loss only
        losses = losses.detach()
        schedule = share_of_peak(
            self.pack.trials[0].lr_scheduler_type, step - 1, warmup=self.warmup, total=self.total
        )
        alive = self.optimizer.step(schedule=schedule, alive=self.alive & losses.isfinite())
        self.diverged_at = torch.where(self.alive & ~alive, step, self.diverged_at)
        self.alive = alive
        self.losses += losses
        self.counted += 1
        return losses

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """All trials on one batch: inputs (B, T) -> (K, B, C)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            return logits(self.pack, inputs)

    @torch.no_grad()
    def evaluate(self, step: int, *, epoch: float) -> None:
        """Validates every trial that has not diverged; keeps the weights of the best evaluation."""
        found = evaluate(self)
        means = (self.losses / max(1, self.counted)).tolist()
        self.losses.zero_()
        self.counted = 0
        for k in self.alive.nonzero().flatten().tolist():
            line = {"step": step, "epoch": epoch, "train_loss": means[k]}
            self.evaluations[k].append(line | found[k])
            self.best.offer(k, step, found[k][self.task.metric])

    def batches(self, size: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        return self.validation.by_length(size, padded=self.padded)

    def finish(self, k: int, folder: TrialDir, *, seconds: float) -> None:
        """Writes trial k's metrics, spectra, best and last weights, and only then its result."""
        metric = self.task.metric
        for line in self.evaluations[k]:
            folder.log(**line)
        folder.write_spectra(self.spectra.frame(k))
        self.pack.save(k, self.best.values, folder.path / "best")
        self.pack.save(k, [group.values for group in self.pack.params], folder.path / "last")
        diverged_at = int(self.diverged_at[k]) or None
        folder.finish(
            status="done" if diverged_at is None else "diverged",
            metric=metric,
            best=self.best.metric[k],
            best_step=self.best.step[k],
            last=self.evaluations[k][-1][metric] if self.evaluations[k] else None,
            constant=constant_metric(self.task, self.validation, self.choosing),
            steps=self.total,
            diverged_at=diverged_at,
            seconds=seconds,
            **self._held_out(k),
            **self._direction(k),
        )

    def _held_out(self, k: int) -> dict[str, float | None]:
        """The metric of trial k's best evaluation on the rows that did not choose it, if any are
        kept."""
        if not len(self.held_out):
            return {}
        name = f"{self.task.metric}{HELD_OUT}"
        best = (line[name] for line in self.evaluations[k] if line["step"] == self.best.step[k])
        return {"held_out": next(best, None)}

    def _direction(self, k: int) -> dict[str, Any]:
        """For the result: that less is better, if it is; a language model's metric before
        training."""
        said: dict[str, Any] = {} if self.task.greater_is_better else {"greater_is_better": False}
        return said if self.untrained is None else said | {"untrained": self.untrained[k]}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a resumed run needs: tensors, and the rest as JSON has it."""
        records = [dataclasses.asdict(record) for record in self.spectra.records]
        tensors = {f"spectra.{i}": record.pop("numbers") for i, record in enumerate(records)}
        tensors |= dict(self._tensors())
        tensors |= {f"random.{i}": state for i, state in enumerate(self.pack.masks.state)}
        return tensors, {
            "trials": [trial.id for trial in self.pack.trials],
            "done": self.done,
            "counted": self.counted,
            "best": [self.best.metric, self.best.step],
            "evaluations": self.evaluations,
            "untrained": self.untrained,
            "records": records,
        }

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Restores what ``state`` returned."""
        for name, tensor in self._tensors():
            tensor.copy_(tensors[name])
        self.pack.masks.state = [tensors[f"random.{i}"] for i in range(len(self.pack.masks.state))]
        self.done, self.counted = state["done"], state["counted"]
        self.optimizer.steps = self.done
        self.best.metric, self.best.step = state["best"]
        self.evaluations, self.untrained = state["evaluations"], state.get("untrained")
        self.spectra.records = [
            Record(**record, numbers=tensors[f"spectra.{i}"])
            for i, record in enumerate(state["records"])
        ]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from (
            ("alive", self.alive),
            ("diverged_at", self.diverged_at),
            ("losses", self.losses),
        )
        for name, tensors in self.buffers().items():
            yield from ((f"{name}.{i}", tensor) for i, tensor in enumerate(tensors))

    def buffers(self) -> dict[str, list[Tensor]]:
        """What is kept per trained weight, like the pack's parameters."""
        return {
            "values": [group.values for group in self.pack.params],
            "means": self.optimizer.means,
            "squares": self.optimizer.squares,
            "best": self.best.values,
        }


def optimizer_of(pack: Pack) -> PackedAdamW:
    trial = pack.trials[0]
    settings: dict[str, Any] = {
        "learning_rates": [t.learning_rate for t in pack.trials],
        "weight_decay": trial.weight_decay,
        "betas": trial.adam_betas,
        "epsilon": trial.adam_epsilon,
        "max_grad_norm": trial.max_grad_norm,
    }
    if trial.optimizer == "muon":
        return PackedMuon(pack.params, ranks=[t.rank for t in pack.trials], **settings)
    return PackedAdamW(
        pack.params,
        ratio=trial.lora_plus_ratio or 1.0,
        sgd=trial.optimizer == "sgd",
        **settings,
    )


class Best:
    """Starts as the untrained weights at step 0, so that a trial without any evaluation
    still has something to keep."""

    def __init__(
        self, params: Sequence[FlatParams], trials: int, *, greater_is_better: bool = True
    ) -> None:
        self._sign = 1 if greater_is_better else -1
        self._params = list(params)
        self.values = [group.values.clone() for group in params]
        self.metric: list[float | None] = [None] * trials
        self.step = [0] * trials

    @torch.no_grad()
    def offer(self, k: int, step: int, metric: float) -> None:
        """Keeps trial k's current weights if ``metric`` beats all before; a tie keeps the earlier
        ones."""
        best = self.metric[k]
        if math.isnan(metric) or (best is not None and self._sign * metric <= self._sign * best):
            return
        self.metric[k], self.step[k] = metric, step
        for kept, group in zip(self.values, self._params, strict=True):
            if group.members.start <= k < group.members.stop:
                kept[k - group.members.start] = group.values[k - group.members.start]


def rows_of(trial: Trial, train: Encoded, steps: int) -> list[Tensor]:
    """The training rows of each of a trial's batches."""
    batches = length_grouped_batches(
        train.lengths, batch_size=trial.batch_size, generator=stream(trial.seed, "order")
    )
    return list(itertools.islice(batches, steps))


def is_power_of_four(step: int) -> bool:
    """The early steps at which spectra are recorded, beside the evaluations: growth is fast
    first."""
    return step.bit_count() == 1 and step.bit_length() % 2 == 1


def evaluation_steps(every: int | str, *, per_epoch: int, total: int) -> set[int]:
    """The steps after which to validate: each epoch's last or every n-th, and always the very
    last."""
    stride = per_epoch if every == "epoch" else int(every)
    return {*range(stride, total + 1, stride), total}
