"""Turns runs of other trainers into a store, and says what conclusions would still need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankscope.collect.history import History, history, metric_of, number
from rankscope.collect.runs import CHECKPOINT, Run, is_language_model, open_run, place, runs
from rankscope.collect.settings import Said, read_map, said_of
from rankscope.collect.trackers import entries_of, logged_in
from rankscope.store.given import adapter_settings
from rankscope.store.store import Store

TASK = "task"  # of runs whose files name no task
COUNTED = (
    "at no saved step", "evaluations", "without evaluation", "with no task",
    "from an unknown start",
)  # fmt: skip


@dataclass
class Collected:
    """``added``: path -> trial, for runs that are in the store now; ``left_out``: path -> reason;
    ``notes``: path -> what was assumed; ``missing``: what conclusions need and the runs lack."""

    store: str
    added: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """Settings of all runs, unless their map gives others."""

    base: str | None = None
    task: str | None = None
    metric: str | None = None


def collect(
    paths: Sequence[str | Path],
    store: str | Path,
    *,
    asked: Asked = Asked(),
    mapped: str | Path | None = None,
    progress: Callable[[float], None] = lambda runs: None,
) -> Collected:
    """Measures every run at or below ``paths`` and adds it to a collected store, which is created
    if needed. Safe to repeat: trials that are there stay.

    A run that cannot be added is left out with the reason. ``ValueError``, one line, if there is no
    run at or below a path, if the map names a run that is not among them, or if the store was not
    collected.
    """
    by_run = {} if mapped is None else read_map(mapped)
    roots = {run: Path(path) for path in paths for run in runs([path])}
    known = {run.resolve() for run in roots}
    for folder in by_run:
        if folder not in known:
            raise ValueError(
                f"{mapped}: {folder.name}: expected a run below {', '.join(map(str, paths))}; "
                "found none there"
            )
    opened = _open(store)
    found = Collected(str(opened))
    bases: dict[str, str] = {}
    counts = dict.fromkeys(COUNTED, 0)
    later: list[Run] = []
    for folder in roots:  # adapters first: full fine-tunes are measured at the layers of these
        try:
            run = open_run(folder)
        except (ValueError, OSError) as error:
            found.left_out[str(folder)] = " ".join(str(error).split())
            continue
        later.append(run)
    for run in sorted(later, key=lambda run: not run.is_lora):
        own = by_run.get(run.path.resolve(), {})
        try:
            said = said_of(run, own, root=roots[run.path])
            _add(opened, run, said, own, asked, found, bases, counts)
        except (ValueError, OSError) as error:
            found.left_out[str(run.path)] = " ".join(str(error).split())
        progress(1)
    found.missing = _missing(opened, counts, based=bool(bases))
    if bases and opened.comparison_fault() is not None:
        _compare(opened, bases)
    return found


def _open(store: str | Path) -> Store:
    """Opens the store under the name that it has, or creates one, named after its folder."""
    try:
        there = Store(store)
    except FileNotFoundError:
        name = Path(str(store).rstrip("/")).name
        clean = "".join(c if c.isalnum() or c in "._-" else "-" for c in name)[:80]
        return Store.create_empty(store, name=clean or "collected")
    return Store.create_empty(store, name=there.study.name)


def _add(
    store: Store, run: Run, said: Said, mapped: Mapping[str, Any], asked: Asked, found: Collected,
    bases: dict[str, str], counts: dict[str, int],
) -> None:  # fmt: skip
    lines = _history(run, said, mapped)
    place(run, _root_step(run, said, mapped, lines), best_loaded=said.best_loaded or False)
    if not run.weights:
        raise ValueError(
            "expected weights of a known step; found none: "
            + ("; ".join(run.notes) or "no checkpoint was saved")
        )
    settings = _settings(run, said, mapped, asked, counts)
    if settings["method"] == "full":
        settings.setdefault("target_modules", _adapted(store, settings["model"]))
    base = mapped.get("base") or asked.base
    trainer_says = said.trainer.get("metric_for_best_model")
    metric = metric_of(
        lines.frame,
        mapped.get("metric") or asked.metric,
        trainer_says if isinstance(trainer_says, str) else None,
        lines.notes,
    )
    greater = mapped.get("greater_is_better")
    if greater is None and trainer_says in (metric, f"eval_{metric}"):
        greater = said.trainer.get("greater_is_better")
    notes = [*run.notes, *said.notes, *lines.notes]
    start = {name: number(mapped.get(name)) for name in ("constant", "untrained")}
    if is_language_model(run) and start["untrained"] is None:
        start["untrained"] = lines.before.get(metric)
        counts["from an unknown start"] += start["constant"] is start["untrained"] is None
    elif lines.before:
        notes.append("the evaluation before the first step left out: its head is not trained yet")
    id = store.add_trial(
        adapter=run.weights,
        metrics=lines.frame,
        metric=metric,
        base=base,
        greater_is_better=greater if isinstance(greater, bool) else None,
        result={"seconds": lines.seconds, **start},
        about={"versions": {}, "machine": {}, "collected": {"notes": notes}},
        **settings,
    )
    found.added[str(run.path)] = id
    if notes:
        found.notes[str(run.path)] = notes
    if base is not None:
        bases[settings["model"]] = str(base)
    steps = {int(step) for step in lines.frame["step"]}
    counts["evaluations"] += len(steps)
    counts["at no saved step"] += len(steps - run.weights.keys())
    counts["without evaluation"] += not steps


def _history(run: Run, said: Said, mapped: Mapping[str, Any]) -> History:
    """From the file that the map names; else from the trainer's state; else from a tracker's files
    in the folder."""
    loaded = said.best_loaded
    if loaded is None and not run.state.get("best_model_checkpoint"):
        loaded = False
    if "metrics" in mapped:
        return history(entries_of(Path(mapped["metrics"])))
    found = history(run.state.get("log_history", []), best_loaded=loaded)
    if found.frame.empty and (place := logged_in(run.path)) is not None:
        other = history(entries_of(place), best_loaded=loaded)
        if not other.frame.empty:
            other.notes.append(f"evaluations by {place.name}")
            return other
    return found


def _root_step(run: Run, said: Said, mapped: Mapping[str, Any], lines: History) -> int | None:
    """The step of the weights that lie in the output folder itself; None if unknown."""
    if "step" in mapped:
        return int(mapped["step"])
    best = str(run.state.get("best_model_checkpoint") or "")
    if said.best_loaded and (match := CHECKPOINT.fullmatch(Path(best).name)):
        return int(match[1])
    if not run.state and not run.weights and len(lines.frame):
        step = int(lines.frame["step"].max())
        run.notes.append(f"its weights are taken to be those of the last logged step, {step}")
        return step
    return None


def _settings(
    run: Run, said: Said, mapped: Mapping[str, Any], asked: Asked, counts: dict[str, int]
) -> dict[str, Any]:
    settings = dict(said.settings)
    settings.setdefault("method", "lora" if run.is_lora else "full")
    if "task" not in settings:
        counts["with no task"] += asked.task is None
        settings["task"] = asked.task or TASK
    if "seed" not in settings:
        settings["seed"] = 0
        run.notes.append("seed: no file names it; 0 is assumed")
    if "learning_rate" not in settings:
        raise ValueError(
            "learning_rate: expected in a file of the run; found none. Add a column learning_rate "
            "to the table of --map"
        )
    if "model" not in settings:
        settings["model"] = mapped.get("base") or asked.base or _model(run)
    return settings


def _adapted(store: Store, model: str) -> list[str] | None:
    """The layers that the store's adapters of that model adapt: full fine-tunes are measured at the
    same ones."""
    own = (t for t in store.planned() if t.method == "lora" and t.model == model)
    return sorted({name for trial in own for name in trial.target_modules or ()}) or None


def _model(run: Run) -> str:
    """The base, as the adapter's configuration names it."""
    folder = run.weights[max(run.weights)]
    named = adapter_settings(folder / "adapter_config.json").get("model") if run.is_lora else None
    if not named:
        raise ValueError(
            "model: expected the base model's name in a file of the run; found none. Give --base, "
            "or a column base in the table of --map"
        )
    return str(named)


