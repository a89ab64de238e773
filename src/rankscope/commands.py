"""What each command does: call, print. Results go to standard output, progress to standard error.

Each takes the options that ``cli.parser`` read, and returns the exit status. Imports stand inside
the functions, so that ``rankscope --help`` loads no torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rankscope.startup import without_collection


def demo(options: argparse.Namespace) -> int:
    from rankscope.study.study_file import Study

    status = _train(Study.load("lab"), options.store)
    analyze(argparse.Namespace(store=options.store, json=False))
    report(argparse.Namespace(store=options.store, output=None))
    return status


def run(options: argparse.Namespace) -> int:
    from rankscope.study.study_file import Study

    study = Study.load(options.study)
    how = {"workers": options.workers, "ray": options.ray, "retry_failed": options.retry_failed}
    status = _train(study, options.store, **how)
    if options.report:
        return max(status, report(argparse.Namespace(store=options.store, output=None)))
    print(f"next: rankscope report {options.store}")
    return status


def _train(study: Any, path: str, **how: Any) -> int:
    with without_collection():
        from rankscope.sweep import run as sweep
        from rankscope.sweep import status as overview
    seen = overview.status(sweep.run(study, path, **{"workers": None, **how}))
    print(seen.line())
    return 0 if seen.is_complete else 3


def measure(options: argparse.Namespace) -> int:
    from rankscope.console import bar
    from rankscope.measurement import measure as measuring
    from rankscope.measurement.terminal import as_csv, settings_of, show, writable, write_parquet

    if options.parquet:
        writable(options.parquet)  # said before the work, not after
    with bar("measuring", total=None):
        table = measuring.measure(
            options.source,
            base=options.base,
            layers=options.layers,
            rtol=options.rtol,
            certify=options.certify,
            alpha=options.alpha,
            subfolder=options.subfolder,
            revision=options.revision,
            base_revision=options.base_revision,
        )
    if options.json:
        print(json.dumps(table.to_dict(), indent=1, allow_nan=False))
    elif options.csv:
        print(as_csv(table, raw=options.raw), end="")
    elif options.parquet:
        write_parquet(table, options.parquet)
    elif options.suggest:
        print(json.dumps(settings_of(table, options.suggest / 100), indent=1))
    else:
        show(table)
    return _unmeasured(table, options.rtol)


def _unmeasured(table: Any, rtol: float) -> int:
    """Says in one line what has no value, or bounds wider than asked, if anything."""
    broken = [row for row in table.rows if row.frobenius_norm is None]
    if broken:
        return say(
            f"{len(broken)} of {len(table.rows)} matrices could not be measured; "
            f"the first is that of {broken[0].layer}, {broken[0].matrix}: {broken[0].note}",
            3,
        )
    widths = {
        row: row.upper / row.lower - 1 for row in table.rows if row.lower and row.upper is not None
    }
    missed = [row for row, width in widths.items() if width > 1.01 * rtol]
    if missed:
        first = missed[0]
        return say(
            f"{len(missed)} of {len(table.rows)} bounds are wider than rtol = {rtol:g}; "
            f"the first is that of {first.layer}, {first.matrix}: {widths[first]:.2g}. "
            "Type --certify, which proves them, or a larger --rtol",
            3,
        )
    return 0


def judge(options: argparse.Namespace) -> int:
    from rankscope.console import bar
    from rankscope.measurement.judge import condition, sources
    from rankscope.measurement.judge import judge as judging
    from rankscope.report import standing

    asked = condition(options.fail_if) if options.fail_if is not None else None
    against = standing.shipped() if options.against is None else standing.reference(options.against)
    places = sources(options.sources)
    with bar("judging", total=len(places)) as advance:
        found = []
        for place in places:
            found.append(judging(place, base=options.base, layers=options.layers))
            advance(1)
    if options.json:
        print(json.dumps(standing.as_dict(found, options.base, against), indent=1, allow_nan=False))
    else:
        standing.show(found, against)
    failed = [one.source for one in found if asked is not None and asked.holds(one)]
    if failed:
        return say(f"{options.fail_if} holds for {len(failed)} of {len(found)}: {failed[0]}", 4)
    return 0


def resize(options: argparse.Namespace) -> int:
    from rankscope.console import bar
    from rankscope.measurement.resize import resize as resizing

    with bar("resizing", total=None):
        result = resizing(
            options.source,
            to=options.to,
            **_goal(options),
            subfolder=options.subfolder,
            revision=options.revision,
        )
    return _written(result, options)


def extract(options: argparse.Namespace) -> int:
    from rankscope.console import bar
    from rankscope.measurement.extract import extract as extracting

    with bar("extracting", total=None):
        result = extracting(
            options.source,
            base=options.base,
            to=options.to,
            **_goal(options),
            revision=options.revision,
            base_revision=options.base_revision,
        )
    return _written(result, options)


def _goal(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("energy", "rank", "error", "budget")}


def _written(result: Any, options: argparse.Namespace) -> int:
    from rankscope.measurement.terminal import show_resized

    if options.json:
        print(json.dumps(result.to_dict(), indent=1, allow_nan=False))
    else:
        show_resized(result)
    return 0


@without_collection()
def plan(options: argparse.Namespace) -> int:
    from rankscope.interventions.families import variants
    from rankscope.interventions.settings import Settings
    from rankscope.study.study_file import Study
    from rankscope.sweep.plan import forecast
    from rankscope.sweep.remembered import Remembered
    from rankscope.sweep.sizes import Sizes

    if options.gpus is not None and (options.device is None or options.gpus < 1):
        raise ValueError(
            f"--gpus {options.gpus}: expected a number from 1, with --device; plan --device "
            "h200 --gpus 8"
        )

    def read() -> Sizes:
        from rankscope.sweep.inputs import StudyInputs

        return StudyInputs(study, quiet=False)

    study = Study.load(options.study)
    sizes = Remembered(study, read)
    ways = {"edits": len(variants()), "edited_rows": Settings.rows}
    print(forecast(sizes, options.store, gpus=options.gpus, device=options.device, **ways))
    sizes.keep()
    return 0


@without_collection()
def status(options: argparse.Namespace) -> int:
    from rankscope.store.store import Store
    from rankscope.sweep import status as overview

    seen = overview.status(Store(options.store))
    print(seen.text())
    return 3 if seen.failed or seen.left_out else 0


def check(options: argparse.Namespace) -> int:
    from rankscope.sweep import check as verification

    found = verification.check(options.store, repair=options.repair)
    print(found.text())
    return 0 if found.is_whole else 3


def collect(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from rankscope.collect.collect import Asked, text
    from rankscope.collect.collect import collect as collecting
    from rankscope.console import bar, visible

    asked = Asked(options.base, options.task, options.metric)
    with bar("collecting", total=None) as advance:
        found = collecting(
            options.paths, options.store, asked=asked, mapped=options.map, progress=advance
        )
    if options.json:
        print(json.dumps(asdict(found), indent=1))
    else:
        print("\n".join(map(visible, text(found))))
    if found.left_out:
        path, why = next(iter(found.left_out.items()))
        return say(f"{len(found.left_out)} runs left out; the first: {path}: {why}", 3)
    return 0


def analyze(options: argparse.Namespace) -> int:
    from rankscope.console import bar
    from rankscope.report import from_store

    with bar("analysing", total=1) as advance:
        conclusions = from_store.analyze(options.store, progress=advance)
    print(
        json.dumps(conclusions.to_dict(), indent=1, allow_nan=False)
        if options.json
        else from_store.text(conclusions)
    )
    return _left_out(options.store)


def suggest(options: argparse.Namespace) -> int:
    from rankscope.report import suggested

    found = suggested.suggest(options.store, margin=options.margin, task=options.task)
    if options.json:
        print(json.dumps(suggested.as_dict(found), indent=1, allow_nan=False))
    else:
        suggested.show(found)
    return _left_out(options.store)


def intervene(options: argparse.Namespace) -> int:
    from rankscope.interventions import run as interventions
    from rankscope.interventions.summary import as_json, show
    from rankscope.study.study_file import Study

    table = interventions.intervene(
        options.source,
        base=options.base,
        task=options.task,
        data=options.data,
        study=Study.load(options.study) if options.study else None,
        trials=options.trials,
        families=options.families,
        each_layer=options.each_layer,
        rows=options.rows,
        refit=options.refit,
        layers=options.layers,
        weights=options.weights,
        precision=options.precision,
        forgetting=options.forgetting,
    )
    if options.json:
        print(as_json(table))
    elif len(table):
        show(table)
    skipped = table.attrs.get("skipped")
    if skipped:
        return say(f"{len(skipped)} trials could not be edited", 3)
    return 0 if options.base else _left_out(options.source)


def report(options: argparse.Namespace) -> int:
    from rankscope.console import bar
    from rankscope.report.from_store import write_report

    if not isinstance(options.store, str):
        if len(options.store) > 1:
            return _compare(options)
        (options.store,) = options.store
    with bar("writing the report", total=2) as advance:
        page = write_report(options.store, options.output, progress=advance)[0]
    print(f"report: {Path(page).resolve()}")
    return _left_out(options.store)


def _compare(options: argparse.Namespace) -> int:
    from rankscope.console import bar
    from rankscope.report.comparison import write_comparison

    with bar("comparing", total=len(options.store)) as advance:
        page = write_comparison(
            options.store, options.output or "comparison.html", progress=advance
        )
    print(f"comparison: {Path(page).resolve()}")
    return max(map(_left_out, options.store))


def figures(options: argparse.Namespace) -> int:
    from rankscope.console import bar
    from rankscope.report import paper
    from rankscope.report.from_store import write_figures

    width, kinds = paper.inches(options.width), paper.formats(options.kinds)
    if options.fonts is not None:
        paper.add_fonts(options.fonts)
    if options.font is not None and set(kinds) - {"svg"}:
        paper.check_font(options.font)  # said before the work, not after
    with bar("drawing", total=2) as advance:
        written = write_figures(
            options.store,
            options.output,
            width=width,
            kinds=kinds,
            label=options.width.replace(" ", ""),
            font=options.font,
            names=options.panel,
            progress=advance,
        )
    for path in written:
        print(path)
    return _left_out(options.store)


def _left_out(place: str) -> int:
    """Says in one line which trials of a store its tables do not show, if any."""
    from rankscope.store.store import Store

    try:
        store = Store(place)
    except FileNotFoundError:  # the tables that a report keeps
        return 0
    found = store.inspect().left_out
    lines = [
        f"{len(found)} trial{'s' * (len(found) > 1)} left out; the first: {id}: {why}"
        for id, why in list(found.items())[:1]
    ]
    damaged = [fault for fault in [store.comparison_fault()] if fault and "damaged" in fault]
    if not lines and not damaged:
        return 0
    return say("; ".join([*lines, *damaged]) + f". Mend it with: {store.remedy}", 3)


def say(line: str, status: int) -> int:
    """One line on standard error, without what a terminal would obey: names come from untrusted
    files."""
    from rankscope.console import visible

    print(f"rankscope: {visible(' '.join(line.split()))}", file=sys.stderr)
    return status
