"""Edits the trained updates of a store, or one adapter, and tabulates the results.

``store.interventions`` keeps the tables of a store.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import rankscope
from rankscope.console import bar, say
from rankscope.interventions.bench import PACK, Bench, inputs_of
from rankscope.interventions.forgetting import Forgetting, digest_of, text_of
from rankscope.interventions.settings import FAMILIES, Settings, Variant, variants
from rankscope.store import interventions
from rankscope.store.header import check_same_inputs
from rankscope.store.recovery import clear_folders
from rankscope.store.store import Store
from rankscope.study.study_file import Study, Trial
from rankscope.sweep.inputs import METRIC, StudyInputs
from rankscope.train.model import sites

TOGETHER = 4  # adapters of one store whose variants share packs
_KEYS = ["family", "level", "draw", "scope"]


def intervene(
    source: str | Path,
    *,
    base: str | None = None,
    task: str | None = None,
    data: str = "hub",
    study: Study | None = None,
    trials: Sequence[str] | None = None,
    families: Collection[str] | None = None,
    each_layer: bool = False,
    rows: int = 512,
    refit: int = 512,
    layers: str | None = None,
    weights: str = "last",
    precision: str | None = None,
    forgetting: str | Path | None = None,
    quiet: bool = False,
) -> pd.DataFrame:
    """Edits trained updates and evaluates them again: one row per edit.

    Args:
        source: a store; or, with ``base`` and ``task``, any adapter or full fine-tune.
        data: the data of that task: "hub", or a folder of <TASK>/{train,validation}.tsv.
        study: the store's, for its relative paths (None: they are relative to this folder); with
            ``base``: that in which ``task`` is a table.
        trials: ids; None: all that have finished.
        families: names in ``FAMILIES``; None: all of them.
        each_layer: also make every edit on each layer alone.
        rows: validation rows, from the first.
        refit: training rows for a refitted head; 0: no such head.
        layers: a regular expression: only layers with matching names are edited.
        weights: which weights of a store's trials are edited, "last" or "best".
        precision: of matrix products, "float32" or "bfloat16"; None: the study's, or float32.
        forgetting: a text file for the language loss; the base needs a head for tokens.

    A store keeps the table (``interventions/``): finished rows are not made again, and several
    processes may share the work; ``attrs["skipped"]`` maps trials that cannot be edited to the
    reason. Columns: docs/formats.md. ``ValueError`` or ``OSError``, one line, for bad input.
    """
    wanted = tuple(FAMILIES) if families is None else tuple(families)
    variants(wanted)  # fail before the work, not after it
    text = None if forgetting is None else text_of(forgetting)
    settings = Settings(
        rows, refit, layers, weights, precision or "float32", text and digest_of(text)
    )
    if (base is None) != (task is None):
        raise ValueError("an adapter needs both --base MODEL and --task TASK; a store neither")
    if base is not None and task is not None:
        inputs = inputs_of(base, task, data, study)
        return _adapter(str(source), inputs, wanted, each_layer, settings, text, _reporter(quiet))
    plan = plan_of(_opened(source), study, trials, wanted, each_layer, settings)
    plan = replace(plan, text=text)
    if precision is None:
        own = plan.trials[0].precision_on(plan.inputs.device.type)
        plan = replace(plan, settings=replace(settings, precision=own))
    return _edit_store(plan, quiet)


def _opened(source: str | Path) -> Store:
    try:
        return Store(source)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{source}: expected a store (a folder with store.json), or an adapter with "
            "--base MODEL --task TASK; found neither"
        ) from None


def _adapter(
    source: str, inputs: StudyInputs, families: Sequence[str], each_layer: bool,
    settings: Settings, text: str | None, say: Callable[[str], None],
) -> pd.DataFrame:  # fmt: skip
    bench = _bench(inputs, inputs.trials[0], settings, text, say, measured=False)
    trained = bench.open(source)
    with bar("intervening", total=None) as advance:
        (table,) = bench.tables(
            [(trained, _variants(bench, trained, families, each_layer))], progress=advance
        )
    return table


@dataclass(frozen=True)
class Plan:
    """The edits to make of a store's trials."""

    store: Store
    inputs: StudyInputs
    trials: Sequence[Trial]
    families: Sequence[str]
    each_layer: bool
    settings: Settings
    text: str | None = None  # for the language loss

    @property
    def key(self) -> str:
        return self.settings.key


def plan_of(
    store: Store, study: Study | None, trials: Sequence[str] | None, families: Sequence[str],
    each_layer: bool, settings: Settings,
) -> Plan:  # fmt: skip
    """Reads everything, writes nothing."""
    done = store.done_ids()
    if not done:
        raise ValueError(f"{store}: expected finished trials; found none. rankscope status {store}")
    for id in trials or ():
        if id not in done:
            raise ValueError(
                f"trials: expected ids of finished trials, such as {done[0]}; found {id!r}"
            )
    own = store.study if study is None else study
    inputs = StudyInputs(own.model_copy(update={"fixed": store.study.fixed}))
    if METRIC in store.fingerprints:
        raise ValueError(
            f"intervene: expected a metric of rankscope's own; found {store.fingerprints[METRIC]}"
        )
    known = {t.id: t for t in store.planned()}
    chosen = [known[id] for id in (trials or done) if id in known]
    check_same_inputs(str(store), store.fingerprints, inputs.fingerprints)
    return Plan(store, inputs, chosen, families, each_layer, settings)


