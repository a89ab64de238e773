"""The command line: parse, call, print. Results go to standard output, progress to standard error.

Exit status: 0 done; 2 the user's mistake, said in one line; 3 finished, but some trial failed or some bound was not met;
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rankscope import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    if arguments is None:
        atexit.register(gc.freeze)  # else Python looks through all modules once more before it ends: a second
    options = parser().parse_args(arguments)
    try:
        return options.command(options)
    except KeyboardInterrupt:
        again = (
            f" Type the same command to go on: rankscope {' '.join(sys.argv[1:])}"
            if arguments is None
            else ""
        )
        return _say(f"stopped; what had finished is kept.{again}", 130)
    except BrokenPipeError:  # `rankscope ... | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        plain = error.strerror is None or error.filename is None
        return _say(str(error) if plain else f"{error.filename}: {error.strerror}", 2)
    except ValueError as error:
        return _say(str(error), 2)


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
        "--store", default="rankscope-demo", metavar="DIR", help="another folder than ./rankscope-demo"
    )

    measure = command(
        "measure", _measure, "measure the stable rank of an adapter or a checkpoint, layer by layer"
    )
    _measure_options(measure)

    plan = command("plan", _plan, "trials, packs, what is done already, FLOPs, memory and time it will take")
    plan.add_argument("study", metavar="STUDY", help='a TOML file, or a built-in study: "lab" or "paper"')
    plan.add_argument(
        "--store", metavar="DIR", help="count what this store has already, at the rate it reached"
    )
    plan.add_argument("--device", metavar="NAME", help="for a GPU that isn't here, such as a100 or h200")
    plan.add_argument("--gpus", type=int, metavar="N", help="how many of them (1)")

    run = command("run", _run, "train what is missing; safe to stop and start again")
    run.add_argument("study", metavar="STUDY", help='a TOML file, or a built-in study: "lab" or "paper"')
    run.add_argument(
        "--store", required=True, metavar="DIR", help="the folder of results; made if it isn't there"
    )
    run.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes on this machine, or workers on the cluster; default: one per GPU, or one per core",
    )
    run.add_argument("--ray", metavar="ADDRESS", help='workers on a Ray cluster; "auto": the one at hand')
    run.add_argument(
        "--retry-failed", action="store_true", help="try failed trials again, as if they had not been"
    )

    status = command("status", _status, "done, running, failed and why, time left")
    status.add_argument("store", metavar="DIR")

    analyze = command("analyze", _analyze, "the conclusions: H1 to H4, each with its numbers and intervals")
    analyze.add_argument("store", metavar="DIR", help="a store, or the folder data beside a report")
    analyze.add_argument("--json", action="store_true", help="one JSON object")

    report = command(
        "report", _report, "one self-contained page; figures as SVG and PDF, tables as CSV and LaTeX"
    )
    report.add_argument("store", metavar="DIR")
    report.add_argument("-o", dest="output", metavar="report.html", help="default: report.html in DIR")
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
        "--base-revision", metavar="NAME", help="the same of the base (the one that the adapter names)"
    )
    form = measure.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object")
    form.add_argument("--csv", action="store_true", help="comma-separated rows")
    form.add_argument("--parquet", metavar="FILE", help="rows into a Parquet file")
    form.add_argument(
        "--suggest",
        type=int,
        choices=(90, 95, 99),
        help="settings of peft.LoraConfig whose ranks hold that share of each dW's energy, in per cent",
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


def _train(study: Any, path: str, *, workers: int | None = None, **how: Any) -> int:
    from rankscope.sweep.processes import prestarted, worker_command

    count = 0 if how.get("ray") else len(os.sched_getaffinity(0)) if workers is None else workers
    with prestarted(worker_command(), count if count > 1 else 0) as ready:
        with _keeping_all():
            from rankscope.sweep.run import run
            from rankscope.sweep.status import status
        seen = status(run(study, path, workers=workers, prestarted=ready, **how))
    print(seen.line())
    return 3 if seen.failed else 0


def _measure(options: argparse.Namespace) -> int:
    from rankscope.console import bar
    from rankscope.measurement.measure import measure
    from rankscope.measurement.terminal import show, writable, write_parquet

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
        print(table.to_pandas().to_csv(index=False), end="")
    elif options.parquet:
        write_parquet(table, options.parquet)
    elif options.suggest:
        print(json.dumps(table.peft_settings(options.suggest / 100), indent=1))
    else:
        show(table)
    widths = {row: row.upper / row.lower - 1 for row in table.rows if row.lower and row.upper is not None}
    missed = [row for row, width in widths.items() if width > 1.01 * options.rtol]
    if missed:
        first = missed[0]
        return _say(
            f"{len(missed)} of {len(table.rows)} bounds are wider than rtol = {options.rtol:g}; "
            f"the first is that of {first.layer}, {first.matrix}: {widths[first]:.2g}",
            3,
        )
    return 0


@contextlib.contextmanager
def _keeping_all() -> Iterator[None]:
    """Without garbage collection: in what builds much and drops nothing it takes a third of the time, imports included."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_keeping_all()
def _plan(options: argparse.Namespace) -> int:
    from rankscope.study.study_file import Study
    from rankscope.sweep.inputs import StudyInputs
    from rankscope.sweep.plan import forecast

    if options.gpus is not None and (options.device is None or options.gpus < 1):
        raise ValueError(
            f"--gpus {options.gpus}: expected a number from 1, with --device; plan --device h200 --gpus 8"
        )
    inputs = StudyInputs(Study.load(options.study), quiet=False)
    print(forecast(inputs, options.store, gpus=options.gpus, device=options.device))
    return 0


@_keeping_all()
def _status(options: argparse.Namespace) -> int:
    from rankscope.store.store import Store
    from rankscope.sweep.status import status

    seen = status(Store(options.store))
    print(seen.text())
    return 3 if seen.failed else 0


def _analyze(options: argparse.Namespace) -> int:
    from rankscope.console import bar
    from rankscope.report.from_store import analyze, text

    with bar("analysing", total=1) as advance:
        conclusions = analyze(options.store, progress=advance)
    print(json.dumps(conclusions.to_dict(), indent=1, allow_nan=False) if options.json else text(conclusions))
    return 0


def _report(options: argparse.Namespace) -> int:
    from rankscope.console import bar
    from rankscope.report.from_store import write_report

    with bar("writing the report", total=2) as advance:
        page = write_report(options.store, options.output, progress=advance)[0]
    print(f"report: {Path(page).resolve()}")
    return 0


def _say(line: str, status: int) -> int:
    """One line on standard error, without what a terminal would obey: names come from untrusted files."""
    text = " ".join(line.split())
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    print(f"rankscope: {shown}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
