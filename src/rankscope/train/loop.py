"""Trains one pack: K trials on the same batches, each with its own adapters, head, learning rate and fate.

Letters: K trials, N validation rows, B batch, C classes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rankscope.study.folder import TrialFolder
from rankscope.study.plan import Trial
from rankscope.study.tasks import Task
from rankscope.train.adapters import AdapterPack
from rankscope.train.best import Best
from rankscope.train.data import Encoded, shuffled
from rankscope.train.full import FullPack
from rankscope.train.metrics import score
from rankscope.train.model import stream
from rankscope.train.optimizer import PackedAdamW, linear_schedule
from rankscope.train.rows import differentiate
from rankscope.train.spectra import Recorder


def train_pack(
    trials: Sequence[Trial],
    folders: Sequence[TrialFolder],
    progress: Callable[[int], None],
    *,
    model: str,
    task: Task,
    train: Encoded,
    validation: Encoded,
    device: torch.device,
) -> None:
    """Trains a pack into its folders. Its trials share model, task, seed, batches and budget (``study.plan.packs``).

    A trial whose loss or gradient is no longer finite is frozen and finished as "diverged"; the others go on.
    ``progress`` is told of every optimiser step, times K.
    """
    started = time.perf_counter()
    kind = FullPack if trials[0].method == "full" else AdapterPack
    run = Run(kind(trials, model=model, task=task, device=device), folders, task, train, validation)
    for _ in run.steps():
        progress(len(trials))
    run.finish(seconds=(time.perf_counter() - started) / len(trials))


class Run:
    """One pack in training."""

    def __init__(
        self,
        pack: AdapterPack | FullPack,
        folders: Sequence[TrialFolder],
        task: Task,
        train: Encoded,
        validation: Encoded,
    ) -> None:
        self.pack, self.folders, self.task, self.train, self.validation = (
            pack,
            folders,
            task,
            train,
            validation,
        )
        self.device = pack.rows[0].values.device
        self.K, trial = len(pack.trials), pack.trials[0]
        self.total = trial.total_steps(len(train))
        self.warmup = math.ceil(trial.warmup_ratio * self.total)
        self.optimizer = PackedAdamW(
            pack.rows,
            learning_rates=torch.tensor(
                [t.learning_rate for t in pack.trials], dtype=torch.float64, device=self.device
            ),
            weight_decay=trial.weight_decay,
            betas=trial.adam_betas,
            epsilon=trial.adam_epsilon,
            max_grad_norm=trial.max_grad_norm,
        )
        self.alive = torch.ones(self.K, dtype=torch.bool, device=self.device)
        self.diverged_at: list[int | None] = [None] * self.K
        self.best = Best(pack.rows, self.K)
        self.last: list[float | None] = [None] * self.K
        self.spectra = Recorder(pack)

    def steps(self) -> Iterator[int]:
        """Trains; yields after every optimiser step, with spectra recorded and evaluations logged on the way."""
        trial = self.pack.trials[0]
        per_epoch = math.ceil(len(self.train) / trial.batch_size)
        evaluations = evaluation_steps(trial.eval_every, per_epoch=per_epoch, total=self.total)
        order = shuffled(len(self.train), batch_size=trial.batch_size, generator=stream(trial.seed, "order"))
        self.spectra.record(0, alive=self.alive)
        losses: list[Tensor] = []
        for step, rows in enumerate(itertools.islice(order, self.total), start=1):
            if not self.alive.any():  # nothing is left to train; the steps still count as taken
                yield step
                continue
            losses.append(self.step(rows, step))
            if step in evaluations or step.bit_count() == 1:  # evaluations and powers of two
                self.spectra.record(step, alive=self.alive)
            if step in evaluations:
                self.evaluate(step, epoch=step / per_epoch, train_loss=torch.stack(losses).mean(0))
                losses.clear()
            yield step

    def step(self, rows: Tensor, step: int) -> Tensor:
        """One optimiser step on these training rows. -> (K,) losses before it"""
        self.pack.model.train()
        inputs, labels = self.train.batch(rows)
        losses = loss(self.logits(inputs), labels.to(self.device))
        differentiate(losses.sum(), self.pack.rows)  # each trial's weights see its own mean loss only
        schedule = linear_schedule(step - 1, warmup=self.warmup, total=self.total)
        alive = self.optimizer.step(schedule=schedule, alive=self.alive & losses.detach().isfinite())
        for k in (self.alive & ~alive).nonzero().flatten().tolist():
            self.diverged_at[k] = step
        self.alive = alive
        return losses.detach()

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """All trials on one batch: inputs (B, T) -> (K, B, C)"""
        self.pack.noise.batch = len(inputs["input_ids"])
        repeated = {name: x.to(self.device).repeat(self.pack.repeats, 1) for name, x in inputs.items()}
        return self.pack.model(**repeated).logits.unflatten(0, (self.K, -1))

    @torch.no_grad()
    def evaluate(self, step: int, *, epoch: float, train_loss: Tensor) -> None:
        """Validation of every living trial: logged, and kept where it is the best so far."""
        self.pack.model.eval()
        logits = torch.cat(
            [self.logits(inputs).float().cpu() for inputs, _ in self.validation.in_order(64)], dim=1
        )
        losses = loss(logits, self.validation.labels)
        found = score(logits, self.validation.labels, self.task)
        for k in self.alive.nonzero().flatten().tolist():
            self.folders[k].log(
                step=step,
                epoch=epoch,
                train_loss=float(train_loss[k]),
                eval_loss=float(losses[k]),
                **found[k],
            )
            self.last[k] = found[k][self.task.metric]
            self.best.offer(k, step, found[k][self.task.metric])

    def finish(self, *, seconds: float) -> None:
        """Writes spectra, the best and the last weights, and only then each trial's result."""
        for k, folder in enumerate(self.folders):
            folder.write_spectra(self.spectra.frame(k))
            self.pack.save(k, self.best.values, folder.path / "best")
            self.pack.save(k, [group.values for group in self.pack.rows], folder.path / "last")
            folder.finish(
                status="done" if self.diverged_at[k] is None else "diverged",
                metric=self.task.metric,
                best=self.best.metric[k],
                best_step=self.best.step[k],
                last=self.last[k],
                steps=self.total,
                diverged_at=self.diverged_at[k],
                seconds=seconds,
            )


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of each trial: cross-entropy, or squared error for regression. (K, N, C), (N,) -> (K,)"""
    K, N, C = logits.shape
    if C == 1:
        return (logits[..., 0] - labels).square().mean(1)
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat(K), reduction="none").view(K, N).mean(1)


def evaluation_steps(every: int | str, *, per_epoch: int, total: int) -> set[int]:
    """The steps after which to validate: each epoch's last or every n-th, and always the very last."""
    stride = per_epoch if every == "epoch" else int(every)
    return {*range(stride, total + 1, stride), total}
