"""argparse with errors in one line, commands in groups, and shell completion."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

SHELLS = ("bash", "zsh", "tcsh", "fish")
# metavars that a shell completes with file names
PATHS = {
    "ADAPTER",
    "ADAPTER_OR_CHECKPOINT",
    "DIR",
    "FILE",
    "FILE.csv",
    "FOLDER",
    "MODEL",
    "OUT",
    "PATH",
    "SOURCE",
    "STORE",
    "STORE_OR_ADAPTER",
    "STUDY",
    "TUNED",
    "report.html",
}
_CHOICE = re.compile(r"argument (.+?): invalid choice: (.*) \(choose from (.*)\)", re.S)


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, without the usage. ``groups`` (heading -> commands), if any,
    order the commands in ``--help``."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.groups: dict[str, list[str]] = {}

    def error(self, message: str) -> NoReturn:
        if wrong := _CHOICE.fullmatch(message):
            place, typed, listed = (part.replace("'", "") for part in wrong.groups())
            choices = listed.split(", ")
            message = (
                f"{place}: expected one of {', '.join(choices)}; found {typed!r:.60}"
                f"{_near(typed, choices)}"
            )
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
