"""The command line: its commands, their errors of one line, and how a command ends.

Exit status: 0 done; 2 the user's mistake, explained in one line; 3 finished, but some trial failed
or some bound was not met; 4 the condition of ``judge --fail-if`` holds; 130 stopped by Ctrl-C, 143
by SIGTERM, 129 by SIGHUP."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from rankscope import __version__
from rankscope.commands import adapters, results, smaller, studies
from rankscope.commands import suggest as suggesting
from rankscope.console import message, say
from rankscope.process import Stopped, end_at_once, stopping_on_signals, with_large_pages
from rankscope.sweep.installed import changed_code


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
    """All commands, with the options of the command ``only``; of all, if it names no command."""
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
            "edit trained updates and evaluate them again, to tell cause from marker",
            results.intervene_options,
        ),
    ],
}


SHELLS = ("bash", "zsh", "tcsh", "fish")
# metavars that a shell completes with file names
PATHS = {
    "ADAPTER", "ADAPTER_OR_CHECKPOINT", "DIR", "FILE", "FILE.csv", "FOLDER", "MODEL", "OUT",
    "PATH", "SOURCE", "STORE", "STORE_OR_ADAPTER", "STUDY", "TUNED", "report.html",
}  # fmt: skip
_CHOICE = re.compile(r"argument (.+?): invalid choice: (.*) \(choose from (.*)\)", re.S)


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, without the usage. ``groups`` (heading -> commands), if any,
    order the commands in ``--help``."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.register("action", None, Once)
        self.groups: dict[str, list[str]] = {}

    def error(self, message: str) -> NoReturn:
        if wrong := _CHOICE.fullmatch(message):
            place, typed, listed = (part.replace("'", "") for part in wrong.groups())
            choices = listed.split(", ")
            message = (
                f"{place}: expected one of {', '.join(choices)}; found {typed!r:.60}"
                f"{_near(typed, choices)}"
            )
        message = re.sub(r"invalid int value: (.*)", r"expected a whole number; found \1", message)
        message = re.sub(r"invalid float value: (.*)", r"expected a number; found \1", message)
        message = re.sub(
            "the following arguments are required: (.*)", r"expected \1; found none", message
        )
        said = " ".join(message.split())
        end = "" if said.endswith("?") else "."
        self.exit(2, f"{self.prog}: {said}{end} Type: {self.prog} --help\n")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Refuses arguments that no option takes."""
        found = unknown[0].split("=")[0]
        known = [name for action in self._actions for name in action.option_strings]
        wanted = "a known option" if found.startswith("-") else "nothing more"
        self.error(f"expected {wanted}; found {found!r:.60}{_near(found, known)}")

    def format_help(self) -> str:
        if not self.groups:
            return super().format_help()
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        (commands,) = (a for a in self._actions if isinstance(a, argparse._SubParsersAction))
        listed = {action.dest: action for action in commands._get_subactions()}
        sections = {name: [listed[c] for c in group] for name, group in self.groups.items()}
        sections["options"] = [action for action in self._actions if action is not commands]
        for heading, actions in sections.items():
            formatter.start_section(heading)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


class Once(argparse._StoreAction):
    """Stores a value. An option that is typed twice is a mistake: argparse would take the last."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        typed = vars(namespace).setdefault("typed", {})
        if option is not None and self.dest in typed:
            raise argparse.ArgumentError(
                self, f"expected once; found {typed[self.dest]!r:.80} and {values!r:.80}"
            )
        typed[self.dest] = values
        super().__call__(parser, namespace, values, option)


class Completion(argparse.Action):
    """Prints a script that completes commands, options and file names."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: Any = None
    ) -> NoReturn:
        try:
            import shtab
        except ImportError:
            parser.exit(
                2,
                f"{parser.prog}: {option}: expected the package shtab, which writes the script; "
                "found none. Type: pip install shtab\n",
            )
        for action in all_actions(parser):
            if action.metavar in PATHS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, shell=values))
        parser.exit(0)


def all_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from all_actions(sub)


def _near(typed: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(typed, known, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


if __name__ == "__main__":
    sys.exit(main())
