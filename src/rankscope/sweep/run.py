"""The main job: a study -> its inputs, checked -> trials trained into a store -> the comparison of
methods."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import rankscope
from rankscope.console import bar
from rankscope.store.files import DamagedFile
from rankscope.store.header import check_same_inputs
from rankscope.store.store import Store
from rankscope.store.trial_dir import TrialDir
from rankscope.study.study_file import Study
from rankscope.study.trial import Trial
from rankscope.sweep.inputs import METRIC, StudyInputs
from rankscope.sweep.machine import (
    default_workers,
    environments,
    free_for_each,
    workers_with_room,
)
from rankscope.sweep.meter import Meter, mean
from rankscope.sweep.plan import begun
from rankscope.sweep.processes import run_processes, worker_command
from rankscope.sweep.ray import run_on_ray
from rankscope.sweep.trackers import Trackers
from rankscope.sweep.trackers import check as check_trackers
from rankscope.sweep.worker import Outcome, TrainPack, Worker
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

    One worker trains in this process; several are processes of their own, and None starts as many
    as this machine trains fastest with. ``ray`` is the address of a Ray cluster ("auto": the one at
    hand) whose nodes see the store; the workers are its, by default one per GPU or core. Any number
    of calls, on any machines that see the store, share the work.

    ``metric`` is a function of your own that chooses rates and checkpoints instead of the tasks'
    metrics, which are reported beside it: of the validation rows' logits (N, C), C = 1 for
    regression, and labels (N,), numpy arrays, to a number; ``greater_is_better`` says which way. It
    is called by its name, in this process, so that there is one worker.

    Raises ``ValueError`` or ``OSError``, one line, before anything is written, when the study can't
    be run as it is. Failed trials are recorded in the store (``rankscope status``), tried again as
    often as the study says (``retry_failed``: and once more from the start), and do not stop the
    others. A trial whose files are not what was committed is said, set aside in the store's
    ``harmed/``, and trained again.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers: expected a number from 1; found {workers}")
    if metric is not None and (workers != 1 or ray is not None):
        raise ValueError("metric: expected workers = 1, since a function stays in its process")
    check_trackers(study.report_to, study.name, store)
    inputs = StudyInputs(
        study, workers=workers, metric=metric, greater_is_better=greater_is_better, quiet=quiet
    )
    with contextlib.suppress(DamagedFile):  # then `create` mends it, or says so
        before_now = begun(store)
        inputs.check_budget(before_now)
        if before_now is not None:
            _check_metric(before_now, inputs.fingerprints.get(METRIC))
    steps = {trial.id: inputs.steps(trial) for trial in inputs.trials}
    opened = Store.create(
        store, inputs.study, largest_rank=inputs.largest_rank, fingerprints=inputs.fingerprints
    )
    for name, drawn in inputs.drawn.items():
        _say(f"{name}: {drawn}")
    for line in opened.recover(thorough=True):
        _say(line)
    if retry_failed:
        opened.log.forget([trial.id for trial in inputs.trials if trial.id not in opened.log.done])
    before = set(opened.done_ids())
    left = [pack for pack in inputs.packs(opened) if not before.issuperset(t.id for t in pack)]
    todo = steps.keys() - before
    if todo:
        costs = {trial.id: inputs.cost(trial) for trial in inputs.trials}
        with bar(
            f"training {len(todo)} of {len(steps)} trials",
            total=sum(steps[id] * costs[id] for id in todo),
            quiet=quiet,
        ) as advance:
            meter = Meter(opened, {id: steps[id] for id in todo}, costs, advance)
            if ray is not None:
                job = worker_job(inputs, opened, elsewhere=True)
                run_on_ray(
                    ray, visit, job, workers=workers, most=len(left), tick=meter.read, say=_say
                )
            elif (count := _workers(inputs, workers, left)) == 1:
                train(inputs, opened, advance=lambda pack, n: advance(n * mean(pack, costs)))
            else:
                job = worker_job(inputs, opened)
                run_processes(worker_command(), job, environments(count), tick=meter.read, say=_say)
    if before != set(opened.done_ids()) or opened.comparison_fault() is not None:
        make_comparison(opened, base_of=inputs.model_path, quiet=quiet)
    return opened


def _check_metric(store: Store, ours: str | None) -> None:
    """One store, one metric."""
    theirs = store.fingerprints.get(METRIC)
    if theirs != ours:
        raise ValueError(
            f"{store}: expected the metric that this store was begun with, "
            f"{theirs or 'each task its own'}; found {ours or 'each task its own'}. Call "
            "rankscope.run(study, store, metric=...) with that function, or name another store"
        )


def _workers(inputs: StudyInputs, asked: int | None, left: Sequence[Sequence[Trial]]) -> int:
    """As many as were asked for; else as many as train fastest here and find room beside what else
    runs. Says so where memory is short."""
    wanted = min(asked or default_workers(), len(left))
    fit, line = workers_with_room(wanted, max(map(inputs.memory, left)))
    if line is None:
        return wanted
    decided = f"{wanted}, as asked" if asked else f"taking {fit}; --workers N decides otherwise"
    _say(f"{line}; {decided}")
    return wanted if asked else fit


def make_comparison(store: Store, *, base_of: Callable[[str], str], quiet: bool = False) -> None:
    """Compares the store's LoRA trials with its full fine-tunes, as it is now."""
    from rankscope.sweep.compare import (
        compare,
        comparisons,
    )  # brings scipy, which workers don't need

    found = comparisons(store)
    count = sum(len(one.trials) for one in found)
    with bar(
        f"comparing {count} trials with full fine-tuning",
        total=count,
        quiet=quiet,
        announce=count > 0,
    ) as advance:
        compare(store, found, base_of=base_of, progress=advance)


