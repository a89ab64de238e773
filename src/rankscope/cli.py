"""The command line: parse, call, print. Results go to standard output, progress to standard error.

Exit status: 0 done; 2 the user's mistake, said in one line; 3 finished, but some trial failed or
some bound was not met; 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rankscope import __version__
from rankscope.startup import end_at_once, without_collection
from rankscope.sweep.stop import Stopped, stopping_on_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    if arguments is None:
        end_at_once()
    options = parser().parse_args(arguments)
    try:
        with stopping_on_signals():
            return options.command(options)
    except KeyboardInterrupt as stopped:
        again = (
            f" Type the same command to go on: rankscope {shlex.join(sys.argv[1:])}"
            if arguments is None
            else ""
        )
        status = stopped.status if isinstance(stopped, Stopped) else 130
        return _say(f"stopped; what had finished is kept.{again}", status)
    except BrokenPipeError:  # `rankscope ... | head`
        sys.stderr.close()
        return 0
    except (OSError, ValueError) as error:
        from rankscope.console import message

        return _say(message(error), 2)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}. Type: {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = Parser(
        prog="rankscope",
        description="How complex a fine-tuning update really is: stable ranks of W, dW and W + dW.",
    )
    top.add_argument("--version", action="version", version=f"rankscope {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Any, says: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=says, description=says[0].upper() + says[1:] + ".")
        sub.set_defaults(command=function)
        return sub

    demo = command("demo", _demo, "run the lab study in ./rankscope-demo and write its report")
    demo.add_argument(
        "--store",
        default="rankscope-demo",
        metavar="DIR",
        help="another folder than ./rankscope-demo",
    )

    measure = command(
        "measure", _measure, "measure the stable rank of an adapter or a checkpoint, layer by layer"
    )
    _measure_options(measure)

    plan = command(
        "plan", _plan, "trials, packs, what is done already, FLOPs, memory and time it will take"
    )
    plan.add_argument(
        "study", metavar="STUDY", help='a TOML file, or a built-in study: "lab" or "paper"'
    )
    plan.add_argument(
        "--store", metavar="DIR", help="count what this store has already, at the rate it reached"
    )
    plan.add_argument(
        "--device", metavar="NAME", help="for a GPU that isn't here, such as a100 or h200"
    )
    plan.add_argument("--gpus", type=int, metavar="N", help="how many of them (1)")

    run = command("run", _run, "train what is missing; safe to stop and start again")
    run.add_argument(
        "study", metavar="STUDY", help='a TOML file, or a built-in study: "lab" or "paper"'
    )
    run.add_argument(
        "--store",
        required=True,
        metavar="DIR",
        help="the folder of results; made if it isn't there",
    )
    run.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes on this machine, or workers on the cluster; default: one per GPU, or "
        "one per core",
    )
    run.add_argument(
        "--ray", metavar="ADDRESS", help='workers on a Ray cluster; "auto": the one at hand'
    )
    run.add_argument(
        "--retry-failed",
        action="store_true",
        help="try failed trials again, as if they had not been",
    )

    status = command("status", _status, "done, running, failed and why, time left")
    status.add_argument("store", metavar="DIR")

    check = command(
        "check", _check, "verify every file of a store; with --repair, rebuild what can be rebuilt"
    )
    check.add_argument("store", metavar="DIR")
    check.add_argument(
        "--repair",
        action="store_true",
        help="set damaged trials aside, record whole ones again, rebuild comparison, log and "
        "caches",
    )

    analyze = command(
        "analyze", _analyze, "the conclusions: H1 to H5, each with its numbers and intervals"
    )
    analyze.add_argument("store", metavar="DIR", help="a store, or the folder data beside a report")
    analyze.add_argument("--json", action="store_true", help="one JSON object")

    report = command(
        "report",
        _report,
        "one self-contained page; figures as SVG and PDF, tables as CSV and LaTeX",
    )
    report.add_argument("store", metavar="DIR")
    report.add_argument(
        "-o", dest="output", metavar="report.html", help="default: report.html in DIR"
    )
    return top


def _measure_options(measure: argparse.ArgumentParser) -> None:
    measure.add_argument("source", metavar="ADAPTER_OR_CHECKPOINT", help="a local path or a hub id")
    measure.add_argument("--base", metavar="MODEL", help="the pretrained model: adds W and W + dW")
    measure.add_argument("--layers", metavar="REGEX", help="only layers whose name matches")
    measure.add_argument(
        "--rtol", type=float, default=1e-3, metavar="X", help="relative width of the bounds (0.001)"
    )
    measure.add_argument(
        "--alpha", type=float, metavar="X", help="LoRA's alpha for loralib files, which carry none"
    )
    measure.add_argument("--certify", action="store_true", help="prove the upper bounds")
    measure.add_argument(
        "--subfolder", metavar="NAME", help="one of several adapters in a folder or repository"
    )
    measure.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id")
    measure.add_argument(
        "--base-revision",
        metavar="NAME",
        help="the same of the base (the one that the adapter names)",
    )
    form = measure.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object")
    form.add_argument("--csv", action="store_true", help="comma-separated rows")
    form.add_argument("--parquet", metavar="FILE", help="rows into a Parquet file")
    form.add_argument(
        "--suggest",
        type=int,
        choices=(90, 95, 99),
        help="settings of peft.LoraConfig whose ranks hold that share of each dW's energy, in "
        "per cent",
    )


def _demo(options: argparse.Namespace) -> int:
    from rankscope.study.study_file import Study

    status = _train(Study.load("lab"), options.store)
    _analyze(argparse.Namespace(store=options.store, json=False))
    _report(argparse.Namespace(store=options.store, output=None))
    return status


def _run(options: argparse.Namespace) -> int:
    from rankscope.study.study_file import Study

    study = Study.load(options.study)
    how = {"workers": options.workers, "ray": options.ray, "retry_failed": options.retry_failed}
    status = _train(study, options.store, **how)
    print(f"next: rankscope report {options.store}")
    return status


def _train(study: Any, path: str, **how: Any) -> int:
    with without_collection():
        from rankscope.sweep.run import run
        from rankscope.sweep.status import status
    seen = status(run(study, path, **{"workers": None, **how}))
    print(seen.line())
    return 0 if seen.is_complete else 3


def _measure(options: argparse.Namespace) -> int:
    from rankscope.console import bar
    from rankscope.measurement.measure import measure
    from rankscope.measurement.terminal import as_csv, settings_of, show, writable, write_parquet

    if options.parquet:
        writable(options.parquet)  # said before the work, not after
    with bar("measuring", total=None):
        table = measure(
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
        print(as_csv(table), end="")
    elif options.parquet:
        write_parquet(table, options.parquet)
    elif options.suggest:
        print(json.dumps(settings_of(table, options.suggest / 100), indent=1))
    else:
        show(table)
    broken = [row for row in table.rows if row.frobenius_norm is None]
    if broken:
        return _say(
            f"{len(broken)} of {len(table.rows)} matrices could not be measured; "
            f"the first is that of {broken[0].layer}, {broken[0].matrix}: {broken[0].note}",
            3,
        )
    widths = {
        row: row.upper / row.lower - 1 for row in table.rows if row.lower and row.upper is not None
    }
    missed = [row for row, width in widths.items() if width > 1.01 * options.rtol]
    if missed:
        first = missed[0]
        return _say(
            f"{len(missed)} of {len(table.rows)} bounds are wider than rtol = {options.rtol:g}; "
            f"the first is that of {first.layer}, {first.matrix}: {widths[first]:.2g}",
            3,
        )
    return 0


@without_collection()
def _plan(options: argparse.Namespace) -> int:
    from rankscope.study.study_file import Study
    from rankscope.sweep.inputs import StudyInputs
    from rankscope.sweep.plan import forecast

    if options.gpus is not None and (options.device is None or options.gpus < 1):
        raise ValueError(
            f"--gpus {options.gpus}: expected a number from 1, with --device; plan --device "
            "h200 --gpus 8"
        )
    inputs = StudyInputs(Study.load(options.study), quiet=False)
    print(forecast(inputs, options.store, gpus=options.gpus, device=options.device))
    return 0


@without_collection()
def _status(options: argparse.Namespace) -> int:
    from rankscope.store.store import Store
    from rankscope.sweep.status import status

    seen = status(Store(options.store))
    print(seen.text())
    return 3 if seen.failed or seen.left_out else 0


def _check(options: argparse.Namespace) -> int:
    from rankscope.sweep.check import check

    found = check(options.store, repair=options.repair)
    print(found.text())
    return 0 if found.is_whole else 3


def _analyze(options: argparse.Namespace) -> int:
    from rankscope.console import bar
    from rankscope.report.from_store import analyze, text

    with bar("analysing", total=1) as advance:
        conclusions = analyze(options.store, progress=advance)
    print(
        json.dumps(conclusions.to_dict(), indent=1, allow_nan=False)
        if options.json
        else text(conclusions)
    )
    return _left_out(options.store)


def _report(options: argparse.Namespace) -> int:
    from rankscope.console import bar
    from rankscope.report.from_store import write_report

    with bar("writing the report", total=2) as advance:
        page = write_report(options.store, options.output, progress=advance)[0]
    print(f"report: {Path(page).resolve()}")
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
    return _say(
        "; ".join([*lines, *damaged]) + f". Mend it with: rankscope run STUDY --store {place}", 3
    )


def _say(line: str, status: int) -> int:
    """One line on standard error, without what a terminal would obey: names come from untrusted
    files."""
    text = " ".join(line.split())
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    print(f"rankscope: {shown}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
