"""Runs a study: checks its inputs, trains what its store lacks, compares the methods."""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import rankscope
from rankscope.console import bar, say
from rankscope.store.files import DamagedFile
from rankscope.store.header import check_same_inputs
from rankscope.store.store import Store
from rankscope.store.trial_dir import TrialDir
from rankscope.study.study_file import Study
from rankscope.study.trial import Trial
from rankscope.sweep.inputs import METRIC, StudyInputs
from rankscope.sweep.installed import code
from rankscope.sweep.machine import (
    ON_MPS,
    default_workers,
    device_type,
    environments,
    free_for_each,
    free_here,
    gpu_name,
    workers_with_room,
)
from rankscope.sweep.processes import run_processes, worker_command
from rankscope.sweep.ray import run_on_ray
from rankscope.sweep.status import Meter, mean
from rankscope.sweep.trackers import Trackers
from rankscope.sweep.trackers import check as check_trackers
from rankscope.sweep.worker import Outcome, TrainPack, Worker, begun
from rankscope.train.packed import BY_ITS_OWN_FORWARD


def run(
    study: Study,
    store: str | Path,
    *,
    workers: int | None = 1,
    ray: str | None = None,
    retry_failed: bool = False,
    metric: Callable[[Any, Any], float] | None = None,
    greater_is_better: bool = True,
    quiet: bool = False,
) -> Store:
    """Trains what the store lacks of this study, then compares LoRA with full fine-tuning.
    Safe to stop and call again.

    One worker trains in this process; several run as separate processes; None starts as many as
    train fastest on this machine. ``ray`` is the address of a Ray cluster ("auto": the one that is
    running here) whose nodes see the store; by default it gets one worker per GPU or core. Any
    number of calls, on any machines that see the store, share the work.

    ``metric`` is your own function, which chooses learning rates and checkpoints instead of the
    tasks' metrics (they are reported beside it). It maps the validation rows' logits (N, C), with
    C = 1 for regression, and labels (N,), both numpy arrays, to a number; ``greater_is_better``
    gives its direction. It needs ``workers=1``, since it runs in this process.

    Raises ``ValueError`` or ``OSError``, one line, before anything is written, if the study cannot
    run. Failed trials are recorded in the store (``rankscope status``), tried again as often as
    the study says (with ``retry_failed`` once more from the start), and do not stop the others. A
    trial whose files differ from what was committed is reported, moved to the store's ``harmed/``
    and trained again.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers: expected a number from 1; found {workers}")
    if metric is not None and (workers != 1 or ray is not None):
        raise ValueError(
            "metric: expected workers = 1, since a function cannot be sent to other processes"
        )
    if study.report_to:
        check_trackers(study.report_to, study.name, store)
    inputs = StudyInputs(
        study, workers=workers, metric=metric, greater_is_better=greater_is_better, quiet=quiet
    )
    with contextlib.suppress(DamagedFile):  # Store.create repairs or reports it
        before_now = begun(store)
        inputs.check_budget(before_now)
        if before_now is not None:
            _check_metric(before_now, inputs.fingerprints.get(METRIC))
    steps = {trial.id: inputs.steps(trial) for trial in inputs.trials}  # fails before writing
    opened = Store.create(
        store, inputs.study, largest_rank=inputs.largest_rank, fingerprints=inputs.fingerprints
    )
    for line in (*_told(inputs), *opened.recover(thorough=True)):
        say(line)
    if retry_failed:
        opened.log.forget([trial.id for trial in inputs.trials if trial.id not in opened.log.done])
    before = set(opened.done_ids())
    if todo := {id: count for id, count in steps.items() if id not in before}:
        _train(inputs, opened, todo, workers=workers, ray=ray, quiet=quiet)
    if before != set(opened.done_ids()) or not is_compared(opened):
        make_comparison(opened, base_of=inputs.model_path, inputs=inputs, quiet=quiet)
    return opened


def _told(inputs: StudyInputs) -> list[str]:
    """What a user should know of the models and the device before they train."""
    lines = [f"{name}: {layers}" for name, layers in inputs.drawn.items()]
    return lines + [ON_MPS] * (inputs.training_device.type == "mps")


def _train(
    inputs: StudyInputs, store: Store, steps: Mapping[str, int],
    *, workers: int | None, ray: str | None, quiet: bool,
) -> None:  # fmt: skip
    """Trains the trials in ``steps`` (id -> number of steps) by this process, others or Ray."""
    left = [pack for pack in inputs.packs(store) if any(t.id in steps for t in pack)]
    costs = {trial.id: inputs.cost(trial) for trial in inputs.trials}
    with bar(
        f"training {len(steps)} of {len(inputs.trials)} trials",
        total=sum(steps[id] * costs[id] for id in steps),
        quiet=quiet,
    ) as advance:
        meter = Meter(store, steps, costs, advance)
        if ray is not None:
            job = worker_job(inputs, store, elsewhere=True)
            run_on_ray(ray, visit, job, workers=workers, most=len(left), tick=meter.read, say=say)
        elif (count := chosen_workers(inputs, workers, left)) == 1:
            train(inputs, store, advance=lambda pack, n: advance(n * mean(pack, costs)))
        else:
            job = worker_job(inputs, store)
            run_processes(worker_command(), job, environments(count), tick=meter.read, say=say)


def _check_metric(store: Store, ours: str | None) -> None:
    """A store keeps to one metric."""
    theirs = store.fingerprints.get(METRIC)
    if theirs != ours:
        raise ValueError(
            f"{store}: expected the metric of this store, "
            f"{theirs or 'that of each task'}; found {ours or 'that of each task'}. Call "
            "rankscope.run(study, store, metric=...) with that function, or name another store"
        )


def chosen_workers(inputs: StudyInputs, asked: int | None, left: Sequence[Sequence[Trial]]) -> int:
    """The number asked for, else as many as train fastest here and fit into free memory. Says so if
    memory is short."""
    wanted = min(asked or default_workers(), len(left))
    fit, line = workers_with_room(wanted, max(map(inputs.memory, left)), free=free_here())
    if line is None:
        return wanted
    decided = f"{wanted}, as asked" if asked else f"taking {fit}; --workers N decides otherwise"
    say(f"{line}; {decided}")
    return wanted if asked else fit


def is_compared(store: Store) -> bool:
    """Whether the comparison is whole, and not from before it had loss barriers."""
    if store.comparison_fault() is not None:
        return False
    found = store.comparison()
    return found.empty or "barrier" in found


def make_comparison(
    store: Store,
    *,
    base_of: Callable[[str], str],
    inputs: StudyInputs | None = None,
    quiet: bool = False,
) -> None:
    """Compares the store's LoRA trials with its full fine-tunes, as it is now. Loss barriers take
    rows: without ``inputs`` they are those that were found before."""
    # imports scipy, which workers do not need
    from rankscope.sweep.compare import compare, comparisons

    found = comparisons(store)
    count = sum(len(one.trials) for one in found)
    with bar(
        f"comparing {count} trials with full fine-tuning",
        total=count,
        quiet=quiet,
        announce=count > 0,
    ) as advance:
        compare(store, found, base_of=base_of, inputs=inputs, progress=advance, say=say)


def worker_job(inputs: StudyInputs, store: Store, *, elsewhere: bool = False) -> dict[str, Any]:
    """The argument of ``visit``, as JSON. ``elsewhere``: it may run on another machine, with its
    own data, models and memory."""
    return {
        "store": str(store) if "://" in str(store) else str(Path(str(store)).resolve()),
        "folder": str(inputs.study.folder.resolve()),
        "report_to": inputs.study.report_to,
        "workers": inputs.workers,
        "free": None if elsewhere else inputs.free,
        "elsewhere": elsewhere,
    }


def visit(job: Mapping[str, Any], **settings: Any) -> Outcome:
    """A worker on any machine: trains what the store lacks and no other worker holds.

    ``settings`` are further arguments of ``train.loop.train_pack``.
    """
    store = Store(job["store"])
    said = {"folder": Path(job["folder"]), "report_to": job["report_to"]}
    study = store.study.model_copy(update=said)
    inputs = StudyInputs(
        study, workers=job["workers"], free=job["free"] or free_for_each(default_workers())
    )
    if job["elsewhere"]:
        check_same_inputs(str(store), store.fingerprints, inputs.fingerprints)
    return train(inputs, store, **settings)


def train(
    inputs: StudyInputs,
    store: Store,
    *,
    progress: Callable[[int], None] = lambda steps: None,
    advance: Callable[[Sequence[Trial], int], None] = lambda pack, steps: None,
    **settings: Any,
) -> Outcome:
    """One worker's visit to the store. ``progress`` gets the steps taken, ``advance`` also the
    pack."""

    def both(pack: Sequence[Trial], steps: int) -> None:
        advance(pack, steps)
        progress(steps)

    names = inputs.study.report_to
    worker = Worker(
        store,
        inputs.packs(store),
        trainer(inputs, **settings),
        retries=inputs.study.fixed.retries,
        provenance=provenance(),
        progress=both,
        trackers=Trackers(names, inputs.study.name, store.path, say) if names else None,
    )
    return worker.run()


def trainer(inputs: StudyInputs, **settings: Any) -> TrainPack:
    """What a worker calls for every pack: ``train.loop.train_pack`` with these ``settings``."""
    say_once = functools.cache(say)

    def train_pack(
        trials: Sequence[Trial],
        folders: Sequence[TrialDir],
        progress: Callable[[int], None],
        *,
        scratch: Path,
    ) -> None:
        from rankscope.train import loop  # imports PEFT and scikit-learn, which plans do not need

        if (drawn := inputs.drawn.get(trials[0].model)) is not None:
            for folder in folders:
                folder.amend(drawn=drawn)
        slow = inputs.why_slow(trials[0], inputs.training_device.type)
        if slow == BY_ITS_OWN_FORWARD and len(trials) > 1:  # that trials are independent is proved
            say_once(f"{trials[0].model}: {slow}")
            for folder in folders:
                folder.amend(without_gain=slow)
        rows, validation = inputs.encoded(trials[0])
        loop.train_pack(
            trials,
            folders,
            progress,
            model=inputs.model_path(trials[0].model),
            task=inputs.tasks[trials[0].task],
            train=rows,
            validation=validation,
            device=inputs.training_device,
            scratch=scratch,
            say=say_once,
            **settings,
        )

    return train_pack


def provenance() -> dict[str, Any]:
    """Versions and machine, for trial.json."""
    import peft  # slow to import

    gpu = gpu_name(device_type())
    return {
        "versions": {
            "rankscope": rankscope.__version__,
            "code": code(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "machine": {"system": platform.platform(), "threads": torch.get_num_threads(), "gpu": gpu},
    }
