"""The command line: its commands, and how a command ends.

Exit status: 0 done; 2 the user's mistake, said in one line; 3 finished, but some trial failed or
some bound was not met; 4 judged, and what ``--fail-if`` asks holds; 130 stopped by Ctrl-C, 143 by
SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence

from rankscope import __version__, commands, options
from rankscope.parser import SHELLS, Completion, Parser
from rankscope.startup import end_at_once
from rankscope.sweep.stop import Stopped, stopping_on_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    if arguments is None:
        end_at_once()
    try:
        chosen, unknown = parser().parse_known_args(arguments)
        if unknown:
            chosen.parser.refuse(unknown)
        with stopping_on_signals():
            return chosen.command(chosen)
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


def parser() -> Parser:
    """All commands and their options."""
    top = Parser(
        prog="rankscope",
        description="How complex a fine-tuning update really is: stable ranks of W, dW and W + dW.",
        epilog="The first minutes: rankscope demo. The options of a command: rankscope COMMAND "
        "--help.",
    )
    top.add_argument(
        "--version", action="version", version=f"rankscope {__version__}", help="print the version"
    )
    top.add_argument(
        "--print-completion",
        action=Completion,
        choices=SHELLS,
        metavar="SHELL",
        help="print a script by which bash, zsh, tcsh or fish completes commands and options",
    )
    added = top.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for heading, group in COMMANDS.items():
        for command, says, add_options in group:
            description = f"{says[0].upper()}{says[1:]}."
            sub = added.add_parser(command.__name__, help=says, description=description)
            sub.set_defaults(command=command, parser=sub)
            add_options(sub)
        top.groups[heading] = [command.__name__ for command, *_ in group]
    return top


# by group: what it does, what --help says of it, its options
COMMANDS: dict[
    str,
    list[
        tuple[Callable[[argparse.Namespace], int], str, Callable[[argparse.ArgumentParser], None]]
    ],
] = {
    "start": [
        (commands.demo, "run the lab study in ./rankscope-demo and write its report", options.demo),
    ],
    "read": [
        (
            commands.measure,
            "measure the stable rank of an adapter or a checkpoint, layer by layer",
            options.measure,
        ),
        (
            commands.collect,
            "runs of other trainers become a store that analyze, report and intervene read",
            options.collect,
        ),
    ],
    "train": [
        (
            commands.plan,
            "trials, packs, what is done already, FLOPs, memory and time it will take",
            options.plan,
        ),
        (commands.run, "train what is missing; safe to stop and start again", options.run),
        (commands.status, "done, running, failed and why, time left", options.store),
        (
            commands.check,
            "verify every file of a store; with --repair, rebuild what can be rebuilt",
            options.check,
        ),
    ],
    "conclude": [
        (
            commands.analyze,
            "the conclusions: H1 to H6, each with its numbers and intervals",
            options.analyze,
        ),
        (
            commands.suggest,
            "the smallest rank that is not worse than the best by more than a margin, and its rate",
            options.suggest,
        ),
        (
            commands.report,
            "one self-contained page; figures as SVG and PDF, tables as CSV and LaTeX",
            options.report,
        ),
        (
            commands.figures,
            "figures for a paper: a column's width, its font, text of 8 points",
            options.figures,
        ),
    ],
    "judge and change": [
        (
            commands.judge,
            "where finished runs stand: drift, rho and utilisation, beside a study's threshold",
            options.judge,
        ),
        (commands.resize, "a smaller copy of an adapter, with its error proved", options.resize),
        (
            commands.extract,
            "a full fine-tune's change as a LoRA adapter, with its error proved",
            options.extract,
        ),
        (
            commands.intervene,
            "edit trained updates and evaluate them again: is drift cause or marker?",
            options.intervene,
        ),
    ],
}

if __name__ == "__main__":
    sys.exit(main())
