"""Commands that read trained weights: measure, judge."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from rankscope.commands.results import left_out
from rankscope.console import bar, say


def measure_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "sources",
        nargs="+",
        metavar="ADAPTER_OR_CHECKPOINT",
        help="a local path or a hub id; several: side by side in one table",
    )
    add("--base", metavar="MODEL", help="the pretrained model: adds W and W + dW")
    add("--layers", metavar="REGEX", help="only layers whose names match")
    add(
        "--rtol", type=float, default=1e-3, metavar="X", help="relative width of the bounds (0.001)"
    )
    add(
        "--alpha",
        type=float,
        metavar="X",
        help="LoRA's alpha, for loralib files, which do not store it",
    )
    add("--certify", action="store_true", help="prove the upper bounds")
    add(
        "--subfolder",
        metavar="NAME",
        help="which adapter of a folder or repository that holds several",
    )
    add("--revision", metavar="NAME", help="branch, tag or commit of a hub id")
    add(
        "--base-revision",
        metavar="NAME",
        help="branch, tag or commit of the base (the one that the adapter names)",
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object")
    form.add_argument("--csv", action="store_true", help="comma-separated values")
    form.add_argument("--parquet", metavar="FILE", help="write the rows to a Parquet file")
    add(
        "--raw",
        action="store_true",
        help="with --csv: names unescaped, even those that a spreadsheet would run as formulas",
    )
    form.add_argument(
        "--suggest",
        type=int,
        choices=(90, 95, 99),
        help="settings for peft.LoraConfig: per layer the rank that holds this percentage of "
        "||dW||_F^2",
    )


def measure(options: argparse.Namespace) -> int:
    from rankscope.measurement import side_by_side, terminal
    from rankscope.measurement.measure import measure as measuring

    several = len(options.sources) > 1
    if several and options.suggest:
        raise ValueError(f"--suggest: expected one source; found {len(options.sources)}")
    if options.parquet:
        terminal.writable(options.parquet)  # said before the work, not after
    names = ["base", "layers", "rtol", "certify", "alpha", "subfolder", "revision", "base_revision"]
    how = {name: getattr(options, name) for name in names}
    with bar("measuring", total=len(options.sources) if several else None) as advance:
        tables = []
        for source in options.sources:
            tables.append(measuring(source, **how))
            advance(1)
    table = side_by_side.SideBySide(tuple(tables)) if several else tables[0]
    if options.json:
        print(json.dumps(table.to_dict(), indent=1, allow_nan=False))
    elif options.csv:
        print(terminal.as_csv(table, raw=options.raw), end="")
    elif options.parquet:
        terminal.write_parquet(table, options.parquet)
    elif options.suggest:
        print(json.dumps(terminal.settings_of(tables[0], options.suggest / 100), indent=1))
    elif several:
        side_by_side.show(side_by_side.SideBySide(tuple(tables)))
    else:
        terminal.show(tables[0])
    return _unmeasured(table, options.rtol, options.certify)


def _unmeasured(table: Any, rtol: float, certify: bool) -> int:
    """Prints one line if a row has no value, or bounds wider than asked for. -> exit status"""
    broken = [row for row in table.rows if row.frobenius_norm is None]
    if broken:
        say(
            f"{len(broken)} of {len(table.rows)} matrices could not be measured; "
            f"the first is {broken[0].layer}, {broken[0].matrix}: {broken[0].note}"
        )
        return 3
    widths = {
        row: row.upper / row.lower - 1 for row in table.rows if row.lower and row.upper is not None
    }
    missed = [row for row, width in widths.items() if width > 1.01 * rtol]
    if missed:
        first = missed[0]
        say(
            f"{len(missed)} of {len(table.rows)} bounds are wider than rtol = {rtol:g}; "
            f"the first is {first.layer}, {first.matrix}: {widths[first]:.2g}. "
            f"Type {'' if certify else '--certify, which proves them, or '}a larger --rtol"
        )
        return 3
    return 0


def judge_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="adapters or checkpoints, or folders of checkpoint-N, or folders of such runs",
    )
    add(
        "--base", required=True, metavar="MODEL", help="the pretrained model that all of them share"
    )
    add(
        "--against",
        metavar="STORE",
        help="a store, or the folder data beside a report; default: the "
        "study shipped with rankscope, minilm-glue",
    )
    add(
        "--fail-if",
        action="append",
        default=[],
        metavar="CONDITION",
        help="exit with status 4 if this holds for any source, such as 'rho > 1.5' or "
        "'drift < -0.5 or rho > 1'; may be repeated: any of them",
    )
    add("--layers", metavar="REGEX", help="only layers whose names match")
    add(
        "--figure",
        metavar="FILE",
        help="draw drift and rho of each run's checkpoint-N by step into a .svg, .pdf or .png",
    )
    add("--json", action="store_true", help="one JSON object")


def judge(options: argparse.Namespace) -> int:
    from rankscope.measurement.judge import condition, sources
    from rankscope.measurement.judge import judge as judging
    from rankscope.report import standing

    asked = [condition(text) for text in options.fail_if]
    against = standing.shipped() if options.against is None else standing.reference(options.against)
    places = sources(options.sources)
    if options.figure:
        from rankscope.report import trajectory

        trajectory.check_figure(options.figure, places)  # said before the work, not after
    with bar("judging", total=len(places)) as advance:
        found = []
        for place in places:
            found.append(judging(place, base=options.base, layers=options.layers))
            advance(1)
    if options.json:
        print(json.dumps(standing.as_dict(found, options.base, against), indent=1, allow_nan=False))
    else:
        standing.show(found, against)
    if options.figure:
        written = trajectory.write_figure(found, options.figure)
        print(f"figure: {written}", file=sys.stderr if options.json else sys.stdout)
    status = 0 if options.against is None else left_out(options.against, edited=False)
    for one in asked:
        if failed := [judged.source for judged in found if one.holds(judged)]:
            say(f"{one.text} holds for {len(failed)} of {len(found)}: {failed[0]}")
            status = 4
    return status