def _missing(store: Store, counts: Mapping[str, int], *, based: bool) -> list[str]:
    """What conclusions need and these trials lack, a line each."""
    trials = store.trials()
    said = []
    if counts["with no task"]:
        said.append(
            f"{counts['with no task']} runs name no task and count as one, {TASK!r}: give --task, "
            "or a column task in the table of --map"
        )
    if not based and len(trials):
        said.append("no base model: only sr(dW) is known, no drift (H2, H3). Give --base")
    if counts["without evaluation"]:
        said.append(f"{counts['without evaluation']} runs logged no evaluation (all but H1)")
    if counts["at no saved step"]:
        said.append(
            f"{counts['at no saved step']} of {counts['evaluations']} evaluations are at steps "
            "whose weights were not saved: they have no drift (H2, H3). Save as often as you "
            "evaluate"
        )
    if counts["from an unknown start"]:
        said.append(
            f"{counts['from an unknown start']} runs of language models do not say their metric "
            "before training: what was gained is not known (H2). Evaluate before the first step "
            "(eval_on_start = True), or give a column untrained"
        )
    for column, what in (
        ("seed", "seed: no spread between repetitions"),
        ("learning_rate", "learning rate: nothing was chosen (H5)"),
    ):
        if trials[column].nunique() == 1:
            said.append(f"one {what}")
    ranks = trials.loc[trials["method"].eq("lora"), "rank"]
    if ranks.nunique() == 1:
        said.append("one rank: no growth with the rank (H1)")
    methods = set(trials["method"])
    if len(methods) == 1:
        other = "full fine-tuning" if methods == {"lora"} else "LoRA run"
        said.append(f"no {other} to compare with (H4)")
    return said


def _compare(store: Store, bases: Mapping[str, str]) -> None:
    """Compares LoRA with full fine-tuning, if the store has both and their bases are known."""
    from rankscope.sweep.run import make_comparison

    def base_of(model: str) -> str:
        if model not in bases:
            raise ValueError(
                f"model {model!r}: expected its weights, for the comparison; found none. Collect "
                "all runs at once, with --base"
            )
        return bases[model]

    make_comparison(store, base_of=base_of)


def text(found: Collected) -> list[str]:
    """What ``rankscope collect`` prints, line by line."""
    lines = [f"{len(found.added)} runs in {found.store}"]
    for path, notes in found.notes.items():
        lines += [f"{path}: {note}" for note in notes]
    lines += [f"left out: {path}: {why}" for path, why in found.left_out.items()]
    lines += [f"missing for a conclusion: {what}" for what in found.missing]
    if found.added:
        lines.append(f"next: rankscope analyze {found.store}")
    return lines
