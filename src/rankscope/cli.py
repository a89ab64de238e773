"""The command line: its commands and options, and how a command ends.

Exit status: 0 done; 2 the user's mistake, said in one line; 3 finished, but some trial failed or
some bound was not met; 4 judged, and what ``--fail-if`` asks holds; 130 stopped by Ctrl-C, 143 by
SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from rankscope import __version__, commands
from rankscope.startup import end_at_once
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
        return commands.say(f"stopped; what had finished is kept.{again}", status)
    except BrokenPipeError:  # `rankscope ... | head`
        sys.stderr.close()
        return 0
    except (OSError, ValueError) as error:
        from rankscope.console import message

        return commands.say(message(error), 2)


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
    added = top.add_subparsers(metavar="COMMAND", required=True)
    for command, says, options in COMMANDS:
        description = f"{says[0].upper()}{says[1:]}."
        sub = added.add_parser(command.__name__, help=says, description=description)
        sub.set_defaults(command=command)
        options(sub)
    return top


def _demo(demo: argparse.ArgumentParser) -> None:
    demo.add_argument(
        "--store",
        default="rankscope-demo",
        metavar="DIR",
        help="another folder than ./rankscope-demo",
    )


def _measure(measure: argparse.ArgumentParser) -> None:
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


def _judge(judge: argparse.ArgumentParser) -> None:
    judge.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="adapters or checkpoints, or folders of checkpoint-N",
    )
    judge.add_argument(
        "--base", required=True, metavar="MODEL", help="the pretrained model of all of them"
    )
    judge.add_argument(
        "--against",
        metavar="STORE",
        help="a store, or the folder data beside a report; default: the study that is shipped, "
        "minilm-glue",
    )
    judge.add_argument(
        "--fail-if",
        metavar="CONDITION",
        help="exit status 4 where it holds for a source, such as 'rho > 1.5' or "
        "'drift < -0.5 or rho > 1'",
    )
    judge.add_argument("--layers", metavar="REGEX", help="only layers whose name matches")
    judge.add_argument("--json", action="store_true", help="one JSON object")


def _resize(resize: argparse.ArgumentParser) -> None:
    resize.add_argument("source", metavar="ADAPTER", help="a local path or a hub id")
    _smaller(resize)
    resize.add_argument(
        "--subfolder", metavar="NAME", help="one of several adapters in a folder or repository"
    )
    resize.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id")


def _extract(extract: argparse.ArgumentParser) -> None:
    extract.add_argument("source", metavar="TUNED", help="a full fine-tune: a path or a hub id")
    extract.add_argument(
        "--base", required=True, metavar="MODEL", help="the model that it was tuned from"
    )
    _smaller(extract)
    extract.add_argument("--revision", metavar="NAME", help="branch, tag or commit of TUNED")
    extract.add_argument("--base-revision", metavar="NAME", help="the same of the base")


def _smaller(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--to", required=True, metavar="OUT", help="the folder to make; never one that exists"
    )
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
        help="the size of the file of tensors, such as 3000000 or 3MB: one threshold on the "
        "singular values of all layers",
    )
    command.add_argument("--json", action="store_true", help="print resize.json")


def _bytes(text: str) -> int:
    """3000000, 3MB, 3MiB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"expected bytes, such as 3000000, 3MB or 3MiB; found {text!r:.40}"
        )
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " kMGT".index(found[2] or " "))


def _study(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "study", metavar="STUDY", help='a TOML file, or a built-in study: "lab" or "paper"'
    )


def _plan(plan: argparse.ArgumentParser) -> None:
    _study(plan)
    plan.add_argument(
        "--store", metavar="DIR", help="count what this store has already, at the rate it reached"
    )
    plan.add_argument(
        "--device", metavar="NAME", help="for a GPU that isn't here, such as a100 or h200"
    )
    plan.add_argument("--gpus", type=int, metavar="N", help="how many of them (1)")


def _run(run: argparse.ArgumentParser) -> None:
    _study(run)
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
    run.add_argument(
        "--report",
        action="store_true",
        help="then write report.html into the store, as report does",
    )