def worker_job(inputs: StudyInputs, store: Store, *, elsewhere: bool = False) -> dict[str, Any]:
    """What ``visit`` needs to know, as JSON. ``elsewhere``: it may run on another machine, whose
    data and models may differ and whose memory does."""
    return {
        "store": str(store) if "://" in str(store) else str(Path(str(store)).resolve()),
        "folder": str(inputs.study.folder.resolve()),
        "report_to": inputs.study.report_to,
        "workers": inputs.workers,
        "free": None if elsewhere else inputs.free,
        "elsewhere": elsewhere,
    }


def visit(job: Mapping[str, Any], **settings: Any) -> Outcome:
    """What every worker does, wherever it runs: trains what the store lacks and nobody else trains.

    ``settings`` are further ones of ``train.loop.train_pack``.
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


def _say(line: str) -> None:
    print(f"rankscope: {line}", file=sys.stderr)


def train(
    inputs: StudyInputs,
    store: Store,
    *,
    progress: Callable[[int], None] = lambda steps: None,
    advance: Callable[[Sequence[Trial], int], None] = lambda pack, steps: None,
    **settings: Any,
) -> Outcome:
    """One worker's visit to the store. ``progress`` is told of steps taken, ``advance`` also of
    whose."""

    def both(pack: Sequence[Trial], steps: int) -> None:
        advance(pack, steps)
        progress(steps)

    worker = Worker(
        store,
        inputs.packs(store),
        trainer(inputs, **settings),
        retries=inputs.study.fixed.retries,
        provenance=provenance(),
        progress=both,
        trackers=Trackers(inputs.study.report_to, inputs.study.name, store.path, _say),
    )
    return worker.run()


def trainer(inputs: StudyInputs, **settings: Any) -> TrainPack:
    """What a worker calls for every pack: ``train.loop.train_pack``, with further ``settings`` of
    it."""
    said: set[str] = set()

    def say(line: str) -> None:
        if line not in said:
            said.add(line)
            _say(line)

    def train_pack(
        trials: Sequence[Trial],
        folders: Sequence[TrialDir],
        progress: Callable[[int], None],
        *,
        scratch: Path,
    ) -> None:
        from rankscope.train import loop  # brings PEFT and scikit-learn, which plans don't need

        if (drawn := inputs.drawn.get(trials[0].model)) is not None:
            for folder in folders:
                folder.amend(drawn=drawn)
        slow = inputs.why_slow(trials[0], inputs.device.type)
        if slow == BY_ITS_OWN_FORWARD and len(trials) > 1:  # whether trials are apart is proved
            say(f"{trials[0].model}: {slow}")
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
            device=inputs.device,
            scratch=scratch,
            say=say,
            **settings,
        )

    return train_pack


def provenance() -> dict[str, Any]:
    """Versions and machine, as trial.json keeps them."""
    import peft  # slow to import, and only its version is wanted

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "versions": {
            "rankscope": rankscope.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "machine": {"system": platform.platform(), "threads": torch.get_num_threads(), "gpu": gpu},
    }
