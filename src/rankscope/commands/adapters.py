"""Commands on trained weights: measure, judge, resize, extract."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from rankscope.console import bar, say


def measure_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("source", metavar="ADAPTER_OR_CHECKPOINT", help="a local path or a hub id")
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
    from rankscope.measurement import measure as measuring
    from rankscope.measurement.terminal import as_csv, settings_of, show, writable, write_parquet

    if options.parquet:
        writable(options.parquet)  # fail before the work, not after it
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
            "Type --certify, which proves them, or a larger --rtol"
        )
        return 3
    return 0


def judge_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="adapters or checkpoints, or folders of checkpoint-N",
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
        metavar="CONDITION",
        help="exit with status 4 if this holds for any source, such as 'rho > 1.5' or "
        "'drift < -0.5 or rho > 1'",
    )
    add("--layers", metavar="REGEX", help="only layers whose names match")
    add("--json", action="store_true", help="one JSON object")


def judge(options: argparse.Namespace) -> int:
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
        say(f"{options.fail_if} holds for {len(failed)} of {len(found)}: {failed[0]}")
        return 4
    return 0


def resize_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("source", metavar="ADAPTER", help="a local path or a hub id")
    _smaller(command)
    add(
        "--subfolder",
        metavar="NAME",
        help="which adapter of a folder or repository that holds several",
    )
    add("--revision", metavar="NAME", help="branch, tag or commit of a hub id")


def resize(options: argparse.Namespace) -> int:
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


def extract_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("source", metavar="TUNED", help="a full fine-tune: a local path or a hub id")
    add("--base", required=True, metavar="MODEL", help="the pretrained model that it started from")
    _smaller(command)
    add("--revision", metavar="NAME", help="branch, tag or commit of TUNED")
    add("--base-revision", metavar="NAME", help="branch, tag or commit of the base")


def extract(options: argparse.Namespace) -> int:
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


def _smaller(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--to", required=True, metavar="OUT", help="the folder to write; it must not exist yet")
    goal = command.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "--energy",
        type=float,
        metavar="X",
        help="the smallest rank that holds this share of ||dW||_F^2, layer by layer, such as 0.95",
    )
    goal.add_argument("--rank", type=int, metavar="K", help="at most this rank in each layer")
    goal.add_argument(
        "--error",
        type=float,
        metavar="X",
        help="the smallest rank with ||dW - dW_k||_F / ||dW||_F of at most this, layer by layer",
    )
    goal.add_argument(
        "--budget",
        type=_bytes,
        metavar="BYTES",
        help="the size of the weights file, such as 3000000 or 3MB: one threshold on the "
        "singular values of all layers",
    )
    add("--json", action="store_true", help="print resize.json")


def _bytes(text: str) -> int:
    """3000000, 3MB, 3MiB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"expected bytes, such as 3000000, 3MB or 3MiB; found {text!r:.40}"
        )
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " kMGT".index(found[2] or " "))


def _goal(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("energy", "rank", "error", "budget")}


def _written(result: Any, options: argparse.Namespace) -> int:
    from rankscope.measurement.terminal import show_resized

    if options.json:
        print(json.dumps(result.to_dict(), indent=1, allow_nan=False))
    else:
        show_resized(result)
    return 0