def _store(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", metavar="DIR")


def _check(check: argparse.ArgumentParser) -> None:
    _store(check)
    check.add_argument(
        "--repair",
        action="store_true",
        help="set damaged trials aside, record whole ones again, rebuild comparison, log and "
        "caches",
    )


def _analyze(analyze: argparse.ArgumentParser) -> None:
    analyze.add_argument("store", metavar="DIR", help="a store, or the folder data beside a report")
    analyze.add_argument("--json", action="store_true", help="one JSON object")


def _intervene(intervene: argparse.ArgumentParser) -> None:
    intervene.add_argument(
        "source", metavar="STORE_OR_ADAPTER", help="a store; with --base and --task an adapter or "
        "a full fine-tune: a local path or a hub id",
    )  # fmt: skip
    intervene.add_argument("--base", metavar="MODEL", help="the model that it was trained on")
    intervene.add_argument("--task", metavar="TASK", help="the task that it was trained for")
    intervene.add_argument(
        "--data", default="hub", metavar="DIR", help='the rows of --task: a folder, or "hub" (hub)'
    )
    intervene.add_argument(
        "--study", metavar="STUDY", help="the store's study file, beside which its models and "
        "data lie; default: they lie here",
    )  # fmt: skip
    intervene.add_argument("--trials", nargs="+", metavar="ID", help="only these trials of a store")
    intervene.add_argument(
        "--families", nargs="+", metavar="NAME",
        help="some of scale, cap, restore, top, without_top, flat, random; default: all",
    )  # fmt: skip
    intervene.add_argument("--layers", metavar="REGEX", help="edit only layers whose name matches")
    intervene.add_argument(
        "--each-layer", action="store_true", help="make every edit also on each layer alone"
    )
    intervene.add_argument(
        "--rows", type=int, default=512, metavar="N", help="validation rows (512)"
    )
    intervene.add_argument(
        "--refit", type=int, default=512, metavar="N",
        help="training rows for a refitted head; 0: none (512)",
    )  # fmt: skip
    intervene.add_argument(
        "--weights", choices=("last", "best"), default="last",
        help="which weights of a store's trials are edited (last)",
    )  # fmt: skip
    intervene.add_argument(
        "--precision", choices=("float32", "bfloat16"),
        help="of matrix products; default: the study's, or float32",
    )  # fmt: skip
    intervene.add_argument("--json", action="store_true", help="one JSON object, a row per edit")


def _report(report: argparse.ArgumentParser) -> None:
    _store(report)
    report.add_argument(
        "-o", dest="output", metavar="report.html", help="default: report.html in DIR"
    )


# what it does, what --help says of it, its options
COMMANDS: tuple[
    tuple[Callable[[argparse.Namespace], int], str, Callable[[argparse.ArgumentParser], None]],
    ...,
] = (
    (commands.demo, "run the lab study in ./rankscope-demo and write its report", _demo),
    (
        commands.measure,
        "measure the stable rank of an adapter or a checkpoint, layer by layer",
        _measure,
    ),
    (
        commands.judge,
        "where finished runs stand: drift, rho and utilisation, beside a study's threshold",
        _judge,
    ),
    (commands.resize, "a smaller copy of an adapter, with its error proved", _resize),
    (
        commands.extract,
        "a full fine-tune's change as a LoRA adapter, with its error proved",
        _extract,
    ),
    (
        commands.plan,
        "trials, packs, what is done already, FLOPs, memory and time it will take",
        _plan,
    ),
    (commands.run, "train what is missing; safe to stop and start again", _run),
    (commands.status, "done, running, failed and why, time left", _store),
    (
        commands.check,
        "verify every file of a store; with --repair, rebuild what can be rebuilt",
        _check,
    ),
    (
        commands.intervene,
        "edit trained updates and evaluate them again: is drift cause or marker?",
        _intervene,
    ),
    (
        commands.analyze,
        "the conclusions: H1 to H6, each with its numbers and intervals",
        _analyze,
    ),
    (
        commands.report,
        "one self-contained page; figures as SVG and PDF, tables as CSV and LaTeX",
        _report,
    ),
)


if __name__ == "__main__":
    sys.exit(main())