def _edit_store(plan: Plan, quiet: bool) -> pd.DataFrame:
    """Makes the missing tables, group by group, except those that other processes hold."""
    skipped: dict[str, str] = {}
    per_trial = len(variants(plan.families))
    reporter = _reporter(quiet)
    for line in clear_folders(plan.store.storage):
        reporter(line)
    with bar("intervening", total=per_trial * len(plan.trials), quiet=quiet) as advance:
        bench: Bench | None = None
        of: tuple[str, str] | None = None
        for group in _groups(plan):
            missing = [t for t in group if not _is_whole(plan, t)]
            advance(per_trial * (len(group) - len(missing)))
            if not missing:
                continue
            if bench is None or of != (group[0].model, group[0].task):
                of = (group[0].model, group[0].task)
                bench = _bench(plan.inputs, group[0], plan.settings, plan.text, reporter)
            _edit_group(plan, bench, missing, advance, skipped)
    table = collected(plan)
    table.attrs["skipped"] = skipped
    return table


def _groups(plan: Plan) -> Iterator[list[Trial]]:
    """Trials whose variants share packs: adapters of one model and task, or one full fine-tune."""
    order = {id(t): i for i, t in enumerate(plan.trials)}
    kinds: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in sorted(plan.trials, key=lambda t: (t.model, t.task, order[id(t)])):
        kinds.setdefault((trial.model, trial.task, trial.method), []).append(trial)
    for (_, _, method), members in kinds.items():
        size = 1 if method == "full" else TOGETHER
        yield from (members[i : i + size] for i in range(0, len(members), size))


def _edit_group(
    plan: Plan, bench: Bench, group: Sequence[Trial], advance: Callable[[float], None],
    skipped: dict[str, str],
) -> None:  # fmt: skip
    with contextlib.ExitStack() as stack:
        mine = [
            trial
            for trial in group
            if stack.enter_context(interventions.claimed(plan.store, plan.key, trial.id))
        ]
        work, before, edited = [], [], []
        for trial in mine:
            try:
                folder = plan.store.folder(trial.id, weights=True).path / plan.settings.weights
                trained = bench.open(folder, trial.id)
            except ValueError as error:  # the others can still be edited
                skipped[trial.id] = str(error)
                bench.say(f"left out: {error}")
                continue
            edited.append(trial)
            kept = interventions.read(plan.store, plan.key, trial.id)
            had = _had(kept[0]) if kept else set()
            wanted = _variants(bench, trained, plan.families, plan.each_layer)
            work.append((trained, [v for v in wanted if v not in had]))
            before.append(kept[0] if kept else pd.DataFrame())
        tables = bench.tables(work, progress=advance)
        for trial, old, new in zip(edited, before, tables, strict=True):
            if len(new):
                table = pd.concat([old, new], ignore_index=True) if len(old) else new
                about = _about(plan, bench, table)
                interventions.write(plan.store, plan.key, trial.id, table, about)


def _is_whole(plan: Plan, trial: Trial) -> bool:
    """Whether nothing is missing. The possible edits depend on a trial's rank, so whole families
    are compared."""
    kept = interventions.read(plan.store, plan.key, trial.id)
    if kept is None or (plan.each_layer and kept[0]["scope"].eq("all").all()):
        return False
    return set(plan.families) <= set(kept[1]["families"])


def _had(table: pd.DataFrame) -> set[Variant]:
    return {Variant(*line) for line in table[_KEYS].itertuples(index=False)}


def _variants(
    bench: Bench, trained: Any, families: Sequence[str], each_layer: bool
) -> list[Variant]:
    return variants(families, layers=bench.chosen(trained) if each_layer else ())


def _about(plan: Plan, bench: Bench, table: pd.DataFrame) -> dict[str, Any]:
    return {
        "settings": asdict(plan.settings),
        "families": sorted({*plan.families, *table["family"]}),
        "labels": bench.labels.tolist(),
        "rankscope": rankscope.__version__,
        "torch": torch.__version__,
    }


def _bench(
    inputs: StudyInputs, trial: Trial, settings: Settings, text: str | None,
    say: Callable[[str], None],
    *, measured: bool = True,
) -> Bench:  # fmt: skip
    train, validation = inputs.encoded(trial)
    task = inputs.tasks[trial.task]
    bench = Bench(
        inputs.model_path(trial.model), task, train, validation, settings,
        device=inputs.device, K=PACK, say=say,
    )  # fmt: skip
    if text is not None:
        bench.forgetting = Forgetting(
            bench.path, text, device=inputs.device, mixed=settings.precision == "bfloat16"
        )
    if measured:
        bench.measured = set(sites(bench.model, trial.target_modules))
    return bench


def collected(plan: Plan) -> pd.DataFrame:
    """A store's tables under these settings, with each trial's configuration."""
    tables = []
    for trial in plan.trials:
        kept = interventions.read(plan.store, plan.key, trial.id)
        if kept is not None:
            where = {name: getattr(trial, name) for name in LABELS}
            tables.append(kept[0].assign(trial=trial.id, **where))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


LABELS = ("model", "task", "method", "rank", "scaling", "learning_rate", "setting", "seed")


def _reporter(quiet: bool) -> Callable[[str], None]:
    """Prints each line once, on standard error."""
    return functools.cache((lambda line: None) if quiet else say)
