"""The command line: its commands, and how a command ends.

Exit status: 0 done; 2 the user's mistake, explained in one line; 3 finished, but some trial failed
or some bound was not met; 4 the condition of ``judge --fail-if`` holds; 130 stopped by Ctrl-C, 143
by SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence

from rankscope import __version__
from rankscope.commands import adapters, results, smaller, studies
from rankscope.commands import suggest as suggesting
from rankscope.console import message, say
from rankscope.parser import SHELLS, Completion, Parser
from rankscope.startup import end_at_once, with_large_pages
from rankscope.sweep.installed import changed_code
from rankscope.sweep.stop import Stopped, stopping_on_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    if arguments is None:
        end_at_once()
    with_large_pages()
    try:
        typed = sys.argv[1:] if arguments is None else arguments
        chosen, unknown = parser(*typed[:1]).parse_known_args(arguments)
        if unknown:
            chosen.parser.refuse(unknown)
        with stopping_on_signals():
            return chosen.command(chosen)
    except KeyboardInterrupt as stopped:
        again = (
            f" To continue, type the same command: rankscope {shlex.join(sys.argv[1:])}"
            if arguments is None
            else ""
        )
        status = stopped.status if isinstance(stopped, Stopped) else 130
        say(f"stopped; what had finished is kept.{again}")
        return status
    except BrokenPipeError:  # `rankscope ... | head`
        sys.stderr.close()
        return 0
    except (OSError, ValueError) as error:
        say(message(error))
        return 2
    except Exception as error:
        if (line := changed_code(error)) is None:
            raise
        say(line)
        return 2


def parser(only: str = "") -> Parser:
    """All commands, with the options of the command ``only``; of all, if that is none of them."""
    top = Parser(
        prog="rankscope",
        description="How complex is a fine-tuning update? Stable ranks of W, dW and W + dW.",
        epilog="Start with: rankscope demo. The options of a command: rankscope COMMAND --help.",
    )
    top.add_argument(
        "--version", action="version", version=f"rankscope {__version__}", help="print the version"
    )
    top.add_argument(
        "--print-completion",
        action=Completion,
        choices=SHELLS,
        metavar="SHELL",
        help="print a completion script for bash, zsh, tcsh or fish",
    )
    added = top.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    names = {command.__name__ for group in COMMANDS.values() for command, *_ in group}
    for heading, group in COMMANDS.items():
        for command, says, add_options in group:
            description = f"{says[0].upper()}{says[1:]}."
            sub = added.add_parser(command.__name__, help=says, description=description)
            sub.set_defaults(command=command, parser=sub)
            if only not in names or only == command.__name__:
                add_options(sub)
        top.groups[heading] = [command.__name__ for command, *_ in group]
    return top


# group -> the command, its line in --help, its options
COMMANDS: dict[
    str,
    list[
        tuple[Callable[[argparse.Namespace], int], str, Callable[[argparse.ArgumentParser], None]]
    ],
] = {
    "start": [
        (
            studies.demo,
            "run the lab study in ./rankscope-demo and write its report",
            studies.demo_options,
        ),
    ],
    "read": [
        (
            adapters.measure,
            "measure the stable rank of an adapter or a checkpoint, layer by layer",
            adapters.measure_options,
        ),
        (
            studies.collect,
            "turn runs of other trainers into a store for analyze, report and intervene",
            studies.collect_options,
        ),
    ],
    "train": [
        (
            studies.plan,
            "show a study's trials, packs, finished part, FLOPs, memory and time",
            studies.plan_options,
        ),
        (studies.run, "train what is missing; safe to stop and start again", studies.run_options),
        (
            studies.status,
            "show what is done, running or failed and why, and the time left",
            studies.store_options,
        ),
        (
            studies.check,
            "verify every file of a store; with --repair, rebuild what can be rebuilt",
            studies.check_options,
        ),
    ],
    "conclude": [
        (
            results.analyze,
            "print the conclusions, H1 to H6, each with its numbers and intervals",
            results.analyze_options,
        ),
        (
            suggesting.suggest,
            "suggest the smallest rank within a margin of the best, and its learning rate",
            suggesting.suggest_options,
        ),
        (
            results.report,
            "write one self-contained page; figures as SVG and PDF, tables as CSV and LaTeX",
            results.report_options,
        ),
        (
            results.figures,
            "draw figures for a paper: its column width, its font, text of 8 points",
            results.figures_options,
        ),
    ],
    "judge and change": [
        (
            adapters.judge,
            "compare finished runs with a study's threshold: drift, rho and utilisation",
            adapters.judge_options,
        ),
        (
            smaller.resize,
            "write a smaller copy of an adapter, with a proved bound on its error",
            smaller.resize_options,
        ),
        (
            smaller.extract,
            "write a full fine-tune's update as a LoRA adapter, with a proved bound on its error",
            smaller.extract_options,
        ),
        (
            results.intervene,
            "edit trained updates and evaluate them again: is drift the cause or a marker?",
            results.intervene_options,
        ),
    ],
}

if __name__ == "__main__":
    sys.exit(main())
